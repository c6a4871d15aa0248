"""Pretrained models for tests: every family a few thousand random weights wide, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB = 120
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 12},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt2": {},
    "bloom": {},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "final_logit_softcapping": 30.0},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 8.0},
    "phi": {},
    "bert": {},
}
"""model_type → what its configuration says besides `_SHAPE`."""

TRAINED = ("llama", "qwen2", "qwen3", "mistral", "gpt_neox", "gpt2", "bloom", "granite")


def make_base(folder: Path, family: str = "llama", **changes: Any) -> Any:
    """Save a model with weights far from their start, so that norms and biases matter too; the model."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from lmloop.models.from_transformers import quiet

    config = CONFIG_MAPPING[family](**{**_SHAPE, **FAMILIES[family], **changes})
    generator = torch.Generator().manual_seed(5)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder)
    return model.eval()
