from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence

import numpy as np
import pytest

import lmloop.tokens.tokenizer as tokenizer_module
from lmloop.preset.schema import TokenizerSection
from lmloop.tokens.batch import Row
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.packing import Lane
from lmloop.tokens.tokenizer import Tokenizer
from tests.tokens.sources import MemorySource, expected_pairs, row_pairs, texts

TOKENIZER = build_tokenizer(TokenizerSection(type="char"), [MemorySource("s", texts(50, 1))])


def one_pass(lane: Lane, lengths: list[int]) -> list[Row]:
    """The rows of a pass; row lengths come in turn."""
    rows: list[Row] = []
    while (row := lane.take(lengths[len(rows) % len(lengths)])) is not None:
        rows.append(row)
    return rows


def trained(rows: list[Row]) -> list[tuple[str, tuple[int, int]]]:
    return [pair for row in rows for pair in row_pairs(row)]


@pytest.mark.parametrize("lengths", [[1], [2], [7], [64], [100_000], [1, 5, 2, 64, 3]], ids=str)
@pytest.mark.parametrize("piece", [3, 1 << 16])
def test_each_pair_is_trained_once_a_pass(lengths: list[int], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", piece)
    source = MemorySource("s", texts(40, 2))
    lane = Lane(source, TOKENIZER)
    for epoch in range(2):
        assert lane.epoch == epoch
        rows = one_pass(lane, lengths)
        assert trained(rows) == expected_pairs(TOKENIZER, source)
        assert all(row.weights_T.all() for row in rows[:-1])  # only the last row of a pass is padded


def test_rows_of_a_block_are_those_of_single_takes() -> None:
    source = MemorySource("s", texts(40, 3))
    single = one_pass(Lane(source, TOKENIZER), [5])
    lane, several = Lane(source, TOKENIZER, index=4), []
    while (block := lane.take_rows(5, 7)) is not None:
        several += [block.row(i) for i in range(len(block))]
        assert (block.source_B == 4).all()
        assert (block.tokens_BT.dtype, block.weights_BT.dtype) == (np.int64, np.float32)
    assert len(several) == len(single)
    for a, b in zip(single, several, strict=True):
        for name in ("tokens_T", "targets_T", "weights_T", "segments_T"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert a.documents == b.documents


def test_padding_is_its_own_segment_and_has_no_weight() -> None:
    row = Lane(MemorySource("s", ["ab", "c"]), TOKENIZER).take(8)
    assert row is not None
    assert row.segments_T.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert row.weights_T.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert row.tokens_T[0] == row.tokens_T[3] == TOKENIZER.start_id
    assert row.targets_T[2] == row.targets_T[4] == TOKENIZER.eos_id
    assert (row.tokens_T[5:] == TOKENIZER.pad_id).all()
    assert row.documents == ("s:0", "s:1")


@pytest.mark.parametrize("piece", [4, 1 << 16])
@pytest.mark.parametrize("workers", [0, 2])
def test_state_at_any_row_gives_the_same_rest(piece: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", piece)
    source = MemorySource("s", texts(12, 4))

    def new() -> Lane:
        return Lane(source, TOKENIZER, min_text_length=3, encoder=Encoder(TOKENIZER, workers))

    rng, lane, told = random.Random(0), new(), []
    for _ in range(60):
        state = json.loads(json.dumps(lane.state_dict()))
        length = rng.choice([1, 3, 10, 40])
        row = lane.take(length)
        told.append((state, length, row, lane.progress, lane.epoch, lane.skipped))
    assert lane.epoch >= 1
    for start in range(len(told)):
        copied = new()
        copied.load_state_dict(copy.deepcopy(told[start][0]))
        for state, length, row, progress, epoch, skipped in told[start : start + 12]:
            assert copied.state_dict() == state
            again = copied.take(length)
            assert (again is None) == (row is None)
            if again and row:
                assert row_pairs(again) == row_pairs(row)
                assert again.documents == row.documents
            assert (copied.progress, copied.epoch, copied.skipped) == (progress, epoch, skipped)


def test_short_documents_are_left_out_and_counted() -> None:
    source = MemorySource("s", ["a", "long enough", "b", "also long enough", "c"])
    lane = Lane(source, TOKENIZER, min_text_length=5)
    assert {name for name, _ in trained(one_pass(lane, [4]))} == {"s:1", "s:3"}
    assert lane.skipped == 3


def test_a_pass_without_documents_is_told_apart_from_one_that_was_read_to_its_end() -> None:
    lane = Lane(MemorySource("s", ["a"]), TOKENIZER, min_text_length=2)
    assert lane.take(3) is None
    assert lane.was_empty
    lane = Lane(MemorySource("s", ["ab"]), TOKENIZER)
    lane.take(3)
    again = Lane(lane.source, TOKENIZER)
    again.load_state_dict(lane.state_dict())
    assert again.take(3) is None
    assert not again.was_empty


def test_progress_is_what_was_taken() -> None:
    lane = Lane(MemorySource("s", ["abcd", "abcdefghi"]), TOKENIZER)
    seen = []
    while lane.take(5) is not None:
        seen.append(lane.progress)
    assert seen == pytest.approx([0.5, 0.75, 1.0])
    assert lane.progress == 0.0


def test_changed_documents_and_tokenizers_are_lived_with() -> None:
    source = MemorySource("s", ["a" * 30, "bcd"])
    lane = Lane(source, TOKENIZER)
    lane.take(20)
    state = lane.state_dict()
    shorter = Lane(MemorySource("s", ["a" * 5, "bcd"]), TOKENIZER)
    shorter.load_state_dict(state)
    assert trained(one_pass(shorter, [8])) == expected_pairs(TOKENIZER, MemorySource("s", ["", "bcd"]))[1:]
    other = build_tokenizer(TokenizerSection(type="bpe", vocab_size=256), [source])
    lane = Lane(source, other)
    lane.load_state_dict(state)
    assert trained(one_pass(lane, [8])) == expected_pairs(other, source)
    lane = Lane(source, TOKENIZER)  # now text, where the state is of conversations
    lane.load_state_dict({"position": {"next": 1}, "ahead": [2], "used": 2, "tokenizer": TOKENIZER.fingerprint})
    assert trained(one_pass(lane, [8])) == expected_pairs(TOKENIZER, source)[31:]


def test_an_error_comes_after_what_was_read_before_it_and_can_be_retried() -> None:
    source = MemorySource("s", texts(10, 5), fail_at=6)
    lane, rows = Lane(source, TOKENIZER), []

    def train() -> None:
        while True:
            rows.append(lane.take(1))

    with pytest.raises(OSError, match="breaks at 6"):
        train()
    source.fail_at = None
    rows += one_pass(lane, [1])
    assert trained([row for row in rows if row]) == expected_pairs(TOKENIZER, source)


class CountingTokenizer(Tokenizer):
    """Counts the texts that are encoded."""

    count = 0

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        CountingTokenizer.count += len(texts)
        return super().encode_many(texts)


@pytest.mark.parametrize(("room", "encoded"), [(1 << 20, 30), (0, 90), (3_300, 70)])
def test_documents_are_encoded_once_as_far_as_there_is_room(room: int, encoded: int) -> None:
    tokenizer = CountingTokenizer(TOKENIZER._backend, TOKENIZER._config)
    source = MemorySource("s", ["x"] * 30)
    lane = Lane(source, tokenizer, encoder=Encoder(tokenizer, cache_bytes=room))
    CountingTokenizer.count = 0
    for _ in range(3):
        one_pass(lane, [16])
    assert CountingTokenizer.count == encoded


def test_a_document_changed_under_its_name_is_encoded_anew() -> None:
    source = MemorySource("s", ["abc", "def"])
    lane = Lane(source, TOKENIZER)
    one_pass(lane, [16])
    source.texts[1] = "fed"
    assert trained(one_pass(lane, [16])) == expected_pairs(TOKENIZER, source)
