"""From a preset's model section to a model with fresh weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lmloop.models.base import LanguageModel
from lmloop.models.decoder import Decoder
from lmloop.models.gpt2 import GPT2
from lmloop.models.transformer import Transformer
from lmloop.preset.schema import AdapterSection, ModelSection

ARCHITECTURES: dict[str, type[Transformer]] = {"decoder": Decoder, "gpt2": GPT2}
"""The models that can be trained from scratch."""


def build_model(
    section: ModelSection,
    vocab_size: int,
    seed: int,
    adapter: AdapterSection | None = None,
    *,
    bf16: bool = False,
    device: torch.device | None = None,
    saved_base: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """A model with fresh fp32 weights, or a pretrained one, in training mode; PyTorch's global random state stays as it was.

    Under `torch.device("meta")` the model has shapes and no weights: for counting parameters.

    Args:
        section: its shape, or which pretrained one.
        vocab_size: tokens of the tokenizer; a pretrained model may have more rows than these, and is given more if it has
            fewer.
        seed: fresh weights, an adapter's too, depend on it alone.
        adapter: what is trained beside the pretrained weights, which stay as they are.
        bf16: products are computed in bf16: then a base under an adapter is kept in bf16 too.
        device: where a pretrained model is to be; a base in 4 bits is quantized there. Default: the CPU.
        saved_base: `base_identity` of a checkpoint from which the weights come. An adapter is refused on another base;
            a model that was trained as a whole comes with random weights, and its base is not read.

    Raises:
        ValueError: a pretrained model is not there, not whole, not the saved one, or cannot be trained here. One line.
    """
    if section.pretrained is not None:
        from lmloop.models.opening_pretrained import open_pretrained

        return open_pretrained(section, vocab_size, seed, adapter, bf16=bf16, device=device, saved=saved_base)
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers fill themselves from the global state, in vain
        model = ARCHITECTURES[section.architecture](section, vocab_size)
    if not model.head_weight().is_meta:
        model.initialise(torch.Generator().manual_seed(seed))
    return model
