"""Rows without end: every source begins again by itself, and the order is a function of counts alone.

A run goes round by slots, one row for each in turn. Every slot mixes the sources for itself, and takes its rows of a source
from one part of it: slot s from part s mod n, where the source has n parts. So each part is read at the same pace, ranks
that work different slots need not know of each other, and when a part ends matters to none but itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmloop.data.source import SourceError, is_broken, why_broken
from lmloop.tokens.lanes import Key, Lanes, Part, Rows, nothing_left
from lmloop.tokens.mixing import Replay, interleave
from lmloop.tokens.packed import PackedLane

EMPTY = 1
"""A lane gave a whole pass without a document."""

BROKEN = 2
"""A lane broke off. It is left out while this process lives, and tried again at its place by the next."""

_NOWHERE = 2**31 - 1


class Rounds:
    """The order of rows where nothing ends."""

    def __init__(self, lanes: Lanes, weights: list[float], left_out: dict[Key, int], replay: Replay) -> None:
        """`left_out`: lanes that the round goes without, each with EMPTY or BROKEN. SourceError when no lane is left."""
        self.faults: list[str] = []
        """A line for each source that cannot be read any more."""
        self._lanes = lanes
        self._weights = replay.weights(weights, range(len(weights)))
        self.slots = max(lanes.counts)
        self._found = dict(left_out)
        sources = range(len(lanes.names))
        self._active = [
            np.array([i for i in sources if (i, slot % lanes.counts[i]) not in left_out], np.int64)
            for slot in range(self.slots)
        ]
        self._weights_of = [replay.weights(weights, active) for active in self._active]
        self._round = np.array([slot for slot in range(self.slots) if len(self._active[slot])])
        if not len(self._round):
            raise nothing_left(lanes.names, sum(map(lanes.skipped, sources)), too_long=sum(map(lanes.too_long, sources)))
        self.load_state_dict({}, same=True)

    # ---- rows ----

    def take(self, length: int, count: int) -> Rows:
        """The next `count` rows of `length` tokens. A lane that has no document gives none of its rows."""
        slot_N, source_N = self._plan(count)
        part_N = slot_N % np.asarray(self._lanes.counts)[source_N]
        parts: list[Part] = []
        for key, lane in self._lanes.worked.items():
            places = np.flatnonzero((source_N == key[0]) & (part_N == key[1]))
            parts += self._rows_of(key, lane, length, places)
        return Rows(slot_N, source_N, parts)

    def _plan(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Slot and source of the next rows."""
        first = int(np.searchsorted(self._round, self._turn))  # the slot whose turn it is, or the next that is left
        index_N = (first + np.arange(count + 1)) % len(self._round)
        slot_N = self._round[index_N[:-1]]
        self._turn = int(self._round[index_N[-1]])
        source_N = np.empty(count, np.int64)
        for slot in np.unique(slot_N).tolist():
            places, active = np.flatnonzero(slot_N == slot), self._active[slot]
            picks = active[interleave(self._taken[slot, active], self._weights_of[slot], len(places))]
            source_N[places] = picks
            self._taken[slot] += np.bincount(picks, minlength=len(self._weights))
        return slot_N, source_N

    def _rows_of(self, key: Key, lane: PackedLane[Any, Any], length: int, places: np.ndarray) -> list[Part]:
        """Rows of one lane for `places`, over as many passes as it takes."""
        parts: list[Part] = []
        have = 0
        while have < len(places) and key not in self._found:
            try:
                rows = lane.available(length, len(places) - have)
                broken = not rows and is_broken(lane.source)
                if broken and (why := why_broken(lane.source)) not in ("", *self.faults):
                    self.faults.append(why)
            except SourceError as error:
                rows, broken = 0, True
                self.faults.append(str(error))
            if broken:
                self._found[key] = BROKEN  # its pass is not over: it keeps its place
                break
            block = lane.take_rows(length, max(rows, 1))
            if block is not None:
                parts.append(Part(key, places[have : have + rows], block))
                have += rows
            elif lane.was_empty:
                self._found[key] = EMPTY
        return parts

    # ---- what ranks agree on ----

    def place(self) -> tuple[int, float]:
        """Passes that are over of the lane that is furthest behind, and the share of its current one."""
        return min(self._places(), default=(0, 0.0))

    def _places(self) -> list[tuple[int, float]]:
        return [(lane.epoch, lane.progress) for key, lane in self._lanes.worked.items() if key not in self._found]

    def ballot(self) -> list[int]:
        """What is known of each lane (0, EMPTY, BROKEN), and the epoch with its sign changed: the maximum over all ranks is
        what they know together."""
        epoch, _ = min(self._places(), default=(_NOWHERE, 0.0))
        return [*(self._found.get(key, 0) for key in self._lanes.keys), -epoch]

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """What is needed besides the lanes and what was left out."""
        return {"turn": self._turn, "taken": self._taken.tolist()}

    def load_state_dict(self, state: dict[str, Any], *, same: bool) -> None:
        """Go on where `state` was taken; where sources, mix or what is left out are not the `same`, the turns begin anew."""
        self._turn: int = state["turn"] if same and state else 0
        self._taken = np.array(state["taken"], np.int64) if same and state else first_counts(self._weights, self.slots)


def first_counts(weights: Sequence[float] | np.ndarray, slots: int) -> np.ndarray:
    """What each slot begins with as taken of each source, int64 [slots, sources].

    Slot s begins s rows into the mix, as if it had been there before: so a round, one row of each slot, is a stretch of the
    mix and has all sources in their shares.
    """
    whole = interleave([0] * len(weights), weights, slots)
    return np.stack([np.bincount(whole[:slot], minlength=len(weights)) for slot in range(slots)]).astype(np.int64)
