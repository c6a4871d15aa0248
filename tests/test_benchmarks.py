"""`make bench`: what it leaves out is said, and what it runs is told where the peers are."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.__main__ import COMPARISONS, main
from benchmarks.nanogpt import NanoGPT
from benchmarks.served import Served
from lmloop.hardware import this_machine

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def test_each_comparison_is_a_program() -> None:
    for comparison in COMPARISONS.values():
        program = (FOLDER / f"{comparison.program}.py").read_text(encoding="utf-8")
        taken = [*(f"--{need.replace('_', '-')}" for need in comparison.needs), *comparison.arguments[::2]]
        taken += ["--rounds"] * comparison.rounds
        assert [option for option in taken if f'"{option}"' not in program] == [], comparison


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "time_to_loss,finetuning"]) == 0
    said = capsys.readouterr().out
    assert "left out, it needs NANOGPT, a checkout of karpathy/nanoGPT; TEXT, a text of a megabyte" in said
    assert "left out, it needs TRL_PYTHON, a Python that has TRL and peft; CHATS" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "speed"], "--only speed: not one of presets, memory"),
        (["--nanogpt", "nowhere"], "there is no nowhere"),
        (["--rounds", "0"], "0 is no whole number from 1"),
        (["--rounds", "many"], "many is no whole number from 1"),
    ],
)
def test_wrong_names_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_rest_goes_on_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, bool, list[str]]] = []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        hidden = env.get("CUDA_VISIBLE_DEVICES") == ""
        ran.append((command[2], hidden, command[3:]))
        return SimpleNamespace(returncode=len(ran) % 2)

    monkeypatch.setattr(subprocess, "run", run)
    assert (
        main(["--only", "training_speed,memory", "--nanogpt", str(tmp_path), "--text", str(tmp_path), "--rounds", "2"]) == 1
    )
    options = ["--nanogpt", str(tmp_path), "--text", str(tmp_path), "--rounds", "2"]
    # A peer that trains on the CPU is compared there.
    assert ran == [("benchmarks.training_speed", True, options), ("benchmarks.memory", False, [])]
    assert "failed, see above: training_speed" in capsys.readouterr().err


# ---- sides that stay up ----


def test_a_side_has_turns_and_ends_with_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "side.py").write_text(
        "import sys\nfrom benchmarks.served import serve\nserve(lambda: print(sys.argv[1], file=open('done', 'a')))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(FOLDER.parent)]))
    monkeypatch.chdir(tmp_path)
    with Served("side", ["work"]) as side:
        seconds = [side(number)["seconds"] for number in range(2)]
    assert all(value >= 0 for value in seconds)
    assert (tmp_path / "done").read_text() == "work\n" * 3  # the first is not timed
    assert side.ended


def test_a_side_that_ends_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "side.py").write_text("print('{}', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="side ended: its last words stand above"), Served("side", []) as side:
        side(0)


# ---- nanoGPT ----

MODEL = """
import torch
class GPTConfig:
    def __init__(self, block_size): self.block_size = block_size
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.bias = config, torch.nn.Parameter(torch.zeros(4))
    def forward(self, x, y):
        logits = self.bias.expand(*x.shape, 4)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What is taken for nanoGPT here: a model that knows how frequent four characters are."""
    folder = tmp_path / "checkout"
    (folder / "data").mkdir(parents=True)
    (folder / "train.py").write_text("")
    (folder / "model.py").write_text(MODEL)
    (tmp_path / "text.txt").write_text("abcd" * 500)
    return folder


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_what_nanogpt_has_saved_is_scored(prefix: str, checkout: Path, tmp_path: Path) -> None:
    peer = NanoGPT(checkout, tmp_path / "text.txt", tmp_path)
    (peer.checkout / "out").mkdir()
    kept = {"model_args": {"block_size": 7}, "model": {f"{prefix}bias": torch.zeros(4)}}
    torch.save(kept, peer.checkout / "out" / "ckpt.pt")
    assert peer.score() == {"loss": pytest.approx(math.log(4), abs=1e-6), "parameters": 4}


def test_what_nanogpt_prints_is_read(checkout: Path, tmp_path: Path) -> None:
    peer = NanoGPT(checkout, tmp_path / "text.txt", tmp_path)
    printed = "step 0: train loss 4.28, val loss 4.27\niter 0: loss 4.27, time 80.25ms, mfu -100.00%\n"
    printed += "step 250: train loss 1.9, val loss 2.0625\niter 250: loss 1.95, time 12.5ms, mfu 3.00%\n"
    assert peer.evaluations(printed) == {0: 4.27, 250: 2.0625}
    assert peer.step_ms(printed) == [80.25, 12.5]


def test_sides_on_different_devices_are_not_compared(checkout: Path, tmp_path: Path) -> None:
    other = "cpu" if this_machine().device == "cuda" else "cuda"
    with pytest.raises(SystemExit, match=f"nanoGPT would train on {other} and lmloop on {this_machine().device}"):
        NanoGPT(checkout, tmp_path / "text.txt", tmp_path, device=other)
    with pytest.raises(SystemExit, match=r"has no train\.py: name a checkout"):
        NanoGPT(tmp_path, tmp_path / "text.txt", tmp_path)
