"""The counters of a run: what a checkpoint must hold besides tensors and the feed's position."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Progress:
    """How far training has come. `run_…` counts from the start of the current budget.

    A finished token run that is started again, or a preset with other data in the same folder, begins a new budget from
    where the model stands; `step`, `tokens` and `epochs` go on counting.
    """

    step: int = 0
    tokens: int = 0
    epochs: int = 0
    start_step: int = 0
    start_tokens: int = 0
    start_epochs: int = 0

    skipped: int = 0
    """Updates left out because loss or gradient was not finite."""
    bad_in_a_row: int = 0
    rollbacks: int = 0
    rate_scale: float = 1.0
    """Halved at each rollback."""

    tokens_at_a_time: int = 0
    """What one forward pass may take: found for `per_gpu_batch_size: auto`, halved where memory ran out; 0: as fed."""

    best_val_loss: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    last_eval_step: int = 0
    last_sample_step: int = 0
    stopped_early: bool = False

    elapsed_s: float = 0.0
    """Seconds of training over all sessions; of no influence on anything."""

    boundary_done: bool = True
    """Evaluation, samples and the metrics line that were due after the last step are done."""
    last_step: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last step, until their line is written."""
    interval: dict[str, float] = field(default_factory=dict)
    """Sums since the last metrics line."""
    interval_sources: dict[str, int] = field(default_factory=dict)
    """Rows of each source since the last metrics line."""

    journal: dict[str, Any] = field(default_factory=dict)
    """Where the journal stands; see `training/journal.py`."""

    @property
    def run_steps(self) -> int:
        """Updates of this budget."""
        return self.step - self.start_step

    @property
    def run_tokens(self) -> int:
        """Trained tokens of this budget."""
        return self.tokens - self.start_tokens

    @property
    def run_epochs(self) -> int:
        """Finished epochs of this budget."""
        return self.epochs - self.start_epochs

    def start_new_budget(self) -> None:
        """Begin another budget from here."""
        self.start_step, self.start_tokens, self.start_epochs = self.step, self.tokens, self.epochs
        self.evals_since_best, self.stopped_early = 0, False
        self.bad_in_a_row, self.rollbacks, self.rate_scale = 0, 0, 1.0

    def state_dict(self) -> dict[str, Any]:
        """All counters."""
        return asdict(self)

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> Progress:
        """The counters of a checkpoint."""
        known = {f.name for f in fields(Progress)}
        unknown = sorted(set(state) - known)
        if unknown:
            raise ValueError(f"checkpoint: progress has '{unknown[0]}', which this version does not know: update lmloop")
        return Progress(**state)
