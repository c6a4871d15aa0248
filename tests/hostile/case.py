"""What a case of the table of hostile inputs says, and how one is run; `test_hostile.py` runs all of them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import TypeAdapter

from lmloop.data.corpus import SOURCES
from lmloop.data.document import Document, Position
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import Source
from lmloop.preset import sources

GIGABYTE = 1 << 30

RESUMED_DOCUMENTS = 12
"""A source of at most so many documents is resumed at each of them,"""

QUICK_S = 0.5
"""if to read it takes less than this."""

Bad = tuple[str, int, str]
"""A row that must be in quarantine.jsonl: its file, its line, a part of the reason."""


@dataclass(frozen=True)
class Case:
    """One hostile input: files made under a folder, and what reading them must give.

    Cases are found by name from another process, so a module of them is imported twice: heavy imports belong into `make`.

    make: writes the files under the folder. It runs outside what is measured.
    section: the source as a preset has it; its `path` is relative to the folder, which it is when none is given.
    good: the texts in order, or how many there are or may be.
    bad: all rows of the quarantine, in any order, or how many there are at least.
    stops: a part of the message of the ValueError (SourceError, TooManyBadRows) that ends reading; what was read before is
        compared with `good` all the same.
    notices: parts of the notices, all of them.
    during: what happens to the files after the first document was read.
    unreadable: names of files and folders that cannot be opened. (Permissions do not keep an administrator out.)
    read: what is done instead of reading a source, for inputs that are none; gives texts.
    seconds, memory_bytes: of processor time and peak memory, for the whole case.
    """

    name: str
    make: Callable[[Path], None]
    section: dict[str, Any]
    good: list[str] | int | range
    bad: tuple[Bad, ...] | list[Bad] | int = ()
    stops: str = ""
    notices: tuple[str, ...] = ()
    during: Callable[[Path], None] | None = None
    unreadable: tuple[str, ...] = ()
    read: Callable[[Path], list[str]] | None = None
    max_bad_fraction: float = 1.0
    seconds: float = 10.0
    memory_bytes: int = GIGABYTE


def run(case: Case, folder: Path) -> list[str]:
    """What is wrong with a case, whose files are made; an empty list is good. Writes a quarantine.jsonl beside `folder`."""
    if case.read is not None:
        return _run_read(case, folder)
    notices: list[str] = []
    source, texts, stopped = None, [], ""
    began = time.process_time()
    with _refused(case.unreadable):
        try:
            source = _open(case, folder, notices)
            next(source.read({}), None)  # as a run does: is there anything? what is there? then it reads
            source.parents()
            for document, _ in _documents(source, case, folder):
                texts.append(document.text)
        except ValueError as error:
            stopped = str(error)
    is_quick = time.process_time() - began < QUICK_S
    wrong = _compare_texts(case, texts) + _compare_stop(case, stopped)
    wrong += _compare_bad(case, folder)
    for notice in notices:
        if not any(part in notice for part in case.notices):
            wrong.append(f"notice that was not expected: {notice}")
    wrong += [f"no notice with {part!r}" for part in case.notices if not any(part in notice for notice in notices)]
    is_plain = not (case.stops or case.during or case.unreadable)
    if source is not None and not wrong and is_plain and is_quick and len(texts) <= RESUMED_DOCUMENTS:
        wrong = _resume_everywhere(source)
        wrong += [f"read again: {line}" for line in _compare_bad(case, folder)]
    return wrong


def _run_read(case: Case, folder: Path) -> list[str]:
    assert case.read is not None, case
    texts, stopped = [], ""
    try:
        texts = case.read(folder)
    except ValueError as error:
        stopped = str(error)
    return _compare_texts(case, texts) + _compare_stop(case, stopped)


def _open(case: Case, folder: Path, notices: list[str]) -> Source:
    """The source as a run opens it."""
    section = TypeAdapter(sources.Source).validate_python(
        {"type": "files", **case.section, "path": str(folder / case.section.get("path", ""))}
    )
    return SOURCES[section.type]("corpus", section, Quarantine(_record(folder), case.max_bad_fraction), notices.append)


def _record(folder: Path) -> Path:
    return folder.with_name(folder.name + "-quarantine.jsonl")


@contextlib.contextmanager
def _refused(names: tuple[str, ...]) -> Iterator[None]:
    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str) and os.path.basename(path) in names:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(path, *arguments, **options)

        return call

    with mock.patch("os.open", refusing(os.open)), mock.patch("os.scandir", refusing(os.scandir)):
        yield


def _documents(source: Source, case: Case, folder: Path) -> Iterator[tuple[Document, Position]]:
    for index, pair in enumerate(source.read({})):
        yield pair
        if index == 0 and case.during is not None:
            case.during(folder)


def _compare_texts(case: Case, texts: list[str]) -> list[str]:
    try:
        for text in texts:
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        return [f"a text that UTF-8 cannot hold: {error.reason}"]
    if isinstance(case.good, int | range):
        allowed = [case.good] if isinstance(case.good, int) else case.good
        return [] if len(texts) in allowed else [f"{len(texts)} texts where {case.good} were expected: {_brief(texts)}"]
    return [] if texts == case.good else [f"texts {_brief(texts)} where {_brief(case.good)} was expected"]


def _compare_stop(case: Case, stopped: str) -> list[str]:
    if bool(stopped) != bool(case.stops) or case.stops not in stopped:
        return [f"ended with {stopped!r} where {case.stops!r} was expected"]
    return [f"a message of several lines: {stopped!r}"] if "\n" in stopped else []


def _compare_bad(case: Case, folder: Path) -> list[str]:
    record = _record(folder)
    rows = [json.loads(line) for line in record.read_bytes().splitlines()] if record.exists() else []
    if isinstance(case.bad, int):
        return [] if len(rows) >= case.bad else [f"{len(rows)} rows in quarantine"]
    left = list(case.bad)
    wrong = []
    for row in rows:
        assert row["source"] == "corpus", row
        fits = next((e for e in left if (row["file"], row["line"]) == e[:2] and e[2] in row["reason"]), None)
        if fits is None:
            wrong.append(f"in quarantine, but not expected: {_brief((row['file'], row['line'], row['reason']))}")
        else:
            left.remove(fits)
    return wrong + [f"not in quarantine: {_brief(expected)}" for expected in left]


def _resume_everywhere(source: Source) -> list[str]:
    whole = list(source.read({}))
    for at, (document, position) in enumerate(whole):
        rest = list(source.read(json.loads(json.dumps(position))))
        if rest != whole[at + 1 :]:
            return [f"resumed after {document.id} it reads {_brief([d.id for d, _ in rest])}"]
    return []


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 600 else f"{text[:400]} ... {text[-150:]} ({len(text)} characters)"
