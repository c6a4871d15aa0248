"""Rendering of chat templates: Jinja programs, of which most come with a model and nobody vouches for.

Templates of others are rendered in a process of their own (`confined.py`), which imports nothing but this file. The
environment is that of transformers, in which templates are written: what they may call, and how white space is trimmed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_ADDED = 100_000
MOST_ADDED_EACH = 1_000
"""Characters that a template may write besides twice the messages', in all and for each message."""

_TODAY = datetime(2024, 7, 26)  # the date that Llama's templates fall back to: a training run must not depend on the day


class RefusalError(TemplateError):
    """What a template itself raises: the conversation is not one that it was made for."""


def render(source: str, tokens: dict[str, str], jobs: Sequence[tuple[Sequence[tuple[str, str]], bool]]) -> list[list[str]]:
    """What a template writes for each job, which is its messages (role, content) and whether a generation prompt is added.

    tokens: names of control tokens, such as `bos_token`, and what they are. The result of a job is `[text]`, or
    `["", reason]` where it could not be rendered.

    Raises:
        ValueError: the template is not one.
    """
    try:
        template = _compiled(source)
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from None
    except (RecursionError, TypeError, ValueError, OverflowError, AssertionError, SyntaxError) as error:
        raise ValueError(f"it cannot be compiled: {type(error).__name__}: {error}") from None
    return [_rendered(template, tokens, messages, prompted) for messages, prompted in jobs]


def _rendered(template: Template, tokens: dict[str, str], messages: Sequence[tuple[str, str]], prompted: bool) -> list[str]:
    room = most = MOST_ADDED + sum(MOST_ADDED_EACH + 2 * len(content) for _, content in messages)
    chat = [{"role": role, "content": content} for role, content in messages]
    parts: list[str] = []
    try:
        for part in template.generate(messages=chat, tools=None, documents=None, add_generation_prompt=prompted, **tokens):
            parts.append(part)
            room -= len(part)
            if room < 0:
                return ["", f"the template writes more than {most:,} characters"]
    except RefusalError as error:
        return ["", f"the template refuses this conversation: {error}"]
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # of any kind: a template is a program
        return ["", f"the template fails: {type(error).__name__}: {error}"]
    return ["".join(parts)]


@lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], auto_reload=False
    )
    environment.filters["tojson"] = _to_json
    environment.globals = {
        "range": environment.globals["range"],  # the sandbox's, of bounded length
        "dict": lambda *arguments, **named: dict(*arguments, **named),
        "namespace": _Namespace,
        "raise_exception": _raise,
        "strftime_now": _TODAY.strftime,
    }
    return environment.from_string(source)


def _raise(message: object) -> None:
    raise RefusalError(str(message))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


class _Namespace(Namespace):
    """Jinja's namespace, which would let a template set attributes that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *values = arguments
        names = dict(*values, **named)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


class _Generation(Extension):
    """`{% generation %}` around what the assistant wrote: read and passed over, since that is found without it."""

    tags = {"generation"}  # noqa: RUF012 (read from the class, but typed as of an instance)

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements within, in a scope of their own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)
