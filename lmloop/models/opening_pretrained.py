"""From a preset's `model.pretrained` and `adapter` to a model that is ready to be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lmloop.models.acceptance import accept
from lmloop.models.adapters import add_rows, attach, keep_as_packed, quantization
from lmloop.models.base_folder import find_base, require_same, saved_base
from lmloop.models.from_transformers import open_model
from lmloop.models.pretrained import Pretrained
from lmloop.preset.schema import AdapterSection, ModelSection

ROWS_FOR_PADDING = 1
"""Rows by which a base may grow under an adapter, which does not train them."""


def open_pretrained(
    section: ModelSection,
    vocab_size: int,
    seed: int,
    adapter: AdapterSection | None = None,
    *,
    bf16: bool = False,
    device: torch.device | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Pretrained:
    """The pretrained model, in training mode; see `build_model`.

    Raises:
        ValueError: it is not there, not whole, not what `saved` says, or cannot be trained by this program. One line.
    """
    assert section.pretrained is not None, section
    meta = torch.get_default_device().type == "meta"
    device = torch.get_default_device() if device is None or meta else device
    # Weights that the checkpoint holds are not read from the base first, which need not be there any more.
    base = saved_base(saved) if saved is not None and adapter is None else None
    fills = base is not None or meta
    if base is None:
        base = find_base(section.pretrained, section.revision, section.trust_remote_code, weights=not fills)
    if saved is not None and adapter is not None and not meta:
        require_same(base, saved)

    frozen_in_bf16 = adapter is not None and bf16 and adapter.bias == "none"
    dtype = torch.bfloat16 if frozen_in_bf16 else torch.float32
    packed = None
    if adapter is not None and adapter.quantize is not None and not meta:
        packed = quantization(adapter, device, torch.bfloat16 if bf16 else torch.float32)
    network = open_model(
        base, dtype=dtype, weights=not fills, quantization=packed, device=None if packed is None else device
    )
    keep_as_packed(network)
    known = add_rows(network, vocab_size)
    if adapter is not None and vocab_size > known + ROWS_FOR_PADDING:
        raise ValueError(
            f"tokenizer: it has {vocab_size:,} tokens, {base.name} {known:,}: an adapter does not train new ones; take the "
            "base's own tokenizer, or leave `adapter` out"
        )
    if not meta:
        network = network.to(device)
    if adapter is not None:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            network = attach(network, adapter, base)
    model = Pretrained(network, base, adapter)
    _require_context(model, section)
    if fills:
        _as_saved(model, saved)
    else:
        accept(model, bf16=bf16)
    return model.train()


def require_base(section: ModelSection, adapter: AdapterSection | None, saved: Mapping[str, Any] | None) -> None:
    """Look at the base before anything else is done: it is there, whole, and what the checkpoint says of it, if any.

    saved: `base_identity` of the run's checkpoint. Weights that the checkpoint holds are not asked for where the base
    has stayed where it was.

    Raises:
        ValueError: it is not so. One line.
    """
    assert section.pretrained is not None, section
    if saved is not None and adapter is None and saved["name"] == section.pretrained:
        return
    base = find_base(section.pretrained, section.revision, section.trust_remote_code)
    if saved is not None:
        require_same(base, saved)


def _require_context(model: Pretrained, section: ModelSection) -> None:
    positions = model.context_length
    if positions and section.seq_length > positions:
        raise ValueError(
            f"model.seq_length: {section.seq_length:,} tokens, but {section.pretrained} has {positions:,} positions: "
            "lower it"
        )
    model.context_length = positions or section.seq_length


def _as_saved(model: Pretrained, saved: Mapping[str, Any] | None) -> None:
    """Without weights nothing can be tried: the model runs as it did when it was."""
    if saved is not None:
        model.packs = saved["packs"]
        if saved["attention"] != model.attention:
            model.attention = saved["attention"]
