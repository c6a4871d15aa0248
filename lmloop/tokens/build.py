"""The tokenizer that a preset asks for."""

from __future__ import annotations

from collections.abc import Sequence

from lmloop.data.source import Source
from lmloop.preset.schema import TokenizerSection
from lmloop.tokens.pretrained import read_pretrained
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.tokens.trained import train_bpe, train_char


def build_tokenizer(section: TokenizerSection, sources: Sequence[Source]) -> Tokenizer:
    """The tokenizer that a preset asks for; `char` and `bpe` are built from the head of the sources, always alike.

    Raises:
        ValueError: the sources have no text, or there is no such pretrained tokenizer. One line.
    """
    if section.type == "pretrained":
        assert section.path is not None, section
        return read_pretrained(section.path, section.revision)
    return (train_char if section.type == "char" else train_bpe)(section, sources)
