"""Hash and differences of presets: what resumes exactly, and what a change does."""

import copy
import json
from typing import Any

import pytest

from lmloop.preset.compare import (
    APPLIES,
    EFFECTS,
    FEED,
    MODEL,
    NOTHING,
    OPTIMIZER,
    changes,
    effect_of,
    preset_hash,
    resolved,
)
from lmloop.preset.schema import Preset
from lmloop.preset.shape import leaves

BASE: dict[str, Any] = {
    "name": "base",
    "model": {"hidden_size": 64, "num_heads": 2},
    "data": {"sources": ["c4", {"type": "files", "path": "a", "description": "one"}], "mix_strategy": "round_robin"},
    "train": {"max_steps": 10},
}

# key, new value, what it does
CASES: list[tuple[str, Any, str]] = [
    ("name", "other", NOTHING),
    ("description", "words", NOTHING),
    ("output_dir", "elsewhere", NOTHING),
    ("data.workers", 0, NOTHING),
    ("train.log_every_steps", 3, NOTHING),
    ("train.sample_every_steps", 0, NOTHING),
    ("train.save_every_steps", 3, NOTHING),
    ("train.save_every_minutes", 1.5, NOTHING),
    ("generation.temperature", 0.0, NOTHING),
    ("generation.prompts", ["a"], NOTHING),
    ("generation.stop", ["b"], NOTHING),
    ("tracking.wandb", True, NOTHING),
    ("model.dropout", 0.5, APPLIES),
    ("data.max_bad_fraction", 0.5, APPLIES),
    ("train.max_steps", 20, APPLIES),
    ("train.learning_rate", 0.5, APPLIES),
    ("train.per_gpu_batch_size", 2, APPLIES),
    ("train.sequence_schedule", [1, 8], APPLIES),
    ("train.precision", "fp32", APPLIES),
    ("train.eval_every_steps", 7, APPLIES),
    ("train.early_stopping_evals", 7, APPLIES),
    ("auxiliary.policy_kl_weight", 0.5, APPLIES),
    ("data.sources", ["c4"], FEED),
    ("data.mix_strategy", "weighted", FEED),
    ("data.source_weights", [1.0, 2.0], FEED),
    ("data.shuffle", True, FEED),
    ("data.split.validation", 0.2, FEED),
    ("data.min_text_length", 3, FEED),
    ("train.seed", 1, FEED),
    ("train.optimizer", "muon", OPTIMIZER),
    ("model.num_layers", 2, MODEL),
    ("model.seq_length", 1024, MODEL),
    ("tokenizer.type", "char", MODEL),
    ("tokenizer.vocab_size", 300, MODEL),
    ("auxiliary.enable_value", True, MODEL),
]


def preset(key: str | None = None, value: Any = None) -> Preset:
    values = copy.deepcopy(BASE)
    if key is not None:
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return Preset.model_validate(values)


@pytest.mark.parametrize(("key", "value", "effect"), CASES, ids=[case[0] for case in CASES])
def test_a_change_is_named_and_hashed_by_its_effect(key: str, value: Any, effect: str) -> None:
    old, new = preset(), preset(key, value)
    found = changes(resolved(old), resolved(new))
    assert [(change.key, change.new, change.effect) for change in found] == [(key, value, effect)]
    assert (preset_hash(old) == preset_hash(new)) == (effect == NOTHING)


def test_every_key_has_an_effect_and_the_table_no_other() -> None:
    descriptions = [f"data.{part}[].description" for part in ("sources", "validation", "replay.sources")]
    keys = [key for key, _ in leaves()] + descriptions
    for key in keys:
        assert effect_of(key) in {NOTHING, APPLIES, FEED, OPTIMIZER, MODEL}
    for entry in EFFECTS:
        assert any(key == entry or key.startswith(entry + ".") for key in keys), entry


def test_entries_of_sources_are_compared_one_by_one() -> None:
    old = resolved(preset())
    described = resolved(preset("data.sources", ["c4", {"type": "files", "path": "a", "description": "two"}]))
    assert [(c.key, c.old, c.new, c.effect) for c in changes(old, described)] == [
        ("data.sources[1].description", "one", "two", NOTHING)
    ]
    moved = resolved(preset("data.sources", ["c4", {"type": "files", "path": "b", "description": "one"}]))
    assert [(c.key, c.effect) for c in changes(old, moved)] == [("data.sources[1].path", FEED)]
    replaced = resolved(preset("data.sources", ["c4", "wikipedia"]))
    assert [(c.key, c.new, c.effect) for c in changes(old, replaced)] == [("data.sources[1]", "wikipedia", FEED)]
    of_hub = resolved(preset("data.sources", ["c4", {"type": "hub", "dataset": "a"}]))
    assert [c.key for c in changes(old, of_hub)] == ["data.sources[1]"]


def test_a_description_of_a_source_is_not_hashed() -> None:
    described = preset("data.sources", ["c4", {"type": "files", "path": "a", "description": "two"}])
    moved = preset("data.sources", ["c4", {"type": "files", "path": "b", "description": "one"}])
    assert preset_hash(described) == preset_hash(preset())
    assert preset_hash(moved) != preset_hash(preset())


def test_the_hash_is_of_meaning_not_of_writing() -> None:
    number, text = preset("train", {"num_tokens": 10**10}), preset("train", {"num_tokens": "10B"})
    assert preset_hash(number) == preset_hash(text)
    assert changes(resolved(number), resolved(text)) == []
    assert preset_hash(preset("train", {"max_steps": 10, "weight_decay": 1})) == preset_hash(
        preset("train", {"max_steps": 10, "weight_decay": 1.0})
    )
    defaults_written = Preset.model_validate(resolved(preset()))
    assert preset_hash(defaults_written) == preset_hash(preset())


def test_the_hash_is_hexadecimal_sha256() -> None:
    assert len(preset_hash(preset())) == 64
    assert int(preset_hash(preset()), 16)


def test_the_order_of_weights_in_an_object_does_not_matter() -> None:
    one = preset("data.source_weights", {"c4": 1.0, "a": 2.0})
    two = preset("data.source_weights", {"a": 2.0, "c4": 1.0})
    assert preset_hash(one) == preset_hash(two)
    assert changes(resolved(one), resolved(two)) == []
    three = preset("data.source_weights", {"a": 2.5, "c4": 1.0})
    assert [change.key for change in changes(resolved(one), resolved(three))] == ["data.source_weights"]


def test_a_resolved_preset_survives_json() -> None:
    values = resolved(preset("train.sequence_schedule", {"start": 1, "end": 8}))
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_a_key_that_one_side_lacks_counts_unless_it_is_null() -> None:
    new = resolved(preset())
    old = copy.deepcopy(new)
    del old["train"]["seed"]
    del old["train"]["epochs"]  # null in the other
    del old["tracking"]
    assert [(c.key, c.old) for c in changes(old, new)] == [("train.seed", None), ("tracking", None)]
    assert [(c.key, c.new) for c in changes(new, old)] == [("train.seed", None), ("tracking", None)]
