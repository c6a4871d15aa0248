"""Counts of a part against documents encoded and laid out in rows by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lmloop.check.counts import PartCounts, RowCounter, TextSigns, count_part
from lmloop.data.document import Document, Position
from lmloop.data.source import SourceError
from lmloop.preset.schema import TokenizerSection
from lmloop.tokens.batch import RowBlock
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.tokens.trained import train_char
from tests.tokens.sources import MemorySource, texts

LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_char(TokenizerSection(type="char"), [MemorySource("a", ["abcde \n"])])


def counted(source: Any, tokenizer: Tokenizer, **options: Any) -> tuple[PartCounts, list[str], list[RowBlock]]:
    counts = PartCounts(source.name, "train")
    seen: list[str] = []
    blocks: list[RowBlock] = []
    named = {"seq_length": LENGTH, "min_text_length": 0, "limit": None, **options}
    encoder = Encoder(tokenizer, 0, cache_bytes=0)
    count_part(counts, source, encoder, see=lambda d: seen.append(d.id), show=blocks.append, **named)
    return counts, seen, blocks


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 1_000])
def test_counts_are_those_of_the_documents(
    tokenizer: Tokenizer, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmloop.check.counts._TOKENS_AT_A_TIME", rows_at_a_time * LENGTH)
    source = MemorySource("a", texts(80, seed=1))
    counts, seen, _ = counted(source, tokenizer, min_text_length=3)
    kept = [text for text in source.texts if len(text) >= 3]
    pairs = [len(text) + 1 for text in kept]  # a token for each character, and the end
    ends = list(itertools.accumulate(pairs))
    begins = [0, *ends[:-1]]
    assert counts.documents == len(kept) == len(seen)
    assert counts.characters == sum(map(len, kept))
    assert counts.too_short == len(source.texts) - len(kept) > 0
    assert counts.tokens == counts.trained_tokens == sum(pairs)
    assert counts.rows == -(-sum(pairs) // LENGTH)
    assert counts.longer_than_context == sum(n > LENGTH for n in pairs) > 0
    assert counts.cut == sum(a // LENGTH != (b - 1) // LENGTH for a, b in zip(begins, ends, strict=True)) > 0
    assert (counts.longest_tokens, counts.median_tokens) == (max(pairs), int(np.median(pairs)))
    assert (counts.rows_without_training, counts.documents_without_training) == (0, 0)
    assert counts.complete
    assert not counts.failure


@pytest.mark.parametrize(("limit", "complete"), [(1, False), (7, False), (19, False), (20, True), (21, True)])
def test_a_limit_counts_documents(tokenizer: Tokenizer, limit: int, complete: bool) -> None:
    source = MemorySource("a", ["abc"] * 20)
    counts, seen, _ = counted(source, tokenizer, limit=limit)
    assert counts.documents == len(seen) == min(limit, 20)
    assert counts.complete == complete
    assert counts.progress == min(limit, 20) / 20


def test_without_a_limit_characters_are_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmloop.check.counts.CHARACTERS_AT_MOST", 10)
    source = MemorySource("a", ["abc"] * 20)
    assert counted(source, tokenizer)[0].documents == 4
    assert counted(source, tokenizer, limit=15)[0].documents == 15  # who asks for more gets it


def test_a_source_that_breaks_off_is_on_record(tokenizer: Tokenizer) -> None:
    counts, _, _ = counted(MemorySource("a", ["abc"] * 20, fail_at=12), tokenizer)
    assert counts.failure == "a breaks at 12"
    assert not counts.complete


def test_what_was_counted_survives_an_interrupt(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmloop.check.counts._TOKENS_AT_A_TIME", LENGTH)
    counts = PartCounts("a", "train")

    def interrupt(block: RowBlock) -> None:
        if counts.rows == 3:
            raise KeyboardInterrupt

    named: dict[str, Any] = {"seq_length": LENGTH, "min_text_length": 0, "limit": None}
    source = MemorySource("a", ["abc"] * 20)
    with pytest.raises(KeyboardInterrupt):
        count_part(counts, source, Encoder(tokenizer, 0), see=lambda _: None, show=interrupt, **named)
    assert (counts.rows, counts.tokens, counts.documents) == (3, 48, 12)
    assert not counts.complete


class OneBig:
    """A source whose failure is its own kind of error."""

    name = "gone"

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        raise SourceError("source 'gone': it went away")
        yield

    def parents(self) -> list[str]:
        return []


def test_a_source_that_cannot_be_read_counts_nothing(tokenizer: Tokenizer) -> None:
    counts, _, _ = counted(OneBig(), tokenizer)
    assert (counts.documents, counts.tokens, counts.failure) == (0, 0, "source 'gone': it went away")


def block(weights: list[list[int]], segments: list[list[int]], documents: list[tuple[str, ...]]) -> RowBlock:
    shape = np.array(weights).shape
    return RowBlock(
        tokens_BT=np.zeros(shape, np.int64),
        targets_BT=np.zeros(shape, np.int64),
        weights_BT=np.array(weights, np.float32),
        segments_BT=np.array(segments, np.int32),
        source_B=np.zeros(shape[0], np.int64),
        documents_B=documents,
    )


def test_what_is_trained_is_what_has_a_weight() -> None:
    """Document a trains its second half, b and c nothing; c goes on in a row of its own; d follows padding-free."""
    counts = PartCounts("s", "train")
    counter = RowCounter(counts, seq_length=4)
    counter.take(block([[0, 0, 1, 1], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 1, 1, 1]], [("a",), ("b", "c")]))
    counter.take(block([[0, 0, 0, 0], [0, 1, 0, 0]], [[0, 0, 0, 0], [0, 0, 1, 1]], [("c",), ("d",)]))  # the end is padding
    counter.close()
    assert (counts.documents, counts.tokens, counts.trained_tokens) == (4, 14, 3)
    assert counts.documents_without_training == 2
    assert (counts.rows, counts.rows_without_training) == (4, 2)
    assert (counts.longer_than_context, counts.longest_tokens, counts.cut) == (1, 7, 1)


SIGNS = [
    ("plain text, a < b | c > d, <div>, a[i]", {}, 0, 0),
    ("say <|im_end|> or <|im_end|> or </s>", {"<|im_end|>": 2, "</s>": 1}, 0, 0),
    ("[INST] do [/INST] <start_of_turn>", {"[INST]": 1, "[/INST]": 1, "<start_of_turn>": 1}, 0, 0),
    ("lost \ufffd\ufffd here", {}, 2, 0),
    ("caf\u00c3\u00a9 and it\u00e2\u20ac\u2122s", {}, 0, 2),
    ("café, it’s Ärger, São Paulo, Â", {}, 0, 0),
    ("日本語", {}, 0, 0),
]


@pytest.mark.parametrize(("text", "control", "replaced", "twice"), SIGNS)
def test_signs_in_the_text(text: str, control: dict[str, int], replaced: int, twice: int) -> None:
    signs = TextSigns()
    signs.take(text)
    assert (signs.control_strings, signs.replacement_characters, signs.twice_decoded) == (control, replaced, twice)


def test_kinds_of_control_strings_are_bounded() -> None:
    signs = TextSigns()
    for number in range(1_000):
        signs.take(f"<|x{number}|> <|x0|>")
    assert len(signs.control_strings) == 20
    assert signs.control_strings["<|x0|>"] == 1_001
