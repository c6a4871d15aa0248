"""Reads the files of a run folder for the report, whatever state a kill or a full disk left them in."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmloop.training.comparison import read_comparison
from lmloop.training.journal_file import Section, parse

COLUMNS = (
    "step",
    "tokens",
    "loss",
    "tokens_per_s",
    "seq_len",
    "lr",
    "grad_norm",
    "epoch",
    "fraction",
    "feed_wait",
    "memory_bytes",
    "elapsed_s",
    "skipped",
    "val_loss",
    "val_perplexity",
    "val_bits_per_byte",
)
"""Numbers of a line of `metrics.jsonl` that the report uses."""

QUARANTINE_EXAMPLES = 5


@dataclass(frozen=True)
class Metrics:
    """`metrics.jsonl` by column: fp64 arrays of one length, NaN where a line has no (finite) number."""

    columns: dict[str, np.ndarray]
    sources: list[dict[str, float]]
    val_sources: list[dict[str, float]] = field(default_factory=list)
    """Of each line the validation loss of each source, where there are several; empty without an evaluation."""

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def last(self, name: str) -> float | None:
        """The newest number of a column."""
        known = self.columns[name][np.isfinite(self.columns[name])]
        return float(known[-1]) if len(known) else None

    def points(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and values of the lines that have the column."""
        known = np.isfinite(self.columns[name])
        return self.columns["tokens"][known], self.columns[name][known]


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run folder say; `problems` has one line for each thing that could not be read."""

    record: dict[str, Any]
    metrics: Metrics
    samples: list[dict[str, Any]]
    quarantine: Counter[tuple[str, str]]
    quarantine_examples: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)
    journal: list[Section] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)


def read_run(run_dir: Path) -> RunFiles:
    """Read `run.json`, `metrics.jsonl`, `samples.jsonl`, `quarantine.jsonl`, `comparison.json` and the journal; a missing
    file counts as empty."""
    problems: list[str] = []
    metrics = _read_metrics(run_dir / "metrics.jsonl", problems)
    samples = [line for line in _lines(run_dir / "samples.jsonl", problems) if isinstance(line.get("text"), str)]
    counts: Counter[tuple[str, str]] = Counter()
    examples: list[dict[str, Any]] = []
    for line in _lines(run_dir / "quarantine.jsonl", problems):
        counts[(str(line.get("source", "")), str(line.get("reason", "")))] += 1
        if len(examples) < QUARANTINE_EXAMPLES:
            examples.append(line)
    record = _read_record(run_dir / "run.json", problems)
    journal = _read_journal(run_dir, record, problems)
    return RunFiles(record, metrics, samples, counts, examples, problems, journal, read_comparison(run_dir))


def _read_journal(run_dir: Path, record: dict[str, Any], problems: list[str]) -> list[Section]:
    """The parts of the journal, where the run keeps one."""
    preset = record.get("preset")
    section = preset.get("journal") if isinstance(preset, dict) else None
    if not isinstance(section, dict):
        return []
    named = section.get("path")
    path = Path(named).expanduser() if isinstance(named, str) else run_dir / "journal.md"
    try:
        return parse(path.read_bytes().decode("utf-8", "replace"))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"the journal could not be read: {error.strerror or error}")
        return []


def _read_record(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        problems.append(f"{path.name} is missing: the preset, the machine and the phases are not known")
        return {}
    except (OSError, ValueError, RecursionError):
        problems.append(f"{path.name} could not be read: the preset, the machine and the phases are not known")
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; what is not an object is counted as one problem of the file."""
    bad = 0
    try:
        with path.open("rb") as file:
            for raw in file:
                if raw.isspace():
                    continue
                try:
                    content = json.loads(raw)
                except (ValueError, RecursionError):
                    bad += 1
                    continue
                if isinstance(content, dict):
                    yield content
                else:
                    bad += 1
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} could not be read to its end: {error.strerror or error}")
    if bad:
        problems.append(f"{path.name}: {bad} unreadable {'line' if bad == 1 else 'lines'} left out")


def _read_metrics(path: Path, problems: list[str]) -> Metrics:
    columns = {name: array("d") for name in COLUMNS}
    sources: list[dict[str, float]] = []
    val_sources: list[dict[str, float]] = []
    nan = float("nan")
    newest = -1.0
    for line in _lines(path, problems):
        tokens = _number(line.get("tokens"))
        if tokens is None:
            continue
        if tokens <= newest:  # the run went back to an older checkpoint: what it repeats replaces what it did before
            keep = int(np.searchsorted(np.frombuffer(columns["tokens"]), tokens))
            for name in COLUMNS:
                columns[name] = columns[name][:keep]
            del sources[keep:]
            del val_sources[keep:]
        newest = tokens
        for name in COLUMNS:
            number = _number(line.get(name))
            columns[name].append(nan if number is None else number)
        sources.append(_numbers(line.get("sources")))
        val_sources.append(_numbers(line.get("val_sources")))
    return Metrics({name: np.array(column, dtype=np.float64) for name, column in columns.items()}, sources, val_sources)


def _numbers(content: object) -> dict[str, float]:
    """The finite numbers of a mapping."""
    items = content.items() if isinstance(content, dict) else ()
    return {name: number for name, one in items if (number := _number(one)) is not None}


def _number(content: object) -> float | None:
    """A finite number, else None."""
    if type(content) is float:
        return content if -1e300 < content < 1e300 else None
    if type(content) is int:
        return float(content) if -(2**63) < content < 2**63 else None
    return None
