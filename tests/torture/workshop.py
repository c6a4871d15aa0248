"""What the scenarios share: a folder of runs, the one among them that nothing happened to, and what was found."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmloop.training.loop
from tests.finetuning import write_finetuning
from tests.strikes import Install, before_operations, wrap
from tests.torture.harness import differences, in_child, prepare, run_to_end, start, tiny_preset, wait


@dataclass
class Result:
    """How a scenario went."""

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        """Count an event."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def note_kill(self, happened: bool) -> None:
        """Count a run that was to be killed."""
        self.note("killed" if happened else "ended before the kill")


class Workshop:
    """A folder of runs of one preset, and the run that nothing happened to."""

    def __init__(self, folder: Path, *, lines: int = 40, **changes: dict[str, Any]) -> None:
        self.folder = folder
        self.preset = tiny_preset(**changes)
        self.reference = folder / "reference"
        prepare(self.reference, self.preset, lines=lines)
        self._run_reference()

    def _run_reference(self) -> None:
        started = time.perf_counter()
        ended = run_to_end(self.reference, record_documents(self.reference))
        self.seconds = time.perf_counter() - started
        assert ended.status == 0, ended.output

    def case(self, name: str) -> Path:
        """A fresh folder with the same corpus and preset."""
        folder = self.folder / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        shutil.copytree(self.reference / "corpus", folder / "corpus")
        prepare(folder, self.preset)
        return folder

    def killed(self, name: str, result: Result, before: Install = lambda: None, *, after_s: float | None = None) -> None:
        """A case that is killed by what happens `before` it begins, or `after_s`; then on to the end."""
        case = self.case(name)
        child = start(case, before)
        if after_s is not None:
            time.sleep(after_s)
            os.kill(child, signal.SIGKILL)
        ended = wait(child, case)
        result.note_kill(ended.status == -signal.SIGKILL)
        self.finish(case, result, name)

    def finish(self, folder: Path, result: Result, what: str) -> None:
        """Run to the end and compare with the reference."""
        result.cases += 1
        ended = run_to_end(folder)
        if ended.status != 0:
            result.failures.append(f"{what}: ended with {ended.status}: {ended.output[-600:]}")
            return
        result.failures += [f"{what}: {line}" for line in differences(self.reference, folder)[:3]]
        journal = Path("run", "journal.md")
        if (self.reference / journal).exists() and not filecmp.cmp(
            self.reference / journal, folder / journal, shallow=False
        ):
            result.failures.append(f"{what}: another journal")
        leftovers = [path.name for path in (folder / "run").glob(".*") if path.name != ".lock"]
        if leftovers:
            result.failures.append(f"{what}: left {leftovers}")
        shutil.rmtree(folder)

    def count_operations(self, *, of: str = "lm_") -> int:
        """Disk operations on checkpoints, or on files with `of` in their name, in one run."""
        case = self.case("count")
        counted = case / "operations"

        def count() -> None:
            with counted.open("a") as file:
                file.write("x")

        ended = run_to_end(case, before_operations(count, of=of))
        assert ended.status == 0, ended.output
        number = counted.stat().st_size
        shutil.rmtree(case)
        return number


class FinetuningWorkshop(Workshop):
    """The same of a preset that fine-tunes."""

    def __init__(self, folder: Path, kind: str, **changes: dict[str, Any]) -> None:
        self.folder = folder
        self.reference = folder / "reference"
        in_child(lambda: str(write_finetuning(self.reference, kind, **changes)))  # a base has weights, which PyTorch makes
        self._run_reference()

    def case(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.reference / "base", folder / "base")
        for file in ("chats.jsonl", "preset.json"):
            shutil.copyfile(self.reference / file, folder / file)
        return folder


def record_documents(folder: Path) -> Install:
    """Write down the documents of each step that is trained."""

    def made(inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(self: Any, intake: Any, *args: Any) -> Any:
            with (folder / "documents.jsonl").open("a") as file:
                file.write(json.dumps([batch.documents_B for batch in intake.batches]) + "\n")
            return inner(self, intake, *args)

        return step

    return wrap(lmloop.training.loop.Trainer, "_step", made)


def documents(folder: Path) -> list[Any]:
    """What `record_documents` wrote."""
    path = folder / "documents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
