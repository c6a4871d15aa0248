"""The map: builds the parts from a preset in the order that data flows, and hands them to the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmloop.data.corpus import Corpus, open_corpus
from lmloop.data.quarantine import Quarantine
from lmloop.durable import atomic_write, json_line
from lmloop.generation.engine import Engine
from lmloop.hardware import pick_precision, this_machine, use_machine
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights, parameter_counts
from lmloop.objectives.language import LanguageObjective
from lmloop.optim.build import build_optimizer
from lmloop.plan import forecast_line, remember_speed, require_room
from lmloop.preset.reading import LoadedPreset, preset_hash, resolved
from lmloop.preset.schema import Preset
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.boundary import Boundary
from lmloop.training.checkpoint import CheckpointStore, Loaded
from lmloop.training.contents import Contents, load_optimizer
from lmloop.training.evaluate import Evaluation, HeldOut, evaluate, held_out
from lmloop.training.folder import run_folder
from lmloop.training.loop import Outcome, Trainee, Trainer
from lmloop.training.metrics import MetricsFile
from lmloop.training.progress import Display
from lmloop.training.rehearsal import rehearse, too_large, worst_batch
from lmloop.training.reporter import Reporter
from lmloop.training.resume import Carried, carry_over
from lmloop.training.rng import set_rng_state
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.stopping import StopRequest
from lmloop.training.tracking import open_trackers

Stop = Callable[[], bool]


def train(loaded: LoadedPreset, *, json_mode: bool = False) -> tuple[dict[str, Any], int]:
    """Train a preset, or go on where its run stopped; what `train --json` prints, and the exit status.

    Raises:
        ValueError: the preset, its data or the folder's checkpoint do not allow it; nothing new is left on disk then.
    """
    run_dir = Path(loaded.preset.run_dir).expanduser()
    with Display(json_mode=json_mode) as display, run_folder(run_dir), StopRequest(announce=display.announce) as should_stop:
        for note in loaded.notes:
            display.notice(note)
        return _Run(loaded, run_dir, display, should_stop).train()


@dataclass
class _Parts:
    """What setting up has built besides what a checkpoint holds."""

    contents: Contents
    trainee: Trainee
    objective: LanguageObjective
    validation: HeldOut
    packed: bool
    """Rows may hold more than one document."""


class _Run:
    """One session of one run."""

    def __init__(self, loaded: LoadedPreset, run_dir: Path, display: Display, should_stop: Stop) -> None:
        self.preset: Preset = loaded.preset
        self.section = loaded.preset.train
        self.run_dir = run_dir
        self.display = display
        self.should_stop = should_stop
        self.machine = this_machine()
        self.device = self.machine.torch_device
        self.store = CheckpointStore(run_dir)
        self.reporter = Reporter(run_dir, loaded.preset, loaded.path, self.machine, display)
        seq_length = loaded.preset.model.seq_length
        self.micro_batch_tokens = self.section.per_gpu_batch_size * seq_length
        self.schedule = Schedule(
            self.section,
            seq_length=seq_length,
            tokens_per_step=self.micro_batch_tokens * self.section.accumulation_steps,
        )

    def train(self) -> tuple[dict[str, Any], int]:
        """Take up the checkpoint, set up, train, report."""
        use_machine(self.machine, self.section.threads)
        self.store.clean()
        checkpoint = self.store.load("newest")
        carried = carry_over(checkpoint.state if checkpoint else None, self.preset, device=self.device.type)
        self.reporter.progress = carried.progress
        missing = [f"auxiliary.{name} is not there yet: the run trains without it" for name in self.preset.auxiliary.enabled]
        for notice in [*(checkpoint.notices if checkpoint else []), *carried.notices, *missing]:
            self.reporter.notice(notice)
        if checkpoint and self._already_done(carried):
            more = "train.early_stopping_evals" if carried.progress.stopped_early else "the budget in the preset"
            return self.reporter.say(Outcome("finished", f"{self.preset.name} is done; raise {more} to train on")), 0
        self.precision = carried.precision or pick_precision(self.section.precision, self.machine)
        with self.reporter.session(carried.progress):
            with self.reporter.record.phase("setup"):
                parts = self._build(checkpoint, carried)
                self._rehearse(parts)
            try:
                outcome = self._loop(parts, exact=carried.exact)
            finally:
                parts.contents.feed.close()
        goes_on = outcome.status != "finished" or self.schedule.renews
        answer = self.reporter.finish(outcome, goes_on=goes_on)
        remember_speed(self.preset, self.reporter.record.session, self.run_dir)
        return answer, 1 if outcome.status == "failed" else 0

    def _already_done(self, carried: Carried) -> bool:
        """The budget of the preset is used up. A run of 100 M tokens that is started again begins another."""
        progress = carried.progress
        if not (progress.stopped_early or self.schedule.finished(progress)) or not progress.boundary_done:
            return False
        if self.schedule.renews and not progress.stopped_early:
            progress.start_new_budget()
            return False
        return True

    # ---- setting up, in the order that data flows ----

    def _build(self, checkpoint: Loaded | None, carried: Carried) -> _Parts:
        preset, section = self.preset, self.section
        state = checkpoint.state if checkpoint else None
        corpus = self._open_data()
        tokenizer = Tokenizer.from_json(state["tokenizer"]) if state else self._build_tokenizer(corpus)
        feed = TextFeed(
            corpus.train,
            tokenizer,
            preset.data,
            micro_batch_tokens=self.micro_batch_tokens,
            accumulation_steps=section.accumulation_steps,
            loop=not self.schedule.counts_epochs,
            should_stop=self.should_stop,
        )
        self.display.status("building the model")
        require_room(preset, tokenizer.vocab_size, self.machine)
        torch.manual_seed(section.seed)
        model = build_model(preset.model, tokenizer.vocab_size, seed=section.seed)
        if checkpoint and state:
            taken_over = load_weights(model, state["model"])
            if taken_over.grown or taken_over.new:
                self.reporter.notice(f"{checkpoint.path.name}: {taken_over}")
        model.activation_checkpointing = section.activation_checkpointing
        model.to(self.device)
        objective = LanguageObjective()
        optimizer = build_optimizer(model, section)
        if state and carried.optimizer:
            load_optimizer(optimizer, state["optimizer"])
        if state and carried.feed:
            feed.load_state_dict(state["feed"])
            set_rng_state(state["rng"], self.device)
        self._write_identity(tokenizer)
        self.reporter.record.describe(parameters=parameter_counts(model))
        metrics = self._line_file("metrics.jsonl", carried.metrics_offset)
        samples = self._line_file("samples.jsonl", carried.samples_offset)
        contents = Contents(preset, tokenizer, feed, model, optimizer, metrics, samples, self.device, self.precision)
        one_document = len(corpus.train) == 1 and len(corpus.train[0].parents() or ()) == 1
        return _Parts(
            contents, Trainee(model, objective), objective, self._held_out(corpus, tokenizer), packed=not one_document
        )

    def _open_data(self) -> Corpus:
        self.display.status("opening the data")
        corpus = open_corpus(
            self.preset.data,
            seed=self.section.seed,
            eval_tokens=self.section.eval_tokens,
            run_dir=self.run_dir,
            quarantine=Quarantine(self.run_dir / "quarantine.jsonl", self.preset.data.max_bad_fraction),
        )
        for notice in corpus.notices:
            self.reporter.notice(notice)
        return corpus

    def _build_tokenizer(self, corpus: Corpus) -> Tokenizer:
        self.display.status("building the tokenizer")
        return build_tokenizer(self.preset.tokenizer, corpus.train)

    def _held_out(self, corpus: Corpus, tokenizer: Tokenizer) -> HeldOut:
        data = held_out(
            corpus.validation,
            tokenizer,
            length=self.preset.model.seq_length,
            rows=self.section.per_gpu_batch_size,
            max_tokens=self.section.eval_tokens,
        )
        if not data.batches:
            self.reporter.notice("no held-out text (data.split.validation, data.validation): nothing is evaluated")
        return data

    def _line_file(self, name: str, offset: int) -> MetricsFile:
        """A line file cut back to where the checkpoint was saved."""
        lines = MetricsFile(self.run_dir / name)
        if not lines.truncate(offset):
            self.reporter.notice(f"{name} is shorter than when the checkpoint was saved: lines are missing")
        return lines

    def _write_identity(self, tokenizer: Tokenizer) -> None:
        tokenizer.save(self.run_dir / "tokenizer")
        atomic_write(self.run_dir / "preset.json", json_line(resolved(self.preset)) + "\n")
        (self.run_dir / "quarantine.jsonl").touch()  # there also when no row is bad, for who looks for it

    def _rehearse(self, parts: _Parts) -> None:
        """Run the worst batch and say what the run will take."""
        rows, length = self.section.per_gpu_batch_size, self.preset.model.seq_length
        self.display.status("running the worst batch")
        batch = worst_batch(rows, length, parts.contents.tokenizer.vocab_size, packed=parts.packed)
        try:
            measured = rehearse(parts.trainee, parts.objective, batch, self.device, autocast=self.precision == "bf16")
        except RuntimeError as error:
            raise too_large(error, rows, length) from None
        progress = self.reporter.progress
        left = self.schedule.tokens_left(progress)
        self.display.start(
            {
                "preset": self.preset.name,
                "step": progress.step,
                "fraction": self.schedule.fraction(progress, parts.contents.feed.progress),
                "run": str(self.run_dir),
                "machine": f"{self.machine.describe()}, {self.precision}",
                "parameters": parameter_counts(parts.contents.model)["total"],
                "sources": parts.contents.feed.source_names,
                "memory_bytes": measured.memory_bytes,
                "tokens_per_s": measured.tokens_per_s,
                "forecast": forecast_line(left, left / measured.tokens_per_s) if left else "",
            }
        )

    # ---- training ----

    def _loop(self, parts: _Parts, *, exact: bool) -> Outcome:
        contents, section, reporter = parts.contents, self.section, self.reporter
        trackers = open_trackers(
            self.preset.tracking,
            run_dir=self.run_dir,
            name=self.preset.name,
            preset=resolved(self.preset),
            preset_hash=preset_hash(self.preset),
            from_step=reporter.progress.step,
            notify=self.display.notice,
        )
        snapshots = Snapshots(
            store=self.store,
            section=section,
            progress=reporter.progress,
            preset_hash=preset_hash(self.preset),
            capture=contents.capture,
            restore=contents.restore,
            notice=reporter.notice,
            after_save=reporter.report,
            phase=lambda: reporter.record.phase("save"),
        )
        if exact:
            snapshots.mark_loaded()
        boundary = Boundary(
            section=section,
            progress=reporter.progress,
            source_names=contents.feed.source_names,
            metrics=contents.metrics,
            samples=contents.samples,
            display=self.display,
            trackers=trackers,
            record=reporter.record,
            evaluator=(lambda stop: self._evaluate(parts, stop)) if parts.validation.batches else None,
            sampler=lambda stop: self._sample(parts, stop),
            on_best=snapshots.best_reached,
        )
        compiled = section.compile is True or (section.compile == "auto" and self.device.type == "cuda")
        trainer = Trainer(
            trainee=torch.compile(parts.trainee) if compiled else parts.trainee,  # type: ignore[arg-type]
            model=contents.model,
            objective=parts.objective,
            optimizer=contents.optimizer,
            feed=contents.feed,
            schedule=self.schedule,
            section=section,
            progress=reporter.progress,
            boundary=boundary,
            snapshots=snapshots,
            device=self.device,
            autocast=self.precision == "bf16",
            should_stop=self.should_stop,
        )
        failed = True
        try:
            with reporter.record.phase("train"):
                outcome = trainer.run()
            failed = outcome.status == "failed"
        finally:
            trackers.close(failed=failed)
        too_short = [
            f"source '{name}': {count:,} documents are shorter than data.min_text_length and were left out"
            for name, count in contents.feed.skipped.items()
            if count
        ]
        for notice in [*contents.feed.notices, *too_short]:
            reporter.notice(notice)
        return outcome

    def _evaluate(self, parts: _Parts, stop: Stop) -> Evaluation | None:
        autocast = self.precision == "bf16"
        return evaluate(parts.contents.model, parts.validation, self.device, autocast=autocast, should_stop=stop)

    def _sample(self, parts: _Parts, stop: Stop) -> list[tuple[str, str]] | None:
        """Continuations of the preset's prompts; None when asked to stop."""
        options = self.preset.generation
        engine = Engine(parts.contents.model, parts.contents.tokenizer, self.device)
        try:
            written = engine.generate(options.prompts, options, seed=self.section.seed, should_stop=stop)
        except ValueError as error:  # outputs that are not finite: the loop deals with them
            self.reporter.notice(f"no sample: {error}")
            return []
        return None if stop() else [(prompt, one.text) for prompt, one in zip(options.prompts, written, strict=True)]
