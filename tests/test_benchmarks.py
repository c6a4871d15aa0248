"""`make bench`: what it leaves out is said, and what it runs is told where the peers are."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import COMPARISONS, main


def test_each_comparison_is_a_program() -> None:
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    for comparison in COMPARISONS.values():
        assert (folder / f"{comparison.program}.py").exists(), comparison


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "time_to_loss,finetuning"]) == 0
    said = capsys.readouterr().out
    assert "left out, it needs NANOGPT, a checkout of karpathy/nanoGPT; TEXT, a text of a megabyte" in said
    assert "left out, it needs TRL_PYTHON, a Python that has TRL and peft; CHATS" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--only", "speed"], "--only speed: not one of presets, memory"), (["--nanogpt", "nowhere"], "there is no nowhere")],
)
def test_wrong_names_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_rest_goes_on_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        assert env["CUDA_VISIBLE_DEVICES"] == ""
        ran.append(command[1:])
        return SimpleNamespace(returncode=len(ran) % 2)

    monkeypatch.setattr(subprocess, "run", run)
    assert (
        main(["--only", "training_speed,memory", "--nanogpt", str(tmp_path), "--text", str(tmp_path), "--rounds", "2"]) == 1
    )
    options = ["--nanogpt", str(tmp_path), "--text", str(tmp_path), "--rounds", "2"]
    assert ran == [["-m", "benchmarks.training_speed", *options], ["-m", "benchmarks.memory"]]
    assert "failed, see above: training_speed" in capsys.readouterr().err
