"""What is found out about the data while it is read: said once, counted over all ranks, bad rows in one file."""

from __future__ import annotations

from lmloop.data.quarantine import Quarantine
from lmloop.processes import Processes
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.preface import PrefaceFeed
from lmloop.training.reporter import Reporter

_LEFT_OUT = (
    "documents are shorter than data.min_text_length and were left out",
    "conversations were left out: not even their first answer fits into model.seq_length",
    "conversations were cut at a turn: what follows does not fit into model.seq_length",
)


class Hearing:
    """Listens to sources and feed for a session; every rank has one."""

    def __init__(self, reporter: Reporter, quarantine: Quarantine, processes: Processes) -> None:
        self.reporter = reporter
        self.quarantine = quarantine
        self.processes = processes
        self._heard: list[list[str]] = []
        self._told: list[int] = []

    def listen(self, lines: list[str]) -> None:
        """To a list of lines, also to what is added to it later on."""
        self._heard.append(lines)
        self._told.append(0)

    def tell(self) -> None:
        """Say what was heard since the last time: a stream that broke off is no news at the end of a run."""
        for number, lines in enumerate(self._heard):
            for line in lines[self._told[number] :]:
                self.reporter.notice(line)
            self._told[number] = len(lines)

    def set_aside(self) -> None:
        """Bad rows that other ranks have met, into the one file; called by all of them."""
        for rows in self.processes.gather([] if self.processes.first else self.quarantine.take()):
            for row in rows if self.processes.first else ():
                self.quarantine.bad(**row)
        if self.processes.first:
            self.quarantine.sync()

    def last_words(self, feed: TextFeed | PrefaceFeed) -> None:
        """What was found out, by all ranks; called by all of them."""
        self.tell()
        found = self.processes.gather([feed.skipped, feed.too_long, feed.cut])
        for name in feed.source_names:
            for number, what in enumerate(_LEFT_OUT):
                count = sum(one[number].get(name, 0) for one in found)
                if count and self.processes.first:
                    self.reporter.notice(f"source '{name}': {count:,} {what}")
        self.reporter.collect()
        self.set_aside()
