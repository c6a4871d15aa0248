"""From a preset's model section to a model with fresh weights."""

from __future__ import annotations

import torch

from lmloop.models.base import LanguageModel
from lmloop.models.decoder import Decoder
from lmloop.models.gpt2 import GPT2
from lmloop.models.transformer import Transformer
from lmloop.preset.schema import ModelSection

ARCHITECTURES: dict[str, type[Transformer]] = {"decoder": Decoder, "gpt2": GPT2}
"""The models that can be trained from scratch."""


def build_model(section: ModelSection, vocab_size: int, seed: int) -> LanguageModel:
    """A model with fresh fp32 weights that depend on `seed` alone; PyTorch's global random state is left as it was.

    Under `torch.device("meta")` the model has shapes and no weights: for counting parameters.
    """
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers fill themselves from the global state, in vain
        model = ARCHITECTURES[section.architecture](section, vocab_size)
    if not model.head_weight().is_meta:
        model.initialise(torch.Generator().manual_seed(seed))
    return model
