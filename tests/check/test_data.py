"""`lmloop check-data` on files, by what it prints, what its JSON says and its exit status."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmloop.check.data import check_data
from lmloop.check.reading import Reading
from lmloop.cli import main
from lmloop.data.corpus import open_corpus
from lmloop.data.quarantine import Quarantine
from lmloop.preset.reading import load_preset
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.tokenizer import Tokenizer
from tests.runs import quick_preset, quick_run, tree

WORDS = ["river", "lantern", "copper", "seven", "winter", "garden", "lesson", "paper", "stone", "window", "market", "gate"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def texts(count: int, seed: int = 0, words: int = 30) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(words)) for _ in range(count)]


def write_lines(path: str, rows: list[Any]) -> None:
    """A JSONL file; a row that is text is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(path).write_text("".join(line + "\n" for line in lines))


def write_preset(sources: list[Any], **sections: dict[str, Any]) -> None:
    """`p.json` with a small model and a character tokenizer."""
    sources = [{"type": "files", "path": source} if isinstance(source, str) else source for source in sources]
    changes = {**sections, "data": {"sources": sources, "split": {"validation": 0.1}, **sections.get("data", {})}}
    changes["tokenizer"] = {"type": "char", **sections.get("tokenizer", {})}
    Path("p.json").write_text(json.dumps({**quick_preset(**changes), "name": "p", "output_dir": "run"}))


def checked(capsys: Capture, *options: str, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["check-data", "p.json", "--json", *options]) == status
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_good_data(capsys: Capture) -> None:
    documents = texts(100)
    write_lines("a.jsonl", [{"text": text} for text in documents])
    write_preset(["a.jsonl"])
    before = tree(Path())
    answer = checked(capsys)
    assert tree(Path()) == before
    assert (answer["ok"], answer["problems"], answer["complete"]) == (True, [], True)
    assert answer["documents"] == 100
    assert answer["characters"] == sum(map(len, documents))
    assert answer["tokens"] == sum(len(text) + 1 for text in documents)  # a token for each character, and the end
    assert answer["quarantined"] == 0
    assert {name: part["documents"] for name, part in answer["parts"].items()} == {"train": 90, "validation": 10}
    assert answer["trained_tokens"] == answer["parts"]["train"]["tokens"]
    [source] = answer["sources"]
    assert (source["name"], source["documents"], source["quarantined"]) == ("a.jsonl", 100, 0)
    assert source["parts"]["train"]["longer_than_context"] == 90
    assert answer["budget"]["steps"] == 6
    assert answer["disk"]["free_bytes"] > answer["disk"]["needed_bytes"] > 0
    assert answer["tokenizer"]["vocab_size"] > 256
    # the same for people
    assert main(["check-data", "p.json"]) == 0
    out = capsys.readouterr().out
    assert "Good to train on." in out
    assert "⟦<|endoftext|>⟧«" in out
    assert documents[0].split()[0][0] in out


def test_tokens_are_those_that_an_epoch_trains(capsys: Capture) -> None:
    write_lines("a.jsonl", [{"text": text} for text in texts(60)])
    write_lines("b.jsonl", [{"text": text} for text in texts(40, seed=1, words=6)])
    write_preset(["a.jsonl", "b.jsonl"], data={"min_text_length": 40}, train={"epochs": 1, "max_steps": None})
    answer = checked(capsys)
    preset = load_preset("p.json").preset
    corpus = open_corpus(preset.data, seed=0, eval_tokens=1, run_dir=None, quarantine=Quarantine(None, 0.1))
    tokenizer = Tokenizer.from_json(_tokenizer_json(preset.tokenizer, corpus.train))
    feed = TextFeed(corpus.train, tokenizer, preset.data, micro_batch_tokens=64, tokens_per_step=64, loop=False)
    trained = 0
    while batches := feed.next_step(16):
        trained += sum(batch.trained_tokens for batch in batches)
    feed.close()
    assert answer["trained_tokens"] == trained > 0
    assert answer["sources"][1]["parts"]["train"]["too_short"] > 0


def _tokenizer_json(section: Any, sources: Any) -> str:
    from lmloop.tokens.build import build_tokenizer

    return build_tokenizer(section, sources).to_json()


def test_bad_rows_are_named_with_file_and_line(capsys: Capture) -> None:
    rows: list[Any] = [{"text": text} for text in texts(60)]
    rows[3:3] = ["{", {"text": 7}, {"txt": "no"}]
    rows[10:10] = ["", {"text": ""}, {"text": " \n"}]  # a line without a record is none
    write_lines("a.jsonl", rows)
    write_preset(["a.jsonl"])
    answer = checked(capsys)
    assert (answer["documents"], answer["quarantined"]) == (60, 3)
    [source] = answer["sources"]
    first = {(row["file"], row["line"]): row["reason"] for row in source["bad_rows"]}
    assert list(first) == [("a.jsonl", 4), ("a.jsonl", 5), ("a.jsonl", 6)]
    assert "is not text but a number" in first["a.jsonl", 5]
    assert len(answer["warnings"]) == 1
    assert source["empty"] == 2
    assert main(["check-data", "p.json"]) == 0
    out = capsys.readouterr().out
    assert "no field 'text'; there are: txt (a.jsonl:6)" in out
    assert "2 without text left out" in out


def test_too_many_bad_rows_are_counted_to_the_end(capsys: Capture) -> None:
    write_lines("a.jsonl", [{"text": text} if at % 2 else "{" for at, text in enumerate(texts(200))])
    write_lines("b.jsonl", [{"text": text} for text in texts(50, seed=1)])
    write_preset(["a.jsonl", "b.jsonl"])
    answer = checked(capsys, status=1)
    assert (answer["documents"], answer["quarantined"], answer["ok"]) == (150, 100, False)
    [problem] = answer["problems"]
    assert "rows are bad" in problem
    assert "data.max_bad_fraction" in problem


def test_held_out_text_that_is_trained(capsys: Capture) -> None:
    write_lines("a.jsonl", [{"text": text} for text in texts(100) * 2])
    write_preset(["a.jsonl"])
    answer = checked(capsys, status=1)
    [problem] = answer["problems"]
    assert "of validation also stand in training" in problem
    part = answer["sources"][0]["parts"]["validation"]
    assert part["exact_repeats"] > 0.5 * part["documents"]


def test_held_out_text_of_one_source_that_another_trains(capsys: Capture) -> None:
    write_lines("a.jsonl", [{"text": text} for text in texts(50)])
    write_lines("b.jsonl", [{"text": text + "."} for text in texts(20)])
    write_preset(["a.jsonl"], data={"validation": [{"type": "files", "path": "b.jsonl"}]})
    answer = checked(capsys, status=1)
    assert answer["sources"][1]["parts"]["validation"]["near_repeats"] == 20
    assert "first b.jsonl#1 = 'a.jsonl' a.jsonl#1" in answer["problems"][0]


BROKEN: list[tuple[str, list[Any], dict[str, dict[str, Any]], str]] = [
    ("missing", ["gone.jsonl"], {}, "no source can be read"),
    ("empty", ["empty.txt"], {}, "no source can be read"),
    ("too short", ["a.jsonl"], {"data": {"min_text_length": 10_000}}, "nothing to train"),
    ("less than a row", ["one.txt"], {"data": {"split": {"validation": 0.0}}}, "less than one row"),
    ("less than an update", ["a.jsonl"], {"train": {"per_gpu_batch_size": 10_000}}, "an update takes 160,000"),
    (
        "no validation",
        ["a.jsonl"],
        {"data": {"validation": [{"type": "files", "path": "empty.txt"}]}},
        "data.validation: no source can be read",
    ),
    ("one document too small to split", ["long.txt"], {"data": {"split": {"validation": 0.001}}}, "validation is empty"),
]


@pytest.mark.parametrize(("sources", "sections", "said"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_cannot_be_trained_on(
    sources: list[Any], sections: dict[str, dict[str, Any]], said: str, capsys: Capture
) -> None:
    write_lines("a.jsonl", [{"text": text} for text in texts(50)])
    Path("empty.txt").write_text("")
    Path("one.txt").write_text("abc")
    Path("long.txt").write_text("a" * 499)
    write_preset(sources, **sections)
    answer = checked(capsys, status=1)
    assert not answer["ok"]
    assert any(said in problem for problem in answer["problems"]), answer["problems"]
    assert main(["check-data", "p.json"]) == 1
    assert "Not to be trained on" in capsys.readouterr().out


def test_a_preset_that_is_wrong_is_an_error_and_not_a_finding(capsys: Capture) -> None:
    write_preset(["a.jsonl"], train={"per_gpu_batch_size": -1})
    assert main(["check-data", "p.json"]) == 2
    assert "per_gpu_batch_size" in capsys.readouterr().err
    write_preset([], data={"sources": ["wikpedia"]})
    assert main(["check-data", "p.json"]) == 2
    assert "wikipedia" in capsys.readouterr().err


def test_a_source_that_is_left_out_is_a_warning(capsys: Capture) -> None:
    write_lines("a.jsonl", [{"text": text} for text in texts(50)])
    write_preset(["a.jsonl", "gone"])
    answer = checked(capsys)
    assert any("left out: source 'gone'" in line for line in answer["warnings"])


def test_a_limit_reads_a_part_and_says_so(capsys: Capture) -> None:
    write_lines("a.jsonl", [{"text": text} for text in texts(200)])
    write_preset(["a.jsonl"], train={"epochs": 1, "max_steps": None})
    answer = checked(capsys, "--limit", "15")
    assert answer["parts"]["train"]["documents"] == answer["parts"]["validation"]["documents"] == 15
    assert not answer["complete"]
    whole = checked(capsys)["budget"]
    assert answer["budget"]["estimated"]
    assert answer["budget"]["data_tokens"] == pytest.approx(whole["data_tokens"], rel=0.1)
    assert main(["check-data", "p.json", "--limit", "15"]) == 0
    assert "a part only of a.jsonl" in capsys.readouterr().out


def test_a_stream_is_read_in_part_and_held_out_as_training_would(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmloop.check.data.STREAM_DOCUMENTS", 40)
    Path("hub").mkdir()
    write_lines("hub/data.jsonl", [{"text": text} for text in texts(300)])
    write_preset([{"type": "hub", "dataset": "./hub"}], train={"eval_tokens": 500})
    before = tree(Path())
    answer = checked(capsys)
    assert tree(Path()) == before
    assert answer["parts"]["train"]["documents"] == 40
    assert answer["parts"]["validation"]["documents"] > 0
    assert not answer["complete"]
    assert answer["budget"]["estimated"]
    assert sum(source["parts"]["validation"]["exact_repeats"] for source in answer["sources"]) == 0


def test_the_tokenizer_of_a_run_is_taken(capsys: Capture, tmp_path: Path) -> None:
    quick_run(tmp_path, data={"split": {"validation": 0.2}}, tokenizer={"type": "char"})
    tokenizer = json.loads(Path("run/tokenizer/tokenizer.json").read_text())
    for path in Path("corpus").iterdir():  # from this text another one would be built
        path.write_text(path.read_text() + "ÄÖÜ")
    before = tree(Path("run"))
    assert main(["check-data", "preset.json", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "the run's own" in answer["tokenizer"]["is"]
    assert answer["tokenizer"]["vocab_size"] == len(tokenizer["model"]["vocab"])
    assert tree(Path("run")) == before


def test_a_full_disk_is_foreseen(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines("a.jsonl", [{"text": text} for text in texts(50)])
    write_preset(["a.jsonl"])
    monkeypatch.setattr("lmloop.check.data._free_bytes", lambda run_dir: 1_000)
    [problem] = checked(capsys, status=1)["problems"]
    assert "make room or choose another output_dir" in problem


class Interrupting(Reading):
    """Ctrl-C after some documents."""

    left = 30

    def tick(self) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_interrupted_it_says_what_was_counted() -> None:
    write_lines("a.jsonl", [{"text": text * 20} for text in texts(1_000)])
    write_preset(["a.jsonl"], data={"workers": 0})
    with Interrupting() as reading:
        findings = check_data(load_preset("p.json"), reading, limit=None, samples=1)
    assert findings.interrupted
    assert not findings.complete
    assert findings.ok
    assert 0 < findings.parts("train")[0].characters < 1_000_000


@pytest.fixture
def terminal_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("terminal_80")
def test_on_a_terminal_lines_fit_and_trained_tokens_are_green(capsys: Capture) -> None:
    name = "a" * 60 + ".jsonl"
    write_lines(name, [{"text": text} for text in texts(50)])
    write_preset([name])
    assert main(["check-data", "p.json"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[30;42m" in out
    assert "«" not in out
    rows = [line for line in _plain(out).splitlines() if "documents" not in line]
    assert max(len(row) for row in rows if not row.startswith(name[:10])) <= 80


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_process_of_its_own(tmp_path: Path) -> None:
    write_lines("a.jsonl", [{"text": text} for text in texts(50)])
    write_preset(["a.jsonl"])
    done = subprocess.run(
        [sys.executable, "-m", "lmloop.cli", "check-data", "p.json", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    assert "reading a.jsonl" in done.stderr


def test_conversations(capsys: Capture) -> None:
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in zip(texts(60), texts(60, seed=1), strict=True)
    ]
    write_lines("a.jsonl", [*rows, {"messages": []}])
    write_preset([{"type": "files", "path": "a.jsonl", "data_type": "messages"}])
    answer = checked(capsys)
    assert (answer["documents"], answer["quarantined"]) == (60, 1)
    assert answer["sources"][0]["bad_rows"][0]["line"] == 61
