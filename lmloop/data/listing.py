"""Which files a source consists of: patterns, the walk through folders, and opening only what is a file."""

from __future__ import annotations

import io
import os
import re
import stat
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

from lmloop.data.run_folders import is_run_folder, is_written_by_runs

TEXT_ENDINGS = (".txt", ".md", ".markdown", ".text", ".rst")
RECORD_ENDINGS = (".json", ".jsonl", ".ndjson", ".parquet")
PDF_ENDINGS = (".pdf",)

BUFFER_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry: its name (path relative to the source, `/` between parts), where it is, its size in bytes.

    `problem` says why it cannot be read although its name fits: a pipe, a device, a link to nothing.
    """

    name: str
    path: str
    size: int
    problem: str = ""


def expand_braces(pattern: str) -> list[str]:
    """`*.{txt,md}` as `*.txt` and `*.md`; braces may be nested. A brace without its partner is a plain character."""
    depth, start, commas = 0, -1, []
    for at, character in enumerate(pattern):
        if character == "{":
            if depth == 0:
                start, commas = at, []
            depth += 1
        elif character == "," and depth == 1:
            commas.append(at)
        elif character == "}" and depth > 0:
            depth -= 1
            if depth == 0 and commas:
                bounds = [start, *commas, at]
                parts = [pattern[a + 1 : b] for a, b in pairwise(bounds)]
                return [whole for part in parts for whole in expand_braces(pattern[:start] + part + pattern[at + 1 :])]
    return [pattern]


def _part(pattern: str) -> str:
    """One part of a path (between slashes) as a regular expression: `*`, `?`, `[abc]`, `[!abc]`."""
    pieces, at = [""], 0  # what stands between stars
    while at < len(pattern):
        character = pattern[at]
        close = pattern.find("]", at + 2) if character == "[" else -1
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "[^/]"
        elif close > 0:
            inside = pattern[at + 1 : close].replace("\\", "\\\\").replace("[", r"\[")
            if inside[0] in "!^":
                inside = "^/" + inside[1:]
            pieces[-1] += f"[{inside}]"
            at = close
        else:
            pieces[-1] += re.escape(character)
        at += 1
    # as in a shell: hidden files only where the pattern names the dot
    visible = r"(?!\.)" if pattern[:1] in ("*", "?", "[") else ""
    if len(pieces) == 1:
        return visible + pieces[0]
    # the first place that fits is as good as any later one: to try others would take exponential time
    middle = "".join(f"(?>[^/]*?{piece})" for piece in pieces[1:-1] if piece)
    return f"{visible}{pieces[0]}{middle}[^/]*{pieces[-1]}"


def matcher(pattern: str) -> Callable[[str], bool]:
    """A predicate for relative paths: `*` stays within a part, `**/` is any number of folders.

    ValueError if it is malformed, or leads out of the folder in which it is looked for: that is what `path` is for.
    """
    if pattern.startswith(("/", "~/")) or ".." in re.split(r"[/,{}]", pattern):
        raise ValueError(f"pattern '{pattern}' leads out of its folder: name the folder in `path`, and a pattern within it")
    alternatives = []
    for one in expand_braces(pattern.replace(os.sep, "/").removeprefix("./")):
        out = []
        parts = one.split("/")
        parts = [part for index, part in enumerate(parts) if part != "**" or parts[index - 1 : index] != ["**"]]
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            if part == "**":
                out.append(r"(?:(?!\.)[^/]+/)*" + (r"(?!\.)[^/]+" if last else ""))
            else:
                out.append(_part(part) + ("" if last else "/"))
        alternatives.append("".join(out))
    try:
        compiled = re.compile("|".join(f"(?:{one})" for one in alternatives), re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern '{pattern}' cannot be understood ({error}): use *, ?, [abc], ** and {{a,b}}") from None
    return lambda path: compiled.fullmatch(path) is not None


def excluder(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path (of a file or a folder) is left out: it fits a pattern, or its last part fits one without a slash."""
    whole = [matcher(pattern) for pattern in patterns]
    names = [matcher(pattern) for pattern in patterns if "/" not in pattern]

    def excluded(path: str) -> bool:
        name = path.rsplit("/", 1)[-1]
        return any(fits(path) for fits in whole) or any(fits(name) for fits in names)

    return excluded


def printable(name: str) -> str:
    """A file's name as text of one line; different names stay different.

    Bytes that are not UTF-8 are written as `\\xff`, line breaks and what else a terminal would obey as `\\n`, `\\x1b`; so a
    backslash is written twice.
    """
    if name.isascii() and name.isprintable() and "\\" not in name:  # as good as all are
        return name
    text = os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _entry(name: str, path: str) -> Listed | None:
    """How a directory entry is listed; None for a folder."""
    try:
        status = os.stat(path)
    except OSError as error:
        return Listed(printable(name), path, 0, error.strerror or "cannot be examined")
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        return Listed(printable(name), path, 0, f"not a file but a {_special(status.st_mode)}")
    return Listed(printable(name), path, status.st_size)


def _special(mode: int) -> str:
    kinds = {
        stat.S_ISFIFO: "pipe",
        stat.S_ISSOCK: "socket",
        stat.S_ISCHR: "device",
        stat.S_ISBLK: "device",
        stat.S_ISDIR: "folder",
    }
    return next((kind for test, kind in kinds.items() if test(mode)), "special file")


def walk(
    root: str,
    wanted: Callable[[str], bool],
    excluded: Callable[[str], bool],
    hidden: bool,
    passed_over: Callable[[str], None] = lambda folder: None,
) -> list[Listed]:
    """The wanted files below `root`, sorted by name (as a string of the whole relative path).

    Linked folders are followed, each folder once whatever links lead to it and after all that need no link: a loop ends,
    and a file keeps its own name rather than a link's. `hidden`: enter folders whose name begins with a dot. What a run has
    written into its folder is left out, and `passed_over` told that folder, if any of it was wanted.
    """
    found: list[Listed] = []
    visited: set[tuple[int, int]] = set()
    plain: deque[tuple[str, str]] = deque([("", root)])
    linked: deque[tuple[str, str]] = deque()
    while plain or linked:
        prefix, folder = plain.popleft() if plain else linked.popleft()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            found.append(Listed(printable(prefix[:-1]), folder, 0, f"folder cannot be opened: {error.strerror}"))
            continue
        if is_run_folder({entry.name for entry in entries}):
            written = [entry for entry in entries if is_written_by_runs(entry.name)]
            entries = [entry for entry in entries if entry not in written]
            if any(wanted(printable(prefix + entry.name)) for entry in written):
                passed_over(printable(prefix[:-1]) or folder)
        for entry in entries:
            name = prefix + entry.name
            try:
                link, folder_here = entry.is_symlink(), entry.is_dir()
            except OSError:  # a link that leads to itself
                link, folder_here = True, False
            if folder_here:
                if not excluded(printable(name)) and (hidden or not entry.name.startswith(".")):
                    (linked if link else plain).append((name + "/", entry.path))
            elif wanted(printable(name)) and not excluded(printable(name)):
                listed = _entry(name, entry.path)
                if listed is not None:
                    found.append(listed)
    return sorted(found, key=lambda listed: listed.name)


def listing_mark(files: Sequence[Listed]) -> int:
    """A number that changes when a file is added, removed or changes its size."""
    mark = 0
    for file in files:
        mark = zlib.crc32(f"{file.name}\0{file.size}\n".encode(), mark)
    return mark


class _Bounded(io.RawIOBase):
    """A file up to the size that it had when it was opened: what grows while it is read would otherwise have no end."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._size = size
        self.shortened = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END:
            return self._file.seek(self._size + offset)
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        left = max(self._size - self._file.tell(), 0)
        count = self._file.readinto(memoryview(buffer)[:left]) if left else 0
        self.shortened |= left > 0 and not count
        return count or 0

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class OpenFile:
    """A file that is being read, up to the size that it had when it was opened."""

    name: str
    path: str
    handle: BinaryIO
    size: int
    version: int
    """Changes when the file is written (its time of change, in ns)."""

    @property
    def shortened(self) -> bool:
        """Whether its end was met before its size: somebody cut it off while it was read."""
        return isinstance(self.handle, io.BufferedReader) and cast(_Bounded, self.handle.raw).shortened


def open_regular(file: Listed) -> OpenFile:
    """Open a file, and nothing else: a pipe that has taken its place since is not waited for. OSError."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(file.path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"not a file but a {_special(status.st_mode)}")
    except BaseException:
        os.close(descriptor)
        raise
    handle = io.BufferedReader(_Bounded(descriptor, status.st_size), BUFFER_BYTES)
    return OpenFile(file.name, file.path, handle, status.st_size, status.st_mtime_ns)


def lines(handle: BinaryIO, limit: int) -> Iterator[tuple[bytes, int]]:
    """Lines with their breaks, and how many bytes each has; of a line longer than `limit` only the beginning is kept."""
    while line := handle.readline(limit):
        length = len(line)
        if length == limit and not line.endswith(b"\n"):
            while rest := handle.readline(limit):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
        yield line, length


def skip_line_breaks(handle: BinaryIO) -> int:
    """Read on over line breaks that follow one another; returns how many there were."""
    count = 0
    while ahead := handle.peek():  # type: ignore[attr-defined]
        here = len(ahead) - len(ahead.lstrip(b"\n"))
        handle.read(here)
        count += here
        if here < len(ahead):
            break
    return count


def absolute(path: str) -> Path:
    """A preset's path: `~` is the home folder, the rest relative to the working directory."""
    return Path(os.path.expanduser(path))  # which, unlike Path's own, leaves the `~` of nobody as it is
