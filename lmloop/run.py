"""The map: builds the parts from a preset in the order that data flows, and hands them to the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmloop.data.corpus import Corpus
from lmloop.data.quarantine import Quarantine
from lmloop.durable import atomic_write, json_line
from lmloop.generation.engine import Engine
from lmloop.hardware import pick_precision, this_machine, use_machine
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights, parameter_counts, trainable_and_total
from lmloop.models.pretrained import Pretrained
from lmloop.objectives.language import LanguageObjective
from lmloop.opening import base_together, held_out_together, open_together, tokenizer_together
from lmloop.optim.build import build_optimizer
from lmloop.plan import forecast_line, remember_speed, require_room
from lmloop.preset.journal import JournalSection
from lmloop.preset.reading import LoadedPreset, preset_hash, resolved
from lmloop.preset.schema import Preset
from lmloop.processes import ALONE, Processes, launched
from lmloop.tokens.conversations import open_chats
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.preface import PrefaceFeed
from lmloop.tokens.template import ChatTemplate
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.adapter_folder import save_folder
from lmloop.training.boundary import Boundary
from lmloop.training.checkpoint import CheckpointStore, Loaded
from lmloop.training.comparison import Comparison
from lmloop.training.contents import Contents
from lmloop.training.evaluate import Evaluation, HeldOut, evaluate
from lmloop.training.fitting import most_rows
from lmloop.training.folder import run_folder
from lmloop.training.intake import Inlet
from lmloop.training.journal import Journal, Means, characters_of
from lmloop.training.journal_file import JournalFile
from lmloop.training.loop import Outcome, Trainer
from lmloop.training.metrics import MetricsFile
from lmloop.training.paired import Losses, losses
from lmloop.training.parallel import spread
from lmloop.training.progress import Display
from lmloop.training.questions import find_questions
from lmloop.training.rehearsal import rehearse, too_large, worst_batch
from lmloop.training.reporter import Reporter
from lmloop.training.resume import Carried, carry_over
from lmloop.training.rng import seed_rank, set_rng_state
from lmloop.training.schedule import Schedule
from lmloop.training.snapshot import Snapshots
from lmloop.training.stopping import StopRequest
from lmloop.training.tracking import Trackers, open_trackers
from lmloop.training.writing import Writer, read_system

Stop = Callable[[], bool]

_LEFT_OUT = (
    "documents are shorter than data.min_text_length and were left out",
    "conversations were left out: not even their first answer fits into model.seq_length",
    "conversations were cut at a turn: what follows does not fit into model.seq_length",
)

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


@dataclass
class _Parts:
    """What setting up has built besides what a checkpoint holds."""

    contents: Contents
    objective: LanguageObjective
    validation: HeldOut
    corpus: Corpus
    packed: bool
    """Rows may hold more than one document."""
    template: ChatTemplate | None
    """In which conversations are written; then samples are answers."""


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
        if outcome.status == "finished" and self.preset.adapter is not None and self.processes.first:
            self._write_adapter(parts)
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
        if preset.model.pretrained is not None:
            self.display.status("looking at the base")
        base_together(preset, state, processes)
        self.journal_file = self._open_journal()
        self.display.status("opening the data")
        corpus = open_together(preset, self.run_dir, self.quarantine, processes)
        self.heard.append(corpus.notices)
        self._tell()
        if state is None:
            self.display.status("building the tokenizer")
        tokenizer, written_as = tokenizer_together(state["tokenizer"] if state else None, preset, corpus, processes)
        if written_as and processes.first:
            self.reporter.notice(written_as)
        chats = open_chats(preset.data, tokenizer, seq_length=seq_length, quarantine=self.quarantine)
        feed = TextFeed(
            corpus.train,
            tokenizer,
            preset.data,
            micro_batch_tokens=section.rows_at_once(self.global_batch_size) * seq_length,
            tokens_per_step=self.global_batch_size * seq_length,
            loop=not self.schedule.counts_epochs,
            should_stop=self.should_stop,
            rank=processes.rank,
            world=processes.world,
            chats=chats,
        )
        self.heard.append(feed.notices)
        if self.journal_file is not None:
            feed = PrefaceFeed(
                feed,
                self.journal_file.path.name,
                tokenizer,
                preset.data,
                micro_batch_tokens=section.rows_at_once(self.global_batch_size) * seq_length,
                tokens_per_step=self.global_batch_size * seq_length,
                should_stop=self.should_stop,
                rank=processes.rank,
                world=processes.world,
            )
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
        one_document = len(corpus.train) == 1 and len(corpus.train[0].parents() or ()) == 1
        validation = held_out_together(preset, corpus, tokenizer, self.quarantine, processes)
        if processes.first and not validation.batches:
            self.reporter.notice("no held-out text (data.split.validation, data.validation): nothing is evaluated")
        return _Parts(contents, objective, validation, corpus, packed=not one_document, template=chats and chats.template)

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

    def _write_adapter(self, parts: _Parts) -> None:
        """Leave the best adapter as others read it. The model is not trained after this."""
        best = self.store.load("best")
        model = parts.contents.parallel.model
        assert best is not None, self.run_dir
        assert isinstance(model, Pretrained), type(model)
        load_weights(model, best.state["model"])
        try:
            save_folder(self.run_dir, model, parts.contents.tokenizer, self.preset, self.reporter.progress)
        except OSError as error:
            self.reporter.notice(f"the adapter's files were not written: {error.strerror or error}; train again for them")

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
        world, parallel, progress = self.processes.world, parts.contents.parallel, self.reporter.progress
        length, at_most = self.preset.model.seq_length, -(-self.global_batch_size // world)
        rows = min(self.section.rows_at_once(auto=at_most), at_most)
        batch = partial(worst_batch, length=length, vocab_size=parts.contents.tokenizer.vocab_size, packed=parts.packed)
        self.display.status("running the worst batch")
        try:
            if self.section.per_gpu_batch_size == "auto" and not progress.tokens_at_a_time:
                machine = self.machine.share(self.processes.local_world)
                fit = most_rows(at_most, parallel.trainee, parts.objective, batch, machine, autocast=parallel.autocast)
                rows = int(min(numbers[0] for numbers in self.processes.exchange([fit])))
                progress.tokens_at_a_time = rows * length
                self.reporter.notice(f"train.per_gpu_batch_size auto: {rows} of an update's {at_most} rows at a time")
            elif progress.tokens_at_a_time:
                rows = min(rows, max(progress.tokens_at_a_time // length, 1))
            measured = rehearse(parallel.forward, parts.objective, batch(rows), self.device, autocast=parallel.autocast)
        except RuntimeError as error:
            raise too_large(error, rows, length) from None
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
                "parameters": trainable_and_total(parallel.model)[1],
                "trainable": trainable_and_total(parallel.model)[0],
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
        writer, journal = self._writer(parts), None
        if self.preset.journal is not None:
            journal = self._journal(self.preset.journal, parts, snapshots, writer)
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
            sampler=writer.samples,
            on_best=snapshots.best_reached,
            notice=reporter.notice,
            journal=journal,
            comparison=self._comparison(parts, writer),
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

    def _last_words(self, feed: TextFeed | PrefaceFeed) -> None:
        """What was found out about the data, by all ranks."""
        self._tell()
        found = self.processes.gather([feed.skipped, feed.too_long, feed.cut])
        for name in feed.source_names:
            for number, what in enumerate(_LEFT_OUT):
                count = sum(one[number].get(name, 0) for one in found)
                if count and self.processes.first:
                    self.reporter.notice(f"source '{name}': {count:,} {what}")
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

    def _writer(self, parts: _Parts) -> Writer:
        """What writes samples, with all ranks together."""
        parallel = parts.contents.parallel
        return Writer(
            lambda: Engine(
                parallel.model,
                parts.contents.tokenizer,
                self.device,
                autocast=parallel.autocast and self.preset.model.pretrained is not None,  # its weights may be bf16
                agree=self.processes.broadcast,
                stops=parts.template.stop_ids if parts.template else (),
            ),
            parallel.in_use,
            self.preset.generation,
            parts.template,
            seed=self.section.seed,
            notice=self.reporter.notice,
        )

    def _comparison(self, parts: _Parts, writer: Writer) -> Comparison | None:
        """What the model could do before, for one that is trained on: one without weights of its own could do nothing."""
        progress = self.reporter.progress
        if self.preset.model.pretrained is None and progress.start_step == 0:
            return None
        options = self.preset.generation
        return Comparison(
            self.run_dir,
            progress=progress,
            questions=self.processes.on_first(
                lambda: find_questions(parts.corpus.validation, options.chat_format, options.questions)
            ),
            writer=writer,
            evaluator=(lambda stop: self._evaluate(parts, stop)) if parts.validation.batches else None,
            processes=self.processes,
            notice=self.reporter.notice,
        )

    # ---- the journal ----

    def _open_journal(self) -> JournalFile | None:
        """The file of the journal, where the run keeps one. ValueError: it is none, or the system message's is not there."""
        if self.preset.journal is None:
            return None
        path = self.preset.journal.path
        file = JournalFile(Path(path) if path else self.run_dir / "journal.md", self.preset.name)
        system = self.preset.journal.system_prompt_path
        if system is not None and not file.is_at(system) and not self.processes.on_first(Path(system).expanduser().is_file):
            raise ValueError(f"journal.system_prompt_path {system}: no such file: make it, or correct the path")
        return file

    def _journal(self, section: JournalSection, parts: _Parts, snapshots: Snapshots, writer: Writer) -> Journal:
        """The run's journal; `writer` gets its system message."""
        contents, notice = parts.contents, self.reporter.notice
        assert isinstance(contents.feed, PrefaceFeed)
        assert self.journal_file is not None
        progress, tokenizer = self.reporter.progress, contents.tokenizer
        journal = Journal(
            section,
            self.journal_file,
            progress=progress,
            feed=contents.feed,
            processes=self.processes,
            resumed=contents.feed.went_on,
            means=Means(
                write=lambda prompt, stop: writer.reflection(
                    prompt, section.reflection_tokens, progress.journal["next"], stop
                ),
                measure=(lambda stop: self._losses(parts, stop)) if parts.validation.batches else None,
                pin=snapshots.pin,
                restore=snapshots.restore_pinned,
                count=lambda text: len(tokenizer.encode(text)) + 1,
                real_characters=partial(characters_of, parts.corpus.train),
                control_tokens=tokenizer.control_tokens.values(),
                notice=notice,
            ),
        )
        if section.system_prompt_path is not None:
            path = Path(section.system_prompt_path).expanduser()
            own = journal.file.is_at(section.system_prompt_path)
            writer.system = journal.visible_text if own else partial(read_system, path, self.processes, notice)
        return journal

    def _losses(self, parts: _Parts, stop: Stop) -> Losses | None:
        """The loss of each held-out document."""
        parallel = parts.contents.parallel
        with parallel.in_use():
            return losses(
                parallel.model,
                parts.validation,
                self.device,
                autocast=parallel.autocast,
                should_stop=stop,
                processes=self.processes,
            )


def _without_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """What every rank needs of a checkpoint at once."""
    return {key: value for key, value in state.items() if key not in ("model", "optimizer")}
