"""Bad and blank rows, counted to the end of the data, where training would stop at a source with too many bad ones."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lmloop.data.quarantine import Quarantine, TooManyBadRows

KINDS_AT_MOST = 20
"""Reasons of one source that are told apart; the rarer ones are one more."""


@dataclass(frozen=True)
class BadRows:
    """Rows of a source that are bad for one reason, and where the first of them is."""

    reason: str
    rows: int
    file: str
    line: int
    """From 1; 0 for a whole file."""

    @property
    def where(self) -> str:
        """The place of the first."""
        return f"{self.file}:{self.line}" if self.line else self.file


class CountingQuarantine(Quarantine):
    """Keeps bad rows in memory and never stops; `refusals` has, for each source, what training would have stopped with."""

    def __init__(self, max_bad_fraction: float) -> None:
        super().__init__(None, max_bad_fraction)
        self.refusals: dict[str, str] = {}
        self._blank: dict[str, set[tuple[str, int]]] = {}

    def blank(self, source: str, file: str, line: int) -> None:
        """Count a row, once."""
        self._blank.setdefault(source, set()).add((file, line))

    def blank_rows(self, source: str) -> int:
        """How many rows of a source have no text."""
        return len(self._blank.get(source, ()))

    def check(self, source: str, good: int, bad: int) -> None:
        """Remember the refusal instead of raising it."""
        try:
            super().check(source, good, bad)
        except TooManyBadRows as error:
            self.refusals.setdefault(source, str(error))

    def summary(self, source: str) -> list[BadRows]:
        """By reason, the most frequent first. Reasons that differ in numbers only ("at character 17") are one."""
        counts = self.reasons(source)
        merged: dict[str, BadRows] = {}
        for (name, reason), (file, line) in self._first.items():
            if name == source:
                kind = re.sub(r"\d+", "0", reason)
                known = merged.get(kind, BadRows(reason, 0, file, line))
                merged[kind] = replace(known, rows=known.rows + counts[reason])
        kinds = sorted(merged.values(), key=lambda kind: -kind.rows)
        rare = kinds[KINDS_AT_MOST:]
        if not rare:
            return kinds
        return [*kinds[:KINDS_AT_MOST], replace(rare[0], reason="other reasons", rows=sum(kind.rows for kind in rare))]
