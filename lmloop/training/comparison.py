"""Before and after: what a model that is trained on could do at the beginning, and what it can do at the end.

The first half is measured before the first update, the second after the last one; both stand in `comparison.json`, so that
they are there however often the run was stopped in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmloop.durable import atomic_write, in_words, json_line
from lmloop.generation.prompts import Prompt
from lmloop.processes import Processes
from lmloop.tokens.skeleton import ChatTemplateError
from lmloop.training.evaluate import Evaluation
from lmloop.training.questions import Question, distinct, is_right
from lmloop.training.state import Progress
from lmloop.training.writing import Writer

FILE = "comparison.json"
Stop = Callable[[], bool]


class Comparison:
    """The two halves of one budget; every rank calls it alike, the first one writes the file."""

    def __init__(
        self,
        run_dir: Path,
        *,
        progress: Progress,
        questions: Sequence[Question],
        writer: Writer,
        evaluator: Callable[[Stop], Evaluation | None] | None,
        processes: Processes,
        notice: Callable[[str], None],
    ) -> None:
        self.path = run_dir / FILE
        self.progress = progress
        self.questions = questions
        self.writer = writer
        self.evaluator = evaluator
        self.processes = processes
        self.notice = notice
        self.halves: dict[str, Any] = processes.on_first(lambda: read_comparison(run_dir)) or {}
        if self.halves.get("start_step") != progress.start_step:
            self.halves = {}

    def due(self, *, final: bool) -> str:
        """Which half is to be measured now; '' where none is."""
        if self.progress.run_steps == 0:
            return "" if "before" in self.halves else "before"
        if final and "before" in self.halves and self.halves.get("after", {}).get("step") != self.progress.step:
            return "after"
        return ""

    def measure(self, half: str, should_stop: Stop, evaluation: Evaluation | None = None) -> bool:
        """Measure one half, with the `evaluation` of this step where there is one. False when asked to stop before."""
        if evaluation is None and self.evaluator is not None:
            evaluation = self.evaluator(should_stop)
            if evaluation is None:
                return False
        samples = self.writer.samples(should_stop)
        if samples is None:
            return False
        answers = self._answers(should_stop)
        if answers is None:
            return False
        texts = [text for _, text in samples] + [answer["answer"] for answer in answers]
        self.halves = {
            **self.halves,
            "start_step": self.progress.start_step,
            half: {
                "step": self.progress.step,
                "loss": None if evaluation is None else evaluation.cross_entropy,
                "sources": {} if evaluation is None else evaluation.by_source,
                "distinct_1": distinct(texts, 1),
                "distinct_2": distinct(texts, 2),
                "samples": [list(sample) for sample in samples],
                "answers": answers,
            },
        }
        if self.processes.first:
            try:
                atomic_write(self.path, json_line(self.halves) + "\n")
            except OSError as error:
                self.notice(f"{FILE}: {in_words(error)}: the report has no comparison of before and after")
        return True

    def _answers(self, should_stop: Stop) -> list[dict[str, Any]] | None:
        """What the model answers to the questions."""
        prompts: list[Prompt] = []
        asked: list[Question] = []
        for question in self.questions:
            prompt = self._prompt(question)
            if prompt is not None:
                prompts.append(prompt)
                asked.append(question)
        if not asked:
            return []
        written = self.writer.answers(prompts, should_stop)
        if written is None:
            return None
        return [
            {"asked": q.shown, "expected": q.expected, "answer": text, "right": is_right(text, q.expected)}
            for q, text in zip(asked, written, strict=False)
        ]

    def _prompt(self, question: Question) -> Prompt | None:
        if isinstance(question.asked, str):
            return question.asked
        if self.writer.template is None:
            return self.writer.options.chat_format.replace("{user}", question.shown)
        try:
            return self.writer.template.prompt(question.asked)
        except ChatTemplateError:
            return None


def read_comparison(run_dir: Path) -> dict[str, Any]:
    """The halves as they stand in the run's folder; {} where there is nothing that can be read."""
    try:
        content = json.loads((run_dir / FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
