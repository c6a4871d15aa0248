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
from torch import nn
from torch.optim import Optimizer

from lmloop.data.quarantine import TooManyBadRows
from lmloop.data.source import SourceError
from lmloop.durable import in_words
from lmloop.hardware import memory_in_use_bytes
from lmloop.models.base import LanguageModel
from lmloop.objectives.base import Objective
from lmloop.objectives.term import Term, total_loss
from lmloop.preset.schema import TrainSection
from lmloop.tokens.batch import Batch
from lmloop.tokens.feed import Feed, Interrupted
from lmloop.training.boundary import Boundary
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.state import Progress


class Trainee(nn.Module):
    """Model and objective as one module, so that a wrapper around it sees every use of every parameter."""

    def __init__(self, model: LanguageModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> dict[str, Term]:
        """Named terms of the loss on one micro-batch."""
        return self.objective(self.model, batch)


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
        trainee: nn.Module,
        model: LanguageModel,
        objective: Objective,
        optimizer: Optimizer,
        feed: Feed,
        schedule: Schedule,
        section: TrainSection,
        progress: Progress,
        boundary: Boundary,
        snapshots: Snapshots,
        device: torch.device,
        autocast: bool,
        should_stop: Callable[[], bool],
    ) -> None:
        self.trainee = trainee  # possibly compiled; `model` is always the plain one
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.feed = feed
        self.schedule = schedule
        self.section = section
        self.progress = progress
        self.boundary = boundary
        self.snapshots = snapshots
        self.device = device
        self.autocast = autocast
        self.should_stop = should_stop

    def run(self) -> Outcome:
        """Train until the budget is used up, a signal asks to stop, or training cannot go on."""
        progress = self.progress
        self.model.train()
        while True:
            finished = progress.stopped_early or self.schedule.finished(progress)
            if not self.boundary.pass_through(self.should_stop, final=finished):
                return self._stopped()
            if self.snapshots.due():
                self.snapshots.save()
            if self.snapshots.given_up:
                return self._unsaved()
            if finished or progress.stopped_early:
                return self._ended()
            if self.should_stop():
                return self._stopped()
            started, waited = time.perf_counter(), self.feed.wait_s
            fraction = self.schedule.fraction(progress, self.feed.progress)
            length = self.schedule.length(progress, fraction)
            try:
                batches = self.feed.next_step(length)
            except Interrupted:
                return self._stopped()
            except (SourceError, TooManyBadRows, OSError) as error:  # the feed stands where the last step left it
                self.snapshots.save()
                return Outcome("failed", in_words(error))
            if not batches:
                progress.epochs += 1
                continue
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.schedule.rate_factor(progress, fraction) * progress.rate_scale
            if not self._step(batches, length, fraction, started, self.feed.wait_s - waited):
                return Outcome(
                    "failed", f"loss or gradient not finite at step {progress.step} after {progress.rollbacks} rollbacks"
                )

    def _step(self, batches: list[Batch], length: int, fraction: float, started: float, waited: float) -> bool:
        """One update. False when training cannot go on."""
        progress = self.progress
        counts = self._counts(batches)
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                terms = self.trainee(batch)
            # Each term is divided by its own count over the whole step, so that accumulation never changes the gradient.
            total = total_loss(terms, counts)
            total.backward()
            loss += total.detach()
        limit = self.section.max_grad_norm or float("inf")
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        loss_value, norm_value = torch.stack([loss, grad_norm.to(loss)]).tolist()
        finite = all(abs(value) < float("inf") for value in (loss_value, norm_value))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        tokens = sum(batch.trained_tokens for batch in batches)
        progress.tokens += tokens
        seconds = time.perf_counter() - started
        progress.elapsed_s += seconds
        rate = self.optimizer.param_groups[0]["lr"]
        self.boundary.after_step(
            batches,
            loss=loss_value if finite else None,
            tokens=tokens,
            seconds=seconds,
            waited_s=waited,
            facts={
                "epoch": progress.epochs if self.schedule.counts_epochs else self.feed.epoch,
                "seq_len": length,
                "lr": rate,
                "grad_norm": norm_value if finite else None,
                "stage": self.schedule.stage(progress, fraction),
                "fraction": self.schedule.fraction(progress, self.feed.progress),
                "memory_bytes": memory_in_use_bytes(self.device),
            },
        )
        return self._survive_bad_step(finite)

    def _counts(self, batches: list[Batch]) -> dict[str, float]:
        """What each term is divided by, over all micro-batches."""
        counts: dict[str, float] = {}
        for batch in batches:
            for name, count in self.objective.counts(batch).items():
                counts[name] = counts.get(name, 0.0) + count
        return {name: max(count, 1e-9) for name, count in counts.items()}

    def _survive_bad_step(self, finite: bool) -> bool:
        """Count a skipped update; several in a row go back to the last checkpoint at half the rate, then end the run."""
        progress = self.progress
        if finite:
            progress.bad_in_a_row = 0
            return True
        progress.skipped += 1
        progress.bad_in_a_row += 1
        self.boundary.notice("loss or gradient not finite: this update is skipped")
        if progress.bad_in_a_row < self.section.max_bad_steps:
            return True
        if progress.rollbacks >= self.section.max_rollbacks:
            return False
        restored = self.snapshots.restore_weights()
        if restored is None:
            return False
        progress.rollbacks += 1
        progress.bad_in_a_row = 0
        progress.rate_scale *= 0.5
        self.boundary.notice(
            f"{self.section.max_bad_steps} bad updates in a row: weights of step {restored} again, learning rate halved"
        )
        return True

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
