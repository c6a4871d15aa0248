"""A folder for mlx-lm: transformers' names and layouts, in MLX's own quantization where that is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmloop.export.bundle import Bundle
from lmloop.export.consult import Consumer
from lmloop.export.exporter import (
    BF16_NOISE,
    DTYPES,
    TORCH_NAMES,
    Exporter,
    Stored,
    natural_kind,
    require_finite,
    rounded,
    rounding_slack,
)
from lmloop.export.gguf_shapes import SHAPES, gelu_refusal
from lmloop.export.hf import config_of, read_weights, write_json, write_tokenizer, write_weights
from lmloop.export.positions import context_without_window, scaling_refusal

BITS = {"q8": 8, "q6": 6, "q4": 4}
"""MLX's affine quantization: each group of GROUP numbers has a scale and an offset."""

GROUP = 64
MODEL_TYPES = ("qwen3", "qwen2", "llama", "mistral", "gpt2")
"""What is carried; each was checked with mlx-lm."""

TRANSPOSED = SHAPES["gpt2"].transposed


class MLX(Exporter):
    """config.json, safetensors, tokenizer."""

    kinds = (*DTYPES, *BITS)
    consumer = Consumer("mlx-lm", "mlx_lm", "mlx-lm", "ask_mlx_lm", "pip install mlx-lm (on Linux: 'mlx-lm[cpu]')")

    def refusal(self, bundle: Bundle, kind: str) -> str | None:
        """What mlx-lm has no model for, and quantization where MLX is not there to do it."""
        config = bundle.config
        if bundle.model_type not in MODEL_TYPES:
            return f"mlx-lm export is there for {', '.join(MODEL_TYPES)}, not for '{bundle.model_type}'"
        if bundle.model_type == "gpt2":
            if "lm_head.weight" in bundle.weights:
                return "mlx-lm's GPT-2 has no output head of its own: train with model.tie_embeddings, or export gguf or hf"
            if refused := gelu_refusal(config, "mlx-lm"):
                return f"{refused}: export hf"
            if (config["n_inner"] or 4 * config["n_embd"]) != 4 * config["n_embd"]:
                return (
                    f"mlx-lm's GPT-2 has a feed-forward layer of 4 x {config['n_embd']}, "
                    f"the model one of {config['n_inner']}: export gguf or hf"
                )
        else:
            refused = scaling_refusal(config)
            if refused is not None:
                return refused
        if kind in BITS and load_mlx() is None:
            return f"--quantize {kind} is done by MLX itself, which is not to be had here: {self.consumer.remedy}"
        if kind in BITS and not any(_grouped(name, _laid(bundle, name, tensor)) for name, tensor in bundle.weights.items()):
            return f"--quantize {kind}: no matrix has rows of a multiple of {GROUP} numbers, so there is nothing to quantize"
        return None

    def context_tokens(self, bundle: Bundle) -> int:
        """mlx-lm runs these architectures without a sliding window."""
        return context_without_window(bundle.config)

    def write(self, bundle: Bundle, kind: str, folder: Path) -> None:
        """Write the folder."""
        plain = kind if kind in DTYPES else "bf16" if natural_kind(bundle) == "bf16" else "f16"
        config: dict[str, Any] = {**config_of(bundle), "torch_dtype": TORCH_NAMES[plain]}
        if self.context_tokens(bundle) < bundle.context_tokens:
            config |= {"max_position_embeddings": self.context_tokens(bundle), "sliding_window": None}
        tensors: dict[str, Tensor] = {}
        for name, tensor in bundle.weights.items():
            require_finite(name, tensor)
            theirs, laid = _name(bundle, name), _laid(bundle, name, tensor)
            if kind in BITS and _grouped(name, laid):
                tensors |= _quantized(theirs.removesuffix(".weight"), rounded(name, laid, plain), BITS[kind])
            else:
                tensors[theirs] = rounded(name, laid, plain)
        if kind in BITS:
            config["quantization"] = {"group_size": GROUP, "bits": BITS[kind], "mode": "affine"}
            config["quantization_config"] = config["quantization"]
        write_json(folder / "config.json", config)
        write_tokenizer(bundle, folder)
        write_weights(tensors, folder)

    def tolerance(self, bundle: Bundle, kind: str) -> float:
        """Measured: f32 below 2e-6, f16 2e-3, bf16 1.2e-2, few bits 8e-3. MLX computes in the type of what is stored."""
        if natural_kind(bundle) != "f32":
            return BF16_NOISE
        return {"f32": 1e-4, "f16": 1e-2, "bf16": 6e-2}.get(kind, 4e-2)

    def stored(self, bundle: Bundle, folder: Path) -> Iterator[Stored]:
        """The safetensors files' content, widened again where it was quantized."""
        tensors = dict(read_weights(folder))
        for name, tensor in bundle.weights.items():
            theirs, given = _name(bundle, name), _laid(bundle, name, tensor).float()
            found = tensors.pop(theirs)
            if found.dtype == torch.uint32:
                base = theirs.removesuffix(".weight")
                scales, biases = tensors.pop(f"{base}.scales"), tensors.pop(f"{base}.biases")
                wide, slack = _widened(found, scales, biases), _slack(given, scales)
            else:
                wide, slack = found.float(), rounding_slack(given, found.dtype)
            yield Stored(name, _laid(bundle, name, wide), _laid(bundle, name, slack))
        assert not tensors, sorted(tensors)


def load_mlx() -> Any:
    """The module `mlx.core`; None where it is not installed, or without what it runs on."""
    try:
        return importlib.import_module("mlx.core")
    except ImportError:
        return None


def _name(bundle: Bundle, name: str) -> str:
    """mlx-lm's own name; for GPT-2 the one that its loader takes as it is."""
    if bundle.model_type != "gpt2":
        return name
    return "model." + name.removeprefix("transformer.")


def _laid(bundle: Bundle, name: str, tensor: Tensor) -> Tensor:
    """GPT-2's matrices lie input by output, MLX's output by input; the way back is the same."""
    return tensor.T if bundle.model_type == "gpt2" and name.endswith(TRANSPOSED) else tensor


def _grouped(name: str, laid: Tensor) -> bool:
    """Matrices can be quantized whose rows are whole groups; not the table of positions, which is small."""
    return laid.dim() == 2 and laid.shape[-1] % GROUP == 0 and not name.endswith("wpe.weight")


def _quantized(base: str, tensor: Tensor, bits: int) -> dict[str, Tensor]:
    """A matrix as MLX quantizes it: packed numbers, and scale and offset of each group in the matrix's own type."""
    mx = load_mlx()
    assert mx is not None
    types = {torch.float16: mx.float16, torch.bfloat16: mx.bfloat16}
    array = mx.array(tensor.float().numpy()).astype(types[tensor.dtype])
    packed, scales, biases = mx.quantize(array, group_size=GROUP, bits=bits)
    numbers = torch.from_numpy(np.array(packed).view(np.int32)).view(torch.uint32)
    parts = {"scales": scales, "biases": biases}
    wide = {part: torch.from_numpy(np.array(value.astype(mx.float32))) for part, value in parts.items()}
    return {f"{base}.weight": numbers, **{f"{base}.{part}": value.to(tensor.dtype) for part, value in wide.items()}}


def _widened(packed: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    """scale · q + offset, fp32; q are unsigned numbers of equal width, packed from the lowest bit up, row by row."""
    rows = packed.shape[0]
    width = scales.shape[1] * GROUP
    bits = packed.shape[1] * 32 // width
    stream = np.unpackbits(packed.view(torch.int32).numpy().view(np.uint8), axis=1, bitorder="little")
    numbers = stream.reshape(rows, width, bits) @ (1 << np.arange(bits))
    grouped = torch.from_numpy(numbers.astype(np.float32)).reshape(rows, -1, GROUP)
    return (grouped * scales.float()[..., None] + biases.float()[..., None]).reshape(rows, width)


def _slack(given: Tensor, scales: Tensor) -> Tensor:
    """A number may be a step away: the steps are laid so that 0 is one of them; all in the precision of the scales."""
    groups = given.reshape(given.shape[0], -1, GROUP)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    slack = scales.float().abs()[..., None] + largest * torch.finfo(scales.dtype).eps * 2
    return slack.expand(groups.shape).reshape(given.shape)
