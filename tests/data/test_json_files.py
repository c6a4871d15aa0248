from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmloop.data import json_files


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{not json}\n", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        (b'{"text": "a"} trailing\n', "not JSON: more text after the record, at character 14"),
        (b'{"text": "a", "text": "b"}\n', "field 'text' occurs twice"),
        (b'{"text": NaN}\n', "NaN is not JSON"),
        (b'{"text": "a", "x": Infinity}\n', "Infinity is not JSON"),
        (b'{"text": 1}\n', "field 'text' is not text but a number"),
        (b"null\n", "not an object with fields but null"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (b'{"text": "\xff"}\n', "not UTF-8 (byte 0xff)"),
        (b'{"text": "a\0b"}\n', "not text (NUL bytes)"),
        (b"\0" * 4096 + b"\n", "not text (NUL bytes)"),
        (b'{"other": "a"}\n', "no field 'text'; there are: other"),
        (b"\xff\xfe{}\n", "not UTF-8 (byte 0xff)"),
    ],
)
def test_a_bad_line_is_set_aside_and_the_rest_kept(tmp_path: Path, opened, row: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("one") + row + line("two"))
    it = opened(tmp_path)
    texts = it.texts()
    assert texts["a.jsonl#1"] == "one"
    assert list(texts.values())[-1] == "two"
    assert it.bad[0] == ("a.jsonl", 2, reason)


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"\xef\xbb\xbf" + line("a"), {"#1": "a"}),
        (b'{"text": "a"}\r\n{"text": "b"}\r\n', {"#1": "a", "#2": "b"}),
        (b'\n  \n{"text": "a"}\n\n{"text": "b"}\n\n', {"#3": "a", "#5": "b"}),
        (b'{"text": "a"}', {"#1": "a"}),
        (b'"a"\n"b"\n', {"#1": "a", "#2": "b"}),
        (b'{"text": "x\\ud83d"}\n', {"#1": "x\ufffd"}),
        (b'{"text": "\\ud83d\\ude00\\u0000"}\n', {"#1": "😀\0"}),
        (b'{"text": "a", "n": 1' + b"0" * 10_000 + b"}\n", {"#1": "a"}),
        (b'{"text": "  "}\n{"text": "a"}\n', {"#2": "a"}),
        (b"", {}),
        (b"\n\n", {}),
        (b"\xef\xbb\xbf", {}),
    ],
)
def test_good_lines(tmp_path: Path, opened, data: bytes, texts: dict[str, str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    it = opened(tmp_path)
    assert it.texts() == {f"a.jsonl{number}": text for number, text in texts.items()}
    assert it.bad == []


def test_torn_last_line(tmp_path: Path, opened) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("one") + b'{"text": "tw')
    it = opened(tmp_path)
    assert it.texts() == {"a.jsonl#1": "one"}
    assert it.bad == [("a.jsonl", 2, "torn last line")]


def test_a_line_too_long_is_passed_over(tmp_path: Path, monkeypatch, opened, every_resume) -> None:
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(line("one") + line("x" * 1000) + line("two") + line("y" * 1000)[:-1])
    it = opened(tmp_path)
    assert it.texts() == {"a.jsonl#1": "one", "a.jsonl#3": "two"}
    assert [(number, reason[:4]) for _, number, reason in it.bad] == [(2, "line"), (4, "line")]
    every_resume(it.source)


RECORDS = [{"text": f"täxt {n}", "n": n} for n in range(7)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", json.dumps(RECORDS)),
        ("a.json", json.dumps(RECORDS, indent=2, ensure_ascii=False)),
        ("a.json", "\ufeff \n" + json.dumps(RECORDS)),
        ("a.json", "\n".join(map(json.dumps, RECORDS))),
        ("a.json", "\n".join(json.dumps(record, indent=2) for record in RECORDS)),
        ("a.jsonl", "\n".join(map(json.dumps, RECORDS))),
        ("a.ndjson", "\r\n".join(map(json.dumps, RECORDS))),
        ("a.json", json.dumps([record["text"] for record in RECORDS])),
    ],
)
def test_every_spelling_of_the_same_records(tmp_path: Path, opened, every_resume, name: str, data: str) -> None:
    (tmp_path / name).write_text(data, encoding="utf-8")
    it = opened(tmp_path)
    assert it.texts() == {f"{name}#{n + 1}": record["text"] for n, record in enumerate(RECORDS)}
    assert it.source.parents() == list(it.texts())
    assert it.bad == []
    every_resume(it.source)


@pytest.mark.parametrize(
    ("data", "texts", "bad"),
    [
        ('{"text": "one"}', ["one"], []),
        ('{\n  "text": "one"\n}\n', ["one"], []),
        ("[]", [], []),
        ("", [], []),
        ('[{"text": "a"}, {"text": 1}, {"text": "b"}]', ["a", "b"], [(2, "field 'text' is not text but a number")]),
        (
            '[{"text": "a"},\n {"text": "b"},\n {"text": "c',
            ["a", "b"],
            [(3, "not JSON: Unterminated string starting at at character 10 (line 3); nothing after it is read")],
        ),
        ('[{"text": "a"}', ["a"], [(2, "the file breaks off: its array is not closed")]),
        ("[" * 100_000, [], [(1, "nested too deeply (line 1); nothing after it is read")]),
        ('broken\n{"text": "a"}\n{"text": "b"}\n', ["a", "b"], [(1, "not JSON: Expecting value at character 1")]),
        ("junk", [], [(1, "not JSON: Expecting value at character 1 (line 1); nothing after it is read")]),
    ],
)
def test_json_files_with_faults(tmp_path: Path, opened, data: str, texts: list[str], bad: list) -> None:
    (tmp_path / "a.json").write_text(data)
    it = opened(tmp_path)
    assert list(it.texts().values()) == texts
    assert it.bad == [("a.json", *row) for row in bad]


def test_json_array_that_is_not_utf8(tmp_path: Path, opened) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"text": "\xff"}]')
    it = opened(tmp_path)
    assert it.texts() == {}
    assert it.bad == [("a.json", 1, "not UTF-8 (byte 0xff); convert the file to UTF-8")]


def test_unwanted_lines_are_not_parsed(tmp_path: Path, opened) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("a") + b"broken\n" + line("c"))
    it = opened(tmp_path)
    wanted = it.source.read_where(lambda parent: parent != "a.jsonl#2", {})
    assert [document.text for document, _ in wanted] == ["a", "c"]
    assert it.bad == []


def test_large_files_list_lines_without_parsing(tmp_path: Path, monkeypatch, opened) -> None:
    from lmloop.data import files

    monkeypatch.setattr(files, "EXACT_BYTES", 10)
    (tmp_path / "a.jsonl").write_bytes(line("a") + b"\nbroken\n" + line("c"))
    (tmp_path / "b.json").write_text('[{"text": "a"}, {"text": "b"}]')
    assert opened(tmp_path).source.parents() == ["a.jsonl#1", "a.jsonl#3", "a.jsonl#4", "b.json#1", "b.json#2"]
    monkeypatch.setattr(files, "EXACT_BYTES", 10_000)
    assert opened(tmp_path).source.parents() == ["a.jsonl#1", "a.jsonl#4", "b.json#1", "b.json#2"]
