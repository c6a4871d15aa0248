"""The map: builds the parts from a preset in the order that data flows, and hands them to the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lmloop.data.quarantine import Quarantine
from lmloop.durable import atomic_write, json_line
from lmloop.hardware import compiles, pick_precision, remarks, this_machine, use_machine
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights, parameter_counts, trainable_and_total
from lmloop.models.pretrained import Pretrained
from lmloop.objectives.language import LanguageObjective
from lmloop.opening import base_together, held_out_together, open_feed, open_together, tokenizer_together
from lmloop.optim.build import build_optimizer
from lmloop.plan import remaining_line, remember_speed
from lmloop.preset.reading import LoadedPreset, preset_hash, resolved
from lmloop.preset.schema import Preset
from lmloop.processes import ALONE, Processes, launched
from lmloop.room import require_room
from lmloop.tokens.conversations import open_chats
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.adapter_folder import leave_adapter
from lmloop.training.boundary import Boundary
from lmloop.training.checkpoint import CheckpointStore, Loaded
from lmloop.training.contents import Contents
from lmloop.training.folder import run_folder
from lmloop.training.hearing import Hearing
from lmloop.training.intake import Inlet
from lmloop.training.journaling import keep_journal, open_journal
from lmloop.training.loop import Outcome, Trainer
from lmloop.training.measures import Measures
from lmloop.training.metrics import MetricsFile
from lmloop.training.parallel import spread
from lmloop.training.parts import Parts
from lmloop.training.progress import Display
from lmloop.training.reporter import Reporter
from lmloop.training.resume import Carried, carry_over
from lmloop.training.rng import seed_rank, set_rng_state
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.stopping import StopRequest
from lmloop.training.tracking import Trackers, open_trackers
from lmloop.training.trial import try_worst_batch

LAUNCHERS_PATIENCE_S = 10.0
"""A launcher passes a signal on, and may do so a second time when it is pressed: within this time all are one."""


def train(loaded: LoadedPreset, *, json_mode: bool = False, processes: Processes = ALONE) -> tuple[dict[str, Any], int]:
    """Train a preset, or go on where its run stopped; what `train --json` prints, and the exit status.

    Each of several processes calls it. The first one speaks, writes and has the folder.

    Raises:
        ValueError: the preset, its data or the folder's checkpoint do not allow it; nothing new is left on disk then.
        RankLostError: another process has ended.
    """
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


class _Run:
    """One session of one run, as one of its processes sees it."""

    def __init__(
        self, loaded: LoadedPreset, run_dir: Path, display: Display, should_stop: Callable[[], bool], processes: Processes
    ) -> None:
        self.preset: Preset = loaded.preset
        self.section = loaded.preset.train
        self.run_dir = run_dir
        self.display = display
        self.should_stop = should_stop
        self.processes = processes
        self.machine = this_machine()
        self.device = self.machine.torch_device
        self.store = CheckpointStore(run_dir)
        self.reporter = Reporter(run_dir, loaded.preset, loaded.path, self.machine, display, processes)
        self.quarantine = Quarantine(
            run_dir / "quarantine.jsonl" if processes.first else None, self.preset.data.max_bad_fraction
        )
        self.hearing = Hearing(self.reporter, self.quarantine, processes)

    def train(self) -> tuple[dict[str, Any], int]:
        """Take up the checkpoint, set up, train, report."""
        use_machine(self.machine.share(self.processes.local_world), self.section.threads)
        checkpoint = self._load()
        state = self.processes.broadcast(checkpoint and checkpoint.small_state)
        carried = carry_over(state, self.preset, device=self.device.type, world=self.processes.world)
        self.reporter.progress = carried.progress
        missing = [f"auxiliary.{name} is not there yet: the run trains without it" for name in self.preset.auxiliary.enabled]
        if self.processes.first:
            for notice in [*(checkpoint.notices if checkpoint else []), *carried.notices, *missing, *remarks(self.machine)]:
                self.reporter.notice(notice)
        self.global_batch_size = carried.global_batch_size
        self.schedule = Schedule(
            self.section,
            seq_length=self.preset.model.seq_length,
            tokens_per_step=self.global_batch_size * self.preset.model.seq_length,
        )
        if state and self._already_done(carried):
            more = "train.early_stopping_evals" if carried.progress.stopped_early else "the budget in the preset"
            done = Outcome("finished", f"{self.preset.name} is done; raise {more} to train on")
            return self.reporter.say(done, exports=self._export()), 0
        self.precision = carried.precision or pick_precision(self.section.precision, self.machine)
        with self.reporter.session(carried.progress):
            with self.reporter.record.phase("setup"):
                parts = self._build(checkpoint, state, carried)
                self._rehearse(parts)
            try:
                outcome = self._loop(parts, exact=carried.exact)
            finally:
                parts.contents.feed.close()
        exports: list[dict[str, Any]] = []
        if outcome.status == "finished" and self.processes.first:
            if isinstance(model := parts.contents.parallel.model, Pretrained) and self.preset.adapter is not None:
                leave_adapter(self.store, model, parts.contents.tokenizer, self.preset, self.reporter)
            with self.reporter.record.phase("export"):
                exports = self._export()
        answer = self.reporter.finish(outcome, goes_on=outcome.status != "finished" or self.schedule.renews, exports=exports)
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

    def _build(self, checkpoint: Loaded | None, state: dict[str, Any] | None, carried: Carried) -> Parts:
        """`checkpoint` is there on the first rank alone, `state` (without model and optimizer) on all."""
        preset, section, processes = self.preset, self.section, self.processes
        seq_length = preset.model.seq_length
        if preset.model.pretrained is not None:
            self.display.status("looking at the base")
        base_together(preset, state, processes)
        self.journal_file = open_journal(preset, self.run_dir, processes)
        self.display.status("opening the data")
        corpus = open_together(preset, self.run_dir, self.quarantine, processes)
        self.hearing.listen(corpus.notices)
        self.hearing.tell()
        if state is None:
            self.display.status("building the tokenizer")
        tokenizer, written_as = tokenizer_together(state["tokenizer"] if state else None, preset, corpus, processes)
        if written_as and processes.first:
            self.reporter.notice(written_as)
        if preset.export:
            from lmloop.export.exports import require_exportable

            processes.together(lambda: require_exportable(preset, tokenizer))
        chats = open_chats(preset.data, tokenizer, seq_length=seq_length, quarantine=self.quarantine)
        feed = open_feed(
            preset,
            corpus.train,
            tokenizer,
            chats,
            journal=None if self.journal_file is None else self.journal_file.path.name,
            rows_per_step=self.global_batch_size,
            loop=not self.schedule.counts_epochs,
            should_stop=self.should_stop,
            processes=processes,
        )
        self.hearing.listen(feed.notices)
        self.display.status("building the model")
        kind = spread(section.parallel, processes)
        if preset.model.pretrained is not None and kind.parts(processes) > 1:
            raise ValueError(
                "train.parallel: 'fsdp' cuts up models of lmloop's own shapes, and a pretrained one is whole on each "
                "process: use 'ddp'"
            )
        require_room(preset, tokenizer.vocab_size, self.machine.share(processes.local_world), parts=kind.parts(processes))
        seed_rank(section.seed, rank=processes.rank, step=carried.progress.step)
        objective = LanguageObjective()
        parallel = kind(
            partial(
                build_model,
                preset.model,
                tokenizer.vocab_size,
                seed=section.seed,
                adapter=preset.adapter,
                bf16=self.precision == "bf16",
                device=self.device,
                saved_base=None if state is None else state.get("base"),
            ),
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
        self._describe(parallel.model)
        metrics = self._line_file("metrics.jsonl", carried.metrics_offset)
        samples = self._line_file("samples.jsonl", carried.samples_offset)
        contents = Contents(
            preset, tokenizer, feed, parallel, optimizer, metrics, samples, self.precision, self.global_batch_size
        )
        validation = held_out_together(preset, corpus, tokenizer, self.quarantine, processes)
        if processes.first and not validation.batches:
            self.reporter.notice("no held-out text (data.split.validation, data.validation): nothing is evaluated")
        packed, template = not corpus.is_one_document, chats and chats.template
        return Parts(contents, objective, validation, corpus, packed=packed, template=template)

    def _describe(self, model: LanguageModel) -> None:
        """What is trained and what is not, for the report; and what there is to say of a pretrained model."""
        trainable, total = trainable_and_total(model)
        parts = parameter_counts(model)
        self.reporter.record.describe(parameters=parts if trainable == total else {**parts, "trainable": trainable})
        for notice in getattr(model, "notices", ()) if self.processes.first else ():
            self.reporter.notice(notice)

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

    def _rehearse(self, parts: Parts) -> None:
        """Run the worst batch and say what the run will take."""
        world, parallel, progress = self.processes.world, parts.contents.parallel, self.reporter.progress
        self.display.status("running the worst batch")
        measured = try_worst_batch(
            parts,
            self.section,
            length=self.preset.model.seq_length,
            machine=self.machine,
            processes=self.processes,
            progress=progress,
            notice=self.reporter.notice,
        )
        fraction = self.schedule.fraction(progress, parts.contents.feed.progress)
        tokens_per_s = world * measured.tokens_per_s
        together, chats = f", {world} processes" if world > 1 else "", parts.template is not None
        trainable, total = trainable_and_total(parallel.model)
        self.display.start(
            {
                "preset": self.preset.name,
                "step": progress.step,
                "fraction": fraction,
                "run": str(self.run_dir),
                "machine": f"{self.machine.describe()}, {self.precision}{together}",
                "parameters": total,
                "trainable": trainable,
                "sources": parts.contents.feed.source_names,
                "memory_bytes": measured.memory_bytes,
                "tokens_per_s": tokens_per_s,
                "forecast": remaining_line(self.preset, self.schedule, progress, fraction, tokens_per_s, answers=chats),
            }
        )

    # ---- training ----

    def _loop(self, parts: Parts, *, exact: bool) -> Outcome:
        contents, section, reporter, processes = parts.contents, self.section, self.reporter, self.processes
        trackers = self._trackers()

        def capture() -> dict[str, Any]:
            self.hearing.set_aside()
            return contents.capture()

        snapshots = Snapshots(
            store=self.store,
            section=section,
            progress=reporter.progress,
            preset_hash=preset_hash(self.preset),
            capture=capture,
            restore=contents.restore,
            notice=reporter.notice,
            after_save=reporter.report,
            phase=lambda: reporter.record.phase("save"),
            processes=processes,
        )
        if exact:
            snapshots.mark_loaded()
        measures = Measures(parts, processes=processes, notice=reporter.notice)
        boundary = Boundary(
            section=section,
            progress=reporter.progress,
            source_names=contents.feed.source_names,
            metrics=contents.metrics,
            samples=contents.samples,
            display=self.display,
            trackers=trackers,
            record=reporter.record,
            evaluator=measures.evaluator,
            sampler=measures.writer.samples,
            on_best=snapshots.best_reached,
            notice=reporter.notice,
            journal=keep_journal(self.journal_file, measures, snapshots, reporter.progress),
            comparison=measures.comparison(self.run_dir, reporter.progress),
        )
        inlet = Inlet(
            contents.feed,
            parts.objective,
            sources=len(contents.feed.source_names),
            processes=processes,
            should_stop=self.should_stop,
            waiting=lambda: reporter.waiting,
            collect=reporter.collect,
            tell=self.hearing.tell,
        )
        if compiles(section.compile, self.machine):
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
        self.hearing.last_words(contents.feed)
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

    def _export(self) -> list[dict[str, Any]]:
        """What the preset wants to be made of the finished model; what of it was not made is a notice, and no failed run."""
        if not self.preset.export or not self.processes.first:
            return []
        from lmloop.export.exports import make_exports

        self.display.status("exporting")
        return make_exports(self.preset, self.run_dir, notice=self.reporter.notice, should_stop=self.should_stop)
