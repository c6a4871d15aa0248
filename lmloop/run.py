"""The map: builds the parts from a preset in the order that data flows, and hands them to the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmloop.data.quarantine import Quarantine
from lmloop.durable import atomic_write, json_line
from lmloop.generation.engine import Engine
from lmloop.hardware import pick_precision, this_machine, use_machine
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights, parameter_counts
from lmloop.objectives.language import LanguageObjective
from lmloop.opening import held_out_together, open_together, tokenizer_together
from lmloop.optim.build import build_optimizer
from lmloop.plan import forecast_line, remember_speed, require_from_scratch, require_room
from lmloop.preset.reading import LoadedPreset, preset_hash, resolved
from lmloop.preset.schema import Preset
from lmloop.processes import ALONE, Processes, launched
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.boundary import Boundary
from lmloop.training.checkpoint import CheckpointStore, Loaded
from lmloop.training.contents import Contents
from lmloop.training.evaluate import Evaluation, HeldOut, evaluate
from lmloop.training.folder import run_folder
from lmloop.training.intake import Inlet
from lmloop.training.loop import Outcome, Trainer
from lmloop.training.metrics import MetricsFile
from lmloop.training.parallel import spread
from lmloop.training.progress import Display
from lmloop.training.rehearsal import rehearse, too_large, worst_batch
from lmloop.training.reporter import Reporter
from lmloop.training.resume import Carried, carry_over
from lmloop.training.rng import seed_rank, set_rng_state
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.stopping import StopRequest
from lmloop.training.tracking import Trackers, open_trackers

Stop = Callable[[], bool]

LAUNCHERS_PATIENCE_S = 10.0
"""A launcher passes a signal on, and may do so a second time when it is pressed: within this time all are one."""


def train(loaded: LoadedPreset, *, json_mode: bool = False, processes: Processes = ALONE) -> tuple[dict[str, Any], int]:
    """Train a preset, or go on where its run stopped; what `train --json` prints, and the exit status.

    Each of several processes calls it. The first one speaks, writes and has the folder.

    Raises:
        ValueError: the preset, its data or the folder's checkpoint do not allow it; nothing new is left on disk then.
        RankLostError: another process has ended.
    """
    require_from_scratch(loaded.preset)
    run_dir = Path(loaded.preset.run_dir).expanduser()
    signals: dict[str, Any] = {}
    if launched():
        signals = {"announcement": "stopping at the next step and saving", "one_signal_s": LAUNCHERS_PATIENCE_S}
    with (
        Display(json_mode=json_mode, silent=not processes.first) as display,
        run_folder(run_dir) if processes.first else nullcontext(),
        StopRequest(announce=display.announce, **signals) as should_stop,
    ):
        for note in loaded.notes:
            display.notice(note)
        return _Run(loaded, run_dir, display, should_stop, processes).train()


@dataclass
class _Parts:
    """What setting up has built besides what a checkpoint holds."""

    contents: Contents
    objective: LanguageObjective
    validation: HeldOut
    packed: bool
    """Rows may hold more than one document."""


class _Run:
    """One session of one run, as one of its processes sees it."""

    def __init__(
        self, loaded: LoadedPreset, run_dir: Path, display: Display, should_stop: Stop, processes: Processes
    ) -> None:
        self.preset: Preset = loaded.preset
        self.section = loaded.preset.train
        self.run_dir = run_dir
        self.display = display
        self.should_stop = should_stop
        self.processes = processes
        self.heard: list[list[str]] = []
        """What sources and feed say of the data, also later on."""
        self.told: list[int] = []
        self.machine = this_machine()
        self.device = self.machine.torch_device
        self.store = CheckpointStore(run_dir)
        self.reporter = Reporter(run_dir, loaded.preset, loaded.path, self.machine, display, processes)
        self.quarantine = Quarantine(
            run_dir / "quarantine.jsonl" if processes.first else None, self.preset.data.max_bad_fraction
        )

    def train(self) -> tuple[dict[str, Any], int]:
        """Take up the checkpoint, set up, train, report."""
        use_machine(self.machine.share(self.processes.local_world), self.section.threads)
        checkpoint = self._load()
        state = self.processes.broadcast(checkpoint and _without_tensors(checkpoint.state))
        carried = carry_over(state, self.preset, device=self.device.type, world=self.processes.world)
        self.reporter.progress = carried.progress
        missing = [f"auxiliary.{name} is not there yet: the run trains without it" for name in self.preset.auxiliary.enabled]
        if self.processes.first:
            for notice in [*(checkpoint.notices if checkpoint else []), *carried.notices, *missing]:
                self.reporter.notice(notice)
        self.global_batch_size = carried.global_batch_size
        self.schedule = Schedule(
            self.section,
            seq_length=self.preset.model.seq_length,
            tokens_per_step=self.global_batch_size * self.preset.model.seq_length,
        )
        if state and self._already_done(carried):
            more = "train.early_stopping_evals" if carried.progress.stopped_early else "the budget in the preset"
            return self.reporter.say(Outcome("finished", f"{self.preset.name} is done; raise {more} to train on")), 0
        self.precision = carried.precision or pick_precision(self.section.precision, self.machine)
        with self.reporter.session(carried.progress):
            with self.reporter.record.phase("setup"):
                parts = self._build(checkpoint, state, carried)
                self._rehearse(parts)
            try:
                outcome = self._loop(parts, exact=carried.exact)
            finally:
                parts.contents.feed.close()
        goes_on = outcome.status != "finished" or self.schedule.renews
        answer = self.reporter.finish(outcome, goes_on=goes_on)
        if self.processes.world == 1:
            remember_speed(self.preset, self.reporter.record.session, self.run_dir)
        return answer, 1 if outcome.status == "failed" else 0

    def _load(self) -> Loaded | None:
        """The newest checkpoint, on the first rank: nobody else needs the folder."""
        if not self.processes.first:
            return None
        self.store.clean()
        return self.store.load("newest")

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

    def _build(self, checkpoint: Loaded | None, state: dict[str, Any] | None, carried: Carried) -> _Parts:
        """`checkpoint` is there on the first rank alone, `state` (without model and optimizer) on all."""
        preset, section, processes = self.preset, self.section, self.processes
        seq_length = preset.model.seq_length
        self.display.status("opening the data")
        corpus = open_together(preset, self.run_dir, self.quarantine, processes)
        self.heard.append(corpus.notices)
        self._tell()
        if state is None:
            self.display.status("building the tokenizer")
        tokenizer = tokenizer_together(state["tokenizer"] if state else None, preset, corpus, processes)
        feed = TextFeed(
            corpus.train,
            tokenizer,
            preset.data,
            micro_batch_tokens=section.per_gpu_batch_size * seq_length,
            tokens_per_step=self.global_batch_size * seq_length,
            loop=not self.schedule.counts_epochs,
            should_stop=self.should_stop,
            rank=processes.rank,
            world=processes.world,
        )
        self.heard.append(feed.notices)
        self.display.status("building the model")
        kind = spread(section.parallel, processes)
        require_room(preset, tokenizer.vocab_size, self.machine.share(processes.local_world), parts=kind.parts(processes))
        seed_rank(section.seed, rank=processes.rank, step=carried.progress.step)
        objective = LanguageObjective()
        parallel = kind(
            partial(build_model, preset.model, tokenizer.vocab_size, seed=section.seed),
            partial(self._fill, checkpoint),
            objective,
            processes=processes,
            device=self.device,
            bf16=self.precision == "bf16",
        )
        parallel.model.activation_checkpointing = section.activation_checkpointing
        optimizer = build_optimizer(parallel.model, section, processes)
        if carried.optimizer:
            parallel.put_moments(optimizer, checkpoint and checkpoint.state.pop("optimizer"))
        if state and carried.feed:
            feed.load_state_dict(state["feed"])
            generators = [state["rng"], *state.get("rng_of_others", [])]
            if processes.rank < len(generators):
                set_rng_state(generators[processes.rank], self.device)
        if processes.first:
            self._write_identity(tokenizer)
        self.reporter.record.describe(parameters=parameter_counts(parallel.model))
        metrics = self._line_file("metrics.jsonl", carried.metrics_offset)
        samples = self._line_file("samples.jsonl", carried.samples_offset)
        contents = Contents(
            preset, tokenizer, feed, parallel, optimizer, metrics, samples, self.precision, self.global_batch_size
        )
        one_document = len(corpus.train) == 1 and len(corpus.train[0].parents() or ()) == 1
        validation = held_out_together(preset, corpus, tokenizer, processes)
        if processes.first and not validation.batches:
            self.reporter.notice("no held-out text (data.split.validation, data.validation): nothing is evaluated")
        return _Parts(contents, objective, validation, packed=not one_document)

    def _fill(self, checkpoint: Loaded | None, model: LanguageModel) -> None:
        """The checkpoint's weights, which may be those of a smaller context, into a fresh model."""
        if checkpoint is None:
            return
        taken_over = load_weights(model, checkpoint.state.pop("model"))
        if taken_over.grown or taken_over.new:
            self.reporter.notice(f"{checkpoint.path.name}: {taken_over}")

    def _line_file(self, name: str, offset: int) -> MetricsFile:
        """A line file cut back to where the checkpoint was saved."""
        lines = MetricsFile(self.run_dir / name if self.processes.first else None)
        if not lines.truncate(offset):
            self.reporter.notice(f"{name} is shorter than when the checkpoint was saved: lines are missing")
        return lines

    def _write_identity(self, tokenizer: Tokenizer) -> None:
        tokenizer.save(self.run_dir / "tokenizer")
        atomic_write(self.run_dir / "preset.json", json_line(resolved(self.preset)) + "\n")
        (self.run_dir / "quarantine.jsonl").touch()  # there also when no row is bad, for who looks for it

    def _rehearse(self, parts: _Parts) -> None:
        """Run the worst batch and say what the run will take."""
        world, parallel = self.processes.world, parts.contents.parallel
        rows = min(self.section.per_gpu_batch_size, -(-self.global_batch_size // world))
        length = self.preset.model.seq_length
        self.display.status("running the worst batch")
        batch = worst_batch(rows, length, parts.contents.tokenizer.vocab_size, packed=parts.packed)
        try:
            measured = rehearse(parallel.forward, parts.objective, batch, self.device, autocast=parallel.autocast)
        except RuntimeError as error:
            raise too_large(error, rows, length) from None
        progress = self.reporter.progress
        left = self.schedule.tokens_left(progress)
        tokens_per_s = world * measured.tokens_per_s
        together = f", {world} processes" if world > 1 else ""
        self.display.start(
            {
                "preset": self.preset.name,
                "step": progress.step,
                "fraction": self.schedule.fraction(progress, parts.contents.feed.progress),
                "run": str(self.run_dir),
                "machine": f"{self.machine.describe()}, {self.precision}{together}",
                "parameters": parameter_counts(parallel.model)["total"],
                "sources": parts.contents.feed.source_names,
                "memory_bytes": measured.memory_bytes,
                "tokens_per_s": tokens_per_s,
                "forecast": forecast_line(left, left / tokens_per_s) if left else "",
            }
        )

    # ---- training ----

    def _loop(self, parts: _Parts, *, exact: bool) -> Outcome:
        contents, section, reporter, processes = parts.contents, self.section, self.reporter, self.processes
        trackers = self._trackers()
        snapshots = Snapshots(
            store=self.store,
            section=section,
            progress=reporter.progress,
            preset_hash=preset_hash(self.preset),
            capture=lambda: self._capture(contents),
            restore=contents.restore,
            notice=reporter.notice,
            after_save=reporter.report,
            phase=lambda: reporter.record.phase("save"),
            processes=processes,
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
            notice=reporter.notice,
        )
        inlet = Inlet(
            contents.feed,
            parts.objective,
            sources=len(contents.feed.source_names),
            processes=processes,
            should_stop=self.should_stop,
            waiting=lambda: reporter.waiting,
            collect=reporter.collect,
            tell=self._tell,
        )
        if section.compile is True or (section.compile == "auto" and self.device.type == "cuda"):
            contents.parallel.compile()
        trainer = Trainer(
            parallel=contents.parallel,
            optimizer=contents.optimizer,
            feed=contents.feed,
            inlet=inlet,
            schedule=self.schedule,
            section=section,
            progress=reporter.progress,
            boundary=boundary,
            snapshots=snapshots,
            should_stop=lambda: processes.any(self.should_stop()),
        )
        failed = True
        try:
            with reporter.record.phase("train"), processes.explained():
                outcome = trainer.run()
            failed = outcome.status == "failed"
        finally:
            trackers.close(failed=failed)
        self._last_words(contents.feed)
        return outcome

    def _trackers(self) -> Trackers:
        if not self.processes.first:
            return Trackers([], self.display.notice)
        return open_trackers(
            self.preset.tracking,
            run_dir=self.run_dir,
            name=self.preset.name,
            preset=resolved(self.preset),
            preset_hash=preset_hash(self.preset),
            from_step=self.reporter.progress.step,
            notify=self.display.notice,
        )

    def _tell(self) -> None:
        """Say what was heard since the last time: a stream that broke off is no news at the end of a run."""
        self.told += [0] * (len(self.heard) - len(self.told))
        for number, lines in enumerate(self.heard):
            for line in lines[self.told[number] :]:
                self.reporter.notice(line)
            self.told[number] = len(lines)

    def _last_words(self, feed: TextFeed) -> None:
        """What was found out about the data, by all ranks."""
        self._tell()
        skipped = self.processes.gather(feed.skipped)
        for name in feed.source_names:
            count = sum(one.get(name, 0) for one in skipped)
            if count and self.processes.first:
                self.reporter.notice(
                    f"source '{name}': {count:,} documents are shorter than data.min_text_length and were left out"
                )
        self.reporter.collect()
        self._set_aside()

    def _capture(self, contents: Contents) -> dict[str, Any]:
        self._set_aside()
        return contents.capture()

    def _set_aside(self) -> None:
        """Bad rows that other ranks have met, into the one file."""
        for rows in self.processes.gather([] if self.processes.first else self.quarantine.take()):
            for row in rows if self.processes.first else ():
                self.quarantine.bad(**row)
        if self.processes.first:
            self.quarantine.sync()

    def _evaluate(self, parts: _Parts, stop: Stop) -> Evaluation | None:
        parallel = parts.contents.parallel
        with parallel.in_use():
            return evaluate(
                parallel.model,
                parts.validation,
                self.device,
                autocast=parallel.autocast,
                should_stop=stop,
                processes=self.processes,
            )

    def _sample(self, parts: _Parts, stop: Stop) -> list[tuple[str, str]] | None:
        """Continuations of the preset's prompts, written by all ranks together; None when asked to stop."""
        options, parallel = self.preset.generation, parts.contents.parallel
        engine = Engine(parallel.model, parts.contents.tokenizer, self.device, agree=self.processes.broadcast)
        try:
            with parallel.in_use():
                written = engine.generate(options.prompts, options, seed=self.section.seed, should_stop=stop)
        except ValueError as error:  # outputs that are not finite: the loop deals with them
            self.reporter.notice(f"no sample: {error}")
            return []
        if any(one.stopped_by == "interrupted" for one in written):
            return None
        return [(prompt, one.text) for prompt, one in zip(options.prompts, written, strict=True)]


def _without_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """What every rank needs of a checkpoint at once."""
    return {key: value for key, value in state.items() if key not in ("model", "optimizer")}
