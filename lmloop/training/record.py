"""The record of a run, `run.json`: what runs, on what, how its sessions went and where their time was spent.

The record is for people and for the report. Nothing in it is needed to resume, so a full disk costs the record's
newest version and never the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lmloop import durable

PHASES = ("setup", "train", "data", "evaluate", "sample", "save", "export")
"""Where the time of a session can go."""

MAX_WARNINGS = 200
"""Warnings that are kept, the newest; how many older ones were dropped is recorded too."""

Status = Literal["running", "finished", "stopped", "failed"]


class RunRecord:
    """Writes `run.json` of one run folder; earlier sessions and warnings in it are kept.

    Times are wall-clock in ISO 8601, UTC; phases are seconds of a monotonic clock. Time in a nested phase counts for the
    inner one only, so that the phases of a session add up to no more than its duration.
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        name: str,
        preset: Mapping[str, Any],
        preset_hash: str,
        description: str = "",
        preset_path: str | None = None,
        machine: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        parameters: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the record; nothing is written before `start_session`, and without `run_dir` nothing at all.

        `preset` is the resolved preset, `preset_path` the file that the user chose (the report names it in the command
        that continues the run).
        """
        self.path = None if run_dir is None else run_dir / "run.json"
        self._clock = clock
        self._open: list[str] = []  # phases that are entered, the innermost last
        self._mark = clock()
        earlier, problem = ({}, "") if self.path is None else _read(self.path)
        self._data: dict[str, Any] = {
            "name": name,
            "description": description,
            "preset": dict(preset),
            "preset_hash": preset_hash,
            "preset_path": preset_path,
            "machine": dict(machine or {}),
            "versions": dict(versions or {}),
            "parameters": dict(parameters or {}),
            "status": "running",
            "reason": "",
            "warnings": _list_of_objects(earlier.get("warnings")),
            "warnings_dropped": earlier["warnings_dropped"] if isinstance(earlier.get("warnings_dropped"), int) else 0,
            "sessions": _list_of_objects(earlier.get("sessions")),
        }
        if problem:
            self.warn(problem, step=0)

    @property
    def status(self) -> Status:
        """How the run stands."""
        return self._data["status"]

    @property
    def session(self) -> dict[str, Any]:
        """The newest session: started, ended, from_step, to_step, phases."""
        assert self._data["sessions"], "start_session comes first"
        return self._data["sessions"][-1]

    def describe(self, **parts: Mapping[str, Any]) -> None:
        """Set `machine`, `versions` or `parameters` once they are known."""
        assert set(parts) <= {"machine", "versions", "parameters"}, sorted(parts)
        for key, content in parts.items():
            self._data[key] = dict(content)

    def start_session(self, from_step: int) -> None:
        """Begin a session at `from_step` updates and write the record."""
        self._data["status"], self._data["reason"] = "running", ""
        self._data["sessions"].append(
            {
                "started": _now(),
                "ended": None,
                "from_step": from_step,
                "to_step": from_step,
                "phases": dict.fromkeys(PHASES, 0.0),
            }
        )
        self._mark = self._clock()
        self.write()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside for phase `name` (one of PHASES)."""
        assert name in PHASES, name
        self._credit()
        self._open.append(name)
        try:
            yield
        finally:
            self._credit()
            self._open.pop()

    def move(self, seconds: float, *, source: str, target: str) -> None:
        """Count `seconds` for phase `target` that were, or are being, counted for `source`.

        For time that is measured elsewhere: a feed knows how long it made the training step wait.
        """
        assert {source, target} <= set(PHASES), (source, target)
        self._credit()
        phases = self.session["phases"]
        seconds = max(0.0, min(seconds, phases[source]))
        phases[source] -= seconds
        phases[target] += seconds

    def warn(self, message: str, *, step: int) -> None:
        """Keep a warning. The same one of the same step is kept once, so that a resumed run does not repeat it."""
        warnings = self._data["warnings"]
        entry = {"step": step, "message": message}
        if entry in warnings:
            return
        warnings.append(entry)
        excess = len(warnings) - MAX_WARNINGS
        if excess > 0:
            del warnings[:excess]
            self._data["warnings_dropped"] += excess

    def write(self, *, to_step: int | None = None) -> None:
        """Write the record as it stands; `to_step` is the number of updates reached."""
        if self._data["sessions"]:
            self._credit()
            if to_step is not None:
                self.session["to_step"] = to_step
        if self.path is None:
            return
        text = json.dumps(_strict(self._data), ensure_ascii=False, indent=1) + "\n"
        try:
            durable.atomic_write(self.path, text)
        except OSError as error:
            reached = self.session["to_step"] if self._data["sessions"] else 0
            self.warn(f"{self.path.name} could not be written: {error.strerror or error}", step=reached)

    def finish(self, status: Status, reason: str, *, to_step: int) -> None:
        """End the session and write the record. `reason` is one line for people: why it ended."""
        assert status != "running", status
        self._data["status"], self._data["reason"] = status, reason
        self.session["ended"] = _now()
        self.write(to_step=to_step)

    def _credit(self) -> None:
        """Count the time since the last change of phase for the phase that it was spent in."""
        now = self._clock()
        if self._open:
            self.session["phases"][self._open[-1]] += now - self._mark
        self._mark = now


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """What the record says so far, and what is wrong with it."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, RecursionError):
        return {}, f"{path.name} could not be read: the history of earlier sessions starts anew"
    if not isinstance(content, dict):
        return {}, f"{path.name} does not hold an object: the history of earlier sessions starts anew"
    return content, ""


def _list_of_objects(content: object) -> list[dict[str, Any]]:
    return [item for item in content if isinstance(item, dict)] if isinstance(content, list) else []


def _strict(content: Any) -> Any:
    """Without NaN and infinities (they are not JSON), and with text for whatever else JSON does not know."""
    return json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
