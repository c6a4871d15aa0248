"""What happens between two steps: evaluation, samples, the metrics line, and what people see of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lmloop.preset.schema import TrainSection
from lmloop.training.comparison import Comparison
from lmloop.training.evaluate import Evaluation
from lmloop.training.journal import Journal
from lmloop.training.metrics import MetricsFile
from lmloop.training.progress import Display
from lmloop.training.record import RunRecord
from lmloop.training.state import Progress
from lmloop.training.tracking import Trackers

Stop = Callable[[], bool]


class Boundary:
    """The work that is due after a step, done once, also when the run is stopped in the middle of it.

    `evaluator` returns None and `sampler` returns None when they were asked to stop. `sampler` gives (prompt, text) pairs.
    """

    def __init__(
        self,
        *,
        section: TrainSection,
        progress: Progress,
        source_names: Sequence[str],
        metrics: MetricsFile,
        samples: MetricsFile,
        display: Display,
        trackers: Trackers,
        record: RunRecord,
        evaluator: Callable[[Stop], Evaluation | None] | None,
        sampler: Callable[[Stop], list[tuple[str, str]] | None],
        on_best: Callable[[], None],
        notice: Callable[[str], None],
        journal: Journal | None = None,
        comparison: Comparison | None = None,
    ) -> None:
        self.section = section
        self.progress = progress
        self.source_names = source_names
        self.metrics = metrics
        self.samples = samples
        self.display = display
        self.trackers = trackers
        self.record = record
        self.evaluator = evaluator
        self.sampler = sampler
        self.on_best = on_best
        self.notice = notice
        self.journal = journal
        self.comparison = comparison
        self._newest: Evaluation | None = None

    def after_step(
        self,
        source_rows: Sequence[int],
        *,
        loss: float | None,
        tokens: int,
        seconds: float,
        waited_s: float,
        facts: dict[str, Any],
    ) -> None:
        """Take note of a step, with the rows of each source; its line is written when `pass_through` comes by."""
        progress, interval = self.progress, self.progress.interval
        if loss is not None:
            interval["loss"] = interval.get("loss", 0.0) + loss * tokens
            interval["loss_tokens"] = interval.get("loss_tokens", 0) + tokens
        for key, value in (("tokens", tokens), ("seconds", seconds), ("waited_s", waited_s)):
            interval[key] = interval.get(key, 0) + value
        for name, rows in zip(self.source_names, source_rows, strict=True):
            if rows:
                progress.interval_sources[name] = progress.interval_sources.get(name, 0) + rows
        progress.last_step = {**facts, "loss": loss}
        progress.boundary_done = False
        if self.journal is not None:
            self.journal.after_step(loss, tokens, facts)
        self.record.move(waited_s, source="train", target="data")
        self.display.tick(progress.step, facts["fraction"], loss)

    def pass_through(self, should_stop: Stop, *, final: bool) -> bool:
        """Do what is due after the last step. False when asked to stop before it was all done: it is then still due."""
        if not self._after_last_step(should_stop, final=final):
            return False
        final = final or self.progress.stopped_early
        if self.comparison is not None and (half := self.comparison.due(final=final)):
            evaluation = self._newest if self.progress.last_eval_step == self.progress.step else None
            with self.record.phase("evaluate"), self.display.busy(f"measuring what it can do {half}"):
                if not self.comparison.measure(half, should_stop, evaluation):
                    return False
        if self.journal is None or not self.journal.is_due(final=final):
            return True
        with self.record.phase("sample"), self.display.busy("writing the journal"):
            return self.journal.pass_through(should_stop, final=final)

    def _after_last_step(self, should_stop: Stop, *, final: bool) -> bool:
        progress, section, step = self.progress, self.section, self.progress.step
        unsampled = bool(section.sample_every_steps) and progress.last_sample_step != step
        if final and progress.last_step and (unsampled or (self.evaluator and progress.last_eval_step != step)):
            # An epoch's end shows only after its last step was logged: what is due at the end has a line of its own.
            progress.boundary_done = False
        if progress.boundary_done:
            return True
        evaluation: Evaluation | None = None
        if self.evaluator and (step % section.eval_every_steps == 0 or final):
            evaluation = self._evaluate(should_stop)
            if evaluation is None:
                return False
        sample_due = unsampled and (final or _sample_due(step, section.sample_every_steps))
        if sample_due and not self._sample(should_stop):
            return False
        if evaluation is not None or step % section.log_every_steps == 0 or final:
            self._write_line(evaluation)
        progress.boundary_done = True
        return True

    def _evaluate(self, should_stop: Stop) -> Evaluation | None:
        assert self.evaluator is not None
        with self.record.phase("evaluate"), self.display.busy("evaluating"):
            evaluation = self.evaluator(should_stop)
        if evaluation is None:
            return None
        progress = self.progress
        if progress.last_eval_step == progress.step:
            return evaluation  # made again, since the run was stopped before its line was written: it counts once
        progress.last_eval_step = progress.step
        self._newest = evaluation
        value = evaluation.cross_entropy
        if self.journal is not None:
            self.journal.evaluated(value)
        if math.isfinite(value) and (progress.best_val_loss is None or value < progress.best_val_loss):
            progress.best_val_loss, progress.best_step, progress.evals_since_best = value, progress.step, 0
            self.on_best()
        else:
            progress.evals_since_best += 1
            patience = self.section.early_stopping_evals
            progress.stopped_early = patience is not None and progress.evals_since_best >= patience
        return evaluation

    def _sample(self, should_stop: Stop) -> bool:
        with self.record.phase("sample"), self.display.busy("writing a sample"):
            written = self.sampler(should_stop)
        if written is None:
            return False
        for prompt, text in written:
            line = {"step": self.progress.step, "tokens": self.progress.tokens, "prompt": prompt, "text": text}
            self._append(self.samples, line)
            self.trackers.sample(self.progress.step, prompt, text)
            self.display.sample(prompt, text)
        if self.journal is not None:
            self.journal.sampled(written)
        self.progress.last_sample_step = self.progress.step
        return True

    def _append(self, file: MetricsFile, line: dict[str, Any]) -> None:
        error = file.write(line)
        if error is not None:
            self.notice(f"{file.path}: {error.strerror}: its newest lines wait until there is room")

    def _write_line(self, evaluation: Evaluation | None) -> None:
        progress, interval = self.progress, self.progress.interval
        facts = dict(progress.last_step)
        loss = facts.pop("loss")
        if interval.get("loss_tokens"):
            loss = interval["loss"] / interval["loss_tokens"]
        rows = sum(progress.interval_sources.values())
        seconds = interval.get("seconds", 0.0)
        line: dict[str, Any] = {
            "step": progress.step,
            "tokens": progress.tokens,
            "loss": loss,
            **facts,
            "tokens_per_s": round(interval.get("tokens", 0) / seconds, 1) if seconds else None,
            "feed_wait": round(interval.get("waited_s", 0.0) / seconds, 4) if seconds else None,
            "sources": {name: round(count / rows, 4) for name, count in progress.interval_sources.items()},
            "elapsed_s": round(progress.elapsed_s, 3),
            "skipped": progress.skipped,
        }
        if evaluation is not None:
            line |= {
                "val_loss": evaluation.cross_entropy,
                "val_perplexity": evaluation.perplexity,
                "val_bits_per_byte": evaluation.bits_per_byte,
                "val_tokens": evaluation.tokens,
            }
            if evaluation.by_source:
                line["val_sources"] = {name: round(loss, 6) for name, loss in evaluation.by_source.items()}
        self._append(self.metrics, line)
        self.trackers.log(line)
        self.display.step(line)
        if evaluation is not None:
            self.display.evaluation(line)
        progress.interval, progress.interval_sources = {}, {}


def _sample_due(step: int, every: int) -> bool:
    """Every `every` steps, and at powers of two before that: how the model begins to write is worth seeing early."""
    if every == 0 or step == 0:
        return False
    return step % every == 0 or (16 <= step < every and step & (step - 1) == 0)
