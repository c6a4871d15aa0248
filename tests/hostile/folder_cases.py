"""Folders, and what is no file although it has a file's name."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.making import Make, both, files, lines, named, record

ROWS = lines(*[record(f"{number} " + "x" * 1000) for number in range(2000)])


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "a.txt")


def open_socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may have about a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("a.txt")
    finally:
        os.chdir(here)


def link(target: str, name: str = "a.txt") -> Make:
    def make(folder: Path) -> None:
        os.symlink(target, folder / name)

    return make


def empty_folder(name: str) -> Make:
    return lambda folder: (folder / name).mkdir()


def odd_name(name: bytes) -> Make:
    def make(folder: Path) -> None:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("odd")

    return make


def deep(folder: Path) -> None:
    """Folders up to a path that is too long to be opened."""
    (folder / "b.txt").write_text("b")
    here = os.getcwd()
    os.chdir(folder)
    try:
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(here)


def many_links(folder: Path) -> None:
    """Two links in each of twenty folders to the next: a million ways to the last."""
    for number in range(20):
        (folder / f"f{number}").mkdir()
        for name in "ab":
            os.symlink(f"../f{number + 1}", folder / f"f{number}" / name)
    (folder / "f20").mkdir()
    (folder / "f20" / "x.txt").write_text("b")


def empty_files(folder: Path) -> None:
    for number in range(10_000):
        (folder / f"{number}.txt").touch()
    (folder / "b.txt").write_text("b")


def out_of_the_folder(folder: Path) -> None:
    outside = folder.with_name(folder.name + "-outside")
    outside.mkdir()
    (outside / "x.txt").write_text("outside")
    os.symlink(outside, folder / "linked")
    os.symlink(outside / "x.txt", folder / "a.txt")


def remove(folder: Path) -> None:
    (folder / "a.jsonl").unlink()


def shorten(folder: Path) -> None:
    os.truncate(folder / "a.jsonl", 3 * len(record("0 " + "x" * 1000)) + 3)


def grow(folder: Path) -> None:
    with (folder / "a.jsonl").open("ab") as out:
        out.write(lines(record("appended")) * 10)


def replace(folder: Path) -> None:
    (folder / "new").write_bytes(lines(record("replaced")))
    os.replace(folder / "new", folder / "a.jsonl")


def by_fifo(folder: Path) -> None:
    (folder / "b.txt").unlink()
    os.mkfifo(folder / "b.txt")


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


B = files(b__txt="b")

CASES = [
    Case("pipe", both(fifo, B), {}, ["b"], [("a.txt", 0, "not a file but a pipe")]),
    Case("pipe for a source", fifo, {"path": "a.txt"}, [], stops="neither a file nor a folder"),
    Case("socket", both(open_socket, B), {}, ["b"], [("a.txt", 0, "not a file but a socket")]),
    Case("link to /dev/zero", both(link("/dev/zero"), B), {}, ["b"], [("a.txt", 0, "not a file but a device")]),
    Case("link to /dev/stdin", both(link("/dev/stdin"), B), {}, ["b"], [("a.txt", 0, "not a file but a")]),
    Case(
        "link to /dev/tty or what stands for it",
        both(link("/dev/ptmx"), B),
        {},
        ["b"],
        [("a.txt", 0, "not a file but a device")],
    ),
    Case("/dev/zero for a source", B, {"path": "/dev/zero"}, [], stops="neither a file nor a folder"),
    Case("/dev/stdin for a source", B, {"path": "/dev/stdin"}, [], stops="neither a file nor a folder"),
    Case("/dev for a source", B, {"path": "/dev", "file_pattern": "zero"}, [], [("zero", 0, "not a file but a device")]),
    Case("link to a file that the kernel makes up", both(link("/proc/self/pagemap"), B), {}, ["b"]),
    Case("link to a file that cannot be read", both(link("/proc/self/mem"), B), {}, ["b"]),
    Case("folder with a file's name", both(B, empty_folder("a.txt")), {}, ["b"]),
    Case("folder with a file's name and files in it", named({"a.txt/x.md": "x"}), {}, ["x"]),
    Case("link to itself", both(link("a.txt"), B), {}, ["b"], [("a.txt", 0, "symbolic links")]),
    Case("link to nothing", both(link("nothing"), B), {}, ["b"], [("a.txt", 0, "No such file")]),
    Case("link to its own folder", both(link(".", "loop"), B), {}, ["b"]),
    Case("links in a circle", both(link("two", "one"), link("one", "two"), B), {}, ["b"]),
    Case("a million ways to one folder", many_links, {}, ["b"]),
    Case("links out of the folder", out_of_the_folder, {}, ["outside", "outside"]),
    Case(
        "unreadable file",
        files(a__txt="a", b__txt="b"),
        {},
        ["b"],
        [("a.txt", 0, "cannot be opened: Permission denied")],
        unreadable=("a.txt",),
    ),
    Case(
        "unreadable JSONL",
        files(a__jsonl=lines(record("a")), b__txt="b"),
        {},
        ["b"],
        [("a.jsonl", 0, "cannot be opened: Permission denied")],
        unreadable=("a.jsonl",),
    ),
    Case(
        "unreadable folder within",
        both(empty_folder("inner"), B),
        {},
        ["b"],
        [("inner", 0, "folder cannot be opened: Permission denied")],
        unreadable=("inner",),
    ),
    Case(
        "unreadable folder",
        empty_folder("inner"),
        {"path": "inner"},
        [],
        stops="cannot be read (Permission denied)",
        unreadable=("inner",),
    ),
    Case("no such path", B, {"path": "nothing"}, [], stops="there is no file or folder"),
    Case("a path longer than any", B, {"path": "x" * 300}, [], stops="File name too long"),
    Case("no file of a known kind", files(a__pdf="x"), {}, [], stops="no file in"),
    Case("deleted while it is read", files(a__jsonl=ROWS), {}, 2000, during=remove),
    Case(
        "shortened while it is read",
        files(a__jsonl=ROWS),
        {},
        128,
        [("a.jsonl", 0, "became shorter while it was read"), ("a.jsonl", 129, "torn last line")],
        during=shorten,
    ),
    Case("grown while it is read", files(a__jsonl=ROWS), {}, 2000, during=grow),
    Case("replaced while it is read", files(a__jsonl=ROWS), {}, 2000, during=replace),
    Case(
        "the next file deleted",
        files(a__txt="a", b__txt="b", c__txt="c"),
        {},
        ["a", "c"],
        [("b.txt", 0, "cannot be opened: No such file")],
        during=gone("b.txt"),
    ),
    Case(
        "the next file replaced by a pipe",
        files(a__txt="a", b__txt="b", c__txt="c"),
        {},
        ["a", "c"],
        [("b.txt", 0, "not a file but a pipe")],
        during=by_fifo,
    ),
    Case("name with a line break", both(odd_name(b"a\nb.txt"), B), {}, ["odd", "b"]),
    Case("name that a terminal would obey", both(odd_name(b"a\x1b[2J\r.txt"), B), {}, ["odd", "b"]),
    Case("names that are not UTF-8", both(odd_name(b"\xff.txt"), odd_name(b"\\xff.txt"), B), {}, ["odd", "odd", "b"]),
    Case(
        "bad file with a name that is not UTF-8",
        both(odd_name(b"a\xff\n.jsonl"), B),
        {},
        ["b"],
        [("a\\xff\\n.jsonl", 1, "not JSON")],
    ),
    Case("name of 255 bytes", both(odd_name(b"a" * 251 + b".txt"), B), {}, ["odd", "b"]),
    Case("name of nothing but an ending", both(odd_name(b".txt"), B), {}, ["b"]),
    Case("names with characters of patterns", both(odd_name(b"[a]*{b,c}?.txt"), B), {"file_pattern": "*.txt"}, ["odd", "b"]),
    Case(
        "folders deeper than a path can say",
        deep,
        {},
        ["b"],
        1,
    ),
    Case("ten thousand empty files", empty_files, {}, ["b"]),
    Case(
        "a pattern that leaves the folder",
        out_of_the_folder,
        {"file_pattern": "../*/x.txt"},
        [],
        stops="leads out of its folder",
    ),
    Case("a pattern with an absolute path", B, {"file_pattern": "/etc/*"}, [], stops="leads out of its folder"),
    Case(
        "a pattern of thousands of stars",
        both(odd_name(b"a" * 200 + b".txt"), B),
        {"file_pattern": "*a" * 15 + "*b"},
        [],
        stops="no file in",
    ),
]
