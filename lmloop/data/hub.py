"""Data sets of the Hugging Face hub, streamed: read from the network as training needs them, resumed exactly.

A position holds the commit that is read, so that a data set that changes on the hub stays what it was for a run, the name of
the file and the place in it. Requests that fail are sent again (see hub_client.py); when that does not help, the stream
breaks off for this process, and training goes on without it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from lmloop.data import hub_client
from lmloop.data.document import Document, Position
from lmloop.data.hub_client import unreachable
from lmloop.data.hub_files import HubSplit, Unreached, open_split
from lmloop.data.hub_words import in_words
from lmloop.data.quarantine import Quarantine
from lmloop.data.reader import START, BadRow, Row
from lmloop.data.source import Notify, SourceError
from lmloop.data.waiting import Ahead, Failed, elsewhere
from lmloop.preset.sources import HubSource

__all__ = ["HubStream", "commit_of", "unreachable"]

AHEAD_CHARACTERS = 2 << 20
"""How much text each reading of a stream keeps ready: seconds of training, while the next row group is on its way."""

_BLOCK_ROWS = 64
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _Item(NamedTuple):
    """A row, the name of its file, the position after it without the counts, the share of the pass that is done."""

    file: str
    row: Row | BadRow
    after: Position
    progress: float


@dataclass
class _Shared:
    """What the parts of one stream have in common."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    commit: str | None = None
    splits: dict[str | None, HubSplit] = field(default_factory=dict)
    has_begun: bool = False
    """It gave a document: what fails from then on costs the run this stream and not its life."""


class HubStream:
    """One split of a data set of the hub, or of a folder that is laid out as one; or a part of it: some of its files.

    broken: it broke off in this process, and is empty from then on, so that training goes on with the other sources instead
    of beginning this one again. why: what happened, in one line.
    """

    def __init__(self, name: str, section: HubSource, quarantine: Quarantine, notify: Notify) -> None:
        """Nothing is opened yet."""
        self.name = name
        self.section = section
        self.broken = False
        self.why = ""
        self._quarantine = quarantine
        self._notify = notify
        self._shared = _Shared()
        self._part = (0, 1)
        self._is_local = os.path.isdir(section.dataset)

    def parents(self) -> None:
        """A stream is not listed."""

    def shard_count(self, limit: int) -> int:
        """As many parts as there are files, at most. SourceError."""
        try:
            return max(min(limit, len(elsewhere(lambda: self._split(self._commit())).names)), 1)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(self._says(error)) from None

    def shard(self, index: int, count: int) -> HubStream:
        """Part `index` of `count`: files that follow one another, as `datasets` shards them."""
        assert self._part == (0, 1), self._part
        part = HubStream(self.name, self.section, self._quarantine, self._notify)
        part._shared = self._shared
        part._part = (index, count)
        return part

    @property
    def commit(self) -> str | None:
        """The commit that is read where no position says otherwise; None of a folder. Only after a first reading."""
        return self._shared.commit

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass from `position`. SourceError where nothing was ever read from it in this process; else it breaks off."""
        if self.broken:
            return
        good, bad = position.get("rows", (0, 0))
        ahead: Ahead[list[_Item]] = Ahead(lambda: self._blocks(position), size=_characters, room=AHEAD_CHARACTERS)
        try:
            while True:
                try:
                    block = ahead.take()
                except Failed as failed:
                    self._break_off(failed.error, position)
                    return
                if block is None:
                    return
                for file, row, after, progress in block:
                    if isinstance(row, BadRow):
                        bad += 1
                        self._quarantine.bad(self.name, file, row.number, row.reason, row.excerpt)
                        self._quarantine.check(self.name, good, bad)
                        continue
                    if row.is_blank:
                        self._quarantine.blank(self.name, file, row.number)
                        continue
                    good += 1
                    self._shared.has_begun = True
                    name = f"{file}#{row.number}"
                    document = Document(name, name, row.text, progress, row.messages, row.pair)
                    yield document, {**after, "rows": [good, bad]}
        finally:
            ahead.close()

    def _break_off(self, error: Exception, position: Position) -> None:
        """Give the stream up for this process. SourceError where it never gave a document."""
        says = self._says(error, position.get("revision"))
        if not self._shared.has_begun:
            raise SourceError(says) from None
        self.broken, self.why = True, says

    def _says(self, error: Exception, commit: str | None = None) -> str:
        if isinstance(error, SourceError):
            return str(error)
        cause = error.error if isinstance(error, Unreached) else error
        return f"source '{self.name}': {in_words(cause, self.section, commit or self._shared.commit)}"

    # ---- in a thread of its own, for it waits for the network ----

    def _blocks(self, position: Position) -> Iterator[list[_Item]]:
        """Rows by the block, for handing over each would cost more than reading it."""
        block: list[_Item] = []
        characters = 0
        try:
            for item in self._items(position):
                block.append(item)
                characters += _characters([item])
                if len(block) == _BLOCK_ROWS or characters > AHEAD_CHARACTERS // 8:
                    yield block
                    block, characters = [], 0
        except Exception:
            yield block  # what came before a failure is good
            raise
        if block:
            yield block

    def _items(self, position: Position) -> Iterator[_Item]:
        commit, position = self._where(position)
        split = self._split(commit)
        files = contiguous(len(split.names), *self._part)
        first, start = files.start, START
        if position.get("file") in split.names:
            first = max(split.names.index(position["file"]), files.start)
            a, b, c = position["place"]
            start = (a, b, c) if split.names[first] == position["file"] else START
        elif position:
            self._notify(f"source '{self.name}': {position.get('file')} is gone; it is read from the beginning")
        for index in range(first, files.stop):
            name = split.names[index]
            for row in split.rows(index, start):
                after = {"revision": commit, "file": name, "place": list(row.after)}
                share = row.share if isinstance(row, Row) else 0.0
                yield _Item(name, row, after, (index - files.start + share) / len(files))
            start = START

    def _where(self, position: Position) -> tuple[str | None, Position]:
        """The commit to read, and the position in it. What a preset says of a revision comes before a position's commit."""
        if self._is_local:
            return None, position
        then = position.get("revision")
        if then is not None and self.section.revision is None:
            return then, position
        commit = self._commit()
        if not position or then == commit:
            return commit, position
        self._notify(f"source '{self.name}': the preset names another revision than was read; it is read from the beginning")
        return commit, {}

    def _commit(self) -> str | None:
        """The commit that the preset's revision stands for, asked once."""
        if self._is_local:
            return None
        with self._shared.lock:
            if self._shared.commit is None:
                why = unreachable()
                if why is not None:
                    raise SourceError(
                        f"source '{self.name}': the Hugging Face hub cannot be reached ({why}): check the network"
                    )
                revision = self.section.revision
                is_commit = revision is not None and _COMMIT.fullmatch(revision) is not None
                self._shared.commit = revision if is_commit else commit_of(self.section.dataset, revision)
            return self._shared.commit

    def _split(self, commit: str | None) -> HubSplit:
        """The files at a commit, found out once."""
        with self._shared.lock:
            if commit not in self._shared.splits:
                self._shared.splits[commit] = open_split(self.section, commit)
            return self._shared.splits[commit]


def _characters(block: list[_Item]) -> int:
    return sum(len(item.row.text) if isinstance(item.row, Row) else 200 for item in block)


def contiguous(total: int, index: int, count: int) -> range:
    """Part `index` of `count` of `total` files: neighbours, the first parts one longer where it does not come out even."""
    size, longer = divmod(total, count)
    start = size * index + min(index, longer)
    return range(start, start + size + (index < longer))


def commit_of(dataset: str, revision: str | None) -> str:
    """The commit that a revision (default: the newest) of a data set stands for. Raises what the library raises."""
    from huggingface_hub import HfApi

    hub_client.install()
    commit = HfApi().dataset_info(dataset, revision=revision).sha
    if commit is None:
        raise hub_client.HubError("the hub did not say which commit this is")
    return commit
