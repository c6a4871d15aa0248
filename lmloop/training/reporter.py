"""What a session tells people: the terminal, the record and the report say the same."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lmloop.hardware import Machine
from lmloop.preset.compare import preset_hash, resolved
from lmloop.preset.schema import Preset
from lmloop.processes import ALONE, Processes
from lmloop.training.commands import command
from lmloop.training.loop import Outcome
from lmloop.training.progress import Display
from lmloop.training.record import RunRecord
from lmloop.training.report import findings, write_report
from lmloop.training.run_files import read_run
from lmloop.training.state import Progress

REPORT_EVERY_S = 60.0
"""The report is written anew with a checkpoint, but not more often than this."""


class Reporter:
    """Notices, the report, and how the session ended. Of several processes the first one speaks and writes for all."""

    def __init__(
        self,
        run_dir: Path,
        preset: Preset,
        preset_path: Path,
        machine: Machine,
        display: Display,
        processes: Processes = ALONE,
    ) -> None:
        self.run_dir = run_dir
        self.processes = processes
        self._said: set[str] = set()
        self._untold: list[str] = []
        self.preset = preset
        self.preset_path = preset_path
        self.display = display
        self.progress = Progress()
        machine_facts = asdict(machine) | ({"processes": processes.world} if processes.world > 1 else {})
        self.record = RunRecord(
            run_dir if processes.first else None,
            name=preset.name,
            description=preset.description,
            preset=resolved(preset),
            preset_hash=preset_hash(preset),
            preset_path=str(preset_path),
            machine=machine_facts,
            versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        )
        self._written_at = 0.0

    @contextmanager
    def session(self, progress: Progress) -> Iterator[None]:
        """A session that begins at `progress`; an error that leaves it stands in the record."""
        self.progress = progress
        self.record.start_session(progress.step)
        try:
            yield
        except BaseException as error:
            self.record.finish("failed", f"{type(error).__name__}: {error}".splitlines()[0], to_step=progress.step)
            self.report(now=True)
            raise

    def notice(self, message: str) -> None:
        """One line for the terminal and the report; from a rank that is not the first, once `collect` is called."""
        if not self.processes.first:
            self._untold.append(message)
            return
        self._said.add(message)
        self.record.warn(message, step=self.progress.step)
        self.display.notice(message)

    @property
    def waiting(self) -> bool:
        """This rank has something to say that the first one does not know."""
        return bool(self._untold)

    def collect(self) -> None:
        """Say what other ranks have to say and the first one has not said itself; called by all of them."""
        for rank, messages in enumerate(self.processes.gather(self._untold)):
            for message in messages:
                if self.processes.first and message not in self._said:
                    self._said.add(message)
                    self.notice(f"rank {rank}: {message}")
        self._untold = []

    def report(self, *, now: bool = False) -> None:
        """Write the record and the report; not more often than REPORT_EVERY_S unless it is to be `now`."""
        if not self.processes.first or (not now and time.monotonic() - self._written_at < REPORT_EVERY_S):
            return
        self._written_at = time.monotonic()
        self.record.write(to_step=self.progress.step)
        try:
            write_report(self.run_dir)
        except OSError as error:
            self.display.notice(f"report.html could not be written: {error.strerror or error}")

    def finish(self, outcome: Outcome, *, goes_on: bool, exports: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """End the session: record, report, last words. `goes_on`: the same command would train on."""
        self.record.finish(outcome.status, outcome.reason, to_step=self.progress.step)
        self.report(now=True)
        found = [str(finding) for finding in findings(read_run(self.run_dir))] if self.processes.first else []
        again = command("train", str(self.preset_path)) if goes_on else ""
        return self.say(outcome, again=again, findings=found, exports=exports)

    def say(
        self, outcome: Outcome, *, again: str = "", findings: Sequence[str] = (), exports: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        """How the run stands, what was found wrong, what it was exported to, and the command to train on, on the terminal;
        what `train --json` prints."""
        answer = {
            "status": outcome.status,
            "reason": outcome.reason,
            "run": str(self.run_dir),
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "val_loss": self.progress.best_val_loss,
            "best_step": self.progress.best_step,
            "checkpoint": str(self.run_dir / "lm_current.pth"),
            "report": str(self.run_dir / "report.html"),
            "findings": list(findings),
            **({"exports": list(exports)} if self.preset.export else {}),
        }
        self.display.finish({**answer, "again": again})
        return answer
