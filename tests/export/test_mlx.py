"""MLX folders by their files; what mlx-lm makes of them is in test_readers.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmloop.export import mlx
from lmloop.export.bundle import Bundle
from lmloop.export.check import check_export
from lmloop.export.export import refusal
from lmloop.export.hf import read_weights
from lmloop.export.mlx import GROUP, MLX, _widened
from tests.export.bundles import FOREIGN, OWN, foreign, own

EXPORTER = MLX()
CARRIED = [name for name in OWN if name != "gpt2, untied, narrow"]


@pytest.fixture(autouse=True)
def without_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(EXPORTER.consumer), "installed", property(lambda self: False))
    monkeypatch.setattr(mlx, "load_mlx", lambda: None)


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", [*CARRIED, *FOREIGN])
def test_every_tensor_comes_back(name: str, kind: str, tmp_path: Path) -> None:
    bundle = own(name) if name in OWN else foreign(name)
    EXPORTER.write(bundle, kind, tmp_path)
    check = check_export(bundle, EXPORTER, kind, tmp_path)
    assert check.tensors == len(bundle.weights)
    assert check.rounded == (kind != "f32")
    assert (
        json.loads((tmp_path / "config.json").read_text())["torch_dtype"]
        == {
            "f32": "float32",
            "bf16": "bfloat16",
            "f16": "float16",
        }[kind]
    )


def test_gpt2_lies_as_mlx_multiplies(tmp_path: Path) -> None:
    bundle = own("gpt2")
    EXPORTER.write(bundle, "f32", tmp_path)
    stored = dict(read_weights(tmp_path))
    assert torch.equal(stored["model.h.1.mlp.c_fc.weight"], bundle.weights["transformer.h.1.mlp.c_fc.weight"].T)
    assert torch.equal(stored["model.wte.weight"], bundle.weights["transformer.wte.weight"])


def test_a_sliding_window_shortens_the_context(tmp_path: Path) -> None:
    EXPORTER.write(foreign("mistral, window"), "f32", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["max_position_embeddings"], config["sliding_window"]) == (32, None)
    (note,) = EXPORTER.notes(foreign("mistral, window"), "f32")
    assert note == "its context is 32 tokens there, of 128: the sliding window is not carried"


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_packed_numbers_are_read_from_the_lowest_bit_up(bits: int) -> None:
    """A number of `bits` bits follows the one before it, also over the edge of a 32-bit word."""
    rng = np.random.default_rng(bits)
    numbers = rng.integers(0, 2**bits, (3, 2 * GROUP))
    words = []
    for row in numbers:
        whole = sum(int(number) << (bits * place) for place, number in enumerate(row))
        words.append([(whole >> (32 * place)) & 0xFFFFFFFF for place in range(2 * GROUP * bits // 32)])
    packed = torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32)).view(torch.uint32)
    scales, biases = torch.rand(3, 2), torch.rand(3, 2)
    expected = numbers.reshape(3, 2, GROUP) * scales.numpy()[..., None] + biases.numpy()[..., None]
    np.testing.assert_allclose(_widened(packed, scales, biases).numpy(), expected.reshape(3, -1), rtol=1e-6)


def with_config(name: str, **changes: Any) -> Bundle:
    bundle = foreign(name) if name in FOREIGN else own(name)
    return dataclasses.replace(bundle, config={**bundle.config, **changes})


REFUSED: dict[str, tuple[Bundle, str, str]] = {
    "architecture": (with_config("llama", model_type="mamba"), "f32", "not for 'mamba'"),
    "gpt2's head": (own("gpt2, untied, narrow"), "f32", "no output head of its own"),
    "gpt2's exact GELU": (own("gpt2", feed_forward="gelu"), "f32", "GPT-2 has no gelu: export hf"),
    "gpt2's width": (own("gpt2", intermediate_size=96), "f32", "4 x 64, the model one of 96"),
    "positions": (with_config("llama", rope_parameters={"rope_type": "longrope"}), "f32", "position scaling 'longrope'"),
    "without mlx": (own("decoder"), "q4", "done by MLX itself, which is not to be had here: pip install mlx-lm"),
    "unknown type": (own("decoder"), "q8_0", "this format has f32, bf16, f16, q8, q6, q4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(case: str) -> None:
    bundle, kind, reason = REFUSED[case]
    refused = refusal(bundle, "mlx", kind)
    assert refused is not None
    assert reason in refused
    assert "\n" not in refused


def test_narrow_models_have_nothing_to_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx, "load_mlx", lambda: object())
    assert "no matrix has rows of a multiple of 64" in (refusal(own("characters", intermediate_size=32), "mlx", "q4") or "")
    assert refusal(own("decoder"), "mlx", "q4") is None
