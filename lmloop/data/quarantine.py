"""Bad rows: set aside with file, line and reason, and the limit beyond which training on the rest would be a mistake."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from lmloop import durable
from lmloop.data.source import one_line

MIN_ROWS = 20
"""Rows of a source that must have been read before their bad share says anything."""

EXCERPT_CHARACTERS = 160
REASON_CHARACTERS = 500

MAX_RECORDED = 100_000
"""Bad rows of one source that are recorded; then one more line says that there are more."""


class TooManyBadRows(ValueError):  # noqa: N818 (the state of the data, not a fault in the program)
    """More of a source's rows are bad than `data.max_bad_fraction` allows."""


class Quarantine:
    """The record of bad rows, one JSON line each: {source, file, line, reason, excerpt}.

    `line` is the line of a text or JSONL file, the row of a Parquet file or stream, the record of a JSON array, counted
    from 1; 0 for a whole file. A row is recorded once, however often it is read: over epochs, resumes and read-ahead.
    Lines that the disk refuses wait for the next one, or for `sync`: what else the run writes says whether it can go on.
    """

    def __init__(self, path: Path | None, max_bad_fraction: float) -> None:
        """`path` is created with the first bad row; None keeps the record in memory only, for whoever asks for it."""
        self.path = path
        self.max_bad_fraction = max_bad_fraction
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str, int], None] = {}  # in the order in which they were met
        self._recorded: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}
        self._first: dict[tuple[str, str], tuple[str, int]] = {}
        self._waiting: list[dict[str, Any]] = []
        if path is not None and path.is_file():
            self._load(path)

    def _load(self, path: Path) -> None:
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                key = (str(row["source"]), str(row["file"]), int(row["line"]))
                reason = str(row["reason"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue  # torn by a kill: `append_line` cuts it off, and the row is recorded when it is met again
            self._remember(key, reason)

    def _remember(self, key: tuple[str, str, int], reason: str) -> None:
        self._seen[key] = None
        self._recorded[key[0]] += 1
        self._reasons.setdefault(key[0], Counter())[reason] += 1
        self._first.setdefault((key[0], reason), key[1:])

    def bad(self, source: str, file: str, line: int, reason: str, excerpt: str = "") -> None:
        """Record a bad row, unless it is on record."""
        key, reason = (source, file, line), one_line(reason, REASON_CHARACTERS)
        with self._lock:
            recorded = self._recorded[source]
            if key in self._seen or recorded > MAX_RECORDED:
                return
            if recorded == MAX_RECORDED:
                key, reason, excerpt = (source, "", 0), f"there are more than {MAX_RECORDED:,} bad rows", ""
            self._waiting.append(
                dict(zip(("source", "file", "line"), key, strict=True))
                | {"reason": reason, "excerpt": excerpt[:EXCERPT_CHARACTERS]}
            )
            self._remember(key, reason)
            with contextlib.suppress(OSError):
                self._catch_up()

    def _catch_up(self) -> None:
        if self.path is None or not self._waiting:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._waiting:
            durable.append_line(self.path, self._waiting[0])
            del self._waiting[0]

    def take(self) -> list[dict[str, Any]]:
        """The rows that were recorded in memory since the last call: what another process writes with `bad`."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def sync(self) -> None:
        """Write the lines that wait. OSError where the disk still refuses them."""
        with self._lock:
            self._catch_up()

    def blank(self, source: str, file: str, line: int) -> None:
        """A row without text was passed over. Nothing is recorded: it is neither good nor bad."""

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
                "Mend the data (`lmloop check-data` says what is wrong with it) or raise data.max_bad_fraction (now "
                f"{self.max_bad_fraction})",
                limit=800,
            )
        )

    def reasons(self, source: str) -> dict[str, int]:
        """How many rows of a source are on record for each reason, the most frequent first."""
        with self._lock:
            return dict(self._reasons.get(source, Counter()).most_common())

    def first(self, source: str, reason: str) -> tuple[str, int]:
        """File and line of the row that was first on record for one of `reasons(source)`."""
        return self._first[source, reason]
