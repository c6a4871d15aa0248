"""Mixing: which source the next rows come from. No chance is involved, so nothing but counts is saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmloop.data.corpus import replayed_names, source_names, source_weights
from lmloop.preset.schema import DataSection


def interleave(taken: Sequence[int] | np.ndarray, weights: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
    """Which source each of the next `count` rows comes from: indices, int64 [count].

    Stride scheduling (Waldspurger and Weihl 1995): row k of source i is due at time (k + 1/2) / weight_i, rows go in the
    order of their times, and of equal ones the first source goes first. So the share of each source is off by less than
    one row at any moment, and equal weights are plain turns. `taken` is how many rows of each are gone already; where a
    step ends makes no difference to the order.
    """
    if len(weights) == 1:
        return np.zeros(count, np.int64)
    weights_S = np.asarray(weights, np.float64)
    taken_S = np.asarray(taken, np.float64)
    # By this time at least `count` rows are due, however the taken ones are spread.
    horizon = (count + taken_S.sum() + len(weights_S)) / weights_S.sum()
    rows_S = np.maximum(np.floor(horizon * weights_S + 0.5) + 1 - taken_S, 0).astype(np.int64)
    rows_S = np.minimum(rows_S, count)
    source_N = np.repeat(np.arange(len(weights_S)), rows_S)
    index_N = np.concatenate([np.arange(first, first + rows) for first, rows in zip(taken, rows_S.tolist(), strict=True)])
    due_N = (index_N + 0.5) / weights_S[source_N]
    return source_N[np.argsort(due_N, kind="stable")[:count]]


@dataclass(frozen=True)
class Replay:
    """Which sources are old data among the new. share: of the rows. is_old_S: of each source, whether it is one."""

    share: float
    is_old_S: tuple[bool, ...]

    def weights(self, weights_S: Sequence[float] | np.ndarray, active: Sequence[int] | np.ndarray) -> np.ndarray:
        """The weights of the `active` sources, with which the old ones among them have their share of the rows together;
        fp64 [active]. Where only old or only new ones are active, as they are."""
        weights_A = np.asarray(weights_S, np.float64)[active]
        old_A = np.asarray(self.is_old_S)[active]
        if old_A.any() and not old_A.all():
            weights_A[old_A] *= self.share / weights_A[old_A].sum()
            weights_A[~old_A] *= (1.0 - self.share) / weights_A[~old_A].sum()
        return weights_A


def replay_of(section: DataSection, names: Sequence[str]) -> Replay:
    """What of the sources called `names` is replayed, and how much."""
    old = set(replayed_names(section))
    return Replay(section.replay.share if section.replay else 0.0, tuple(name in old for name in names))


def lane_weights(section: DataSection, names: Sequence[str]) -> list[float]:
    """The weight of each source of `names`: 1 under `round_robin`, share of rows under `weighted`, readings an epoch under
    `sequential`; of sources that are replayed their own.

    Raises:
        ValueError: a number of readings is not whole. One line.
    """
    own = [1.0 if isinstance(s, str) else float(s.weight) for s in (section.replay.sources if section.replay else ())]
    old = dict(zip(replayed_names(section), own, strict=True))
    if section.mix_strategy == "round_robin":
        return [old.get(name, 1.0) for name in names]
    known = {**dict(zip(source_names(section.sources), source_weights(section), strict=True)), **old}
    weights = [known.get(name, 1.0) for name in names]
    if section.mix_strategy == "sequential":
        for name, weight in zip(names, weights, strict=True):
            if name not in old and weight != int(weight):
                raise ValueError(
                    f"data.source_weights: {weight} of '{name}' is a number of readings under 'sequential': use a whole one"
                )
    return weights
