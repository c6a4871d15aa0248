"""Bad rows: set aside with file, line and reason, and the limit beyond which training on the rest would be a mistake."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

from lmloop import durable
from lmloop.data.source import one_line

MIN_ROWS = 20
"""Rows of a source that must have been read before their bad share says anything."""

EXCERPT_CHARACTERS = 160


class TooManyBadRows(ValueError):  # noqa: N818 (the state of the data, not a fault in the program)
    """More of a source's rows are bad than `data.max_bad_fraction` allows."""


class Quarantine:
    """The record of bad rows, one JSON line each: {source, file, line, reason, excerpt}.

    `line` is the line of a text or JSONL file, the row of a Parquet file or stream, the record of a JSON array, counted
    from 1; 0 for a whole file. A row is recorded once, however often it is read: over epochs, resumes and read-ahead.
    """

    def __init__(self, path: Path | None, max_bad_fraction: float) -> None:
        """`path` is created with the first bad row; None keeps the record in memory only."""
        self.path = path
        self.max_bad_fraction = max_bad_fraction
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str, int], None] = {}  # in the order in which they were met
        self._reasons: dict[str, Counter[str]] = {}
        if path is not None and path.is_file():
            self._load(path)

    def _load(self, path: Path) -> None:
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                key = (row["source"], row["file"], int(row["line"]))
                reason = str(row["reason"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: `append_line` cuts it off, and the row is recorded when it is met again
            self._remember(key, reason)

    def _remember(self, key: tuple[str, str, int], reason: str) -> None:
        self._seen[key] = None
        self._reasons.setdefault(key[0], Counter())[reason] += 1

    def bad(self, source: str, file: str, line: int, reason: str, excerpt: str = "") -> None:
        """Record a bad row, unless it is on record. OSError of the disk."""
        key = (source, file, line)
        with self._lock:
            if key in self._seen:
                return
            row = {"source": source, "file": file, "line": line, "reason": reason, "excerpt": excerpt[:EXCERPT_CHARACTERS]}
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                durable.append_line(self.path, row)
            self._remember(key, reason)

    def check(self, source: str, good: int, bad: int) -> None:
        """Raise TooManyBadRows when `bad` of a pass's `good + bad` rows are more than may be.

        The counts belong to the pass and travel in its position, so that a resumed run judges as one that never stopped.
        """
        if good + bad < MIN_ROWS or bad <= self.max_bad_fraction * (good + bad):
            return
        reason, _ = self._reasons.get(source, Counter({"unknown": 1})).most_common(1)[0]
        first = next((f"{file}:{line}" for name, file, line in self._seen if name == source), "")
        where = f" (first {first})" if first else ""
        raise TooManyBadRows(
            one_line(
                f"source '{source}': {bad} of the first {good + bad} rows are bad, most often: {reason}{where}. "
                f"Mend the data or raise data.max_bad_fraction (now {self.max_bad_fraction})",
                limit=800,
            )
        )

    def reasons(self, source: str) -> dict[str, int]:
        """How many rows of a source are on record for each reason, the most frequent first."""
        with self._lock:
            return dict(self._reasons.get(source, Counter()).most_common())
