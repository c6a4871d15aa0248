"""The loop with a model of a few weights, steps that a test makes up, and everything else as in a run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.objectives.language import LanguageObjective
from lmloop.optim.build import build_optimizer
from lmloop.preset.schema import ModelSection, TrainSection
from lmloop.processes import ALONE
from lmloop.tokens.batch import Batch
from lmloop.training.boundary import Boundary
from lmloop.training.checkpoint import CheckpointStore
from lmloop.training.evaluate import Evaluation
from lmloop.training.intake import Inlet
from lmloop.training.loop import Trainer
from lmloop.training.metrics import MetricsFile
from lmloop.training.parallel import Alone
from lmloop.training.progress import Display
from lmloop.training.record import RunRecord
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.state import Progress
from lmloop.training.tracking import Trackers

VOCABULARY = 11
Stop = Callable[[], bool]


def small_model(seed: int = 0) -> LanguageModel:
    section = ModelSection(hidden_size=8, num_layers=1, num_heads=2, seq_length=16)
    return build_model(section, VOCABULARY, seed=seed)


def random_batch(rows: int, length: int, seed: int, trained: float = 1.0) -> Batch:
    """Random tokens, the share `trained` of them with a weight."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(VOCABULARY, (rows, length), generator=generator)
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=torch.randint(VOCABULARY, (rows, length), generator=generator),
        weights_BT=(torch.rand(rows, length, generator=generator) < trained).float(),
        segments_BT=None,
        source_B=torch.zeros(rows, dtype=torch.int64),
        documents_B=((f"document-{seed}",),) * rows,
    )


class Steps:
    """A feed of made-up steps: epochs of `per_epoch` steps, or one without end."""

    def __init__(self, per_epoch: int | None = None, make: Callable[[int], list[Batch]] | None = None) -> None:
        self.per_epoch = per_epoch
        self.make = make or (lambda step: [random_batch(2, 4, step)])
        self.given = self.epoch = 0
        self.wait_s = 0.0
        self.lengths: list[int] = []

    @property
    def progress(self) -> float:
        return self.given % self.per_epoch / self.per_epoch if self.per_epoch else 0.0

    def next_step(self, length: int) -> list[Batch]:
        if self.per_epoch and self.given == self.per_epoch * (self.epoch + 1):
            self.epoch += 1
            return []
        self.given += 1
        self.lengths.append(length)
        return self.make(self.given)

    def ballot(self) -> list[int]:
        return []

    def settle(self, ballot: list[int]) -> None:
        assert ballot == []

    def rewind(self) -> None:
        self.given -= 1

    def fingerprint(self) -> int:
        return self.given

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given, self.epoch = state["given"], state["epoch"]

    def close(self) -> None:
        return


class Bench:
    """A trainer in `folder`, and what it did.

    `losses`: what the evaluations measure, in turn (the last one for ever); None: asked to stop.
    """

    def __init__(
        self,
        folder: Path,
        *,
        feed: Steps | None = None,
        losses: Sequence[float | None] | None = None,
        model: LanguageModel | None = None,
        own_optimizer: Optimizer | None = None,
        should_stop: Stop = lambda: False,
        sampler: Callable[[Stop], list[tuple[str, str]] | None] | None = None,
        progress: Progress | None = None,
        **train: Any,
    ) -> None:
        self.folder = folder
        self.section = TrainSection.model_validate({"sample_every_steps": 0, "log_every_steps": 1, **train})
        self.progress = progress or Progress()
        self.model = model or small_model()
        self.optimizer = own_optimizer or build_optimizer(self.model, self.section)
        self.feed = feed or Steps()
        self.notices: list[str] = []
        self.evaluated: list[int] = []
        self.losses = losses
        self.store = CheckpointStore(folder)
        record = RunRecord(folder, name="bench", preset={}, preset_hash="")
        record.start_session(0)
        metrics, samples = MetricsFile(folder / "metrics.jsonl"), MetricsFile(folder / "samples.jsonl")
        self.snapshots = Snapshots(
            store=self.store,
            section=self.section,
            progress=self.progress,
            preset_hash="",
            capture=lambda: {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()},
            restore=self._restore,
            notice=self.notices.append,
            after_save=lambda: None,
            phase=nullcontext,
        )
        self.boundary = Boundary(
            section=self.section,
            progress=self.progress,
            source_names=["memory"],
            metrics=metrics,
            samples=samples,
            display=Display(console=Console(file=io.StringIO())),
            trackers=Trackers([], self.notices.append),
            record=record,
            evaluator=None if losses is None else self._evaluate,
            sampler=sampler or (lambda stop: [("prompt", f"text of step {self.progress.step}")]),
            on_best=self.snapshots.best_reached,
            notice=self.notices.append,
        )
        objective = LanguageObjective()
        parallel = Alone(
            lambda: self.model, lambda model: None, objective, processes=ALONE, device=torch.device("cpu"), bf16=False
        )
        self.trainer = Trainer(
            parallel=parallel,
            optimizer=self.optimizer,
            feed=self.feed,
            inlet=Inlet(self.feed, objective, sources=1, processes=ALONE, should_stop=should_stop),
            schedule=Schedule(self.section, seq_length=16, tokens_per_step=8),
            section=self.section,
            progress=self.progress,
            boundary=self.boundary,
            snapshots=self.snapshots,
            should_stop=should_stop,
        )

    def _evaluate(self, stop: Stop) -> Evaluation | None:
        assert self.losses is not None
        loss = self.losses[min(len(self.evaluated), len(self.losses) - 1)]
        self.evaluated.append(self.progress.step)
        return None if loss is None else Evaluation(loss * 100, 100, 300)

    def _restore(self, state: dict[str, Any] | None) -> None:
        assert state is not None
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def update(self, batches: list[Batch]) -> bool:
        """One update with these micro-batches; whether training can go on."""
        self.feed.make = lambda step: batches
        return not self.trainer._step(self.trainer.inlet.take(4), length=4, fraction=0.0, started=0.0, waited=0.0)

    def lines(self, name: str = "metrics") -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights_of(model: LanguageModel) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
