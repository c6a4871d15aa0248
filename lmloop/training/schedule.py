"""Where a run stands in its budget, and what follows from it: row length and learning rate.

Everything here is a function of the share of the run that is done, so that a resumed run, or one whose data has grown,
follows the same curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmloop.preset.schema import TOKENS_PER_RUN, Ramp, Stage, TrainSection
from lmloop.training.state import Progress

RAMP_STEPS = 3
"""Lengths that stand for a ramp where it is forecast how long a run takes."""


@dataclass(frozen=True)
class StageSpan:
    """A stage of the sequence schedule as a part of the run."""

    length: int
    end: float
    """Share of the run at which the stage ends."""


class Schedule:
    """Budget, stages and learning rate of one preset.

    `tokens_per_step` is what a full update trains on; it only refines the warm-up's first step.
    """

    def __init__(self, section: TrainSection, *, seq_length: int, tokens_per_step: int) -> None:
        self.section = section
        self.seq_length = seq_length
        self.tokens_per_step = tokens_per_step
        self.unit, self.amount = _budget(section)
        self.stages = _stages(section, seq_length)
        longest = max((stage.length for stage in self.stages), default=seq_length)
        if longest > seq_length:
            raise ValueError(
                f"train.sequence_schedule: length {longest} exceeds model.seq_length {seq_length}: "
                "raise seq_length or shorten the stage"
            )

    @property
    def counts_epochs(self) -> bool:
        """The budget is a number of passes over the data."""
        return self.unit == "epochs"

    def fraction(self, progress: Progress, epoch_progress: float) -> float:
        """Share of the run that is done, 0 to 1; `epoch_progress` is the share of the current epoch."""
        partial = min(epoch_progress, 1.0) if self.unit == "epochs" else 0.0
        return min((self._done(progress) + partial) / self.amount, 1.0)

    def finished(self, progress: Progress) -> bool:
        """The budget is used up."""
        return self._done(progress) >= self.amount

    def _done(self, progress: Progress) -> int:
        if self.unit == "epochs":
            return progress.run_epochs
        if self.unit == "steps":
            return progress.run_steps
        return progress.tokens if self.section.num_tokens is not None else progress.run_tokens  # a total counts all runs

    @property
    def renews(self) -> bool:
        """A finished run, started again, trains another: so it is where the preset names no budget of its own."""
        return self.unit == "tokens" and self.section.num_tokens is None and not self.stages_have_tokens

    @property
    def stages_have_tokens(self) -> bool:
        """The stages themselves are the budget."""
        return any(stage.tokens is not None for stage in _explicit_stages(self.section))

    def tokens_left(self, progress: Progress) -> int | None:
        """Trained tokens until the end of the run; None where epochs are counted."""
        left = max(self.amount - self._done(progress), 0)
        return {"tokens": left, "steps": left * self.tokens_per_step, "epochs": None}[self.unit]

    def stage(self, progress: Progress, fraction: float) -> int:
        """Index of the stage that the next step belongs to."""
        # Epochs are counted, not measured: the estimate of an epoch's progress must not end a stage early.
        done = min(progress.run_epochs / self.amount, 1.0) if self.unit == "epochs" else fraction
        for index, stage in enumerate(self.stages):
            if done < stage.end - 1e-9:
                return index
        return max(len(self.stages) - 1, 0)

    def length(self, progress: Progress, fraction: float) -> int:
        """Tokens of a row in the next step."""
        ramp = self.section.sequence_schedule
        if isinstance(ramp, Ramp):
            grown = ramp.start + (ramp.end - ramp.start) * min(fraction / ramp.until, 1.0)
            if grown >= ramp.end:
                return ramp.end
            return max(int(grown) // ramp.multiple_of * ramp.multiple_of, ramp.start)
        return self.stages[self.stage(progress, fraction)].length if self.stages else self.seq_length

    def shares(self) -> dict[int, float]:
        """The row lengths of the run, each with the share of the updates that have it; a ramp as a few steps of it."""
        ramp = self.section.sequence_schedule
        if isinstance(ramp, Ramp):
            step = ramp.until / RAMP_STEPS
            spans = [(self.length(Progress(), (number + 0.5) * step), step) for number in range(RAMP_STEPS)]
            spans.append((ramp.end, 1.0 - ramp.until))
        else:
            starts = [0.0, *(stage.end for stage in self.stages)]
            spans = [(stage.length, stage.end - start) for stage, start in zip(self.stages, starts, strict=False)]
        shares: dict[int, float] = {}
        for length, share in spans or [(self.seq_length, 1.0)]:
            shares[length] = shares.get(length, 0.0) + share
        return {length: share for length, share in shares.items() if share > 0.0}

    def rate_factor(self, progress: Progress, fraction: float) -> float:
        """Learning rate of the next step as a share of the peak."""
        section = self.section
        warmup = self._warmup(progress, fraction)
        if warmup < 1.0 or section.lr_schedule == "constant":
            return warmup
        floor = section.min_lr_fraction
        if section.lr_schedule == "cosine":
            start = self._warmup_end()
            share = min(max((fraction - start) / max(1.0 - start, 1e-9), 0.0), 1.0)
            return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))
        left = (1.0 - fraction) / section.decay_fraction if section.decay_fraction > 0 else 1.0
        return floor + (1.0 - floor) * min(max(left, 0.0), 1.0)

    def _warmup_end(self) -> float:
        """Share of the run at which warm-up ends; 0 where updates cannot be told in shares beforehand (epochs)."""
        if self.section.warmup_steps is None:
            return self.section.warmup_fraction
        steps = {"steps": 1, "tokens": self.tokens_per_step, "epochs": 0}[self.unit]
        return min(self.section.warmup_steps * steps / self.amount, 1.0)

    def _warmup(self, progress: Progress, fraction: float) -> float:
        section = self.section
        if section.warmup_steps is not None:
            return min((progress.run_steps + 1) / max(section.warmup_steps, 1), 1.0)
        if section.warmup_fraction <= 0.0:
            return 1.0
        if self.unit == "steps":
            step_fraction = 1.0 / self.amount
        elif self.unit == "tokens":
            step_fraction = self.tokens_per_step / self.amount
        else:  # how much of an epoch a step is shows only once steps were made
            step_fraction = fraction / progress.run_steps if progress.run_steps else section.warmup_fraction / 100
        return min((fraction + step_fraction) / section.warmup_fraction, 1.0)


def _budget(section: TrainSection) -> tuple[str, int]:
    """Unit and amount of a run."""
    if section.epochs is not None:
        return "epochs", section.epochs
    if section.epochs_per_length is not None:
        return "epochs", sum(section.epochs_per_length.values())
    if section.max_steps is not None:
        return "steps", section.max_steps
    if section.total_tokens is not None:
        return "tokens", section.total_tokens
    stages = _explicit_stages(section)
    if stages and stages[0].epochs is not None:
        return "epochs", sum(stage.epochs or 0 for stage in stages)
    if stages:
        return "tokens", sum(stage.tokens or 0 for stage in stages)
    return "tokens", TOKENS_PER_RUN


def _explicit_stages(section: TrainSection) -> list[Stage]:
    schedule = section.sequence_schedule
    return [stage for stage in schedule if isinstance(stage, Stage)] if isinstance(schedule, list) else []


def _stages(section: TrainSection, seq_length: int) -> list[StageSpan]:
    """The stages with their ends; empty when the length does not change by stages."""
    schedule = section.sequence_schedule
    if schedule is None:
        return []
    if isinstance(schedule, Ramp):
        if schedule.end > seq_length:
            raise ValueError(f"train.sequence_schedule.end: {schedule.end} exceeds model.seq_length {seq_length}")
        return []
    if explicit := _explicit_stages(section):
        shares = [(stage.length, stage.epochs or stage.tokens or 0) for stage in explicit]
    elif section.epochs_per_length is not None:
        shares = [(int(length), epochs) for length, epochs in section.epochs_per_length.items()]
    else:  # plain lengths share the run equally
        shares = [(length, 1) for length in schedule if isinstance(length, int)]
    total, done, spans = sum(share for _, share in shares), 0, []
    for length, share in shares:
        done += share
        spans.append(StageSpan(length, done / total))
    return spans
