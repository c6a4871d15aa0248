"""Steps: rows of all sources, mixed, as the micro-batches of one update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmloop.data.source import Source, SourceError
from lmloop.preset.schema import DataSection
from lmloop.tokens.batch import Batch, RowBlock
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.mixing import interleave, lane_weights
from lmloop.tokens.packing import Lane


@dataclass(frozen=True)
class Step:
    """The micro-batches of an update and the state after them; no batches at the end of an epoch."""

    batches: list[Batch]
    state: dict[str, Any]
    epoch: int
    progress: float


class StepBuilder:
    """Builds one step after another from lanes.

    Three kinds of epochs. `sequential`: one source after the other, each read as often as its weight says. With `loop`, a
    source that ends begins again at once, and the epoch is that of the source that is furthest behind. Without, a source
    that ends drops out until all have ended. A step never holds rows of two epochs of the first and last kind.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        section: DataSection,
        *,
        micro_batch_tokens: int,
        accumulation_steps: int,
        loop: bool,
        notices: list[str],
        check: Callable[[], None],
    ) -> None:
        """`notices` gets a line for each source without documents; `check` is called while reading and may raise."""
        self._lanes = [
            Lane(
                source,
                encoder.tokenizer,
                index=index,
                min_text_length=section.min_text_length,
                encoder=encoder,
                check=check,
            )
            for index, source in enumerate(sources)
        ]
        names = [lane.name for lane in self._lanes]
        self._weights = lane_weights(section, names)
        self._sequential = section.mix_strategy == "sequential"
        self._readings = [int(weight) if self._sequential else 1 for weight in self._weights]
        self._loops = loop and not self._sequential
        self._signature = [section.mix_strategy, names, self._weights]
        self._micro_batch_tokens = micro_batch_tokens
        self._accumulation_steps = accumulation_steps
        self._notices = notices
        self.load_state_dict({})

    def next_step(self, length: int) -> Step:
        """The next step of rows of `length` tokens."""
        rows = max(self._micro_batch_tokens // length, 1)
        block = self._rows(length, rows * self._accumulation_steps)
        if block is None:
            self._end_epoch()
            return self._step([])
        return self._step([Batch.from_block(block, at, at + rows) for at in range(0, len(block), rows)])

    def _step(self, batches: list[Batch]) -> Step:
        epoch, progress = self._place()
        return Step(batches, self.state_dict(), epoch, progress)

    # ---- rows ----

    def _rows(self, length: int, count: int) -> RowBlock | None:
        """The next `count` rows, fewer at the end of an epoch, None when it is over."""
        parts: list[tuple[np.ndarray, RowBlock]] = []
        have = 0
        while have < count:
            active = self._active()
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
                parts.append((places, block))
                self._taken[index] += len(places)
            have += len(order)
            if ending is not None:
                self._end_pass(ending, length)
        return RowBlock.merge(parts) if parts else None

    def _active(self) -> list[int]:
        """Lanes whose rows are wanted now; under `sequential` the first of them has its turn."""
        if self._loops:
            return [i for i, lane in enumerate(self._lanes) if not lane.was_empty]
        return [i for i, passes in enumerate(self._passes) if passes < self._readings[i]]

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
        if lane.was_empty:
            why = " that is long enough for data.min_text_length" if lane.skipped else ""
            notice = f"source '{lane.name}' gave no document{why}: training goes on without it"
            if all(other.was_empty for other in self._lanes):
                names = ", ".join(f"'{other.name}'" for other in self._lanes)
                raise SourceError(f"no source ({names}) gives a document{why}: correct data.sources")
            if notice not in self._notices:
                self._notices.append(notice)

    def _end_epoch(self) -> None:
        self._epoch += 1
        self._passes = [0] * len(self._lanes)
        self._taken = [0] * len(self._lanes)
        self._reached = 0.0

    # ---- how far ----

    def _place(self) -> tuple[int, float]:
        """Epochs that are over, and the share of the current one that is done."""
        if self._loops:
            return min((lane.epoch, lane.progress) for lane in self._lanes if not lane.was_empty)
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

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Where the next step begins; positions are the sources' own objects."""
        return {
            "epoch": self._epoch,
            "reached": self._reached,
            "signature": self._signature,
            "lanes": {
                lane.name: {**lane.state_dict(), "taken": taken, "passes": passes}
                for lane, taken, passes in zip(self._lanes, self._taken, self._passes, strict=True)
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; `{}` is the start.

        With other sources or another mix, each source that was there goes on from its place and the turns begin anew.
        """
        self._epoch: int = state.get("epoch", 0)
        self._reached: float = state.get("reached", 0.0)
        saved = [state.get("lanes", {}).get(lane.name, {}) for lane in self._lanes]
        same = state.get("signature") == self._signature
        self._taken: list[int] = [entry.get("taken", 0) if same else 0 for entry in saved]
        self._passes: list[int] = [entry.get("passes", 0) for entry in saved]
        for lane, entry in zip(self._lanes, saved, strict=True):
            lane.load_state_dict(entry)
