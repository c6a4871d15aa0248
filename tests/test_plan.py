"""The forecast: what it counts is what is built, and what was measured once is not measured again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import lmloop.plan
from lmloop.models.build import build_model
from lmloop.models.loading import parameter_counts
from lmloop.plan import Plan, forecast_line, menu_forecasts, print_plan, this_plan
from lmloop.preset.reading import LoadedPreset, load_preset
from lmloop.tokens.pretrained import read_folder
from tests.runs import measure_briefly, quick_run, tree, write_preset


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measure_briefly(monkeypatch)
    return tmp_path


def loaded(here: Path, **changes: Any) -> LoadedPreset:
    return load_preset(write_preset(here, **changes))


def silent() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize("model", [{}, {"architecture": "gpt2"}, {"tie_embeddings": False}], ids=str)
def test_the_plan_counts_what_the_run_builds(model: dict[str, Any], here: Path) -> None:
    plan = this_plan(loaded(here, model=model))
    assert not (here / "run").exists()  # a plan writes nothing
    quick_run(here, model=model)
    vocabulary = read_folder(here / "run" / "tokenizer").vocab_size
    built = build_model(loaded(here, model=model).preset.model, vocabulary, seed=0)
    assert plan.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert plan.parameters_by_part == parameter_counts(built)
    assert plan.memory_by_part["weights"] == 4 * plan.parameters
    assert plan.memory_by_part["optimizer"] == pytest.approx(8 * plan.parameters, rel=0.01)  # two moments
    assert plan.memory_bytes >= sum(plan.memory_by_part.values()) * 0.99
    # What is kept at the most: four checkpoints and the one being written.
    kept = (here / "run" / "lm_current.pth").stat().st_size
    assert plan.disk_bytes == pytest.approx(5 * kept, rel=0.5)


def test_what_plan_prints_for_scripts(here: Path) -> None:
    plan = this_plan(loaded(here))
    assert set(json.loads(json.dumps(plan.as_dict()))) == {
        *("preset", "machine", "precision", "parameters", "parameters_by_part", "memory_bytes", "memory_by_part"),
        *("trainable_parameters", "disk_bytes", "tokens_per_s", "tokens", "seconds"),
    }
    assert plan.tokens == 6 * 64
    assert plan.seconds == pytest.approx(plan.tokens / plan.tokens_per_s, abs=0.002)
    print_plan(plan)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_epochs_are_counted_in_tokens(kind: str, here: Path) -> None:
    rarely = {"eval_every_steps": 1_000, "sample_every_steps": 0, "log_every_steps": 100, "save_every_steps": None}
    changes: dict[str, Any] = {
        "train": {"max_steps": None, "epochs": 2, **rarely},
        "tokenizer": {"type": kind, "vocab_size": 300},
    }
    plan = this_plan(loaded(here, **changes))
    trained = quick_run(here, **changes)["tokens"]
    assert plan.tokens == pytest.approx(trained, rel=0.02 if kind == "char" else 1.0)  # bpe: a guess before there is one


def test_the_menu_measures_each_preset_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded(here)
    two = loaded(here, train={"max_steps": None, "epochs": 3})
    two = LoadedPreset(two.preset, here / "two.json")
    lines = menu_forecasts([one, two], silent())
    assert lines[one.path].startswith("384 tokens, about ")
    assert lines[two.path] == "as long as its data is"

    def again(*args: Any, **named: Any) -> Plan:
        raise AssertionError("measured again")

    monkeypatch.setattr(lmloop.plan, "_measure", again)
    assert menu_forecasts([one, two], silent()) == lines
    # Another preset is not taken for one of these.
    with pytest.raises(AssertionError, match="measured again"):
        menu_forecasts([loaded(here, train={"max_steps": 7})], silent())


def test_the_menu_shows_what_plan_has_measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = loaded(here, train={"max_steps": None, "epochs": 2})
    plan = this_plan(preset)
    assert menu_forecasts([preset], silent())[preset.path] == forecast_line(plan.tokens, plan.seconds)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_damaged_cache_is_written_anew(content: str, here: Path) -> None:
    cache = here / "cache" / "lmloop" / "plans.json"
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    lines = menu_forecasts([loaded(here)], silent())
    assert next(iter(lines.values())).startswith("384 tokens")
    assert any("tokens_per_s" in entry for entry in json.loads(cache.read_text()).values() if isinstance(entry, dict))


def test_a_cache_that_cannot_be_written_is_only_slower(here: Path) -> None:
    (here / "cache").write_text("a file where the folder should be")
    before = tree(here)
    lines = menu_forecasts([loaded(here)], silent())
    assert next(iter(lines.values())).startswith("384 tokens")
    assert {name: content for name, content in tree(here).items() if name == "cache"} == {"cache": before["cache"]}


def test_a_plan_needs_no_data_that_does_not_matter_to_it(here: Path) -> None:
    missing = {"sources": [{"type": "files", "path": "no/such/folder"}]}
    plan = this_plan(loaded(here, data=missing, tokenizer={"type": "bpe", "vocab_size": 400}))
    assert plan.parameters > 400 * 16
    with pytest.raises(ValueError, match="no/such/folder"):
        this_plan(loaded(here, data=missing))  # a vocabulary of characters is in the text
