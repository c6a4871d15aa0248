"""How far the check is, on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lmloop.check.counts import PartCounts
from lmloop.training import figures
from lmloop.training.progress import visible

REDRAW_S = 0.1


class Reading:
    """One line that is redrawn in place on a terminal; elsewhere a line for each thing that is begun."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, force_terminal=None if sys.stderr.isatty() else False)
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._words = ""
        self._counts: PartCounts | None = None

    def __enter__(self) -> Reading:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def doing(self, words: str) -> None:
        """Say what is done that has no parts."""
        self._words, self._counts = words, None
        self._draw(force=True)

    def begin(self, source: str, part: str, counts: PartCounts) -> None:
        """A part of a source is read now, and counted into `counts`."""
        self._words = f"reading {visible(source)}" + ("" if part == "train" else f", {part}")
        self._counts = counts
        self._draw(force=True)

    def tick(self) -> None:
        """Another document was read."""
        self._draw()

    def _draw(self, *, force: bool = False) -> None:
        if self._live is None:
            if force:
                print(f"{self._words} …", file=sys.stderr)
            return
        now = time.monotonic()
        if not force and now - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = now
        line = Table.grid(padding=(0, 2))
        line.add_column(no_wrap=True, overflow="ellipsis")
        cells = [Text(f"{self._words} …", style="cyan")]
        counts = self._counts
        if counts is not None and counts.characters:
            cells.append(Text(f"{figures.count(counts.characters)} characters", style="dim"))
            if counts.progress:
                cells.append(Text(figures.percent(counts.progress), style="dim"))
        for _ in cells[1:]:
            line.add_column(no_wrap=True)
        line.add_row(*cells)
        self._live.update(line, refresh=True)
