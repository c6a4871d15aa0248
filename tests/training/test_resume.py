"""What a run takes over from its checkpoint, by what has changed in the preset."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lmloop.models.build import build_model
from lmloop.optim.build import build_optimizer
from lmloop.preset.compare import resolved
from lmloop.preset.schema import Preset
from lmloop.training.resume import Carried, carry_over
from lmloop.training.state import Progress
from lmloop.training.states import load_optimizer
from tests.torture.harness import tiny_preset

PROGRESS = Progress(
    step=40, tokens=9_000, epochs=3, best_val_loss=2.5, best_step=30, evals_since_best=1, rate_scale=0.5, skipped=2
)


def preset_of(changes: dict[str, Any] | None = None) -> Preset:
    changes = changes or {}
    return Preset.model_validate(tiny_preset(**{**changes, "train": {"precision": "auto", **changes.get("train", {})}}))


def state_of(preset: Preset) -> dict[str, Any]:
    """The parts of a checkpoint that are looked at."""
    return {
        "progress": PROGRESS.state_dict(),
        "preset": resolved(preset),
        "precision": "fp32",
        "files": {"metrics": 1_234, "samples": 56},
        "environment": {"torch": str(torch.__version__), "device": "cpu", "threads": torch.get_num_threads()},
    }


def carried_over(changes: dict[str, Any], device: str = "cpu") -> Carried:
    return carry_over(state_of(preset_of()), preset_of(changes), device=device)


def test_without_a_checkpoint_everything_is_new() -> None:
    carried = carry_over(None, preset_of(), device="cpu")
    assert carried == Carried(global_batch_size=8)
    assert carry_over(None, preset_of(), device="cpu", world=3).global_batch_size == 24
    assert carry_over(None, preset_of({"train": {"global_batch_size": 5}}), device="cpu", world=3).global_batch_size == 5
    assert carried.progress == Progress()
    assert not carried.exact


@pytest.mark.parametrize(
    ("saved", "changes", "rows", "told"),
    [
        ({}, {}, 8, True),  # of a version that knew of one process only
        ({"global_batch_size": 16}, {}, 16, True),
        ({"global_batch_size": 16}, {"learning_rate": 0.5}, 16, True),
        ({"global_batch_size": 16}, {"global_batch_size": 6}, 6, False),
        ({"global_batch_size": 16}, {"per_gpu_batch_size": 3}, 3 * 2 * 2, False),
        ({"global_batch_size": 16}, {"accumulation_steps": 1}, 4 * 1 * 2, False),
    ],
)
def test_the_global_batch_stays_unless_the_preset_changes_it(
    saved: dict[str, Any], changes: dict[str, Any], rows: int, told: bool
) -> None:
    state = {**state_of(preset_of()), **saved}
    carried = carry_over(state, preset_of({"train": changes}), device="cpu", world=2)
    assert carried.global_batch_size == rows
    line = f"processes was 1, now 2{', ' if not changes else ': '}an update stays {rows} rows"
    assert sum(line in notice for notice in carried.notices) == told


def test_the_same_preset_goes_on_exactly() -> None:
    carried = carried_over({})
    assert (carried.exact, carried.optimizer, carried.feed) == (True, True, True)
    assert carried.progress == PROGRESS
    assert (carried.metrics_offset, carried.samples_offset) == (1_234, 56)
    assert carried.precision == "fp32"
    assert carried.notices == []


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"log_every_steps": 7, "save_every_minutes": 3.0, "sample_every_steps": 0}},
        {"generation": {"temperature": 0.1, "prompts": ["a", "b"]}},
        {"data": {"workers": 3}},
        {"tracking": {"tensorboard": True}},
    ],
    ids=["when it logs and saves", "how it writes", "workers", "tracking"],
)
def test_what_changes_nothing_that_is_trained_is_no_change(changes: dict[str, Any]) -> None:
    carried = carried_over(changes)
    assert carried.exact
    assert carried.feed
    assert carried.optimizer
    assert carried.notices == []
    assert carried.progress == PROGRESS


@pytest.mark.parametrize(
    ("changes", "key", "optimizer", "feed"),
    [
        ({"train": {"learning_rate": 0.5}}, "train.learning_rate", True, True),
        ({"train": {"max_steps": 80}}, "train.max_steps", True, True),
        ({"train": {"weight_decay": 0.0}}, "train.weight_decay", True, True),
        ({"train": {"accumulation_steps": 1}}, "train.accumulation_steps", True, True),
        ({"model": {"dropout": 0.3}}, "model.dropout", True, True),
        ({"data": {"max_bad_fraction": 0.5}}, "data.max_bad_fraction", True, True),
        ({"train": {"optimizer": "sgd"}}, "train.optimizer", False, True),
        ({"model": {"seq_length": 64}}, "model.seq_length", False, True),
        ({"data": {"shuffle": False}}, "data.shuffle", True, False),
        ({"data": {"sources": ["wikipedia"]}}, "data.sources[0]", True, False),
        ({"data": {"split": {"validation": 0.3}}}, "data.split.validation", True, False),
        ({"train": {"seed": 5}}, "train.seed", True, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_is_named_with_what_carries_over(changes: dict[str, Any], key: str, optimizer: bool, feed: bool) -> None:
    carried = carried_over(changes)
    assert not carried.exact
    assert (carried.optimizer, carried.feed) == (optimizer, feed)
    (notice,) = carried.notices
    assert notice.startswith(f"changed preset: {key} was ")
    assert ("the optimizer starts anew" in notice) == (not optimizer)
    assert ("the data starts anew" in notice) == (not feed)
    assert ("everything carries over" in notice) == (optimizer and feed)
    assert carried.progress.step == 40
    assert (carried.metrics_offset, carried.samples_offset) == (1_234, 56)


def test_several_changes_are_each_named_and_add_up() -> None:
    carried = carried_over({"train": {"optimizer": "muon", "learning_rate": 0.5}, "data": {"shuffle": False}})
    assert [notice.split()[2] for notice in carried.notices] == ["data.shuffle", "train.optimizer", "train.learning_rate"]
    assert (carried.exact, carried.optimizer, carried.feed) == (False, False, False)


def test_other_data_begins_a_new_budget_from_where_the_model_stands() -> None:
    progress = carried_over({"data": {"shuffle": False}}).progress
    assert (progress.step, progress.tokens, progress.epochs) == (40, 9_000, 3)
    assert (progress.run_steps, progress.run_tokens, progress.run_epochs) == (0, 0, 0)
    assert progress.best_val_loss is None  # it was measured on other text
    assert progress.evals_since_best == 0
    kept = carried_over({"train": {"learning_rate": 0.5}}).progress
    assert (kept.run_steps, kept.best_val_loss) == (40, 2.5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"tokenizer": {"type": "bpe", "vocab_size": 300}}, "tokenizer.type"),
        ({"tokenizer": {"train_bytes": 5_000}}, "tokenizer.train_bytes"),
    ],
)
def test_another_tokenizer_is_refused_in_one_line(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: ") as error:
        carried_over(changes)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "the model in run was trained with" in message
    assert "output_dir" in message


def test_a_run_that_stopped_early_goes_on_when_it_may_be_more_patient() -> None:
    patient = preset_of({"train": {"early_stopping_evals": 3}})
    state = state_of(patient)
    state["progress"] |= {"stopped_early": True, "evals_since_best": 3}
    assert carry_over(state, patient, device="cpu").progress.stopped_early
    for evaluations, stopped in ((5, False), (2, True), (None, False)):
        changed = preset_of({"train": {"early_stopping_evals": evaluations}})
        assert carry_over(copy.deepcopy(state), changed, device="cpu").progress.stopped_early is stopped


@pytest.mark.parametrize(
    ("key", "value", "device", "said"),
    [
        ("torch", "2.0.0", "cpu", "torch was 2.0.0"),
        ("threads", 1_000, "cpu", "threads was 1000"),
        ("device", "mps", "cpu", "device was mps, now cpu"),
        ("device", "cuda", "cuda", "not deterministic"),
    ],
)
def test_what_makes_a_resume_round_differently_is_said(key: str, value: Any, device: str, said: str) -> None:
    state = state_of(preset_of())
    state["environment"][key] = value
    carried = carry_over(state, preset_of(), device=device)
    assert carried.exact  # in data and state
    (notice,) = carried.notices
    assert said in notice
    assert len(notice.splitlines()) == 1


def test_precision_stays_what_auto_meant_unless_it_is_set() -> None:
    assert carried_over({}).precision == "fp32"
    assert carried_over({"train": {"precision": "bf16"}}).precision is None


def test_a_checkpoint_of_a_newer_version_is_refused() -> None:
    state = state_of(preset_of())
    state["progress"]["of_the_future"] = 1
    with pytest.raises(ValueError, match=r"of_the_future.*update lmloop"):
        carry_over(state, preset_of(), device="cpu")


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_moments_are_taken_over_and_rates_are_not(kind: str) -> None:
    def optimizer_of(rate: float, decay: float) -> tuple[Any, Any]:
        train = {
            "optimizer": kind, "learning_rate": rate, "muon_learning_rate": 2 * rate, "weight_decay": decay,
        }  # fmt: skip
        preset = preset_of({"train": train})
        model = build_model(preset.model, 20, seed=0)
        return model, build_optimizer(model, preset.train)

    model, old = optimizer_of(0.1, 0.3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    old.step()
    for group in old.param_groups:
        group["lr"] = 0.001  # where the schedule stood
    _, new = optimizer_of(0.7, 0.2)
    fresh = [{k: v for k, v in group.items() if k != "params"} | {"lr": 0.001} for group in new.param_groups]
    load_optimizer(new, copy.deepcopy(old.state_dict()))
    assert [{k: v for k, v in group.items() if k != "params"} for group in new.param_groups] == fresh
    assert {group["peak_lr"] for group in new.param_groups} <= {0.7, 1.4}
    saved, loaded = (_tensors(optimizer.state_dict()) for optimizer in (old, new))
    assert len(saved) == len(loaded) > 0
    assert all(torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for child in children for tensor in _tensors(child)]
