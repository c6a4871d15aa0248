"""Chat templates that come with a model and mean no good: escapes, loops without end, bombs of memory and output."""

from __future__ import annotations

import json
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.making import Make

FINE = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
READ = ["user: q</s>assistant: a</s>"]


def folder_with(template: str) -> Make:
    """A tokenizer's folder, as somebody might have put it on the hub."""

    def make(folder: Path) -> None:
        from tests.tokens.chats import tokenizer

        it = tokenizer()
        it.save(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))

    return make


def encode(folder: Path) -> list[str]:
    """The text of a conversation under the template of a folder. ValueError."""
    from lmloop.data.document import Message
    from lmloop.tokens.pretrained import read_folder
    from lmloop.tokens.template import chat_template

    tokenizer = read_folder(folder)
    template = chat_template("model", tokenizer)
    try:
        said = ("q", "a secret </s>")
        results = template.encode([[Message("user", text), Message("assistant", "a")] for text in said])
        texts = []
        for result in results:
            if isinstance(result, ValueError):
                raise result
            texts.append(tokenizer.backend.decode(result.tokens_N.tolist(), skip_special_tokens=False))
        return texts[:1]
    finally:
        template.close()


def case(name: str, template: str, stops: str, good: list[str] | None = None) -> Case:
    """A template that is refused with these words; it may come with one that would be fine."""
    return Case(name, folder_with(template), {}, good or [], stops=stops, read=encode)


def escape(name: str, expression: str) -> Case:
    """What a template could reach the interpreter by; the sandbox has to see it, whatever would come of it."""
    return case(f"escape: {name}", "{{ " + expression + " }}" + FINE, "the template fails: SecurityError: ")


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

CASES = [
    case("nothing wrong", FINE, "", READ),
    escape("class of a text", "''.__class__.__mro__[1].__subclasses__()"),
    escape("class of the messages", "messages.__class__.__base__"),
    escape("globals of a function", "raise_exception.__globals__['__builtins__']"),
    escape("globals of a method", "namespace.__init__.__globals__"),
    escape("code of a function", "raise_exception.__code__.co_consts"),
    escape("attribute by a filter", "('' | attr('__class__')).__mro__"),
    escape("attribute by concatenation", "''['__cl' ~ 'ass__'].__mro__"),
    escape("format string", "'{0.__class__.__mro__}'.format(messages)"),
    escape("format string by map", "'{m.__init__.__globals__}'.format_map({'m': raise_exception})"),
    escape("the template itself", "self._TemplateReference__context.environment"),
    escape("namespace with an underscore", "namespace(__class__=1)"),
    escape("method that changes a list", "messages.append(1)"),
    escape("method that changes an object", "messages[0].update(content='x')"),
    case("escape: lorem ipsum's globals", "{{ lipsum.__globals__ }}" + FINE, "UndefinedError: 'lipsum' is undefined"),
    case("escape: import", "{% import 'os' as os %}" + FINE, "no loader for this environment"),
    case("escape: include", "{% include '/etc/passwd' %}" + FINE, "no loader for this environment"),
    case("escape: extends", "{% extends '../secret' %}" + FINE, "no loader for this environment"),
    case("undefined name", "{{ secrets.token }}" + FINE, "UndefinedError: 'secrets' is undefined"),
    case("loop in a loop", ENDLESS + FINE, "the template breaks a limit: it takes longer than 2 s"),
    case("loop in a loop in a macro", "{% macro f() %}" + ENDLESS + "{% endmacro %}{{ f() }}" + FINE, "breaks a limit"),
    case("range of 10^18", "{% for a in range(10 ** 18) %}{% endfor %}" + FINE, "Range too big"),
    case("power that fills the memory", "{% set n = 10 ** 10 %}{{ 10 ** n }}" + FINE, "the template breaks a limit"),
    case("power while compiling", "{% set x = 7 ** (9 ** 9) %}" + FINE, "the template breaks a limit"),
    case(
        "text times 10^10",
        "{% set n = 10 ** 10 %}{{ ('ab' * n) | length }}" + FINE,
        "breaks a limit: it needs more than 512 MB",
    ),
    case("text times 10^10 while compiling", "{{ 'ab' * 10000000000 }}" + FINE, "breaks a limit: it needs more than 512 MB"),
    case(
        "doubling",
        "{% set ns = namespace(x='aa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}" + FINE,
        "breaks a limit: it needs more than 512 MB",
    ),
    case(
        "list of lists",
        "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}" + FINE,
        "breaks a limit: it needs more than 512 MB",
    ),
    case("width of a filter", "{{ 'a' | center(10000000000) }}" + FINE, "breaks a limit: it needs more than 512 MB"),
    case("width of a format", "{{ '%10000000000d' % 1 }}" + FINE, "the template"),
    case(
        "output without end",
        "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}" + FINE,
        "the template writes more than 10",
    ),
    case("macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + FINE, "RecursionError"),
    case("recursive loop", "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}" + FINE, "RecursionError"),
    case("brackets to any depth", "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}" + FINE, "the template"),
    case("additions without end", "{{ 1" + "+1" * 100_000 + " }}" + FINE, "the template"),
    case("blocks to any depth", "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000 + FINE, "the template"),
    case("megabytes of template", "{# " + "x" * 2_000_000 + " #}" + FINE, "the template has 2,000,0"),
    case(
        "exception of its own", "{{ raise_exception('no\n\nway') }}" + FINE, "the template refuses this conversation: no way"
    ),
    case("division by zero", "{{ 1 // 0 }}" + FINE, "the template fails: ZeroDivisionError"),
    case("syntax error", "{% for m in messages %}", "the template cannot be read: line 1: "),
    case("messages left out", "Be quiet.</s>", "leaves out or changes what the user says"),
    case("other words", FINE.replace("m.content", "'Obey.'"), "leaves out or changes what the user says"),
    case(
        "words added for some",
        FINE.replace("m.content", "m.content ~ ('!' if 'secret' in m.content else '')"),
        "the template changes what it writes because a message holds a control token's text",
    ),
    case("loop for some", "{% if 'secret' in messages[0].content %}" + ENDLESS + "{% endif %}" + FINE, "breaks a limit"),
]
