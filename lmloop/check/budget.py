"""The budget of a preset against the data that is there: how often each source will be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmloop.check.counts import PartCounts
from lmloop.preset.schema import Preset
from lmloop.tokens.mixing import lane_weights, replay_of
from lmloop.training.schedule import Schedule


@dataclass(frozen=True)
class Budget:
    """What the run will take of the data. None where that cannot be told: of a stream only a beginning was read."""

    unit: str
    """What the preset counts: tokens, steps or epochs."""
    amount: int
    tokens_per_step: int
    run_tokens: int | None
    steps: int | None
    data_tokens: int | None
    """Trained tokens of one pass over all training sources."""
    estimated: bool
    """Of a source only a part was read, and the rest was extrapolated."""
    passes: float | None
    """Over all of the data."""
    passes_by_source: dict[str, float | None]


def tokens_per_step(preset: Preset, parts: Sequence[PartCounts]) -> int:
    """Trained tokens of a full update, in one process: rows are full of those of texts, but not of answers."""
    rows, length = preset.train.rows_per_step(1), preset.model.seq_length
    read = sum(part.rows for part in parts)
    full = (part.rows * length if part.trained_tokens == part.tokens else part.trained_tokens for part in parts)
    return max(1, round(rows * sum(full) / read)) if read else rows * length


def budget_of(preset: Preset, parts: Sequence[PartCounts]) -> Budget:
    """The budget against the training parts of all sources."""
    per_step = tokens_per_step(preset, parts)
    schedule = Schedule(preset.train, seq_length=preset.model.seq_length, tokens_per_step=per_step)
    names = [part.source for part in parts]
    sizes = [_size(part) for part in parts]
    replay = replay_of(preset.data, names)
    weights = lane_weights(preset.data, names)
    sequential = preset.data.mix_strategy == "sequential"
    # What is replayed ends no epoch, and comes on top of it.
    readings = [0.0 if old else n if sequential else 1.0 for n, old in zip(weights, replay.is_old_S, strict=True)]
    weights = replay.weights(weights, range(len(weights))).tolist()
    known = None not in sizes
    data_tokens = sum(size or 0 for size in sizes) if known else None
    new_tokens = sum(round(n * (size or 0)) for n, size in zip(readings, sizes, strict=True))
    epoch_tokens = round(new_tokens / (1.0 - replay.share)) if known else None
    run_tokens = steps = None
    if schedule.unit == "steps":
        run_tokens, steps = schedule.amount * per_step, schedule.amount
    elif schedule.unit == "tokens":
        run_tokens, steps = schedule.amount, math.ceil(schedule.amount / per_step)
    elif epoch_tokens is not None:
        run_tokens, steps = schedule.amount * epoch_tokens, schedule.amount * math.ceil(epoch_tokens / per_step)
    by_source: dict[str, float | None] = {}
    for name, size, weight, reading in zip(names, sizes, weights, readings, strict=True):
        if not reading:
            by_source[name] = run_tokens * weight / size if run_tokens and size else None
        elif schedule.counts_epochs:
            by_source[name] = schedule.amount * reading
        elif sequential:
            by_source[name] = run_tokens / epoch_tokens * reading if run_tokens and epoch_tokens else None
        else:
            by_source[name] = run_tokens * weight / sum(weights) / size if run_tokens and size else None
    return Budget(
        unit=schedule.unit,
        amount=schedule.amount,
        tokens_per_step=per_step,
        run_tokens=run_tokens,
        steps=steps,
        data_tokens=data_tokens,
        estimated=any(not part.complete for part in parts),
        passes=run_tokens / data_tokens if run_tokens and data_tokens else None,
        passes_by_source=by_source,
    )


def _size(part: PartCounts) -> int | None:
    """Trained tokens of a whole pass; of a part that was not read to its end extrapolated, where its source can tell."""
    if part.complete:
        return part.trained_tokens
    return round(part.trained_tokens / part.progress) if part.progress > 0 else None
