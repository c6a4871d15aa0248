"""Architectures as llama.cpp knows them: their figures, and how their tensors lie in the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmloop.export.positions import Config, context_without_window, head_dim, rope, scaling_refusal

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass(frozen=True)
class Shape:
    """One architecture.

    arch: llama.cpp's name. describe: writes its figures. interleaved: rotary positions turn neighbours (2i, 2i + 1), where
    transformers turns (i, i + E/2), so the rows of q and k change places. transposed: endings of the names of matrices that
    lie input by output. plain: endings of the names of matrices that llama.cpp wants in fp32.
    """

    arch: str
    describe: Callable[[GGUFWriter, Config], None]
    interleaved: bool = False
    transposed: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    def to_file(self, name: str, tensor: Tensor, config: Config) -> Tensor:
        """A tensor as it lies in the file."""
        if self.interleaved and _is_q_or_k(name):
            heads = _heads(name, config)
            return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        return tensor.T if name.endswith(self.transposed) else tensor

    def from_file(self, name: str, tensor: Tensor, config: Config) -> Tensor:
        """A tensor of the file as transformers has it."""
        if self.interleaved and _is_q_or_k(name):
            heads = _heads(name, config)
            return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        return tensor.T if name.endswith(self.transposed) else tensor


def _is_q_or_k(name: str) -> bool:
    return name.endswith(("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"))


def _heads(name: str, config: Config) -> int:
    return config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]


def _describe_rotary(writer: GGUFWriter, config: Config) -> None:
    """What models with rotary positions and RMSNorm have in common."""
    from gguf import RopeScalingType

    writer.add_context_length(context_without_window(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    positions = rope(config)
    writer.add_rope_freq_base(positions["rope_theta"])
    if positions["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(positions["rope_type"]))
        writer.add_rope_scaling_factor(positions["factor"])
        if positions["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(positions["original_max_position_embeddings"])


def _describe_gpt2(writer: GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def llama3_divisors(config: Config) -> Tensor | None:
    """What Llama 3.1 divides each rotary frequency by, fp32 [E / 2]; llama.cpp keeps it as a tensor. None: not so scaled.

    Wavelengths below the original context over `high_freq_factor` are kept, those above it over `low_freq_factor` are
    stretched by `factor`, with a blend in between (transformers, `_compute_llama3_parameters`).
    """
    positions = rope(config)
    if positions["rope_type"] != "llama3":
        return None
    factor, low, high = positions["factor"], positions["low_freq_factor"], positions["high_freq_factor"]
    width = head_dim(config)
    frequency_E = positions["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns_E = positions["original_max_position_embeddings"] * frequency_E / (2 * math.pi)  # within the original context
    kept_E = ((turns_E - low) / (high - low)).clamp(0, 1)
    return (1.0 / ((1 - kept_E) / factor + kept_E)).float()


LLAMA = Shape("llama", _describe_rotary, interleaved=True)
SHAPES: dict[str, Shape] = {
    "qwen3": Shape("qwen3", _describe_rotary),
    "qwen2": Shape("qwen2", _describe_rotary),
    "llama": LLAMA,
    "mistral": LLAMA,
    "gpt2": Shape(
        "gpt2",
        _describe_gpt2,
        transposed=("c_attn.weight", "attn.c_proj.weight", "c_fc.weight", "mlp.c_proj.weight"),
        plain=("wpe.weight",),
    ),
}
"""transformers' model_type → its shape in llama.cpp."""


def gelu_refusal(config: Config, program: str) -> str | None:
    """Why `program`, llama.cpp or mlx-lm, cannot run a GPT-2: they have GELU in its tanh form alone; None: it can."""
    activation = config.get("activation_function", "gelu_new")
    return None if activation in ("gelu_new", "gelu_pytorch_tanh") else f"{program}'s GPT-2 has no {activation}"


def shape_refusal(config: Config) -> str | None:
    """Why llama.cpp cannot run a model of this configuration as it was trained; None: it can."""
    kind = config["model_type"]
    if kind not in SHAPES:
        return f"no GGUF for the architecture '{kind}': it is there for {', '.join(SHAPES)}"
    if kind == "gpt2":
        return gelu_refusal(config, "llama.cpp")
    if config.get("hidden_act", "silu") != "silu":
        return f"llama.cpp's {kind} has no {config['hidden_act']} in its feed-forward layer"
    if rope(config)["rope_type"] == "llama3" and SHAPES[kind] is not LLAMA:
        return f"position scaling 'llama3' is not carried to GGUF for {kind}"
    return scaling_refusal(config)
