"""Attention for models of transformers: packed documents apart, and the kernel that is fast on the device.

transformers lets a model call any function by its name. Ours is told where the documents of a row begin, so that it works
on each of them alone, where a mask would have it compute the square of the whole row: with documents of 200 tokens in rows
of 2,048 that takes a fifth of the time on a CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lmloop.models.attention import MAX_TOKENS_IN_BLOCKS, attend_in_blocks

NAME = "lmloop_segments"
"""What transformers calls it by."""

_KERNEL_DTYPES = (torch.bfloat16, torch.float16)
_SPECIAL = ("softcap", "s_aux", "position_bias", "is_causal")
"""What models may ask for that only transformers' own functions know."""


@dataclass(frozen=True)
class Packing:
    """The documents of the rows, which are runs of equal numbers in `segments_BT`. All of them are attended to in full."""

    segments_BT: Tensor

    @cache  # noqa: B019 (a packing lives for one forward pass)
    def mask(self) -> Tensor:
        """bool [B, 1, T, T], True where query t may see key s."""
        same_BTS = self.segments_BT[:, :, None] == self.segments_BT[:, None, :]
        return same_BTS.tril()[:, None]

    @cached_property
    def lengths(self) -> list[list[int]]:
        """Tokens of each document, by row."""
        return [torch.unique_consecutive(row_T, return_counts=True)[1].tolist() for row_T in self.segments_BT]

    @cached_property
    def starts(self) -> Tensor:
        """Where each document begins when the rows are laid end to end, and where the last one ends; int32."""
        begins_BT = torch.ones_like(self.segments_BT, dtype=torch.bool)
        begins_BT[:, 1:] = self.segments_BT[:, 1:] != self.segments_BT[:, :-1]
        starts = begins_BT.flatten().nonzero()[:, 0]
        return torch.cat([starts, starts.new_tensor([begins_BT.numel()])]).int()


def register() -> None:
    """Make `attend` known to transformers; once more does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query_BHTE: Tensor,
    key_BKSE: Tensor,
    value_BKSE: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention as transformers asks for it, [B, T, H, E].

    attention_mask: bool [B, 1, T, S]; None for plain causal order. It says nothing where there is a `packing`.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    query_BHTE, key_BKSE = query_BHTE.to(value_BKSE.dtype), key_BKSE.to(value_BKSE.dtype)
    scale = query_BHTE.shape[3] ** -0.5 if scaling is None else scaling
    special = dropout > 0.0 or any(options.get(name) is not None for name in _SPECIAL)
    whole = not special and key_BKSE.shape[2] == query_BHTE.shape[2] > 1
    if packing is not None:
        if whole and value_BKSE.device.type == "cpu":
            return _each_document(query_BHTE, key_BKSE, value_BKSE, scale, packing.lengths).transpose(1, 2), None
        kernel = _varlen() if whole and value_BKSE.is_cuda and value_BKSE.dtype in _KERNEL_DTYPES else None
        if kernel is not None:
            return _flat(kernel, query_BHTE, key_BKSE, value_BKSE, scale, packing), None
        attention_mask = packing.mask()
    elif whole and attention_mask is None and _blocks_are_faster(value_BKSE):
        return attend_in_blocks(query_BHTE, key_BKSE, value_BKSE, None, scale).transpose(1, 2), None
    return sdpa_attention_forward(
        module, query_BHTE, key_BKSE, value_BKSE, attention_mask, dropout=dropout, scaling=scale, **options
    )


def _blocks_are_faster(value_BKSE: Tensor) -> bool:
    return (
        value_BKSE.device.type == "cpu"
        and value_BKSE.dtype == torch.bfloat16
        and value_BKSE.shape[2] <= MAX_TOKENS_IN_BLOCKS
    )


# ---- on a CPU ----


def _each_document(
    query_BHTE: Tensor, key_BKTE: Tensor, value_BKTE: Tensor, scale: float, lengths: list[list[int]]
) -> Tensor:
    """Causal attention within each document, [B, H, T, E].

    Documents are split off, not sliced out: in the backward pass each slice would cost a pass over everything.
    """
    rows = []
    for of_row, *row in zip(lengths, query_BHTE.split(1), key_BKTE.split(1), value_BKTE.split(1), strict=True):
        parts = zip(*(x_1HTE.split(of_row, dim=2) for x_1HTE in row), strict=True)
        rows.append(torch.cat([_one_document(query, key, value, scale) for query, key, value in parts], dim=2))
    return torch.cat(rows)


def _one_document(query_1HTE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, scale: float) -> Tensor:
    """Causal attention, [1, H, T, E]."""
    if _blocks_are_faster(value_1KTE):
        return attend_in_blocks(query_1HTE, key_1KTE, value_1KTE, None, scale)
    grouped = query_1HTE.shape[1] != key_1KTE.shape[1]
    return nn.functional.scaled_dot_product_attention(
        query_1HTE, key_1KTE, value_1KTE, is_causal=True, scale=scale, enable_gqa=grouped
    )


# ---- on CUDA ----


@cache
def _varlen() -> Callable[..., Any] | None:
    """PyTorch's attention over documents laid end to end, where this version has what is needed of it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters) else None


def _flat(
    kernel: Callable[..., Any], query_BHTE: Tensor, key_BKTE: Tensor, value_BKTE: Tensor, scale: float, packing: Packing
) -> Tensor:
    """Causal attention within each document, [B, T, H, E], with the rows laid end to end."""
    B, H, T, E = query_BHTE.shape
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query_BHTE, key_BKTE, value_BKTE)]
    starts = packing.starts
    mixed = kernel(*flat, starts, starts, T, T, scale=scale, window_size=(-1, 0), enable_gqa=key_BKTE.shape[1] != H)
    return mixed.view(B, T, H, E)
