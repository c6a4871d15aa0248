"""The chat template of a run, in Jinja: the tokenizer's own, or what `generation.chat_format` says."""

from __future__ import annotations

import json

from lmloop.generation.conversation import PLACE
from lmloop.tokens.tokenizer import Tokenizer


def chat_template(tokenizer: Tokenizer, chat_format: str) -> str | None:
    """Renders a conversation as `lmloop chat` does, behind the start token; None: there is no format for turns.

    A `chat_format` beyond the bare message is what the run is talked to in; without it the tokenizer's template counts.
    """
    if chat_format.strip() == PLACE or PLACE not in chat_format:
        return tokenizer.chat_template
    pieces = [_literal(piece) if piece else "" for piece in chat_format.split(PLACE)]
    turn = " + message['content'] + ".join(pieces).removeprefix(" + ").removesuffix(" + ")
    return (
        "{{ bos_token }}{% for message in messages %}"
        f"{{% if message['role'] == 'user' %}}{{{{ {turn} }}}}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] }}"
        "{% if message['content'][-1:] != '\\n' %}{{ '\\n' }}{% endif %}"
        "{% else %}{{ raise_exception('this model knows messages of user and assistant only') }}"
        "{% endif %}{% endfor %}"
    )


def _literal(text: str) -> str:
    """A string as Jinja reads it."""
    quoted = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'")
    return f"'{quoted}'"
