from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lmloop.data.listing import excluder, expand_braces, listing_mark, matcher, open_regular, walk


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["*.txt"]),
        ("*.{txt,md}", ["*.txt", "*.md"]),
        ("{a,b{c,d}}.x", ["a.x", "bc.x", "bd.x"]),
        ("{a,b}/{c,d}", ["a/c", "a/d", "b/c", "b/d"]),
        ("{a}.x", ["{a}.x"]),
        ("a{b,c", ["a{b,c"]),
        ("a}b", ["a}b"]),
        ("{,x}a", ["a", "xa"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.txt", ["a.txt", "ä b.txt"], ["a/b.txt", "a.md", ".txt", "a.txt.md"]),
        ("**/*.txt", ["a.txt", "a/b.txt", "a/b/c.txt"], ["a.md", ".git/b.txt", "a/.b.txt"]),
        ("**/*.{txt,md}", ["a.txt", "x/y.md"], ["a.py"]),
        ("notes/**", ["notes/a", "notes/b/c"], ["notes", "other/a", "notes/.a"]),
        ("a?.txt", ["ab.txt"], ["a.txt", "abc.txt", "a/.txt"]),
        ("[ab].txt", ["a.txt"], ["c.txt", "ab.txt"]),
        ("[!ab].txt", ["c.txt"], ["a.txt"]),
        (".*/x", [".git/x"], ["git/x"]),
        ("a+b(1).txt", ["a+b(1).txt"], ["aab1.txt"]),
        ("./*.txt", ["a.txt"], ["a/b.txt"]),
        ("a[.txt", ["a[.txt"], ["a.txt"]),
    ],
)
def test_matcher(pattern: str, yes: list[str], no: list[str]) -> None:
    fits = matcher(pattern)
    assert [name for name in yes if not fits(name)] == []
    assert [name for name in no if fits(name)] == []


def test_excluder_matches_names_at_any_depth_and_whole_paths() -> None:
    excluded = excluder(["drafts", "*.bak", "a/b.txt"])
    assert excluded("drafts")
    assert excluded("x/drafts")
    assert excluded("x/y.bak")
    assert excluded("a/b.txt")
    assert not excluded("b.txt")
    assert not excluded("x/a/b.txt")


def names(root: Path) -> list[str]:
    return [file.name for file in walk(str(root), lambda name: name.endswith(".txt"), lambda _: False, False)]


def test_sorted_by_the_whole_path(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.txt", "a.txt", "a-b/c.txt", "B.txt", "ä.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names(tmp_path) == sorted(["b.txt", "a/z.txt", "a.txt", "a-b/c.txt", "B.txt", "ä.txt"])


def test_link_loops_end_and_files_keep_their_own_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x.txt").write_text("x")
    (tmp_path / "real/up").symlink_to(tmp_path)
    (tmp_path / "a_link").symlink_to(tmp_path / "real")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    (tmp_path / "linked.txt").symlink_to(tmp_path / "real/x.txt")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "y.txt").write_text("y")
    (outside / "back").symlink_to(tmp_path)
    (tmp_path / "out").symlink_to(outside)
    assert names(tmp_path) == ["linked.txt", "out/y.txt", "real/x.txt", "self.txt"]


def test_many_links_among_folders_do_not_multiply(tmp_path: Path) -> None:
    folders = [tmp_path / f"f{i}" for i in range(12)]
    for folder in folders:
        folder.mkdir()
        (folder / "x.txt").write_text("x")
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    assert names(tmp_path) == sorted(f"f{i}/x.txt" for i in range(12))


def test_special_files_are_listed_with_a_problem_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "null.txt").symlink_to("/dev/null")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.txt").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path is short
        try:
            server.bind("socket.txt")
        finally:
            os.chdir(here)
        found = walk(str(tmp_path), lambda name: name.endswith(".txt"), lambda _: False, False)
    assert {file.name: file.problem for file in found} == {
        "gone.txt": "No such file or directory",
        "null.txt": "not a file but a device",
        "pipe.txt": "not a file but a pipe",
        "socket.txt": "not a file but a socket",
    }


def test_opening_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (listed,) = walk(str(tmp_path), lambda _: True, lambda _: False, False)
    (tmp_path / "a.txt").unlink()
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(OSError, match="not a file but a pipe"):
        open_regular(listed)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("x")
    (listed,) = walk(str(tmp_path), lambda name: name.endswith(".txt"), lambda _: False, False)
    assert listed.name == "caf\\xe9.txt"
    with open_regular(listed).handle as handle:
        assert handle.read() == b"x"


def test_excluded_folders_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "skip").mkdir()
    (tmp_path / "skip/a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    seen: list[str] = []

    def wanted(name: str) -> bool:
        seen.append(name)
        return True

    walk(str(tmp_path), wanted, excluder(["skip"]), False)
    assert seen == ["b.txt"]


@pytest.mark.parametrize("change", ["add", "remove", "grow", "rename"])
def test_the_mark_changes(tmp_path: Path, change: str) -> None:
    def mark() -> int:
        return listing_mark(walk(str(tmp_path), lambda _: True, lambda _: False, False))

    for name in ["a", "b"]:
        (tmp_path / name).write_text("x")
    before = mark()
    assert mark() == before
    match change:
        case "add":
            (tmp_path / "c").write_text("")
        case "remove":
            (tmp_path / "a").unlink()
        case "grow":
            (tmp_path / "a").write_text("xx")
        case "rename":
            (tmp_path / "a").rename(tmp_path / "c")
    assert mark() != before
