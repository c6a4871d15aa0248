"""Metrics to TensorBoard and Weights & Biases, by the preset's section `tracking`.

Both are extras that are imported only when a preset asks for them. A tracker that fails in the middle of a run is
dropped with one notice: watching a run must never end it.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lmloop.preset.schema import TrackingSection


class Tracker(Protocol):
    """One place where metrics go."""

    name: str

    def log(self, line: Mapping[str, Any]) -> None:
        """Take one line of `metrics.jsonl`."""
        ...

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Take a sample text."""
        ...

    def close(self, *, failed: bool) -> None:
        """Flush and let go."""
        ...


class Trackers:
    """All trackers of a run as one; each call reaches every tracker that still works."""

    def __init__(self, trackers: list[Tracker], notify: Callable[[str], None]) -> None:
        self._trackers = trackers
        self._notify = notify

    def log(self, line: Mapping[str, Any]) -> None:
        """Pass on one line of `metrics.jsonl`."""
        self._each(lambda tracker: tracker.log(line))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Pass on a sample text."""
        self._each(lambda tracker: tracker.sample(step, prompt, text))

    def close(self, *, failed: bool = False) -> None:
        """Flush and close; closing twice is harmless."""
        self._each(lambda tracker: tracker.close(failed=failed))
        self._trackers = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        working = []
        for tracker in self._trackers:
            try:
                call(tracker)
            except Exception as error:  # whatever a tracker raises, the run goes on
                self._notify(f"{tracker.name} failed and is dropped for this session: {type(error).__name__}: {error}")
            else:
                working.append(tracker)
        self._trackers = working


def open_trackers(
    section: TrackingSection,
    *,
    run_dir: Path,
    name: str,
    preset: Mapping[str, Any],
    preset_hash: str,
    from_step: int,
    notify: Callable[[str], None],
) -> Trackers:
    """The trackers that `section` asks for.

    A resumed run continues the same TensorBoard curves, where what was logged after `from_step` before an interruption
    is replaced, and the same W&B run, which keeps the first value that it got for a step.

    Raises ValueError (one line, names the key and the extra) when a package is missing.
    """
    trackers: list[Tracker] = []
    if section.tensorboard:
        trackers.append(_TensorBoard(run_dir / "tensorboard", from_step))
    if section.wandb:
        trackers.append(_WeightsAndBiases(section.wandb_project, run_dir, name, preset, preset_hash))
    return Trackers(trackers, notify)


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, folder: Path, from_step: int) -> None:
        module = _import("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=from_step + 1 if from_step else None)

    def log(self, line: Mapping[str, Any]) -> None:
        for key, number in _scalars(line):
            self._writer.add_scalar(key, number, line["step"])

    def sample(self, step: int, prompt: str, text: str) -> None:
        indented = "\n".join("    " + row for row in (prompt + text).splitlines())  # Markdown: shown as it is
        self._writer.add_text("sample", indented, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _WeightsAndBiases:
    name = "Weights & Biases"

    def __init__(self, project: str, run_dir: Path, name: str, preset: Mapping[str, Any], preset_hash: str) -> None:
        module = _import("wandb", "wandb")
        identity = hashlib.sha256(f"{run_dir.resolve()}\n{preset_hash}".encode()).hexdigest()[:16]
        try:
            self._run = module.init(
                project=project, name=name, id=identity, resume="allow", dir=str(run_dir), config=dict(preset)
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"tracking.wandb: Weights & Biases does not start ({reason}): log in, set WANDB_MODE=offline, "
                f"or set tracking.wandb to false"
            ) from error

    def log(self, line: Mapping[str, Any]) -> None:
        self._run.log(dict(_scalars(line)), step=line["step"])

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._run.log({"sample": prompt + text}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"tracking.{extra}: the package {extra} is not installed: pip install 'lmloop[{extra}]', "
            f"or set tracking.{extra} to false"
        ) from error


def _scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Finite numbers of a metrics line by name; nested ones as `sources/wikipedia`."""
    for key, content in line.items():
        if isinstance(content, Mapping):
            yield from _scalars(content, f"{prefix}{key}/")
        elif key == "step" or isinstance(content, bool) or not isinstance(content, int | float):
            continue
        elif math.isfinite(content):
            yield f"{prefix}{key}", content
