"""What the command lines of the benchmarks have alike."""

from __future__ import annotations

import argparse
from pathlib import Path


def existing(text: str) -> Path:
    """The type of an option that names a file or a folder."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {text}")
    return path


def rounds(text: str) -> int:
    """The type of `--rounds`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1")
    return int(text)
