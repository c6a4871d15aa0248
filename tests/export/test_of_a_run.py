"""A preset's `export` section, from the preset to what the finished run says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.cli import main
from lmloop.trained import load_trained
from tests.runs import train, tree, write_preset

RUN = Path("run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def preset_that_exports(here: Path, *sections: dict[str, Any], **changes: Any) -> Path:
    path = write_preset(here, **changes)
    path.write_text(json.dumps({**json.loads(path.read_text()), "export": list(sections)}))
    return path


def warnings() -> list[str]:
    return [warning["message"] for warning in json.loads((RUN / "run.json").read_text())["warnings"]]


def test_a_finished_run_leaves_what_its_preset_wants(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Transformers computes with the folder what the run's best model computes."""
    from transformers import AutoModelForCausalLM

    answer, status = train(preset_that_exports(here, {"format": "hf"}))
    assert (status, answer["status"]) == (0, "finished")
    (report,) = answer["exports"]
    assert (report["out"], report["checkpoint"]) == ("run/export/hf", "lm_best.pth")
    said = capsys.readouterr().out
    assert "exported    run/export/hf" in said
    tokens_BT = torch.randint(20, (2, 16), generator=torch.Generator().manual_seed(0))
    theirs: Any = AutoModelForCausalLM.from_pretrained("run/export/hf")
    ours = load_trained(RUN).model
    with torch.no_grad():
        assert torch.allclose(theirs(tokens_BT).logits, ours.head(ours.hidden(tokens_BT)), atol=1e-5)
    assert json.loads((RUN / "run.json").read_text())["sessions"][0]["phases"]["export"] > 0
    assert "exports" in (RUN / "report.html").read_text()


def test_a_failed_export_is_said_and_made_by_the_same_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "diary.txt").write_text("mine")
    path = preset_that_exports(here, {"format": "hf", "out": "taken"}, {"format": "hf", "quantize": "f16"})
    answer, status = train(path)
    assert (status, answer["status"]) == (0, "finished")
    assert ["error" in report for report in answer["exports"]] == [True, False]
    line = "export: hf: not made: taken exists and is no export: name another folder (the same command tries it again)"
    assert warnings() == [line]
    assert "taken exists and is no export" in (RUN / "report.html").read_text()
    assert capsys.readouterr().out.count("! export: hf: not made") == 1
    (here / "taken" / "diary.txt").unlink()
    before = (RUN / "lm_current.pth").read_bytes()
    answer, status = train(path)
    assert (status, answer["reason"]) == (0, "tiny is done; raise the budget in the preset to train on")
    assert ["error" in report for report in answer["exports"]] == [False, False]
    assert (here / "taken" / "model.safetensors").exists()
    assert (RUN / "lm_current.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("model", "export", "said"),
    [
        ({"feed_forward": "relu2"}, {"format": "hf"}, "export: model.feed_forward is 'relu2', which no other program has"),
        ({"ngram_tables": [{"n": 2, "rows": 8, "width": 8}]}, {"format": "gguf"}, "export: model.ngram_tables is"),
        (
            {},
            {"format": "gguf", "quantize": "q4_k_m"},
            "export: gguf: --quantize q4_k_m: llama.cpp makes its K types itself",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_before_training(model: Any, export: Any, said: str, here: Path) -> None:
    path = preset_that_exports(here, export, model=model)
    before = set(tree(here))
    with pytest.raises(ValueError, match=r".") as error:
        train(path)
    assert str(error.value).startswith(said)
    assert len(str(error.value).splitlines()) == 1
    assert set(tree(here)) == before


def test_a_run_without_the_section_says_nothing_of_it(here: Path) -> None:
    assert "exports" not in train(write_preset(here))[0]


@pytest.mark.parametrize("model", [{"feed_forward": "relu2"}, {"ngram_tables": [{"n": 2, "rows": 8, "width": 8}]}])
def test_the_command_refuses_what_no_other_program_has(
    model: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(write_preset(here, model=model))
    capsys.readouterr()
    assert main(["export", "run", "--format", "hf", "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"model.{next(iter(model))} is" in line
    assert "which no other program has: such a model runs in lmloop only" in line
    assert not (here / "out").exists()
