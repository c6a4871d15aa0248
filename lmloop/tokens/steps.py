"""Steps: the rows that one rank trains in one update, as micro-batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from lmloop.data.source import Source
from lmloop.preset.schema import DataSection
from lmloop.tokens.batch import TRIMMED_TO, Batch, RowBlock
from lmloop.tokens.conversations import ChatEncoder
from lmloop.tokens.dealing import deal
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.epochs import Epochs
from lmloop.tokens.lanes import Key, Lanes, Rows
from lmloop.tokens.mixing import lane_weights, replay_of
from lmloop.tokens.rounds import Rounds


@dataclass(frozen=True)
class Step:
    """The micro-batches of an update and the state after them; no batches at the end of an epoch.

    ballot: see Rounds. faults: why sources cannot be read any more. plan: a checksum of what all ranks plan alike. shared:
    checksums of what was read of each lane that all ranks work. Both are made only where there are several ranks.
    """

    batches: list[Batch]
    state: dict[str, Any]
    epoch: int
    progress: float
    ballot: list[int] = field(default_factory=list)
    faults: Sequence[str] = ()
    plan: int = 0
    shared: dict[Key, int] = field(default_factory=dict)


class StepBuilder:
    """Builds one step after another.

    `tokens_per_step` is what a step holds over all ranks, `micro_batch_tokens` what one rank takes at a time. The rows of a
    step and their order are the same for any number of ranks, the number of micro-batches is the same on each of them; a
    micro-batch without a row of its own has one without weight.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Source]],
        encoder: Encoder,
        chats: ChatEncoder | None,
        section: DataSection,
        *,
        micro_batch_tokens: int,
        tokens_per_step: int,
        endless: bool,
        rank: int,
        world: int,
        state: dict[str, Any],
        notices: list[str],
        check: Callable[[], None],
    ) -> None:
        """`parts`: the sources as they are cut. `chats`: for those that hold conversations. `endless`: a source that ends
        begins again. `state`: `{}` is the start.

        `notices` gets a line for each source without documents; `check` is called while reading and may raise.
        """
        self._lanes = lanes = Lanes(parts, encoder, chats, section, rank=rank, world=world, check=check)
        weights, replay = lane_weights(section, lanes.names), replay_of(section, lanes.names)
        self._left_out: dict[str, dict[str, int]] = state.get("left_out", {}) if endless else {}
        reasons = {key: self._left_out.get(lanes.names[key[0]], {}).get(str(key[1]), 0) for key in lanes.keys}
        left_out = {key: reason for key, reason in reasons.items() if reason}
        self._signature = [
            endless,
            section.mix_strategy,
            lanes.names,
            weights,
            lanes.counts,
            [list(key) for key in left_out],
            *([[replay.share, list(replay.is_old_S)]] if any(replay.is_old_S) else []),
        ]
        lanes.load_state_dict(state.get("lanes", {}))
        self._mix = (
            Rounds(lanes, weights, left_out, replay)
            if endless
            else Epochs(lanes, weights, replay, sequential=section.mix_strategy == "sequential", notices=notices)
        )
        self._mix.load_state_dict(state.get("mix", {}), same=state.get("signature") == self._signature)
        self._pad_id = encoder.tokenizer.pad_id
        self._trims = chats is not None and not chats.names.isdisjoint(lanes.names)
        self._micro_batch_tokens = micro_batch_tokens
        self._tokens_per_step = tokens_per_step
        self._rank = rank
        self._world = world

    def next_step(self, length: int) -> Step:
        """The next step of rows of `length` tokens."""
        rows = self._mix.take(length, max(self._tokens_per_step // length, 1))
        batches = self._batches(rows, length) if rows else []
        epoch, progress = self._mix.place()
        step = Step(batches, self.state_dict(), epoch, progress, self._mix.ballot(), self._mix.faults)
        return step if self._world == 1 or rows is None else replace(step, **self._checksums(rows))

    def _batches(self, rows: Rows, length: int) -> list[Batch]:
        """This rank's rows in as many micro-batches as the rank with the most rows needs."""
        rank_N = deal(rows.slot_N, self._mix.slots, self._world)
        at_most = max(self._micro_batch_tokens // length, 1)
        count = -(-int(np.bincount(rank_N).max()) // at_most)
        mine = [(part.places, part.block, np.flatnonzero(rank_N[part.places] == self._rank)) for part in rows.parts]
        block = RowBlock.merge([(places[own], whole.pick(own)) for places, whole, own in mine if len(own)])
        bounds = [len(block) * index // count for index in range(count + 1)] if block else [0] * (count + 1)
        if not self._trims:
            return [
                Batch.from_block(block, start, stop)
                if block and stop > start
                else Batch.without_weight(length, self._pad_id)
                for start, stop in pairwise(bounds)
            ]
        return [
            Batch.from_block(block, start, stop).trimmed()
            if block and stop > start
            else Batch.without_weight(min(length, TRIMMED_TO), self._pad_id)
            for start, stop in pairwise(bounds)
        ]

    def _checksums(self, rows: Rows) -> dict[str, Any]:
        plan = zlib.crc32(repr(self._signature).encode())
        for array in (rows.slot_N, rows.source_N):
            plan = zlib.crc32(array.tobytes(), plan)
        shared: dict[Key, int] = {}
        for part in rows.parts:
            if part.key in self._lanes.shared:
                names = "\n".join(name for documents in part.block.documents_B for name in documents)
                before = zlib.crc32(names.encode(), shared.get(part.key, 0))
                shared[part.key] = zlib.crc32(part.block.tokens_BT.tobytes(), before)
        return {"plan": plan, "shared": shared}

    def state_dict(self) -> dict[str, Any]:
        """Where the next step begins; positions are the sources' own objects."""
        return {
            "signature": self._signature,
            "mix": self._mix.state_dict(),
            "left_out": self._left_out,
            "lanes": self._lanes.state_dict(),
        }
