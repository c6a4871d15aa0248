"""The journal on the disk: Markdown that a person may read and edit at any time, and entries that stand in it once.

An entry begins with a comment that says which it is and where it comes from; the text after it, up to the next such comment,
belongs to it. What stands before the first one, or after a comment that is no entry, was written by a person:

    <!-- lmloop entry my_run#3: epoch 3, step 1,240, rows of 32 tokens, loss 2.3412, validation 2.4011 -->
    ## After epoch 3

    What the model wrote.

    <!-- lmloop dropped my_run#4: epoch 4, ...: it is nearly the same as my_run#3 -->
    <!-- lmloop withdrawn my_run#5: my_run#3: epoch 5 made the held-out loss worse ... -->

The number of an entry is that of the reflection in its run, so that an entry is never written twice: a run that was killed
after it was written, and comes by the same place again, finds it there. The file changes by a rename alone, so that a kill
leaves it with the whole entry or without it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lmloop import durable

_MARK = re.compile(r"^<!-- lmloop (entry|dropped|withdrawn) ([A-Za-z0-9._-]+#\d+): (.*?) -->[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A part of the journal. kind: entry, dropped, withdrawn, or '' for what a person wrote outside of entries.

    id, facts: of the comment that it begins with. text: what follows, without the comment and without space around it.
    """

    kind: str
    id: str
    facts: str
    text: str


def parse(content: str) -> list[Section]:
    """The parts of a journal in their order. A comment that stands alone has its facts and no text; what follows it, up to
    the next one, is a part of its own."""
    marks = list(_MARK.finditer(content))
    sections = [Section("", "", "", content[: marks[0].start() if marks else None].strip())]
    for mark, following in zip(marks, [*marks[1:], None], strict=False):
        text = content[mark.end() : following.start() if following else None].strip()
        kind, name, facts = mark[1], mark[2], mark[3]
        if kind == "entry":
            sections.append(Section(kind, name, facts, text))
        else:
            sections += [Section(kind, name, facts, ""), Section("", "", "", text)]
    return [section for section in sections if section.kind or section.text]


class JournalFile:
    """The journal of one run: `name` is the run's, in which its entries are numbered."""

    def __init__(self, path: Path, name: str) -> None:
        """ValueError: there is something else at `path`."""
        self.path = path.expanduser().resolve()  # a link stays a link: what it leads to is written
        self.name = name
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"journal.path {path}: it is not a file: name one, or a file that does not exist yet")

    def is_at(self, path: str) -> bool:
        """`path` leads to it."""
        return Path(path).expanduser().resolve() == self.path

    def id(self, number: int) -> str:
        """The name of this run's entry `number`."""
        return f"{self.name}#{number}"

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def sections(self, before: int) -> list[Section]:
        """What stands in it now, without this run's entries from number `before` on. Those were written after the state
        that is trained from, by a process that was killed: they are found when the run comes by them again. OSError."""
        return [s for s in parse(self._bytes().decode("utf-8", "replace")) if self._number(s) < before]

    def _number(self, section: Section) -> int:
        name, _, number = section.id.rpartition("#")
        return int(number) if name == self.name else -1

    def first_free(self) -> int:
        """The number after this run's last entry: of a run that begins anew in the same file. OSError."""
        return max((self._number(s) for s in parse(self._bytes().decode("utf-8", "replace"))), default=-1) + 1 or 1

    def find(self, kinds: Iterable[str], number: int) -> Section | None:
        """This run's entry of that number, where it stands in the file already. OSError."""
        wanted = self.id(number)
        sections = parse(self._bytes().decode("utf-8", "replace"))
        return next((section for section in sections if section.id == wanted and section.kind in kinds), None)

    def append(self, kind: str, number: int, facts: str, text: str = "") -> bool:
        """Put a part at the end; what stands before it stays byte for byte. False: it is there already. OSError."""
        if self.find([kind], number) is not None:
            return False
        before = self._bytes()
        gap = b"" if not before or before.endswith(b"\n\n") else b"\n" if before.endswith(b"\n") else b"\n\n"
        facts = " ".join(facts.replace("-->", "").split())
        block = f"<!-- lmloop {kind} {self.id(number)}: {facts} -->\n" + (f"{text.strip()}\n" if text else "")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        durable.atomic_write(self.path, before + gap + block.encode("utf-8", "replace"))
        return True


def readable(sections: Iterable[Section]) -> list[tuple[str, str]]:
    """(name, text) of what is read in training: what people wrote and the entries, but for those that were withdrawn, which
    the comment names first."""
    sections = list(sections)
    withdrawn = {section.facts.partition(":")[0] for section in sections if section.kind == "withdrawn"}
    kept = [section for section in sections if section.text and section.id not in withdrawn]
    return [(section.id or f"part {number}", section.text) for number, section in enumerate(kept, 1)]


def mark_of(sections: Iterable[Section]) -> str:
    """What tells whether somebody has edited a journal since: a hash of its parts, whatever space is between them."""
    parts = [(s.kind, s.id, s.facts, s.text) for s in sections]
    return hashlib.sha256(repr(parts).encode("utf-8", "replace")).hexdigest()
