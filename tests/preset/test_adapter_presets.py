"""Presets that start from a pretrained model: what follows from what is written, other names, and contradictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmloop.preset.compare import APPLIES, MODEL, changes, resolved
from lmloop.preset.reading import load_preset, preset_from_resolved
from lmloop.preset.schema import AdapterSection, Preset

DATA = {"data": {"sources": ["wikipedia"]}}
LLAMA = "meta-llama/Llama-3.1-8B"

GUIDE = f"""
model: {{pretrained: {LLAMA}, max_seq_length: 2048}}
lora:
  r: 16                    # Rank of adaptation
  lora_alpha: 32           # Scaling factor
  target_modules:          # Layers to adapt
    - "q_proj"            # Query projection
    - "v_proj"            # Value projection
    - "k_proj"            # Key projection
    - "o_proj"            # Output projection
    - "gate_proj"         # FFN gate
    - "up_proj"           # FFN up
    - "down_proj"         # FFN down
  lora_dropout: 0.1
  bias: "none"
load_in_4bit: true
data: {{sources: [wikipedia]}}
"""


def load(folder: Path, value: dict[str, Any] | str) -> Preset:
    path = folder / "p.yaml"
    path.write_text(value if isinstance(value, str) else json.dumps({**DATA, **value}), encoding="utf-8")
    return load_preset(path).preset


def error_of(folder: Path, value: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        load(folder, value)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_the_lora_section_of_the_guide_loads_unchanged(tmp_path: Path) -> None:
    preset = load(tmp_path, GUIDE)
    assert preset.adapter == AdapterSection(
        rank=16,
        alpha=32,
        dropout=0.1,
        target_modules=["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        bias="none",
        quantize="nf4",
    )
    assert (preset.model.pretrained, preset.model.seq_length) == (LLAMA, 2048)
    assert preset_from_resolved(resolved(preset), "here") == preset


@pytest.mark.parametrize(
    "name", ["checkpoint_dir", "model_name_or_path", "base_model", "model_name", "base_model_name_or_path", "pretrained"]
)
def test_a_base_by_its_other_names(name: str, tmp_path: Path) -> None:
    assert load(tmp_path, {name: "./your-base-model/"}).model.pretrained == "./your-base-model/"


@pytest.mark.parametrize("value", [{"lora_r": 8}, {"lora_rank": 8}, {"adapter": {"rank": 8}}, {"peft": {"r": 8}}])
def test_an_adapter_by_its_other_names(value: dict[str, Any], tmp_path: Path) -> None:
    preset = load(tmp_path, {"base_model": LLAMA, **value})
    assert preset.adapter == AdapterSection(rank=8)


def test_four_bits_by_their_other_names(tmp_path: Path) -> None:
    for value, quantize in (
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}, "nf4"),
        ({"adapter": {"load_in_4bit": False}}, None),
    ):
        adapter = load(tmp_path, {"base_model": LLAMA, **value}).adapter
        assert adapter is not None
        assert adapter.quantize == quantize
    assert "write `adapter.quantize`: 'nf4'" in error_of(tmp_path, {"base_model": LLAMA, "load_in_8bit": True})


def test_the_tokenizer_is_the_models_own(tmp_path: Path) -> None:
    preset = load(tmp_path, {"model": {"pretrained": LLAMA, "revision": "v2"}})
    assert (preset.tokenizer.type, preset.tokenizer.path, preset.tokenizer.revision) == ("pretrained", LLAMA, "v2")
    other = load(tmp_path, {"model": {"pretrained": LLAMA}, "tokenizer": {"type": "pretrained", "path": "./tokenizer"}})
    assert (other.tokenizer.path, other.tokenizer.revision) == ("./tokenizer", None)
    message = error_of(tmp_path, {"model": {"pretrained": LLAMA}, "tokenizer": {"type": "bpe"}})
    assert "tokenizer.type: 'bpe', but model.pretrained has its own: leave it out" in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"model": {"pretrained": LLAMA, "num_layers": 6}}, "num_layers: a pretrained model brings its own; leave it out"),
        ({"model": {"pretrained": LLAMA, "architecture": "gpt2"}}, "architecture: a pretrained model brings its own"),
        ({"model": {"revision": "v2"}}, "they belong to a pretrained model; leave them out"),
        ({"model": {"trust_remote_code": "a/b"}}, "they belong to a pretrained model; leave them out"),
        ({"model": {"pretrained": LLAMA, "trust_remote_code": True}}, "true is not allowed; it is text"),
        ({"adapter": {"rank": 8}}, "adapter: it needs a pretrained model to stand beside"),
        ({"base_model": LLAMA, "adapter": {"rank": 0}}, "adapter.rank: 0 is not allowed; it is a whole number from 1"),
        ({"base_model": LLAMA, "adapter": {"dropout": 1.0}}, "adapter.dropout: 1.0 is not allowed"),
        ({"base_model": LLAMA, "adapter": {"quantize": "fp4"}}, "adapter.quantize: \"fp4\" is not allowed; it is 'nf4'"),
        ({"base_model": LLAMA, "adapter": {"lora_ranks": 8}}, "unknown key; nearest is adapter.rank"),
        ({"base_model": LLAMA, "lora": 16}, "adapter (written as lora): 16 is not allowed; it is an object"),
    ],
)
def test_contradictions_are_refused(value: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in error_of(tmp_path, value)


def test_a_variation_can_leave_the_adapter_out(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GUIDE)
    variation = load(tmp_path, {"extends": "base.yaml", "adapter": {"rank": 4}})
    assert variation.adapter is not None
    assert (variation.adapter.rank, variation.adapter.dropout) == (4, 0.1)
    assert load(tmp_path, {"extends": "base.yaml", "adapter": None}).adapter is None


def test_what_a_change_of_the_adapter_does(tmp_path: Path) -> None:
    def effects(*values: dict[str, Any]) -> dict[str, str]:
        old, new = (resolved(load(tmp_path, {"base_model": LLAMA, **value})) for value in values)
        return {change.key: change.effect for change in changes(old, new)}

    assert effects({"lora_r": 8}, {"lora_r": 4, "lora_dropout": 0.1}) == {"adapter.rank": MODEL, "adapter.dropout": APPLIES}
    assert effects({}, {"lora_r": 8}) == {"adapter": MODEL}
    # The same base in another place goes on as it was; another base is refused when the run begins.
    assert effects({}, {"base_model": "other/one"})["model.pretrained"] == APPLIES
