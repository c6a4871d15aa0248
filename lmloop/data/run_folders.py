"""What runs write is no data: a model must not be trained on its own samples, figures and held-out text by accident."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

MARKS = frozenset({".lock", "lm_current.pth", "lm_prev.pth", "lm_best.pth"})
"""A folder with one of these is a run's; the first is there before anything else is."""

_WRITTEN = re.compile(
    r"lm_.*|simple_lm_trained\.pth|\.lock|\..*\.tmp.*|tokenizer|shards|report\.html"
    r"|(metrics|samples|quarantine|validation|test)\.jsonl|(run|preset|hub_commits|comparison)\.json|journal\.md"
)


def is_run_folder(names: Set[str]) -> bool:
    """Whether a folder with files and folders of these names is a run's."""
    return not MARKS.isdisjoint(names)


def is_written_by_runs(name: str) -> bool:
    """Whether a run writes a file or folder of this name into its own folder."""
    return _WRITTEN.fullmatch(name) is not None


def belongs_to(run_dir: Path, path: Path) -> bool:
    """Whether `path` is, or lies in, what the run in `run_dir` writes; links are followed."""
    try:
        parts = path.resolve().relative_to(run_dir.resolve()).parts
    except (OSError, ValueError, RuntimeError):  # elsewhere, or a link that leads to itself
        return False
    return bool(parts) and is_written_by_runs(parts[0])
