"""What a program that reads an export is asked, and what it answers. Knows nothing of PyTorch: some readers do without."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NOT_HERE = 77
"""Exit status of the process in which a program is asked that is installed and cannot be started."""


@dataclass(frozen=True)
class Questions:
    """The same questions for every program.

    rows: token ids [T] each, whose logits at every position are wanted.
    texts: to be made tokens, with what the program puts before a text.
    prompts: token ids to be continued with the likeliest token each time, by at most `new_tokens`.
    stops: tokens that end a text. Made to choose one of them at once, the program must write nothing.
    messages: a conversation to be put through the chat template, ready for an answer; empty: there is no template.
    dtype: in which the trained model computes; for a program that can choose.
    """

    rows: list[list[int]]
    texts: list[str]
    prompts: list[list[int]]
    new_tokens: int
    stops: list[int]
    messages: list[dict[str, str]]
    dtype: str

    @staticmethod
    def read(path: Path) -> Questions:
        """From a file that `write` made."""
        return Questions(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """To a file."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the program has to hold."""
        return max([len(row) for row in self.rows] + [len(prompt) + self.new_tokens for prompt in self.prompts])


@dataclass(frozen=True)
class Written:
    """A continuation: its tokens without the one that ended it, its text, and whether it was ended by the model."""

    tokens: list[int]
    text: str
    ended: bool


@dataclass(frozen=True)
class Answers:
    """Answers in the order of the questions.

    logits: fp32 [T, V] for each row. ids: for each text. forced: tokens written although each of `stops` in turn was made
    the likeliest. rendered: what the chat template made of the messages.
    """

    logits: list[np.ndarray]
    ids: list[list[int]]
    written: list[Written]
    forced: list[int]
    rendered: str | None

    @staticmethod
    def read(path: Path) -> Answers:
        """From a file that `write` made."""
        with np.load(path) as arrays:
            rest: dict[str, Any] = json.loads(str(arrays["rest"]))
            logits = [arrays[f"logits_{index}"] for index in range(rest.pop("rows"))]
        rest["written"] = [Written(**one) for one in rest["written"]]
        return Answers(logits=logits, **rest)

    def write(self, path: Path) -> None:
        """To a file with the ending .npz."""
        rest = {**dataclasses.asdict(self), "rows": len(self.logits)}
        del rest["logits"]
        arrays = {f"logits_{index}": logits for index, logits in enumerate(self.logits)}
        np.savez(path, rest=np.array(json.dumps(rest)), **arrays)  # type: ignore[arg-type]
