"""Rows in epochs: every document once, or under `sequential` as often as a source's weight says, and then an end."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmloop.data.source import is_broken, why_broken
from lmloop.tokens.lanes import Lanes, Part, Rows, nothing_left, too_short
from lmloop.tokens.mixing import Replay, interleave


class Epochs:
    """The order of rows where passes end. Each source is one lane, which all ranks read alike.

    `sequential`: one source after the other. Else a source that ends drops out until all have ended. A step never holds rows
    of two epochs. Sources that are replayed have their share of the rows throughout; they begin again as often as needed,
    and end no epoch.
    """

    slots = 1
    faults = ()

    def __init__(self, lanes: Lanes, weights: list[float], replay: Replay, *, sequential: bool, notices: list[str]) -> None:
        """`notices` gets a line for each source without documents."""
        assert set(lanes.counts) == {1}, lanes.counts
        self._all = lanes
        self._lanes = [lanes.worked[index, 0] for index in range(len(lanes.names))]
        self._weights = weights
        self._replay = replay
        self._old = [index for index, is_old in enumerate(replay.is_old_S) if is_old]
        self._new = [index for index in range(len(self._lanes)) if index not in self._old]
        self._sequential = sequential
        self._readings = [int(weight) if sequential else 1 for weight in weights]
        self._notices = notices
        self.load_state_dict({}, same=True)

    # ---- rows ----

    def take(self, length: int, count: int) -> Rows | None:
        """The next `count` rows of `length` tokens, fewer at the end of an epoch; None, once, when it is over."""
        parts: list[Part] = []
        sources: list[np.ndarray] = []
        have = 0
        while have < count:
            active = [i for i in self._new if self._passes[i] < self._readings[i]]
            if not active:
                break
            order = self._order(active[:1] if self._sequential else active, count - have)
            order, ending = self._servable(order, length)
            for index in np.unique(order).tolist():
                places = np.flatnonzero(order == index) + have
                block = self._lanes[index].take_rows(length, len(places))
                assert block is not None, (self._lanes[index].name, len(places))
                assert len(block) == len(places), (self._lanes[index].name, len(block), len(places))
                parts.append(Part((index, 0), places, block))
                self._taken[index] += len(places)
            sources.append(order)
            have += len(order)
            if ending is not None:
                self._end_pass(ending, length)
        if not have:
            self._end_epoch()
            return None
        return Rows(np.zeros(have, np.int64), np.concatenate(sources), parts)

    def _order(self, new: list[int], count: int) -> np.ndarray:
        """The sources of the next `count` rows: of the `new` ones by their weights, and of the old ones by their share of
        all rows, whichever new ones have ended."""
        order = np.asarray(new)[interleave([self._taken[i] for i in new], [self._weights[i] for i in new], count)]
        old = [i for i in self._old if not self._lanes[i].was_empty and not is_broken(self._lanes[i].source)]
        if not old:
            return order
        taken = [sum(self._taken[i] for i in self._new), *(self._taken[i] for i in old)]
        share, weight = self._replay.share, sum(self._weights[i] for i in old)
        shares = [1.0 - share, *(share * self._weights[i] / weight for i in old)]
        mixed = np.asarray([-1, *old])[interleave(taken, shares, count)]
        mixed[mixed < 0] = order[: int((mixed < 0).sum())]
        return mixed

    def _servable(self, order: np.ndarray, length: int) -> tuple[np.ndarray, int | None]:
        """The head of `order` for which there are rows, and the lane whose pass is over just then, if one is."""
        end, ending = len(order), None
        for index in np.unique(order).tolist():
            places = np.flatnonzero(order == index)
            rows = self._lanes[index].available(length, len(places))
            if rows < len(places) and places[rows] < end:
                end, ending = int(places[rows]), index
        return order[:end], ending

    def _end_pass(self, index: int, length: int) -> None:
        lane = self._lanes[index]
        rest = lane.take_rows(length, 1)
        assert rest is None, (lane.name, len(rest or ()))
        self._passes[index] += 1
        if is_broken(lane.source):
            why = why_broken(lane.source) or f"source '{lane.name}' broke off"
            self._tell(f"{why}: training goes on without it")
        if lane.was_empty:
            if all(self._lanes[new].was_empty for new in self._new):
                skipped, too_long = (sum(getattr(other, why) for other in self._lanes) for why in ("skipped", "too_long"))
                raise nothing_left(self._all.names, skipped, too_long=too_long)
            if not is_broken(lane.source):
                why = too_short(lane.skipped, lane.too_long)
                self._tell(f"source '{lane.name}' gave no document{why}: training goes on without it")

    def _tell(self, notice: str) -> None:
        if notice not in self._notices:
            self._notices.append(notice)

    def _end_epoch(self) -> None:
        self._epoch += 1
        self._passes = [0] * len(self._lanes)
        self._taken = [0] * len(self._lanes)
        self._reached = 0.0

    # ---- how far ----

    def place(self) -> tuple[int, float]:
        """Epochs that are over, and the share of the current one that is done."""
        # Estimates of a source's size change while it is read; what was once reported as done stays done.
        self._reached = max(self._reached, min(self._share_done(), 1.0))
        return self._epoch, self._reached

    def _share_done(self) -> float:
        """By pairs, where the sizes of all sources are known from an earlier pass or can be told from this one.

        Else each reading counts alike under `sequential`, and in the other mixes it is 0: too early to tell.
        """
        done, sizes = [], []
        for index in self._new:
            lane, passes, readings = self._lanes[index], self._passes[index], self._readings[index]
            over = passes >= readings
            done.append((passes + (0.0 if over else lane.progress)) / readings)
            size = lane.total_pairs
            if size is None and not self._sequential and lane.progress > 0:
                size = lane.pairs / lane.progress
            sizes.append(size)
        if None in sizes:
            if not self._sequential:
                return 0.0
            sizes = [1.0] * len(sizes)
        whole = [size * self._readings[index] for size, index in zip(sizes, self._new, strict=True)]
        return sum(share * size for share, size in zip(done, whole, strict=True)) / max(sum(whole), 1.0)

    def ballot(self) -> list[int]:
        """All ranks read everything: there is nothing to agree on."""
        return []

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """What is needed besides the lanes."""
        by_source = zip(self._all.names, self._passes, strict=True)
        return {"epoch": self._epoch, "reached": self._reached, "taken": self._taken[:], "passes": dict(by_source)}

    def load_state_dict(self, state: dict[str, Any], *, same: bool) -> None:
        """Go on where `state` was taken; where sources or mix are not the `same`, the turns begin anew."""
        self._epoch: int = state.get("epoch", 0)
        self._reached: float = state.get("reached", 0.0)
        self._passes: list[int] = [state.get("passes", {}).get(name, 0) for name in self._all.names]
        self._taken: list[int] = state["taken"][:] if same and "taken" in state else [0] * len(self._lanes)
