"""Rotary positions in a configuration of transformers, of either version, and which of them other programs know."""

from __future__ import annotations

import math
from typing import Any

Config = dict[str, Any]

SCALINGS = ("default", "linear", "yarn", "llama3")
"""What llama.cpp and mlx-lm compute as transformers does."""


def rope(config: Config) -> Config:
    """Base and scaling of the rotary positions as transformers 5 writes them."""
    return {
        "rope_type": "default",
        "rope_theta": config.get("rope_theta", 10_000.0),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }


def head_dim(config: Config) -> int:
    """Width of one head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def scaling_refusal(config: Config) -> str | None:
    """Why the positions of this configuration come out otherwise elsewhere, in one line; None: they do not."""
    positions = rope(config)
    kind = positions["rope_type"]
    if kind not in SCALINGS:
        return f"position scaling '{kind}' is carried by hf only; by the others: {', '.join(SCALINGS[1:])}"
    if kind != "yarn":
        return None
    # They compute the factor of the attention themselves and take the paper's bounds.
    usual = 0.1 * math.log(positions["factor"]) + 1.0
    own = [key for key in ("mscale", "mscale_all_dim", "truncate") if key in positions]
    if (
        own
        or not math.isclose(positions.get("attention_factor") or usual, usual, rel_tol=1e-6)
        or (positions.get("beta_fast") or 32, positions.get("beta_slow") or 1) != (32, 1)
    ):
        return "YaRN with settings beyond `factor` and `original_max_position_embeddings` is carried by hf only"
    return None


def context_without_window(config: Config) -> int:
    """Tokens up to which a model with a sliding window computes what it would without: elsewhere there is no window."""
    context = config.get("max_position_embeddings") or config["n_positions"]
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", config["model_type"] == "mistral")
    return min(context, window) if window and used else context
