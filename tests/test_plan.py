"""The forecast: what it counts is what is built, and what was measured once is not measured again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import lmloop.plan
import lmloop.plan_data
from lmloop.hardware import this_machine
from lmloop.models.build import build_model
from lmloop.models.loading import parameter_counts
from lmloop.plan import Plan, forecast_line, menu_forecasts, print_plan, remaining_line, remember_speed, this_plan
from lmloop.preset.reading import LoadedPreset, load_preset
from lmloop.tokens.pretrained import read_folder
from lmloop.training.schedule import Schedule
from lmloop.training.state import Progress
from tests.finetuning import write_finetuning
from tests.runs import lines, measure_briefly, quick_run, train, tree, write_preset


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
        *("trainable_parameters", "disk_bytes", "tokens_per_s", "read_tokens_per_s", "written_tokens_per_s", "steps"),
        *("tokens", "seconds", "time_by_part", "notices"),
    }
    assert (plan.steps, plan.tokens, plan.notices) == (6, 6 * 64, [])
    assert list(plan.time_by_part) == ["start", "compile", "train", "evaluate", "sample", "save"]
    assert plan.seconds == pytest.approx(sum(plan.time_by_part.values()))
    assert plan.time_by_part["train"] == pytest.approx(plan.tokens / plan.tokens_per_s, rel=0.01, abs=0.002)
    assert plan.time_by_part["compile"] == 0.0
    assert all(plan.time_by_part[part] > 0.0 for part in ("start", "evaluate", "sample", "save"))
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
    assert plan.tokens == trained
    assert plan.steps == lines(here / "run" / "metrics.jsonl")[-1]["step"]


def test_conversations_are_counted_as_they_are_trained(here: Path) -> None:
    changes: dict[str, Any] = {"train": {"max_steps": None, "epochs": 2, "sample_every_steps": 0, "save_every_steps": None}}
    path = write_finetuning(here, "lora", **changes)
    plan = this_plan(load_preset(path))
    answer, _ = train(path)
    assert (plan.tokens, plan.steps) == (answer["tokens"], answer["step"])
    # Padding and what is only read are not trained: fewer tokens than an update has positions.
    assert plan.tokens < plan.steps * 4 * 64
    assert plan.time_by_part["evaluate"] > plan.time_by_part["sample"] == 0.0


def test_of_a_long_text_the_size_is_estimated_from_its_beginning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"train": {"max_steps": None, "epochs": 2, "sample_every_steps": 0}}
    whole = this_plan(loaded(here, **changes))
    monkeypatch.setattr(lmloop.plan_data, "SAMPLE_POSITIONS", whole.tokens // 8)
    monkeypatch.setattr(lmloop.plan_data, "_POSITIONS_AT_A_TIME", 64)
    assert this_plan(loaded(here, **changes)).tokens == pytest.approx(whole.tokens, rel=0.25)  # its files differ


def test_rows_of_several_lengths_are_all_measured(here: Path) -> None:
    lengths = {"sequence_schedule": [1, 16], "max_steps": 8}
    plan = this_plan(loaded(here, train=lengths))
    assert (plan.steps, plan.tokens) == (8, 8 * 64)
    short, long = (this_plan(loaded(here, train={**lengths, "sequence_schedule": [length]})) for length in (1, 16))
    between = sorted([short.time_by_part["train"], long.time_by_part["train"]])
    assert between[0] * 0.5 <= plan.time_by_part["train"] <= between[1] * 2.0


def test_what_is_left_of_a_run_is_that_of_its_plan(here: Path) -> None:
    preset = loaded(here).preset
    schedule = Schedule(preset.train, seq_length=16, tokens_per_step=64)
    unknown = remaining_line(preset, schedule, Progress(), 0.0, 64.0, answers=False)
    assert remaining_line(preset, schedule, Progress(), 0.0, 64.0, answers=True) == unknown.partition(", ")[2]
    assert unknown.startswith("384 tokens, about ")  # six updates of a second, and the evaluations
    plan = this_plan(loaded(here))
    rest = plan.seconds - plan.time_by_part["start"]
    assert remaining_line(preset, schedule, Progress(), 0.0, 64.0, answers=False) == forecast_line(384, rest)
    assert remaining_line(preset, schedule, Progress(step=3, tokens=192), 0.5, 64.0, answers=False) == forecast_line(
        192, rest / 2
    )


def test_what_a_session_has_made_replaces_the_probe(here: Path) -> None:
    preset = loaded(here, train={"max_steps": 60})
    plan = this_plan(preset)
    (here / "run").mkdir()
    (here / "run" / "metrics.jsonl").write_text("".join(f'{{"step": {n}, "tokens_per_s": 100.0}}\n' for n in range(1, 9)))
    for trained_s, speed in ((59.0, None), (61.0, 100.0)):
        session = {"phases": {"train": trained_s, "data": 0.0}, "from_step": 0}
        remember_speed(preset.preset, session, here / "run")
        rest = plan.seconds - plan.time_by_part["train"]
        seconds = plan.seconds if speed is None else rest + plan.tokens / speed
        assert menu_forecasts([preset], silent())[preset.path] == forecast_line(plan.tokens, seconds)


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


def test_the_menu_does_not_look_for_the_most_rows_that_fit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*args: Any, **named: Any) -> int:
        raise AssertionError("looked for the most rows")

    monkeypatch.setattr(lmloop.plan, "most_rows", looked)
    preset = loaded(here, train={"per_gpu_batch_size": "auto", "accumulation_steps": 1, "global_batch_size": 2})
    assert "tokens, about " in menu_forecasts([preset], silent())[preset.path]
    with pytest.raises(AssertionError, match="looked for the most rows"):
        this_plan(preset)


def test_the_menu_does_not_count_as_memory_of_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[torch.device] = []
    monkeypatch.setattr(lmloop.plan, "forget_memory", forgotten.append)
    menu_forecasts([loaded(here)], silent())
    menu_forecasts([loaded(here)], silent())  # known: nothing is measured
    assert forgotten == [this_machine().torch_device]


def test_nor_does_a_measurement_that_ran_out_of_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*args: Any, **named: Any) -> Plan:
        raise RuntimeError("out of memory")

    forgotten: list[torch.device] = []
    monkeypatch.setattr(lmloop.plan, "forget_memory", forgotten.append)
    monkeypatch.setattr(lmloop.plan, "_measure", measure)
    preset = loaded(here)
    assert menu_forecasts([preset], silent())[preset.path] == "out of memory"
    assert len(forgotten) == 1


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
    assert len(plan.notices) == 1
    assert "no/such/folder" in plan.notices[0]
    with pytest.raises(ValueError, match="no/such/folder"):
        this_plan(loaded(here, data=missing))  # a vocabulary of characters is in the text
