"""Asks the program that an export is for, in a process of its own: what it does to the process does not end ours."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import lmloop
from lmloop.data.source import one_line
from lmloop.export.questions import NOT_HERE, Answers, Questions


class NotHereError(Exception):
    """A program cannot be asked, for a reason that says nothing of the export."""


@dataclass(frozen=True)
class Consumer:
    """A program that reads a format.

    name: as people call it. package: what Python imports. distribution: what is installed. module: the one of
    `lmloop.export.consumers` that asks it. remedy: how it is installed. here: it is asked in this process, which has
    imported most of it anyway.
    """

    name: str
    package: str
    distribution: str
    module: str
    remedy: str
    here: bool = False

    @property
    def installed(self) -> bool:
        """It can be asked."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def title(self) -> str:
        """Its name and version."""
        version = importlib.metadata.version(self.distribution)
        return f"{self.name} {version}" if self.name == self.distribution else f"{self.name} ({self.distribution} {version})"

    def ask(self, folder: Path, questions: Questions) -> Answers:
        """Let it load what is in `folder` and answer.

        Raises:
            ValueError: it cannot load it; one line with its own last words.
            NotHereError: it cannot be started.
        """
        if self.here:
            program = importlib.import_module(f"lmloop.export.consumers.{self.module}")
            try:
                return program.answer(folder, questions)
            except Exception as error:  # of any kind: it is another program
                reason = one_line(error, 300)
                raise ValueError(f"{self.title} cannot use what was written: {type(error).__name__}: {reason}") from error
        with tempfile.TemporaryDirectory(prefix="lmloop-") as scratch:
            asked, answered = Path(scratch) / "questions.json", Path(scratch) / "answers.npz"
            questions.write(asked)
            root = str(Path(lmloop.__file__).parents[1])
            paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            done = subprocess.run(
                [sys.executable, "-P", "-m", "lmloop.export.consumers", self.module, str(folder), str(asked), str(answered)],
                env={**os.environ, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            words = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["no word of why"]
            if done.returncode == NOT_HERE:
                raise NotHereError(f"it is installed but does not start ({words[-1][:300]}); see {self.remedy}")
            if done.returncode != 0:
                ended = f"status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
                raise ValueError(f"{self.title} cannot use what was written ({ended}): {words[-1][:300]}")
            return Answers.read(answered)


def available_bytes() -> int | None:
    """Memory that programs may still take here; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "MemAvailable":
                return int(value.split()[0]) * 1024
    return None
