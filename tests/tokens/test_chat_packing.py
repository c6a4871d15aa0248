"""Conversations in rows: whole, full, in an order that depends on the data alone, and resumed exactly."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from lmloop.data.document import Document, Message, Position
from lmloop.data.quarantine import Quarantine, TooManyBadRows
from lmloop.data.source import SourceError
from lmloop.preset.schema import DataSection
from lmloop.tokens.batch import Batch, Row
from lmloop.tokens.chat_packing import WINDOW, ChatLane, fill
from lmloop.tokens.conversations import ChatEncoder, Encoded, LeftOut, fitted
from lmloop.tokens.feed import TextFeed, merge_states
from lmloop.tokens.masked import Masked
from lmloop.tokens.template import chat_template
from tests.tokens.chats import WORDS, chat, random_chat, tokenizer
from tests.tokens.sources import MemorySource, batch_rows, texts

TOKENIZER = tokenizer()


class Chats:
    """Conversations in memory."""

    def __init__(self, name: str, chats: Sequence[Sequence[Message]], first: int = 0, step: int = 1) -> None:
        self.name = name
        self.chats = [tuple(messages) for messages in chats]
        self.first, self.step = first, step

    def parents(self) -> list[str]:
        return [f"{self.name}#{index}" for index in range(self.first, len(self.chats), self.step)]

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        for index in range(position.get("next", self.first), len(self.chats), self.step):
            messages = self.chats[index]
            text = "\n".join(message.content for message in messages)
            name = f"{self.name}#{index}"
            yield Document(name, name, text, (index + 1) / len(self.chats), messages), {"next": index + self.step}


class Sharded(Chats):
    """The same in parts, as a stream is read."""

    def shard_count(self, limit: int) -> int:
        return limit

    def shard(self, index: int, count: int) -> Chats:
        return Chats(self.name, self.chats, index, count)


def encoder(limit: int, *, trained: Any = "assistant", names: Sequence[str] = ("chats",), workers: int = 0) -> ChatEncoder:
    template = chat_template("chatml", TOKENIZER)
    return ChatEncoder(
        template, trained, limit=limit, names=frozenset(names), quarantine=Quarantine(None, 0.5), workers=workers
    )


def lane(chats: Sequence[Sequence[Message]], limit: int = 64, **named: Any) -> ChatLane:
    return ChatLane(Chats("chats", chats), TOKENIZER, encoder(limit), **named)


def corpus(count: int, seed: int = 1, longest: int = 12) -> list[list[Message]]:
    """Conversations of one to three exchanges."""
    rng = random.Random(seed)

    def said() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))

    return [
        [Message(role, said()) for _ in range(rng.randint(1, 3)) for role in ("user", "assistant")] for _ in range(count)
    ]


def rows_of(lane: ChatLane, length: int) -> list[Row]:
    """One pass."""
    return list(iter(lambda: lane.take(length), None))  # type: ignore[arg-type]


def trained_of(row: Row) -> list[tuple[str, int]]:
    """The targets that have a weight, each with its document."""
    return [
        (row.documents[segment], target)
        for target, weight, segment in zip(
            row.targets_T.tolist(), row.weights_T.tolist(), row.segments_T.tolist(), strict=True
        )
        if weight
    ]


def expected(chats: Sequence[Sequence[Message]]) -> Counter[tuple[str, int]]:
    """What the template says is to be trained, conversation by conversation."""
    template = chat_template("chatml", TOKENIZER)
    found: Counter[tuple[str, int]] = Counter()
    for index, masked in enumerate(template.encode(chats)):
        assert isinstance(masked, Masked)
        found.update((f"chats#{index}", int(token)) for token in masked.tokens_N[masked.weights_N > 0])
    return found


# ---- what goes into a row ----


@pytest.mark.parametrize("seed", range(20))
def test_a_row_is_filled_as_well_as_any_choice_fills_it(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 40) for _ in range(rng.randint(0, 9))]
    room = rng.randint(0, 120)
    chosen = fill(lengths, room)
    best = max(
        (sum(some) for k in range(len(lengths) + 1) for some in itertools.combinations(lengths, k) if sum(some) <= room),
        default=0,
    )
    assert sum(lengths[index] for index in chosen) == best
    assert chosen == sorted(set(chosen))


def test_of_equal_ones_the_earlier_are_chosen() -> None:
    assert fill([3, 3, 3, 3], 6) == [0, 1]


def test_rows_hold_whole_conversations_and_hardly_any_padding() -> None:
    chats = corpus(600)
    rows = rows_of(lane(chats, 256), 256)
    found: Counter[tuple[str, int]] = Counter()
    for row in rows:
        found.update(trained_of(row))
    assert found == expected(chats)
    names = [name for row in rows for name in row.documents]
    assert sorted(names) == sorted({f"chats#{index}" for index in range(600)})  # each once, so none is torn
    used = [int(np.count_nonzero(row.segments_T < len(row.documents))) for row in rows]
    assert sum(used[:-3]) / (256 * len(used[:-3])) > 0.99


def test_the_oldest_one_never_waits_longer_than_the_window() -> None:
    rows = rows_of(lane(corpus(600), 256), 256)
    at = {int(name.partition("#")[2]): number for number, row in enumerate(rows) for name in row.documents}
    for index in at:
        read_by = min(number for other, number in at.items() if other >= index)
        assert at[index] - read_by <= WINDOW


def test_the_conversations_of_a_row_are_segments_of_their_own() -> None:
    chats = [chat("u:Sure?", "a:Yes."), chat("u:No way", "a:Four.")]
    (row,) = rows_of(lane(chats), 64)
    template = chat_template("chatml", TOKENIZER)
    at = 0
    for segment, masked in enumerate(template.encode(chats)):
        assert isinstance(masked, Masked)
        last = int(np.flatnonzero(masked.weights_N)[-1])
        assert TOKENIZER.backend.id_to_token(int(masked.tokens_N[last])) == "<|im_end|>"
        beyond = at + last
        assert row.tokens_T[at:beyond].tolist() == masked.tokens_N[:last].tolist()
        assert row.targets_T[at:beyond].tolist() == masked.tokens_N[1 : last + 1].tolist()
        assert row.weights_T[at:beyond].tolist() == masked.weights_N[1 : last + 1].tolist()
        assert set(row.segments_T[at:beyond].tolist()) == {segment}
        at = beyond
    assert not row.weights_T[at:].any()
    assert set(row.segments_T[at:].tolist()) == {2}


@pytest.mark.parametrize("length", [1, 3, 8, 20, 40])
def test_in_shorter_rows_a_conversation_goes_on_in_the_next(length: int) -> None:
    chats = corpus(60)
    found: Counter[tuple[str, int]] = Counter()
    for row in rows_of(lane(chats, 256), length):
        assert len(row.tokens_T) == length
        found.update(trained_of(row))
    assert found == expected(chats)


# ---- too long ----


def test_a_long_conversation_is_cut_behind_an_answer() -> None:
    messages = chat("u:Sure?", "a:Yes.", "u:What is 4", "a:Four.", "u:No way", "a:The answer is 4, of course!")
    (masked,) = chat_template("chatml", TOKENIZER).encode([messages])
    assert isinstance(masked, Masked)
    for limit in range(len(masked.tokens_N) + 1):
        made = fitted(masked, messages, limit)
        ends = [masked.spans[index][1] for index in (1, 3, 5)]
        fit = [end for end in ends if end - 1 <= limit]
        if not fit:
            assert isinstance(made, LeftOut)
            continue
        assert isinstance(made, Encoded)
        assert made.line_N.tolist() == masked.tokens_N[: fit[-1]].tolist()
        assert made.cut == (fit[-1] != ends[-1])
        assert TOKENIZER.backend.id_to_token(int(made.line_N[-1])) == "<|im_end|>"
        assert made.weights_N[-1] == 1.0
        said = ["Yes.", "Four.", "The answer is 4, of course!"][: len(fit)]
        assert made.trained_bytes == len("".join(said).encode())


def test_what_was_cut_and_left_out_is_counted() -> None:
    short, long = chat("u:Sure?", "a:Yes."), chat("u:Sure?", "a:" + "Four. " * 80)
    torn = chat("u:Sure?", "a:Yes.", "u:Sure?", "a:" + "Four. " * 80)
    packed = lane([short, long, torn, long], 40, min_text_length=5)
    (row,) = rows_of(packed, 40)
    assert row.documents == ("chats#0", "chats#2")
    assert dict(packed.left_out) == {"skipped": 0, "too_long": 2, "cut": 1}


def test_all_tokens_are_trained_on_request() -> None:
    messages = chat("u:Sure?", "a:Yes.")
    source = Chats("chats", [messages])
    (row,) = rows_of(ChatLane(source, TOKENIZER, encoder(64, trained="all")), 64)
    (masked,) = chat_template("chatml", TOKENIZER).encode([messages])
    assert isinstance(masked, Masked)
    assert [token for _, token in trained_of(row)] == masked.tokens_N[1:].tolist()


# ---- refused by the template ----


def refusing(names: int, bad: set[int]) -> tuple[ChatLane, Quarantine]:
    chats = [chat("u:Sure?", *(("a:Yes.", "t:12") if index in bad else ()), "a:Yes.") for index in range(names)]
    quarantine = Quarantine(None, 0.5)
    template = chat_template("alpaca", TOKENIZER)  # it has no place for what a tool says
    chats_encoder = ChatEncoder(template, "assistant", limit=64, names=frozenset({"chats"}), quarantine=quarantine)
    return ChatLane(Chats("chats", chats), TOKENIZER, chats_encoder), quarantine


def test_what_the_template_refuses_is_a_bad_row() -> None:
    packed, quarantine = refusing(30, {3, 17})
    names = {name for row in rows_of(packed, 64) for name in row.documents}
    assert names == {f"chats#{index}" for index in range(30)} - {"chats#3", "chats#17"}
    ((reason, count),) = quarantine.reasons("chats").items()
    assert "no place for what a tool says" in reason
    assert count == 2
    assert quarantine.first("chats", reason) == ("chats", 3)


def test_too_many_bad_rows_end_the_run() -> None:
    packed, _ = refusing(30, set(range(5, 30)))
    with pytest.raises(TooManyBadRows, match="no place for what a tool says"):
        rows_of(packed, 64)


# ---- going on ----


@pytest.mark.parametrize("lengths", [(128,), (128, 16, 128, 5, 1, 64)])
def test_a_lane_goes_on_where_its_state_was_taken(lengths: tuple[int, ...]) -> None:
    chats = corpus(120, longest=8)
    chats[7] = chat("u:Sure?", "a:" + "Four. " * 200)
    whole = lane(chats, 128)
    going = lane(chats, 128)
    rng = random.Random(3)
    for number in range(150):
        length = lengths[number // 3 % len(lengths)]
        count = rng.randint(1, 3)
        if rng.random() < 0.5:  # looking ahead changes nothing
            whole.available(length, rng.randint(1, 9))
            whole.available(rng.choice(lengths), rng.randint(1, 9))
        left, right = whole.take_rows(length, count), going.take_rows(length, count)
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            assert left.documents_B == right.documents_B
            for name in ("tokens_BT", "targets_BT", "weights_BT", "segments_BT"):
                assert np.array_equal(getattr(left, name), getattr(right, name))
        state = json.loads(json.dumps(going.state_dict()))
        assert json.loads(json.dumps(whole.state_dict())) == state
        going = lane(chats, 128)
        going.load_state_dict(state)
        assert json.loads(json.dumps(going.state_dict())) == state
    assert whole.epoch > 0
    assert whole.left_out["too_long"] in (whole.epoch, whole.epoch + 1)  # by whether it was passed in this one


def feeds(world: int, *, workers: int = 0, loop: bool = True, strategy: Any = "round_robin") -> list[TextFeed]:
    chats = corpus(300, longest=6)
    made = []
    for rank in range(world):
        sources = [Sharded("chats", chats), MemorySource("texts", texts(40, 2)), Chats("few", corpus(5, seed=9))]
        if not loop or strategy == "sequential":
            sources[0] = Chats("chats", chats)
        section = DataSection(sources=["a", "b", "c"], mix_strategy=strategy, workers=workers)
        chats_encoder = encoder(64, names=("chats", "few"), workers=workers)
        made.append(
            TextFeed(
                sources,
                TOKENIZER,
                section,
                micro_batch_tokens=128,
                tokens_per_step=512,
                loop=loop,
                rank=rank,
                world=world,
                chats=chats_encoder,
            )
        )
    return made


def told(batches: Sequence[Batch]) -> list[Any]:
    """The rows that have a weight, without padding."""
    return [
        (row.source, row.documents, tuple(trained_of(row)), tuple(row.tokens_T[row.weights_T > 0].tolist()))
        for batch in batches
        for row in batch_rows(batch)
        if row.weights_T.any()
    ]


def steps(made: list[TextFeed], lengths: Sequence[int]) -> list[Counter[Any]]:
    """The rows of all ranks, step by step."""
    found = []
    for length in lengths:
        batches = [feed.next_step(length) for feed in made]
        ballots = [feed.ballot() for feed in made]
        for feed in made:
            feed.settle([max(votes) for votes in zip(*ballots, strict=True)])
        assert len({feed.fingerprint() for feed in made}) == 1
        assert len({len(one) for one in batches}) == 1
        found.append(Counter(row for one in batches for row in told(one)))
    return found


LENGTHS = [64, 64, 8, 64, 1, 64, 64, 16, 64, 64]


@pytest.mark.parametrize("mode", [{}, {"loop": False}, {"strategy": "sequential"}])
@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (4, 1)])
def test_the_same_rows_for_any_number_of_ranks_and_workers(mode: dict[str, Any], world: int, workers: int) -> None:
    expected_steps = steps(feeds(1, **mode), LENGTHS)
    made = feeds(world, workers=workers, **mode)
    assert steps(made, LENGTHS) == expected_steps
    for feed in made:
        feed.close()


@pytest.mark.parametrize("mode", [{}, {"loop": False}, {"strategy": "sequential"}])
def test_a_run_goes_on_with_another_number_of_ranks(mode: dict[str, Any]) -> None:
    expected_steps = steps(feeds(1, **mode), LENGTHS)
    state: dict[str, Any] | None = None
    found: list[Counter[Any]] = []
    for number, world in enumerate((2, 1, 4, 2, 1)):
        made = feeds(world, workers=1, **mode)
        for feed in made:
            if state is not None:
                feed.load_state_dict(json.loads(json.dumps(state)))
        found += steps(made, LENGTHS[2 * number : 2 * number + 2])
        state = merge_states([json.loads(json.dumps(feed.state_dict())) for feed in made])
        for feed in made:
            feed.close()
    assert found == expected_steps


def test_micro_batches_are_no_longer_than_what_is_in_them() -> None:
    chats = [chat("u:Sure?", "a:Yes.")] * 3
    section = DataSection(sources=["a"], workers=0)
    feed = TextFeed(
        [Chats("chats", chats)], TOKENIZER, section, micro_batch_tokens=2048, tokens_per_step=512, loop=False,
        chats=encoder(512),
    )  # fmt: skip
    (batch,) = feed.next_step(512)
    used = int(batch.weights_BT.any(dim=0).nonzero()[-1]) + 1
    assert used <= batch.tokens_BT.shape[1] < used + 32
    assert feed.next_step(512) == []


def test_a_source_of_which_nothing_fits_is_named() -> None:
    long = [chat("u:Sure?", "a:" + "Four. " * 80)] * 3
    feed = TextFeed(
        [Chats("chats", long)], TOKENIZER, DataSection(sources=["a"], workers=0), micro_batch_tokens=64,
        tokens_per_step=64, loop=False, chats=encoder(32),
    )  # fmt: skip
    with pytest.raises(SourceError, match=r"'chats'.* of which an answer fits into model\.seq_length"):
        feed.next_step(32)


def test_random_conversations_with_all_roles_come_through() -> None:
    chats = [random_chat(seed) for seed in range(40)]
    found: Counter[tuple[str, int]] = Counter()
    for row in rows_of(lane(chats, 400), 400):
        found.update(trained_of(row))
    assert found == expected(chats)
