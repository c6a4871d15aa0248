"""The map: builds the parts from a preset in the order that data flows, and hands them to the loop."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmloop.data.corpus import Corpus, open_corpus
from lmloop.data.quarantine import Quarantine
from lmloop.durable import atomic_write, json_line
from lmloop.generation.engine import Engine
from lmloop.hardware import Machine, pick_precision, this_machine
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights, parameter_counts
from lmloop.objectives.language import LanguageObjective
from lmloop.optim.build import build_optimizer
from lmloop.plan import forecast_line
from lmloop.preset.reading import LoadedPreset, preset_hash, resolved
from lmloop.preset.schema import Preset
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.tokenizer import Tokenizer, build_tokenizer
from lmloop.training.boundary import Boundary
from lmloop.training.checkpoint import CheckpointStore, Loaded
from lmloop.training.evaluate import Evaluation, evaluate, held_out
from lmloop.training.lock import RunLock
from lmloop.training.loop import Outcome, Trainee, Trainer
from lmloop.training.metrics import MetricsFile
from lmloop.training.progress import Display
from lmloop.training.record import RunRecord
from lmloop.training.rehearsal import rehearse, worst_batch
from lmloop.training.report import write_report
from lmloop.training.resume import Carried, carry_over
from lmloop.training.rng import rng_state, set_rng_state
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.state import Progress
from lmloop.training.stopping import StopRequest
from lmloop.training.tracking import open_trackers

Stop = Callable[[], bool]

REPORT_EVERY_S = 60.0
"""The report is written anew with a checkpoint, but not more often than this."""


def train(loaded: LoadedPreset, *, json_mode: bool = False) -> tuple[dict[str, Any], int]:
    """Train a preset, or go on where its run stopped; what `train --json` prints, and the exit status.

    Raises:
        ValueError: the preset, its data or the folder's checkpoint do not allow it; nothing new is left on disk then.
    """
    run_dir = Path(loaded.preset.run_dir).expanduser()
    with Display(json_mode=json_mode) as display, _folder(run_dir), RunLock(run_dir), StopRequest() as should_stop:
        for note in loaded.notes:
            display.notice(note)
        return _Run(loaded, run_dir, display, should_stop).train()


@contextlib.contextmanager
def _folder(run_dir: Path) -> Any:
    """Make the run's folder; if setting up fails, leave no trace of a folder that was not there before."""
    missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {run_dir}: {error.strerror}: name a folder that can be written") from None
    try:
        yield
    finally:
        if missing and not any(run_dir.glob("lm_*.pth")):
            for path in sorted(run_dir.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            for folder in missing:
                with contextlib.suppress(OSError):  # somebody else has put something there
                    folder.rmdir()


@dataclass
class _Parts:
    """What setting up has built."""

    corpus: Corpus
    tokenizer: Tokenizer
    feed: TextFeed
    model: LanguageModel
    trainee: Trainee
    optimizer: Any
    objective: LanguageObjective


class _Run:
    """One session of one run."""

    def __init__(self, loaded: LoadedPreset, run_dir: Path, display: Display, should_stop: Stop) -> None:
        self.loaded = loaded
        self.preset: Preset = loaded.preset
        self.hash = preset_hash(loaded.preset)
        self.run_dir = run_dir
        self.display = display
        self.should_stop = should_stop
        self.machine: Machine = this_machine()
        self.device = self.machine.torch_device
        self.store = CheckpointStore(run_dir)
        self.reported_at = 0.0
        section = self.preset.train
        self.schedule = Schedule(
            section,
            seq_length=self.preset.model.seq_length,
            tokens_per_step=section.per_gpu_batch_size * section.accumulation_steps * self.preset.model.seq_length,
        )

    def train(self) -> tuple[dict[str, Any], int]:
        """Set up, train, report."""
        self.store.clean()
        checkpoint = self.store.load("newest")
        torch.set_num_threads(self.preset.train.threads or self.machine.cores)
        torch.set_float32_matmul_precision("high")  # TF32 where the device has it
        carried = carry_over(checkpoint.state if checkpoint else None, self.preset, device=self.device.type)
        progress = carried.progress
        record = self._record()
        for notice in [*(checkpoint.notices if checkpoint else []), *carried.notices]:
            self._notice(record, progress, notice)
        if checkpoint and self._already_done(progress):
            answer = self._answer("finished", "the budget was used up before", progress)
            self.display.notice(
                f"{self.preset.name} is done: {progress.step:,} steps, {progress.tokens:,} tokens. "
                "Raise its budget in the preset to train on."
            )
            return answer, 0
        record.start_session(progress.step)
        with record.phase("setup"):
            self.precision = carried.precision or pick_precision(
                self.preset.train.precision, self.machine, self.preset.model.hidden_size
            )
            parts = self._build(checkpoint, carried, record)
            self._rehearse(parts, progress)
        outcome = self._run(parts, carried, record)
        parts.feed.close()
        return self._finish(outcome, progress, record)

    def _record(self) -> RunRecord:
        return RunRecord(
            self.run_dir,
            name=self.preset.name,
            description=self.preset.description,
            preset=resolved(self.preset),
            preset_hash=self.hash,
            preset_path=str(self.loaded.path),
            machine={
                "name": self.machine.name,
                "device": self.machine.device,
                "cores": self.machine.cores,
                "memory_bytes": self.machine.memory_bytes,
            },
            versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        )

    def _notice(self, record: RunRecord, progress: Progress, message: str) -> None:
        record.warn(message, step=progress.step)
        self.display.notice(message)

    def _already_done(self, progress: Progress) -> bool:
        """The budget of the preset is used up. A run of 100 M tokens that is started again begins another."""
        if not (progress.stopped_early or self.schedule.finished(progress)) or not progress.boundary_done:
            return False
        if self.schedule.renews and not progress.stopped_early:
            progress.start_new_budget()
            return False
        return True

    def _build(self, checkpoint: Loaded | None, carried: Carried, record: RunRecord) -> _Parts:
        preset, section, progress = self.preset, self.preset.train, carried.progress
        state = checkpoint.state if checkpoint else None
        self.display.status("opening the data")
        corpus = open_corpus(
            preset.data,
            seed=section.seed,
            eval_tokens=section.eval_tokens,
            run_dir=self.run_dir,
            quarantine=Quarantine(self.run_dir / "quarantine.jsonl", preset.data.max_bad_fraction),
        )
        for notice in corpus.notices:
            self._notice(record, progress, notice)
        if state:
            tokenizer = Tokenizer.from_json(state["tokenizer"])
        else:
            self.display.status("building the tokenizer")
            tokenizer = build_tokenizer(preset.tokenizer, corpus.train)
        feed = TextFeed(
            corpus.train,
            tokenizer,
            preset.data,
            micro_batch_tokens=section.per_gpu_batch_size * preset.model.seq_length,
            accumulation_steps=section.accumulation_steps,
            loop=not self.schedule.counts_epochs,
            should_stop=self.should_stop,
        )
        torch.manual_seed(section.seed)
        self.display.status("building the model")
        model = build_model(preset.model, tokenizer.vocab_size, seed=section.seed)
        if checkpoint and state:
            report = load_weights(model, state["model"])
            if report.grown or report.new:
                self._notice(record, progress, f"{checkpoint.path.name}: {report}")
        model.activation_checkpointing = section.activation_checkpointing
        model.to(self.device)
        objective = LanguageObjective()
        optimizer = build_optimizer(model, section)
        if state:
            if carried.optimizer:
                _load_optimizer(optimizer, state["optimizer"])
            if carried.feed:
                feed.load_state_dict(state["feed"])
                set_rng_state(state["rng"], self.device)
        record.describe(parameters=parameter_counts(model))
        tokenizer.save(self.run_dir / "tokenizer")
        atomic_write(self.run_dir / "preset.json", json_line(resolved(preset)) + "\n")
        return _Parts(corpus, tokenizer, feed, model, Trainee(model, objective), optimizer, objective)

    def _rehearse(self, parts: _Parts, progress: Progress) -> None:
        """Run the worst batch and say what the run will take."""
        section, length = self.preset.train, self.preset.model.seq_length
        self.display.status("running the worst batch")
        packed = len(parts.corpus.train) > 1 or len(parts.corpus.train[0].parents() or ["", ""]) > 1
        batch = worst_batch(section.per_gpu_batch_size, length, parts.tokenizer.vocab_size, packed=packed)
        try:
            measured = rehearse(parts.trainee, parts.objective, batch, self.device, autocast=self.precision == "bf16")
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"train.per_gpu_batch_size {section.per_gpu_batch_size}: a batch of rows of {length} tokens does not fit in "
                f"memory: halve it and double train.accumulation_steps ({str(error).splitlines()[0]})"
            ) from None
        left = self.schedule.tokens_left(progress)
        self.display.start(
            {
                "preset": self.preset.name,
                "run": str(self.run_dir),
                "machine": f"{self.machine.describe()}, {self.precision}",
                "parameters": parameter_counts(parts.model)["total"],
                "sources": parts.feed.source_names,
                "memory_bytes": measured.memory_bytes,
                "tokens_per_s": measured.tokens_per_s,
                "forecast": forecast_line(left, left / measured.tokens_per_s) if left else "",
            }
        )

    def _run(self, parts: _Parts, carried: Carried, record: RunRecord) -> Outcome:
        preset, section, progress = self.preset, self.preset.train, carried.progress
        autocast = self.precision == "bf16"
        metrics, samples = MetricsFile(self.run_dir / "metrics.jsonl"), MetricsFile(self.run_dir / "samples.jsonl")
        for lines, offset in ((metrics, carried.metrics_offset), (samples, carried.samples_offset)):
            if not lines.truncate(offset):
                self._notice(
                    record, progress, f"{lines.path.name} is shorter than when the checkpoint was saved: lines are missing"
                )
        trackers = open_trackers(
            preset.tracking,
            run_dir=self.run_dir,
            name=preset.name,
            preset=resolved(preset),
            preset_hash=self.hash,
            from_step=progress.step,
            notify=self.display.notice,
        )
        data = held_out(
            parts.corpus.validation,
            parts.tokenizer,
            length=preset.model.seq_length,
            rows=max(section.per_gpu_batch_size, 1),
            max_tokens=section.eval_tokens,
        )
        if not data.batches:
            self._notice(record, progress, "no held-out text (data.split.validation, data.validation): nothing is evaluated")

        def evaluator(stop: Stop) -> Evaluation | None:
            return evaluate(parts.model, data, self.device, autocast=autocast, should_stop=stop)

        def sampler(stop: Stop) -> list[tuple[str, str]] | None:
            engine = Engine(parts.model, parts.tokenizer, self.device)
            prompts = preset.generation.prompts
            try:
                written = engine.generate(prompts, preset.generation, seed=section.seed, should_stop=stop)
            except ValueError as error:  # outputs that are not finite: the loop deals with them
                self._notice(record, progress, f"no sample: {error}")
                return []
            return None if stop() else [(prompt, one.text) for prompt, one in zip(prompts, written, strict=True)]

        def capture() -> dict[str, Any]:
            metrics.sync()
            samples.sync()
            return {
                "format": 1,
                "model": parts.model.state_dict(),
                "optimizer": parts.optimizer.state_dict(),
                "rng": rng_state(self.device),
                "feed": parts.feed.state_dict(),
                "tokenizer": parts.tokenizer.to_json(),
                "preset": resolved(preset),
                "preset_hash": self.hash,
                "precision": self.precision,
                "files": {"metrics": metrics.offset, "samples": samples.offset},
                "environment": {
                    "torch": str(torch.__version__),
                    "device": self.device.type,
                    "threads": torch.get_num_threads(),
                },
            }

        def restore(state: dict[str, Any]) -> None:
            load_weights(parts.model, state["model"])
            _load_optimizer(parts.optimizer, state["optimizer"])

        snapshots = Snapshots(
            store=self.store,
            section=section,
            progress=progress,
            preset_hash=self.hash,
            capture=capture,
            restore=restore,
            notice=lambda message: self._notice(record, progress, message),
            after_save=lambda: self._report(record, progress),
            phase=lambda: record.phase("save"),
        )
        if carried.exact:
            snapshots.mark_loaded()
        compiled = section.compile is True or (section.compile == "auto" and self.device.type == "cuda")
        trainer = Trainer(
            trainee=torch.compile(parts.trainee) if compiled else parts.trainee,  # type: ignore[arg-type]
            model=parts.model,
            objective=parts.objective,
            optimizer=parts.optimizer,
            feed=parts.feed,
            schedule=self.schedule,
            section=section,
            progress=progress,
            boundary=Boundary(
                section=section,
                progress=progress,
                source_names=parts.feed.source_names,
                metrics=metrics,
                samples=samples,
                display=self.display,
                trackers=trackers,
                record=record,
                evaluator=evaluator if data.batches else None,
                sampler=sampler,
                on_best=snapshots.best_reached,
            ),
            snapshots=snapshots,
            device=self.device,
            autocast=autocast,
            should_stop=self.should_stop,
        )
        try:
            with record.phase("train"):
                outcome = trainer.run()
        except BaseException as error:
            trackers.close(failed=True)
            record.finish("failed", f"{type(error).__name__}: {error}".splitlines()[0], to_step=progress.step)
            self._report(record, progress, now=True)
            raise
        trackers.close(failed=outcome.status == "failed")
        for notice in parts.feed.notices:
            self._notice(record, progress, notice)
        return outcome

    def _report(self, record: RunRecord, progress: Progress, *, now: bool = False) -> None:
        if not now and time.monotonic() - self.reported_at < REPORT_EVERY_S:
            return
        self.reported_at = time.monotonic()
        record.write(to_step=progress.step)
        try:
            write_report(self.run_dir)
        except OSError as error:
            self.display.notice(f"report.html could not be written: {error.strerror or error}")

    def _answer(self, status: str, reason: str, progress: Progress) -> dict[str, Any]:
        return {
            "status": status,
            "reason": reason,
            "run": str(self.run_dir),
            "step": progress.step,
            "tokens": progress.tokens,
            "val_loss": progress.best_val_loss,
            "best_step": progress.best_step,
            "checkpoint": str(self.run_dir / "lm_current.pth"),
            "report": str(self.run_dir / "report.html"),
        }

    def _finish(self, outcome: Outcome, progress: Progress, record: RunRecord) -> tuple[dict[str, Any], int]:
        record.finish(outcome.status, outcome.reason, to_step=progress.step)  # type: ignore[arg-type]
        self._report(record, progress, now=True)
        answer = self._answer(outcome.status, outcome.reason, progress)
        self.display.finish({**answer, "again": f"lmloop train {self.loaded.path}"})
        return answer, 1 if outcome.status == "failed" else 0


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments, but the preset's own rates and decays: PyTorch would put the saved ones in their place."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
