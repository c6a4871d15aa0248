"""Samples are stretches of the rows that training takes, and show what is trained whether there is colour or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lmloop.check.preview import HEAD_TOKENS, TAIL_TOKENS, Piece, Sample, Sampler, in_colour, in_marks, sample_of
from lmloop.preset.schema import TokenizerSection
from lmloop.tokens.batch import Row, RowBlock
from lmloop.tokens.packing import Lane
from lmloop.tokens.tokenizer import END_OF_TEXT, Tokenizer
from lmloop.tokens.trained import train_bpe, train_char
from tests.tokens.sources import MemorySource


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_char(TokenizerSection(type="char"), [MemorySource("a", ["abcde \n<|endotx>"])])


def rows(tokenizer: Tokenizer, texts: list[str], length: int) -> RowBlock:
    block = Lane(MemorySource("a", texts), tokenizer).take_rows(length, 1_000)
    assert block is not None
    return block


def sample(tokenizer: Tokenizer, text: str, length: int = 64) -> Sample:
    return sample_of(rows(tokenizer, [text], length).row(0), tokenizer, first=True)


END = f"⟦{END_OF_TEXT}⟧"


def test_a_document_is_shown_from_its_start_token_to_its_end(tokenizer: Tokenizer) -> None:
    shown = sample(tokenizer, "ab\nc")
    assert (shown.document, shown.tokens, shown.trained_tokens, shown.left_out) == ("a:0", 5, 5, 0)
    assert (shown.begins, shown.ends) == (True, True)
    assert [(piece.text, piece.trained, piece.control) for piece in shown.pieces] == [
        (END_OF_TEXT, False, True),  # it is read, and nothing predicts it
        ("a", True, False),
        ("b", True, False),
        ("\n", True, False),
        ("c", True, False),
        (END_OF_TEXT, True, True),
    ]
    assert in_marks(shown).plain == f"{END}«a·b·↵\nc·{END}»"


def test_a_control_token_typed_in_a_text_looks_different(tokenizer: Tokenizer) -> None:
    assert END not in in_marks(sample(tokenizer, END_OF_TEXT)).plain.removeprefix(END).removesuffix(f"{END}»")


def test_weights_decide_what_is_shown_as_trained(tokenizer: Tokenizer) -> None:
    row = rows(tokenizer, ["abcde"], 6).row(0)
    masked = replace(row, weights_T=np.array([0, 0, 1, 1, 0, 1], np.float32))
    shown = sample_of(masked, tokenizer, first=True)
    assert in_marks(shown).plain == f"{END}·a·b«c·d»e«{END}»"
    assert (shown.tokens, shown.trained_tokens) == (6, 3)
    coloured = in_colour(shown)
    assert coloured.plain == f"{END}abcde{END}"
    styles = {coloured.plain[span.start : span.end]: str(span.style) for span in coloured.spans}
    assert all(("on green" in styles[c] or "on bright_green" in styles[c]) for c in "cd")
    assert all("dim" in styles[c] and "green" not in styles[c] for c in "abe")
    assert styles["c"] != styles["d"]  # where one ends and the next begins


def test_rows_of_one_document_say_that_it_goes_on(tokenizer: Tokenizer) -> None:
    block = rows(tokenizer, ["abcdeabcde"], 4)
    shown = [sample_of(block.row(index), tokenizer, first=True) for index in range(3)]
    assert [(s.begins, s.ends) for s in shown] == [(True, False), (False, False), (False, True)]
    assert in_marks(shown[1]).plain == "d«e·a·b·c»"  # what the row begins with is read only


def test_later_samples_are_whole_documents_where_a_row_has_one(tokenizer: Tokenizer) -> None:
    row = rows(tokenizer, ["abcd", "e", "bb"], 8).row(0)
    assert sample_of(row, tokenizer, first=False).document == "a:0"
    second = rows(tokenizer, ["abcdabcdab", "e", "bb", "c"], 8).row(1)
    assert sample_of(second, tokenizer, first=False).document == "a:1"
    assert sample_of(second, tokenizer, first=True).document == "a:0"


def test_long_stretches_are_cut_in_the_middle(tokenizer: Tokenizer) -> None:
    shown = sample(tokenizer, "ab" * 200, 500)
    assert shown.left_out == 402 - HEAD_TOKENS - TAIL_TOKENS  # with the start and the end
    assert len(shown.pieces) == HEAD_TOKENS + 1 + TAIL_TOKENS
    for words in (in_marks(shown).plain, in_colour(shown).plain):
        assert f" … {shown.left_out} tokens … " in words
        assert words.rstrip("»").endswith(END)


def test_half_characters_are_never_shown() -> None:
    text = "äöü日本語🙂 end"
    tokenizer = train_bpe(TokenizerSection(vocab_size=256), [MemorySource("a", ["plain"])])  # every byte alone
    shown = sample(tokenizer, text)
    assert shown.tokens == len(text.encode()) + 1
    assert "".join(piece.text for piece in shown.pieces if not piece.control) == text
    assert [piece.text for piece in shown.pieces[1:5]] == ["ä", "ö", "ü", "日"]


def test_what_a_terminal_would_obey_is_not_passed_on(tokenizer: Tokenizer) -> None:
    shown = Sample("d", (Piece("\x1b[31mred\u202e\t", True),), 1, 1, 0, True, True)
    for words in (in_marks(shown).plain, in_colour(shown).plain):
        assert "\x1b" not in words
        assert "\u202e" not in words
        assert "⇥" in words


@pytest.mark.parametrize(("wanted", "expected"), [(0, []), (1, ["a:0"]), (2, ["a:0", "a:64"]), (3, ["a:0", "a:32", "a:64"])])
@pytest.mark.parametrize("at_a_time", [1, 5, 1_000])
def test_samples_are_spread_over_the_source(tokenizer: Tokenizer, wanted: int, expected: list[str], at_a_time: int) -> None:
    lane = Lane(MemorySource("a", ["abc"] * 100), tokenizer)  # a row each
    sampler = Sampler(tokenizer, wanted)
    while (block := lane.take_rows(4, at_a_time)) is not None:
        sampler.take(block)
    assert [shown.document for shown in sampler.samples()] == expected


def test_a_row_without_a_whole_document_is_shown_all_the_same(tokenizer: Tokenizer) -> None:
    row = Row(
        tokens_T=np.array([tokenizer.start_id]),
        targets_T=tokenizer.encode("a").astype(np.int64),
        weights_T=np.ones(1, np.float32),
        segments_T=np.zeros(1, np.int32),
        source=0,
        documents=("a:0",),
    )
    shown = sample_of(row, tokenizer, first=False)
    assert in_marks(shown).plain == f"{END}«a»"
    assert (shown.begins, shown.ends) == (True, False)
