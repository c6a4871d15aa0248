"""The verbs as scripts use them: what is on standard output and standard error, and the exit status."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmloop.cli import main
from tests.runs import measure_briefly, quick_run, tree, write_preset

MAIN = Path(__file__).resolve().parents[1] / "main.py"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a preset, its corpus and its finished run."""
    folder = tmp_path_factory.mktemp("workplace")
    before = Path.cwd()
    os.chdir(folder)
    try:
        data = {"split": {"validation": 0.2, "test": 0.2}}
        quick_run(folder, name="first", output_dir="checkpoints/first", data=data)
        (folder / "configs").mkdir()
        (folder / "first.json").rename(folder / "configs" / "first.json")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def in_the_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measure_briefly(monkeypatch)


Capture = pytest.CaptureFixture[str]


def answer_of(capsys: Capture, *arguments: str, status: int = 0) -> dict[str, Any]:
    """The one object on standard output of a verb under --json."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == status
    out = capsys.readouterr().out
    assert out.count("\n") == 1, out
    return json.loads(out)


def test_evaluate(capsys: Capture) -> None:
    text = Path("some text.txt")
    text.write_text("the quick brown fox\nnaïve €\n", encoding="utf-8")
    result = answer_of(capsys, "evaluate", "first", "--data", str(text))
    # Two characters are not in the vocabulary and take two and three bytes; the end of the document is a token too.
    assert (result["bytes"], result["tokens"]) == (text.stat().st_size, len(text.read_text("utf-8")) - 2 + 2 + 3 + 1)
    assert result["perplexity"] == pytest.approx(math.exp(result["cross_entropy"]))
    bits = result["cross_entropy"] * result["tokens"] / math.log(2)
    assert result["bits_per_byte"] == pytest.approx(bits / result["bytes"])
    assert answer_of(capsys, "evaluate", "checkpoints/first", "--data", str(text)) == result
    assert answer_of(capsys, "evaluate", "--data", str(text)) == result  # the only run is the newest


def test_evaluate_reads_the_splits_of_the_run(capsys: Capture) -> None:
    validation = answer_of(capsys, "evaluate", "first", "--checkpoint", "newest")
    test = answer_of(capsys, "evaluate", "first", "--checkpoint", "newest", "--split", "test")
    assert validation["checkpoint"] == "lm_current.pth"
    metrics = [json.loads(line) for line in Path("checkpoints/first/metrics.jsonl").read_text().splitlines()]
    assert validation["cross_entropy"] == pytest.approx(metrics[-1]["val_loss"], rel=1e-4)
    assert validation["tokens"] == metrics[-1]["val_tokens"] <= 200  # eval_tokens
    assert test["tokens"] > 1_000  # the whole of it
    assert test["cross_entropy"] != validation["cross_entropy"]


def test_generate(capsys: Capture) -> None:
    words = ("generate", "first", "--prompt", "the quick", "--max-new-tokens", "7", "--temperature", "0")
    result = answer_of(capsys, *words)
    assert isinstance(result["text"], str)
    assert result["prompt_tokens"] == len("the quick")
    assert 0 < result["new_tokens"] <= 7
    assert result["seconds"] > 0
    assert answer_of(capsys, *words)["text"] == result["text"]
    several = answer_of(capsys, *words, "--prompt", "a lazy dog")
    assert several["results"][0]["text"] == result["text"]
    assert len(several["results"]) == 2
    assert main(list(words)) == 0
    assert capsys.readouterr().out == f"the quick{result['text']}\n"


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_every_parameter_of_writing_reaches_the_model(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        f"lmloop.use.{verb}_{'from' if verb == 'generate' else 'with'}_run", lambda *_, **named: given.update(named) or {}
    )
    values = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.1, "repetition_penalty": 1.1,
              "no_repeat_ngram_size": 3, "max_new_tokens": 512}  # fmt: skip
    words = [word for name, value in values.items() for word in ("--" + name.replace("_", "-"), str(value))]
    assert main([verb, "first", *words, "--stop", "\n\n", "--seed", "3"]) == 0
    assert (given["changes"], given["seed"]) == ({**values, "stop": ["\n\n"]}, 3)
    assert main([verb, "first", "--greedy"]) == 0
    assert given["changes"] == {"temperature": 0.0}
    assert main([verb, "first", "--greedy", "--temperature", "1"]) == 2


def test_greedy_is_the_likeliest_text(capsys: Capture) -> None:
    words = ("generate", "first", "--prompt", "the", "--max-new-tokens", "9")
    assert answer_of(capsys, *words, "--greedy")["text"] == answer_of(capsys, *words, "--temperature", "0")["text"]


def test_the_seed_decides_what_is_written(capsys: Capture) -> None:
    words = ("generate", "first", "--max-new-tokens", "30", "--temperature", "1")
    texts = [answer_of(capsys, *words, "--seed", seed)["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_train_goes_on_and_says_so(capsys: Capture) -> None:
    answer = answer_of(capsys, "train", "first")  # found by its name in configs/
    assert (answer["status"], answer["step"], answer["run"]) == ("finished", 6, "checkpoints/first")
    assert answer_of(capsys, "train", "configs/first.json") == answer


def test_plan(capsys: Capture) -> None:
    before = tree(Path())
    plan = answer_of(capsys, "plan", "first")
    for key in ("parameters", "memory_bytes", "disk_bytes", "tokens_per_s", "seconds"):
        assert plan[key] > 0, key
    assert tree(Path()) == before
    assert main(["plan", "first"]) == 0
    out = capsys.readouterr().out
    assert f"{plan['parameters']:,}" in out
    assert "tokens/s" in out


WRONG: list[tuple[list[str], str]] = [
    (["train", "no-such-preset"], "no-such-preset"),
    (["train", "no/such/file.json"], "no such file"),
    (["plan", "no-such-preset"], "no-such-preset"),
    (["evaluate", "no-such-run"], "no such run folder"),
    (["evaluate", "first", "--data", "no-such-file"], "no such file or folder"),
    (["generate", "configs"], "no checkpoint"),
    (["generate", "first", "--temperature", "-1"], "--temperature"),
    (["generate", "first", "--top-p", "2"], "--top-p"),
    (["generate", "first", "--max-new-tokens", "0"], "--max-new-tokens"),
    (["generate", "first", "--frobnicate"], "--frobnicate"),
    (["frobnicate"], "frobnicate"),
    ([], "VERB"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_an_error_is_one_line_on_standard_error_and_status_2(arguments: list[str], said: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lmloop: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    answer = answer_of(capsys, *arguments, status=2)
    assert list(answer) == ["error"]
    assert said in answer["error"]


def test_a_damaged_run_is_refused(capsys: Capture, workplace: Path) -> None:
    folder = workplace / "damaged"
    folder.mkdir()
    (folder / "lm_current.pth").write_bytes(b"not a checkpoint")
    assert main(["generate", "damaged"]) == 2
    err = capsys.readouterr().err
    assert "no checkpoint can be used" in err
    assert err.count("\n") == 1
    (folder / "lm_current.pth").unlink()
    folder.rmdir()


def test_a_full_disk_is_one_line_and_status_1(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("lmloop.run.train", full)
    assert main(["train", "first"]) == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert err.count("\n") == 1


def test_a_failed_run_has_status_1(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_preset(
        tmp_path,
        train={"optimizer": "sgd", "learning_rate": 1e12, "max_grad_norm": 0.0, "max_rollbacks": 0, "max_steps": 50},
    )
    answer = answer_of(capsys, "train", str(path), status=1)
    assert answer["status"] == "failed"
    assert "not finite" in answer["reason"]


def test_a_process_of_its_own_prints_one_object_and_nothing_else(workplace: Path) -> None:
    program = Path(sys.executable).parent / "lmloop"
    command = [str(program)] if program.exists() else [sys.executable, "-m", "lmloop.cli"]
    done = subprocess.run(
        [*command, "generate", "--prompt", "the", "--max-new-tokens", "3", "--json"],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["new_tokens"] <= 3


def test_main_py_takes_no_arguments(workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(MAIN), "--learning-rate=1"], cwd=workplace, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "--learning-rate=1" in done.stderr
    assert "configs/" in done.stderr


def test_a_prompt_that_does_not_fit_is_said_to_be_cut(capsys: Capture) -> None:
    result = answer_of(capsys, "generate", "first", "--prompt", "the quick brown fox " * 10, "--max-new-tokens", "2")
    assert result["prompt_tokens"] == 200
    assert result["dropped_tokens"] > 150
    assert main(["generate", "first", "--prompt", "the quick brown fox " * 10, "--max-new-tokens", "2"]) == 0
    assert "do not fit into the context" in capsys.readouterr().err
