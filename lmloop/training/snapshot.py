"""When a checkpoint is due, what goes into it, and what happens when the disk refuses it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lmloop.durable import in_words
from lmloop.preset.schema import TrainSection
from lmloop.processes import ALONE, Processes
from lmloop.training.checkpoint import CheckpointStore
from lmloop.training.saving import save_together
from lmloop.training.soundness import NonFiniteError
from lmloop.training.state import Progress

RETRY_AFTER_S = 60.0
"""A save that failed is tried again after this time, or at the next one that is due."""
MAX_FAILED_SAVES = 3
"""Failed saves in a row after which training stops: what it learns could not be kept."""


class Snapshots:
    """Saves the run; every rank is asked alike, the first writes, and all know whether it could.

    `capture` gives the complete state without the counters; `restore` puts a state's weights and optimizer back, of which
    only the first rank has one.
    """

    def __init__(
        self,
        *,
        store: CheckpointStore,
        section: TrainSection,
        progress: Progress,
        preset_hash: str,
        capture: Callable[[], dict[str, Any]],
        restore: Callable[[dict[str, Any] | None], None],
        notice: Callable[[str], None],
        after_save: Callable[[], None],
        phase: Callable[[], AbstractContextManager[None]],
        processes: Processes = ALONE,
    ) -> None:
        self.store = store
        self.section = section
        self.progress = progress
        self.preset_hash = preset_hash
        self.capture = capture
        self.restore = restore
        self.notice = notice
        self.after_save = after_save
        self.phase = phase
        self.processes = processes
        self.problem: str | None = None
        """Why the last save failed; None after one that did not."""
        self._failures = 0
        self._saved: dict[str, Any] | None = None
        self._saved_at = time.monotonic()
        self._best: tuple[float | None, int] | None = None
        self._best_on_disk = (progress.best_val_loss, progress.best_step)

    @property
    def given_up(self) -> bool:
        """So many saves in a row have failed that training must stop."""
        return self._failures >= MAX_FAILED_SAVES

    def best_reached(self) -> None:
        """The weights of this step are the best so far: the next save, at this same step, keeps them as such."""
        self._best = self.progress.best_val_loss, self.progress.best_step

    def time_is_up(self) -> bool:
        """So long ago was the last save or attempt, by this rank's clock, that it is time for another."""
        since_s = time.monotonic() - self._saved_at
        return since_s >= (RETRY_AFTER_S if self._failures else self.section.save_every_minutes * 60)

    def due(self, *, time_is_up: bool) -> bool:
        """It is time to save, by the first rank's clock or by what was done since."""
        step, every = self.progress.step, self.section.save_every_steps
        if self._best is not None and self._best[1] == step:
            return True
        if self._failures:
            return time_is_up or (every is not None and step % every == 0)
        if self._saved is None:
            return True
        if every is not None and step % every == 0 and self._saved["step"] != step:
            return True
        return time_is_up

    def save(self) -> bool:
        """Save now. False when it could not be done, and `problem` says why."""
        best = False
        if self._best is not None and self._best[1] == self.progress.step:
            best = True
            self.progress.best_val_loss, self.progress.best_step = self._best  # an attempt that failed took it back
        counters = self.progress.state_dict()
        if counters == self._saved and not best:
            return True
        problem = self._write(counters, best)
        if problem is not None:
            if best:  # what is not on disk must not keep a later model from being the best
                self.progress.best_val_loss, self.progress.best_step = self._best_on_disk
            self._failures += 1
            self._saved_at = time.monotonic()
            self.problem = problem
            self.notice(f"{problem} (attempt {self._failures} of {MAX_FAILED_SAVES})")
            return False
        self._failures, self.problem = 0, None
        self._saved, self._saved_at, self._best = counters, time.monotonic(), None
        if best:
            self._best_on_disk = (self.progress.best_val_loss, self.progress.best_step)
        self.after_save()
        return True

    def _write(self, counters: dict[str, Any], best: bool) -> str | None:
        """Why it could not be saved."""
        problem: str | None = None
        try:
            with self.phase():
                save_together(
                    self.store,
                    self.processes,
                    lambda: {**self.capture(), "progress": counters},
                    step=self.progress.step,
                    tokens=self.progress.tokens,
                    preset_hash=self.preset_hash,
                    best=best,
                )
        except (OSError, NonFiniteError) as error:
            problem = str(error)
        return self.processes.broadcast(problem)

    def mark_loaded(self) -> None:
        """The run was just loaded: what is on disk is what is in memory."""
        self._saved = self.progress.state_dict()

    def restore_weights(self) -> int | None:
        """Put back weights and optimizer of the newest checkpoint; its step, None if no save has succeeded yet."""
        loaded = self.store.load("newest") if self.processes.first else None
        step = self.processes.broadcast(None if loaded is None else loaded.state["progress"]["step"])
        if step is not None:
            self.restore(None if loaded is None else loaded.state)
        return step

    def pin(self) -> str | None:
        """Save, and keep this state until the next one is pinned; why that could not be done, None where it was."""
        if not self.save():
            return self.problem
        problem: str | None = None
        if self.processes.first:
            try:
                self.store.pin()
            except OSError as error:
                problem = in_words(error)
        return self.processes.broadcast(problem)

    def restore_pinned(self, step: int) -> bool:
        """Put back weights and optimizer of the state that was pinned at `step`; False where it is not there."""
        state = self.store.load_pinned(step) if self.processes.first else None
        if not self.processes.broadcast(state is not None):
            return False
        self.restore(state)
        return True
