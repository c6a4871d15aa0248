"""Repeats against sets of shingles, written out the slow way."""

from __future__ import annotations

import random

import pytest

from lmloop.check import duplicates
from lmloop.check.duplicates import SIMILAR, Fingerprints, Repeat, Repeats

WORDS = [f"{a}{b}{c}" for a in ("ba", "ke", "li", "mo") for b in ("ra", "so", "tu") for c in ("n", "rt", "x", "ls", "")]
TRAIN, HELD_OUT, OTHER = 0, 1, 2


def text(rng: random.Random, words: int = 120) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def changed(rng: random.Random, original: str, words: int) -> str:
    """The same text with some words replaced."""
    parts = original.split(" ")
    for at in rng.sample(range(len(parts)), words):
        parts[at] = rng.choice(WORDS).upper() + "q"
    return " ".join(parts)


def found(*documents: tuple[str, int], held_out: tuple[int, ...] = ()) -> dict[int, Repeats]:
    fingerprints = Fingerprints()
    for index, (content, origin) in enumerate(documents):
        fingerprints.add(content, f"d{index}", origin)
    assert len(fingerprints) == len(documents)
    return fingerprints.repeats(held_out)


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the sets of windows of 8 bytes."""
    shingles = [
        {whole[i : i + 8] for i in range(len(whole) - 7)} for whole in (" ".join(t.lower().split()).encode() for t in (a, b))
    ]
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


@pytest.mark.parametrize(
    "again",
    ["The cat  sat.\nIt slept.", " the CAT sat.\t\tit slept.\n", "the cat sat. it slept."],
)
def test_case_and_white_space_make_no_difference(again: str) -> None:
    result = found(("The cat sat. It slept.", TRAIN), ("something else", TRAIN), (again, TRAIN))[TRAIN]
    assert result == Repeats(1, 0, Repeat("d2", "d0", TRAIN), None)


@pytest.mark.parametrize("other", ["The cat sat. It slept!", "The cat sat. It slept. ", "", "Thecat sat. It slept."])
def test_short_texts_are_compared_as_a_whole(other: str) -> None:
    repeats = found(("The cat sat. It slept.", TRAIN), (other, TRAIN))[TRAIN]
    assert repeats.near == 0
    assert repeats.exact == (other.strip() == "The cat sat. It slept.")


def test_every_later_one_of_a_group_is_a_repeat() -> None:
    assert found(*[("same words", TRAIN)] * 5, ("other words", TRAIN))[TRAIN].exact == 4


def test_near_repeats_are_those_with_many_windows_in_common() -> None:
    rng = random.Random(5)
    right = {"above": [0, 0], "below": [0, 0]}
    for _ in range(300):
        first = text(rng, rng.choice([20, 60, 200]))
        second = changed(rng, first, rng.randrange(1, max(len(first.split()) // 6, 2)))
        truth = similarity(first, second)
        near = found((first, TRAIN), (text(rng), TRAIN), (second, TRAIN))[TRAIN].near
        if truth > SIMILAR + 0.1:
            right["above"][0] += near == 1
            right["above"][1] += 1
        elif truth < SIMILAR - 0.1:
            right["below"][0] += near == 0
            right["below"][1] += 1
    assert min(count for _, count in right.values()) > 25, right
    assert right["above"][0] >= 0.98 * right["above"][1], right
    assert right["below"][0] == right["below"][1], right


def test_held_out_text_counts_where_it_is_trained_whatever_was_read_first() -> None:
    rng = random.Random(1)
    a, b, c, d = (text(rng) for _ in range(4))
    documents = [
        (a, HELD_OUT),
        (b, HELD_OUT),
        (c, HELD_OUT),
        (c, HELD_OUT),  # twice, but held out both times
        (d, TRAIN),
        (a, OTHER),
        (changed(rng, b, 2), OTHER),
    ]
    result = found(*documents, held_out=(HELD_OUT,))
    assert result[HELD_OUT] == Repeats(1, 1, Repeat("d0", "d5", OTHER), Repeat("d1", "d6", OTHER))
    assert result[TRAIN] == result[OTHER] == Repeats(0, 0, None, None)


def test_boilerplate_in_all_documents_hides_no_repeat() -> None:
    """A thousand documents fall into the same buckets; each is compared with a few others only."""
    rng = random.Random(3)
    head = text(rng, 60)
    documents = [head + " " + text(rng, 60) for _ in range(400)]
    repeats = found(*[(document, TRAIN) for document in [*documents, changed(rng, documents[7], 2)]])[TRAIN]
    assert similarity(documents[0], documents[1]) < SIMILAR - 0.1
    assert repeats.near == 1


def test_batches_and_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    texts = [text(rng, rng.choice([0, 1, 3, 30, 300])) for _ in range(60)]
    texts += [changed(rng, t, 1) for t in texts if len(t) > 200] + texts[:5]
    whole = found(*[(t, TRAIN) for t in texts])
    monkeypatch.setattr(duplicates, "_BATCH_CHARACTERS", 1)
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    assert found(*[(t, TRAIN) for t in texts]) == whole
    assert whole[TRAIN].exact >= 5
    assert whole[TRAIN].near >= 5


def test_beyond_a_number_documents_are_compared_exactly_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "COMPARED_DOCUMENTS", 3)
    monkeypatch.setattr(duplicates, "_BATCH_CHARACTERS", 1)
    rng = random.Random(2)
    a, b = text(rng), text(rng)
    repeats = found((a, TRAIN), (b, TRAIN), (changed(rng, a, 1), TRAIN), (changed(rng, b, 1), TRAIN), (b, TRAIN))[TRAIN]
    assert (repeats.exact, repeats.near) == (1, 1)


def test_long_documents_are_compared_by_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "COMPARED_CHARACTERS", 1_000)
    same = text(random.Random(0), 400)[:1_000]
    assert found((same + "a" * 5_000, TRAIN), (same + "b", TRAIN))[TRAIN].exact == 1


def test_nothing_in_is_nothing_out() -> None:
    assert found() == {}


def test_text_that_utf8_cannot_hold_is_taken() -> None:
    assert found(("\ud800 half", TRAIN), ("\ud800 half", TRAIN))[TRAIN].exact == 1
