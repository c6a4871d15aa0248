"""The journal's file: what stands in it, once, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lmloop.training.journal_file import JournalFile, Section, mark_of, parse, readable
from tests.faults import failing_at, killed_at, operations_of


def append(path: Path, number: int, text: str = "I learn.", kind: str = "entry") -> bool:
    return JournalFile(path, "run").append(kind, number, f"epoch {number}", text)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.md"
    path.write_text("# My journal\n\nBe kind.\n")
    assert append(path, 1, "First.\n\nSecond paragraph.")
    assert append(path, 2, "", "dropped")
    assert append(path, 3, "Third.")
    with path.open("a") as file:
        file.write("\nAdded by hand.\n")
    assert parse(path.read_text()) == [
        Section("", "", "", "# My journal\n\nBe kind."),
        Section("entry", "run#1", "epoch 1", "First.\n\nSecond paragraph."),
        Section("dropped", "run#2", "epoch 2", ""),
        Section("entry", "run#3", "epoch 3", "Third.\n\nAdded by hand."),
    ]
    assert readable(parse(path.read_text())) == [
        ("part 1", "# My journal\n\nBe kind."),
        ("run#1", "First.\n\nSecond paragraph."),
        ("run#3", "Third.\n\nAdded by hand."),
    ]


@pytest.mark.parametrize("before", [b"", b"text", b"text\n", b"text\n\n", b"\xff\xfe\r\nodd bytes \x80"])
def test_what_stands_there_stays_byte_for_byte(before: bytes, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.md"
    path.parent.mkdir()
    path.write_bytes(before)
    assert append(path, 1)
    assert path.read_bytes().startswith(before)
    assert [section.id for section in parse(path.read_bytes().decode("utf-8", "replace")) if section.id] == ["run#1"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault" / "real.md").write_text("mine\n")
    (tmp_path / "journal.md").symlink_to(tmp_path / "vault" / "real.md")
    assert append(tmp_path / "journal.md", 1)
    assert (tmp_path / "journal.md").is_symlink()
    assert "I learn." in (tmp_path / "vault" / "real.md").read_text()


def test_an_entry_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.md"
    assert append(path, 1)
    content = path.read_bytes()
    assert not append(path, 1, "otherwise")
    assert path.read_bytes() == content


def test_entries_of_the_future_are_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "journal.md"
    for number in (1, 2, 3):
        append(path, number, f"text {number}")
    JournalFile(path, "other").append("entry", 9, "epoch 9", "of another run")
    file = JournalFile(path, "run")
    assert [section.id for section in file.sections(2)] == ["run#1", "other#9"]
    assert file.first_free() == 4
    assert JournalFile(path, "new").first_free() == 1
    found = file.find(("entry",), 3)
    assert found is not None
    assert found.text == "text 3"


def test_a_withdrawn_entry_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.md"
    append(path, 1, "good")
    append(path, 2, "bad")
    JournalFile(path, "run").append("withdrawn", 3, "run#2: epoch 2 made it worse")
    assert readable(parse(path.read_text())) == [("run#1", "good")]
    assert [section.id for section in JournalFile(path, "run").sections(3)] == ["run#1", "run#2"]


def test_facts_cannot_close_the_comment(tmp_path: Path) -> None:
    path = tmp_path / "journal.md"
    JournalFile(path, "run").append("dropped", 1, "said --> and\nmore")
    assert [(s.kind, s.facts) for s in parse(path.read_text())] == [("dropped", "said and more")]


def test_an_edit_shows_in_the_mark_and_space_does_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.md"
    append(path, 1)
    mark = mark_of(parse(path.read_text()))
    path.write_text(path.read_text() + "\n\n")
    assert mark_of(parse(path.read_text())) == mark
    path.write_text(path.read_text().replace("learn", "forget"))
    assert mark_of(parse(path.read_text())) != mark


def test_a_kill_at_every_operation_leaves_a_whole_entry_or_none(tmp_path: Path) -> None:
    """Then the run comes by the same entry again: it stands there once."""
    template = tmp_path / "template.md"
    template.write_text("mine\n")
    append(template, 1, "first " * 50)
    before = template.read_bytes()
    (tmp_path / "count.md").write_bytes(before)
    total = len(operations_of(lambda: append(tmp_path / "count.md", 2, "second " * 50)))
    whole = (tmp_path / "count.md").read_bytes()
    assert total >= 5
    outcomes = set()
    for index in range(total + 1):
        path = tmp_path / f"case{index}.md"
        path.write_bytes(before)
        killed = killed_at(index, lambda path=path: append(path, 2, "second " * 50))
        assert killed == (index < total)
        outcomes.add(path.read_bytes())
        append(path, 2, "second " * 50)
        assert path.read_bytes() == whole
    assert outcomes == {before, whole}


def test_an_error_at_every_operation_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal.md"
    append(path, 1)
    before = path.read_bytes()
    total = len(operations_of(lambda: append(path, 2)))
    whole = path.read_bytes()
    for index in range(total):
        path.write_bytes(before)
        with failing_at(index, errno.ENOSPC), pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            append(path, 2)
        assert path.read_bytes() in (before, whole)
        append(path, 2)
        assert path.read_bytes() == whole
        assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        JournalFile(tmp_path, "run")
