from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import pytest

from lmloop import durable
from lmloop.cli import main
from lmloop.data.chat_formats import read_sharegpt
from lmloop.data.prepare import lines_of, prepare, read_shares
from tests.data.test_chat_exports import export, message

Turns = list[tuple[str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chats(count: int) -> list[Turns]:
    rng = random.Random(0)
    return [
        [(role, f"{number} {rng.random()} \u2028é\ud83d") for role in ("user", "assistant") * rng.randint(1, 3)]
        for number in range(count)
    ]


def as_messages(turns: Turns) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def as_sharegpt(turns: Turns) -> dict[str, Any]:
    return {"conversations": [{"from": {"user": "human"}.get(role, "gpt"), "value": text} for role, text in turns]}


def as_chatgpt(turns: Turns) -> dict[str, Any]:
    return export(*(message(role, text) for role, text in turns))


def as_claude(turns: Turns) -> dict[str, Any]:
    return {"chat_messages": [{"sender": {"user": "human"}.get(role, role), "text": text} for role, text in turns]}


def as_alpaca(turns: Turns) -> dict[str, Any]:
    history = [[turns[at][1], turns[at + 1][1]] for at in range(0, len(turns) - 2, 2)]
    return {"instruction": turns[-2][1], "output": turns[-1][1], "history": history}


def whole(turns: Turns) -> Turns:
    """As it is written: half a character cannot be."""
    return [(role, text.replace("\ud83d", "\ufffd")) for role, text in turns]


def written(folder: Path) -> dict[str, list[Turns]]:
    """What stands in each part, read as a training run reads it."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        records = [json.loads(line) for line in path.read_bytes().decode("utf-8").splitlines()]
        if path.stem != "quarantine":
            found[path.stem] = [[(m.role, m.content) for m in read_sharegpt(record)] for record in records]
    return found


@pytest.mark.parametrize("form", [as_messages, as_sharegpt, as_chatgpt, as_claude, as_alpaca])
def test_every_format_comes_out_as_the_same_conversations(form: Any, here: Path) -> None:
    said = chats(40)
    (here / "conversations.json").write_text(json.dumps([form(turns) for turns in said]))
    report = prepare(["conversations.json"], "out")
    parts = written(here / "out")
    assert {part: len(found) for part, found in parts.items()} == {"train": 32, "validation": 4, "test": 4}
    assert report["parts"] == {"train": 32, "validation": 4, "test": 4}
    assert sorted(turns for found in parts.values() for turns in found) == sorted(map(whole, said))
    assert not (here / "out" / "quarantine.jsonl").exists()
    assert [path.name for path in (here / "out").glob(".*")] == []


def test_the_split_is_the_same_however_the_files_are_arranged(here: Path) -> None:
    said = chats(30)
    (here / "one.jsonl").write_text("".join(json.dumps(as_messages(turns)) + "\n" for turns in said))
    (here / "folder").mkdir()
    for number, part in enumerate((said[20:], said[:20])):
        (here / "folder" / f"{number}.json").write_text(json.dumps([as_claude(turns) for turns in part]))
    prepare(["one.jsonl"], "a", split="70/20/10")
    prepare(["folder"], "b", split="70/20/10")
    first, second = written(here / "a"), written(here / "b")
    assert {part: len(found) for part, found in first.items()} == {"train": 21, "validation": 6, "test": 3}
    assert {part: sorted(found) for part, found in first.items()} == {part: sorted(found) for part, found in second.items()}


def test_bad_rows_are_reported_with_file_line_and_reason(here: Path) -> None:
    good = [json.dumps(as_messages(turns)) for turns in chats(10)]
    bad = ["{", json.dumps({"messages": [{"role": "foo", "content": "x"}]}), '{"text": "x"}']
    (here / "mine.jsonl").write_text("\n".join([*good[:5], *bad, *good[5:]]) + "\n")
    report = prepare(["mine.jsonl"], "out")
    rows = [json.loads(line) for line in (here / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rows] == [("mine.jsonl", 6), ("mine.jsonl", 7), ("mine.jsonl", 8)]
    assert rows[1]["reason"] == "messages[0].role is 'foo': allowed are system, user, assistant, tool"
    assert (report["conversations"], sum(entry["count"] for entry in report["bad"])) == (10, 3)
    said = "\n".join(lines_of(report))
    assert "3 bad, in quarantine.jsonl" in said
    assert "(first mine.jsonl:7)" in said


def test_what_another_one_repeats_or_goes_on_from_is_left_out(here: Path) -> None:
    """An older export of the same account: nothing of it comes twice, and no half of a conversation is held out."""
    said = [turns for turns in chats(40) if len(turns) > 2]
    empty = export()
    (here / "new.json").write_text(json.dumps([*map(as_chatgpt, said), empty]))
    (here / "old.json").write_text(json.dumps([*(as_chatgpt(turns[:2]) for turns in said[:5]), *map(as_chatgpt, said[5:8])]))
    report = prepare(["old.json", "new.json"], "out", split="50/50")
    assert sorted(turns for found in written(here / "out").values() for turns in found) == sorted(map(whole, said))
    assert report["left_out"] == {"repeated": 3, "continued": 5, "empty": 1}


def test_nothing_is_replaced_unasked(here: Path) -> None:
    (here / "a.json").write_text(json.dumps([as_messages(turns) for turns in chats(10)] + [{}]))
    (here / "b.json").write_text(json.dumps([as_messages(turns) for turns in chats(1)]))
    prepare(["a.json"], "out")
    before = {path.name: path.read_bytes() for path in (here / "out").iterdir()}
    assert set(before) == {"train.jsonl", "validation.jsonl", "test.jsonl", "quarantine.jsonl"}
    with pytest.raises(ValueError, match=r"--out out has train\.jsonl, .* already: name another folder, or add --overwrite"):
        prepare(["b.json"], "out")
    assert {path.name: path.read_bytes() for path in (here / "out").iterdir()} == before
    report = prepare(["b.json"], "out", overwrite=True)
    assert [path.name for path in (here / "out").iterdir()] == ["train.jsonl"]
    assert set(report["replaced"]) == set(before)
    assert "replaced: train.jsonl, validation.jsonl" in "\n".join(lines_of(report))


def test_a_full_disk_leaves_what_was_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a.json").write_text(json.dumps([as_messages(turns) for turns in chats(10)]))
    prepare(["a.json"], "out", split="90/10")
    before = (here / "out" / "train.jsonl").read_bytes()

    def full(operation: str, path: Path) -> None:
        if operation == "fsync":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "before_operation", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(["a.json"], "out", split="50/50", overwrite=True)
    assert (here / "out" / "train.jsonl").read_bytes() == before
    assert [path.name for path in (here / "out").glob(".*")] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.json", "--out", "out"], "nowhere.json: no such file or folder"),
        (["export.zip", "--out", "out"], "export.zip: an archive: unpack it"),
        (["empty.json", "--out", "out"], "empty.json: no conversation in it"),
        (["texts.jsonl", "--out", "out"], "most often: no conversation (messages, conversations, instruction, prompt"),
        ([".", "--out", "out"], "--out out is within the input ."),
        (["folder", "--out", "out"], "folder: no .json, .jsonl or .parquet file in it"),
        (["good/train.jsonl", "--out", "good", "--overwrite"], "is where the result is to be written"),
        (["good/train.jsonl", "--out", "out", "--split", "80/30"], "--split 80/30: two or three whole numbers"),
        (["good/train.jsonl", "--out", "out", "--split", "0/50/50"], "--split 0/50/50"),
        (["good/train.jsonl", "--out", "out", "--split", "eighty"], "--split eighty"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "export.zip").touch()
    (here / "empty.json").write_text("[]")
    (here / "texts.jsonl").write_text('{"text": "x"}\n')
    (here / "folder").mkdir()
    (here / "good").mkdir()
    (here / "good" / "train.jsonl").write_text(json.dumps(as_messages(chats(1)[0])))
    assert main(["prepare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err
    assert not (here / "out").exists()


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.json").write_text(json.dumps([as_messages(turns) for turns in chats(10)]))
    assert main(["prepare", "a.json", "--out", "out"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "out: 10 conversations", "  train.jsonl: 8", "  validation.jsonl: 1", "  test.jsonl: 1",
    ]  # fmt: skip
    assert main(["prepare", "a.json", "--out", "out2", "--split", "100/0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == {"train": 10, "validation": 0, "test": 0}


def test_shares() -> None:
    assert read_shares("80/10/10") == (80, 10, 10)
    assert read_shares("95/5") == (95, 5, 0)
