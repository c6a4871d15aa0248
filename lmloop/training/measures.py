"""What a run finds out about its model between two steps: losses on held-out text, and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lmloop.generation.engine import Engine
from lmloop.processes import Processes
from lmloop.training.comparison import Comparison
from lmloop.training.evaluate import Evaluation, evaluate
from lmloop.training.paired import Losses, losses
from lmloop.training.parts import Parts
from lmloop.training.questions import find_questions
from lmloop.training.state import Progress
from lmloop.training.writing import Writer, writing_engine

T = TypeVar("T")
Stop = Callable[[], bool]


class Measures:
    """The model of a run, asked by all ranks together; `writer` writes its samples."""

    def __init__(self, parts: Parts, *, processes: Processes, notice: Callable[[str], None]) -> None:
        self.parts = parts
        self.processes = processes
        self.notice = notice
        preset, parallel, template = parts.contents.preset, parts.contents.parallel, parts.template
        self.writer = Writer(
            self._engine,
            parallel.in_use,
            preset.generation,
            template,
            seed=preset.train.seed,
            notice=notice,
        )

    def _engine(self) -> Engine:
        contents, parallel = self.parts.contents, self.parts.contents.parallel
        return writing_engine(
            parallel.model,
            contents.tokenizer,
            parallel.device,
            contents.preset,
            self.parts.template,
            autocast=parallel.autocast,
            processes=self.processes,
        )

    @property
    def evaluator(self) -> Callable[[Stop], Evaluation | None] | None:
        """Evaluates; gives None when asked to stop. None where nothing is held out."""
        return self._evaluate if self.parts.validation.batches else None

    @property
    def document_losses(self) -> Callable[[Stop], Losses | None] | None:
        """The loss of each held-out document; gives None when asked to stop. None where nothing is held out."""
        return self._losses if self.parts.validation.batches else None

    def _evaluate(self, stop: Stop) -> Evaluation | None:
        return self._of_validation(evaluate, stop)

    def _losses(self, stop: Stop) -> Losses | None:
        return self._of_validation(losses, stop)

    def _of_validation(self, measure: Callable[..., T], stop: Stop) -> T:
        parallel = self.parts.contents.parallel
        with parallel.in_use():
            return measure(
                parallel.model,
                self.parts.validation,
                parallel.device,
                autocast=parallel.autocast,
                should_stop=stop,
                processes=self.processes,
            )

    def comparison(self, run_dir: Path, progress: Progress) -> Comparison | None:
        """What the model could do before, for one that is trained on: one without weights of its own could do nothing."""
        preset = self.parts.contents.preset
        if preset.model.pretrained is None and progress.start_step == 0:
            return None
        options = preset.generation
        return Comparison(
            run_dir,
            progress=progress,
            questions=self.processes.on_first(
                lambda: find_questions(self.parts.corpus.validation, options.chat_format, options.questions)
            ),
            writer=self.writer,
            evaluator=self.evaluator,
            processes=self.processes,
            notice=self.notice,
        )
