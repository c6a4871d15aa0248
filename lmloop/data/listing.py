"""Which files a source consists of: patterns, the walk through folders, and opening only what is a file."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

TEXT_ENDINGS = (".txt", ".md", ".markdown", ".text", ".rst")
RECORD_ENDINGS = (".json", ".jsonl", ".ndjson", ".parquet")


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
    out, at = [], 0
    if pattern[:1] in ("*", "?", "["):
        out.append(r"(?!\.)")  # as in a shell: hidden files only where the pattern names the dot
    while at < len(pattern):
        character = pattern[at]
        close = pattern.find("]", at + 2) if character == "[" else -1
        if character == "*":
            out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        elif close > 0:
            inside = pattern[at + 1 : close].replace("\\", "\\\\").replace("[", r"\[")
            if inside[0] in "!^":
                inside = "^/" + inside[1:]
            out.append(f"[{inside}]")
            at = close
        else:
            out.append(re.escape(character))
        at += 1
    return "".join(out)


def matcher(pattern: str) -> Callable[[str], bool]:
    """A predicate for relative paths: `*` stays within a part, `**/` is any number of folders. ValueError if malformed."""
    alternatives = []
    for one in expand_braces(pattern.replace(os.sep, "/").removeprefix("./")):
        out = []
        parts = one.split("/")
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
    """A file's name as text: bytes that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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


def walk(root: str, wanted: Callable[[str], bool], excluded: Callable[[str], bool], hidden: bool) -> list[Listed]:
    """The wanted files below `root`, sorted by name (as a string of the whole relative path).

    Linked folders are followed, each folder once whatever links lead to it and after all that need no link: a loop ends,
    and a file keeps its own name rather than a link's. `hidden`: enter folders whose name begins with a dot.
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


@dataclass(frozen=True)
class OpenFile:
    """A file that is being read."""

    name: str
    path: str
    handle: BinaryIO
    size: int
    version: int
    """Changes when the file is written (its time of change, in ns)."""


def open_regular(file: Listed) -> OpenFile:
    """Open a file, and nothing else: a pipe that has taken its place since is not waited for. OSError."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(file.path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"not a file but a {_special(status.st_mode)}")
        return OpenFile(file.name, file.path, os.fdopen(descriptor, "rb"), status.st_size, status.st_mtime_ns)
    except BaseException:
        os.close(descriptor)
        raise


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


def absolute(path: str) -> Path:
    """A preset's path: `~` is the home folder, the rest relative to the working directory."""
    return Path(path).expanduser()
