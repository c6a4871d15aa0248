"""A pretrained model in Qwen3's shape as our own decoder, for writing on a CPU between two steps of training.

transformers and peft make some 130 small products a token of a model with six layers and an adapter, which takes as long
as ten times the arithmetic, and many times that where other programs want the cores too. Our decoder has the same weights
under the same names, and a form that is laid out for writing (`prepared`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmloop.models.adapters import ADAPTER
from lmloop.models.base import LanguageModel
from lmloop.models.decoder import Decoder
from lmloop.models.pretrained import Pretrained
from lmloop.models.rotary import Rotary
from lmloop.preset.schema import ModelSection

LARGEST = 100_000_000
"""Parameters of the largest model that is copied: larger ones spend their time on arithmetic, and the copy takes memory."""


@torch.no_grad()
def own_copy(model: LanguageModel) -> Decoder | None:
    """The same model as a decoder in fp32, an adapter added to its weights; None where there is no such form.

    Weights in fp32 that no adapter changes are shared, not copied: it is good until the next update.
    """
    if not isinstance(model, Pretrained) or not _fits(model):
        return None
    section = _section(model.causal.config)
    if section is None:
        return None
    with torch.device("meta"):
        decoder = Decoder(section, model.vocab_size)
    weights: dict[str, Tensor] = {}
    for name in decoder.state_dict():
        weight = _weight(model.causal.get_submodule(name.removesuffix(".weight")))
        if weight is None:
            return None
        weights[name] = weight
    decoder.load_state_dict(weights, assign=True)
    decoder.rotary = Rotary(section)  # its table is no part of the state
    decoder.context_length = model.context_length
    return decoder.eval()


def _fits(model: Pretrained) -> bool:
    parameters = list(model.parameters())
    whole = all(type(one) is nn.Parameter and one.device.type == "cpu" for one in parameters)
    return whole and sum(one.numel() for one in parameters) <= LARGEST


def _section(config: Any) -> ModelSection | None:
    """The decoder's shape; None where transformers' model computes something else."""
    rope = config.rope_parameters if config.model_type == "qwen3" else {}
    if (
        rope.get("rope_type") != "default"
        or set(rope) - {"rope_type", "rope_theta"}
        or config.hidden_act != "silu"
        or config.attention_bias
        or set(config.layer_types) != {"full_attention"}
    ):
        return None
    return ModelSection(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        tie_embeddings=False,  # one matrix under two names does as well
        rope_theta=float(rope["rope_theta"]),
        norm_eps=config.rms_norm_eps,
    )


def _weight(module: nn.Module) -> Tensor | None:
    """A module's only tensor in fp32, with what a plain LoRA adds to it; None where it has others."""
    if [name for name, _ in module.named_parameters()] == ["weight"]:
        return module.get_parameter("weight").detach().float()
    from lmloop.models.lora_layers import Linear  # here, so that a model without an adapter does not load peft

    if not isinstance(module, Linear):
        return None
    base = module.get_base_layer()
    if type(base) is not nn.Linear or base.bias is not None or not module.is_plain:
        return None
    down, up = (side[ADAPTER].get_parameter("weight").float() for side in (module.lora_A, module.lora_B))
    return torch.addmm(base.weight.float(), up, down, alpha=module.scaling[ADAPTER])
