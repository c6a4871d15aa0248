"""The loop: the only one. What is trained and on what is decided by the objective and the feed.

A step's boundary (evaluation, samples, the metrics line, a checkpoint) comes after the step and is part of the state: a run
that is stopped in the middle of an evaluation makes that evaluation first when it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim import Optimizer

from lmloop.hardware import memory_in_use_bytes
from lmloop.preset.schema import TrainSection
from lmloop.tokens.feed import Feed
from lmloop.training.boundary import Boundary
from lmloop.training.gradients import Gradients, OutOfRoomError
from lmloop.training.intake import Inlet, Intake
from lmloop.training.parallel import Alone
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.state import Progress


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, `stopped` by a signal, or `failed`."""

    status: Literal["finished", "stopped", "failed"]
    reason: str


class Trainer:
    """Everything that one run needs, and the steps it goes through."""

    def __init__(
        self,
        *,
        parallel: Alone,
        optimizer: Optimizer,
        feed: Feed,
        inlet: Inlet,
        schedule: Schedule,
        section: TrainSection,
        progress: Progress,
        boundary: Boundary,
        snapshots: Snapshots,
        should_stop: Callable[[], bool],
    ) -> None:
        """`should_stop`: the same on every rank, where evaluation and samples ask it together."""
        self.parallel = parallel
        self.optimizer = optimizer
        self.feed = feed
        self.inlet = inlet
        self.schedule = schedule
        self.section = section
        self.progress = progress
        self.boundary = boundary
        self.snapshots = snapshots
        self.should_stop = should_stop
        self.gradients = Gradients(parallel, progress, boundary.notice)

    def run(self) -> Outcome:
        """Train until the budget is used up, a signal asks to stop, or training cannot go on."""
        progress, save_due = self.progress, False
        self.parallel.model.train()
        while True:
            finished = progress.stopped_early or self.schedule.finished(progress)
            if not self.boundary.pass_through(self.should_stop, final=finished):
                return self._stopped()
            if self.snapshots.due(time_is_up=save_due):
                self.snapshots.save()
            if self.snapshots.given_up:
                return self._unsaved()
            if finished or progress.stopped_early:
                return self._ended()
            started, waited = time.perf_counter(), self.feed.wait_s
            fraction = self.schedule.fraction(progress, self.feed.progress)
            length = self.schedule.length(progress, fraction)
            intake = self.inlet.take(length, save_due=self.snapshots.time_is_up)
            if intake.problem:
                if intake.sound:
                    self.snapshots.save()
                return Outcome("failed", intake.problem)
            if intake.stop:
                return self._stopped()
            save_due = intake.save_due
            if not intake.batches:
                progress.epochs += 1
                continue
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.schedule.rate_factor(progress, fraction) * progress.rate_scale
            problem = self._step(intake, length, fraction, started, self.feed.wait_s - waited)
            if problem:
                return Outcome("failed", problem)

    def _step(self, intake: Intake, length: int, fraction: float, started: float, waited: float) -> str:
        """One update. Why training cannot go on; '' when it can."""
        progress, parallel = self.progress, self.parallel
        try:
            loss = self.gradients.of(intake)
        except OutOfRoomError as error:
            return str(error)
        grad_norm = parallel.clip(self.section.max_grad_norm or float("inf"))
        loss_value, norm_value = torch.stack([parallel.processes.average(loss), grad_norm.to(loss)]).tolist()
        finite = all(abs(value) < float("inf") for value in (loss_value, norm_value))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += intake.tokens
        seconds = time.perf_counter() - started
        progress.elapsed_s += seconds
        rate = self.optimizer.param_groups[0]["lr"]
        self.boundary.after_step(
            intake.source_rows,
            loss=loss_value if finite else None,
            tokens=intake.tokens,
            seconds=seconds,
            waited_s=waited,
            facts={
                "epoch": progress.epochs if self.schedule.counts_epochs else self.feed.epoch,
                "seq_len": length,
                "lr": rate,
                "grad_norm": norm_value if finite else None,
                "stage": self.schedule.stage(progress, fraction),
                "fraction": self.schedule.fraction(progress, self.feed.progress),
                "memory_bytes": memory_in_use_bytes(parallel.device),
            },
        )
        return self._survive_bad_step(finite)

    def _survive_bad_step(self, finite: bool) -> str:
        """Count a skipped update; several in a row go back to the last checkpoint at half the rate, then end the run."""
        progress = self.progress
        gone = f"loss or gradient not finite at step {progress.step} after {progress.rollbacks} rollbacks"
        if finite:
            progress.bad_in_a_row = 0
            return ""
        progress.skipped += 1
        progress.bad_in_a_row += 1
        self.boundary.notice("loss or gradient not finite: this update is skipped")
        if progress.bad_in_a_row < self.section.max_bad_steps:
            return ""
        if progress.rollbacks >= self.section.max_rollbacks:
            return gone
        restored = self.snapshots.restore_weights()
        if restored is None:
            return gone
        progress.rollbacks += 1
        progress.bad_in_a_row = 0
        progress.rate_scale *= 0.5
        self.boundary.notice(
            f"{self.section.max_bad_steps} bad updates in a row: weights of step {restored} again, learning rate halved"
        )
        return ""

    def _stopped(self) -> Outcome:
        return Outcome("stopped", "asked to stop") if self.snapshots.save() else self._unsaved()

    def _unsaved(self) -> Outcome:
        return Outcome("failed", self.snapshots.problem or "the checkpoint was not saved")

    def _ended(self) -> Outcome:
        if not self.snapshots.save():
            return self._unsaved()
        if self.progress.stopped_early:
            return Outcome("finished", f"no better validation loss in {self.progress.evals_since_best} evaluations")
        return Outcome("finished", "the budget is used up")
