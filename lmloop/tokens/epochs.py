"""Rows in epochs: every document once, or under `sequential` as often as a source's weight says, and then an end."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmloop.data.source import is_broken, why_broken
from lmloop.tokens.lanes import Lanes, Part, Rows, nothing_left, too_short
from lmloop.tokens.mixing import interleave


class Epochs:
    """The order of rows where passes end. Each source is one lane, which all ranks read alike.

    `sequential`: one source after the other. Else a source that ends drops out until all have ended. A step never holds rows
    of two epochs.
    """

    slots = 1
    faults = ()

    def __init__(self, lanes: Lanes, weights: list[float], *, sequential: bool, notices: list[str]) -> None:
        """`notices` gets a line for each source without documents."""
        assert set(lanes.counts) == {1}, lanes.counts
        self._all = lanes
        self._lanes = [lanes.worked[index, 0] for index in range(len(lanes.names))]
        self._weights = weights
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
            active = [i for i, passes in enumerate(self._passes) if passes < self._readings[i]]
            if not active:
                break
            if self._sequential:
                order = np.full(count - have, active[0])
            else:
                picks = interleave([self._taken[i] for i in active], [self._weights[i] for i in active], count - have)
                order = np.asarray(active)[picks]
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
            if all(other.was_empty for other in self._lanes):
                raise nothing_left(self._all.names, sum(other.skipped for other in self._lanes))
            if not is_broken(lane.source):
                self._tell(f"source '{lane.name}' gave no document{too_short(lane.skipped)}: training goes on without it")

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
        for lane, passes, readings in zip(self._lanes, self._passes, self._readings, strict=True):
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
        whole = [size * readings for size, readings in zip(sizes, self._readings, strict=True)]
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
