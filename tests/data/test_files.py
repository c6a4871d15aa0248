from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmloop.data.quarantine import TooManyBadRows
from lmloop.data.source import SourceError


def fill(root: Path) -> None:
    (root / "notes").mkdir()
    (root / "notes/a.txt").write_text("one\ntwo\n")
    (root / "notes/B.md").write_text("# three\n")
    (root / "z.txt").write_text("last\n")
    (root / "chats.jsonl").write_text("".join(json.dumps({"text": f"chat {n}"}) + "\n" for n in range(5)))
    (root / "list.json").write_text(json.dumps([{"text": f"item {n}"} for n in range(3)]))
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(4)]}), root / "p.parquet", row_group_size=2)
    (root / "image.png").write_bytes(b"\x89PNG\0")
    (root / ".hidden.txt").write_text("hidden")


def test_every_known_kind_in_strict_order(tmp_path: Path, opened, every_resume) -> None:
    fill(tmp_path)
    it = opened(tmp_path)
    ids = every_resume(it.source)
    assert ids == [
        *[f"chats.jsonl#{n}" for n in range(1, 6)],
        *[f"list.json#{n}" for n in range(1, 4)],
        "notes/B.md",
        "notes/a.txt",
        *[f"p.parquet#{n}" for n in range(1, 5)],
        "z.txt",
    ]
    assert it.source.parents() == ids
    progress = [document.progress for document in it.documents()]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert 0.0 < progress[0] < 0.2
    assert it.notices == []
    assert it.bad == []


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"file_pattern": "*.txt"}, ["z.txt"]),
        ({"file_pattern": "**/*.{txt,md}"}, ["notes/B.md", "notes/a.txt", "z.txt"]),
        ({"file_pattern": "notes/*"}, ["notes/B.md", "notes/a.txt"]),
        ({"exclude": ["notes", "*.json*", "*.parquet"]}, ["z.txt"]),
        ({"data_type": "text"}, ["notes/B.md", "notes/a.txt", "z.txt"]),
        ({"file_pattern": "*.json", "data_type": "text"}, ["list.json"]),
        ({"data_type": "json", "file_pattern": "l*.{jsonl,json}"}, [f"list.json#{n}" for n in range(1, 4)]),
        ({"file_pattern": "*.txt", "is_directory": True}, ["z.txt"]),
        ({"file_pattern": ".*.txt"}, [".hidden.txt"]),
    ],
)
def test_options(tmp_path: Path, opened, options: dict, ids: list[str]) -> None:
    fill(tmp_path)
    assert list(opened(tmp_path, **options).texts()) == ids


def test_records_in_a_file_of_another_ending(tmp_path: Path, opened) -> None:
    (tmp_path / "a.log").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert opened(tmp_path / "a.log", data_type="json").texts() == {"a.log#1": "a", "a.log#2": "b"}


def test_one_file(tmp_path: Path, opened, every_resume) -> None:
    fill(tmp_path)
    assert opened(tmp_path / "z.txt", is_directory=False).texts() == {"z.txt": "last\n"}
    assert len(every_resume(opened(tmp_path / "chats.jsonl").source)) == 5


def test_home_folder(tmp_path: Path, monkeypatch, opened) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    assert opened(Path("~/a.txt")).texts() == {"a.txt": "a"}


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("missing", {}, "there is no file or folder"),
        ("z.txt", {"is_directory": True}, "not a folder, but is_directory is true"),
        ("notes", {"is_directory": False}, "a folder, but is_directory is false"),
        (".", {"file_pattern": "*.md"}, "no file in"),
        ("empty", {}, "is of a known kind (.txt"),
        ("pipe", {}, "neither a file nor a folder"),
        ("z.txt/x", {}, "there is no file or folder"),
        ("x\0y", {}, "there is no file or folder"),
    ],
)
def test_a_source_that_cannot_be_read(tmp_path: Path, opened, path: str, options: dict, message: str) -> None:
    fill(tmp_path)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    it = opened(tmp_path / path, **options)
    for read in (lambda: next(it.source.read({})), it.source.parents):
        with pytest.raises(SourceError) as error:
            read()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_pattern_that_only_looks_at_the_top_says_so(tmp_path: Path, opened) -> None:
    fill(tmp_path)
    with pytest.raises(SourceError, match=r"'\*\*/\*' does"):
        opened(tmp_path, file_pattern="*.md").documents()


def test_what_is_no_file_is_set_aside(tmp_path: Path, opened, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "c.jsonl")
    (tmp_path / "d.txt").mkdir()
    (tmp_path / "e.txt").symlink_to("/dev/zero")
    (tmp_path / "f.txt").write_text("f")
    real = os.open

    def denied(path, flags, *rest, **named):
        if str(path).endswith("f.txt"):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", denied)
    it = opened(tmp_path)
    assert it.texts() == {"a.txt": "a"}
    assert [row[:2] for row in it.bad] == [("b.txt", 0), ("c.jsonl", 0), ("e.txt", 0), ("f.txt", 0)]
    assert [row[2].split(":")[0] for row in it.bad] == [
        "not a file but a pipe",
        "Too many levels of symbolic links",
        "not a file but a device",
        "cannot be opened",
    ]
    assert it.source.parents() == ["a.txt", "f.txt"]


def test_a_disk_that_fails_in_the_middle(tmp_path: Path, opened, monkeypatch) -> None:
    from lmloop.data.json_files import JsonLines

    fill(tmp_path)
    real = JsonLines.rows

    def failing(self, *arguments):
        for at, row in enumerate(real(self, *arguments)):
            if at == 2:
                raise OSError(5, "Input/output error")
            yield row

    monkeypatch.setattr(JsonLines, "rows", failing)
    it = opened(tmp_path, file_pattern="{chats.jsonl,z.txt}")
    assert list(it.texts()) == ["chats.jsonl#1", "chats.jsonl#2", "z.txt"]
    assert it.bad == [("chats.jsonl", 0, "cannot be read: Input/output error")]


def test_too_many_bad_rows_is_judged_alike_after_a_resume(tmp_path: Path, opened) -> None:
    rows = ['{"text": "good"}'] * 100 + ["bad"] * 60
    (tmp_path / "a.jsonl").write_text("\n".join(rows))

    def outcome(stops: list[int]) -> tuple[int, str]:
        it = opened(tmp_path, max_bad_fraction=0.3)
        position: dict = {}
        count = 0
        try:
            for stop in [*stops, 10**9]:
                for at, (_, after) in enumerate(it.source.read(position)):
                    position = json.loads(json.dumps(after))
                    count += 1
                    if at == stop:
                        break
        except TooManyBadRows as error:
            return count, str(error)
        raise AssertionError("all bad rows were accepted")

    count, message = outcome([])
    assert count == 100
    assert "43 of the first 143 rows are bad" in message
    assert outcome([10, 50]) == outcome([99]) == (count, message)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name}{n}"}) + "\n" for n in range(4)))
    return root


def resumed_after(folder: Path, opened, count: int, change) -> tuple[list[str], list[str]]:
    """Texts and notices of a reading that goes on after `count` documents and a change of the files."""
    first = opened(folder)
    position = list(first.source.read({}))[count - 1][1]
    change()
    second = opened(folder)
    return [document.text for document in second.documents(position)], second.notices


@pytest.mark.parametrize(
    ("change", "texts", "notice"),
    [
        ("nothing", "b2 b3 c0 c1 c2 c3", None),
        ("delete current", "c0 c1 c2 c3", "b.jsonl is gone"),
        ("delete earlier", "b2 b3 c0 c1 c2 c3", "files were added, removed or changed"),
        ("delete later", "b2 b3", "files were added, removed or changed"),
        ("add earlier", "b2 b3 c0 c1 c2 c3", "files were added, removed or changed"),
        ("add later", "b2 b3 new c0 c1 c2 c3", "files were added, removed or changed"),
        ("append", "b2 b3 b4 c0 c1 c2 c3", "b.jsonl has grown"),
        ("truncate", "c0 c1 c2 c3", "b.jsonl has become shorter"),
        ("longer lines", "long b2 long b3 c0 c1 c2 c3", "b.jsonl has grown"),
        ("empty", "c0 c1 c2 c3", "b.jsonl has become shorter"),
    ],
)
def test_files_that_change_between_stop_and_resume(
    folder: Path, opened, change: str, texts: str, notice: str | None
) -> None:
    b = folder / "b.jsonl"

    def apply() -> None:
        match change:
            case "delete current":
                b.unlink()
            case "delete earlier":
                (folder / "a.jsonl").unlink()
            case "delete later":
                (folder / "c.jsonl").unlink()
            case "add earlier":
                (folder / "a2.txt").write_text("new")
            case "add later":
                (folder / "b2.txt").write_text("new")
            case "append":
                with b.open("a") as file:
                    file.write('{"text": "b4"}\n')
            case "truncate":
                b.write_bytes(b.read_bytes()[:16])
            case "longer lines":
                b.write_text("".join(json.dumps({"text": f"long b{n}"}) + "\n" for n in range(4)))
            case "empty":
                b.write_bytes(b"")

    got, notices = resumed_after(folder, opened, 6, apply)
    assert " ".join(got) == texts
    if notice is None:
        assert notices == []
    else:
        assert len(notices) == 1
        assert notice in notices[0]


def test_everything_gone_is_an_error_not_a_crash(folder: Path, opened) -> None:
    with pytest.raises(SourceError, match="there is no file or folder"):
        resumed_after(folder, opened, 6, lambda: shutil.rmtree(folder))


def test_several_readers_at_a_time(folder: Path, opened) -> None:
    it = opened(folder)
    expected = list(it.texts().values())
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append([d.text for d in it.documents()])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 6


def test_unwanted_files_are_not_opened(tmp_path: Path, opened, monkeypatch) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    it = opened(tmp_path)
    opened_names: list[str] = []
    from lmloop.data import files

    real = files.open_regular
    monkeypatch.setattr(files, "open_regular", lambda file: opened_names.append(file.name) or real(file))
    assert it.source.parents() == ["a.txt", "b.txt", "c.txt"]
    assert opened_names == []
    assert [d.text for d, _ in it.source.read_where(lambda parent: parent == "b.txt", {})] == ["b"]
    assert opened_names == ["b.txt"]


def test_a_file_that_appears_is_read_in_the_next_pass(folder: Path, opened) -> None:
    it = opened(folder)
    assert len(it.documents()) == 12
    assert len(it.source.parents()) == 12
    (folder / "d.txt").write_text("new")
    assert [d.text for d in it.documents()][-1] == "new"
    assert it.source.parents()[-1] == "d.txt"


def test_a_position_of_another_kind_starts_over_and_says_so(folder: Path, opened) -> None:
    it = opened(folder)
    assert len(it.documents({"index": 3, "listing": 0, "rows": [3, 0]})) == 12
    assert ["does not fit the preset" in notice for notice in it.notices] == [True]
