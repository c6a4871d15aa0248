"""Softmax attention: the kernel choice that all models share, and the decoder's attention with per-head norms of q and k."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmloop.models.mixer import Context, Mixer
from lmloop.models.norm import RMSNorm
from lmloop.models.rotary import rotate
from lmloop.preset.schema import ModelSection

BLOCK = 128
"""Queries that `attend_in_blocks` takes at a time."""

MAX_TOKENS_IN_BLOCKS = 1_024
"""Row length up to which `attend_in_blocks` beats PyTorch's kernel for bf16 on a CPU."""


class KeyValues:
    """Keys and values of the tokens so far, [B, K, S, E] each, in memory that is allocated once."""

    def __init__(self, batch_size: int, max_tokens: int) -> None:
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self._stored: Tensor | None = None  # [2, B, K, max_tokens, E]; made by the first tokens, which know dtype and device

    def append(self, key_BKTE: Tensor, value_BKTE: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write T tokens behind the first `start`; keys and values of all of them."""
        B, K, T, E = key_BKTE.shape
        assert self.batch_size == B, f"cache made for {self.batch_size} rows, got {B}"
        assert start + T <= self.max_tokens, f"{start} + {T} tokens do not fit into a cache of {self.max_tokens}"
        if self._stored is None:
            self._stored = value_BKTE.new_empty(2, B, K, self.max_tokens, E)
        self._stored[0, :, :, start : start + T] = key_BKTE
        self._stored[1, :, :, start : start + T] = value_BKTE
        return self._stored[0, :, :, : start + T], self._stored[1, :, :, : start + T]


def attend(query_BHTE: Tensor, key_BKSE: Tensor, value_BKSE: Tensor, context: Context) -> Tensor:
    """Scaled dot-product attention, [B, T, H * E]; the H query heads share the K key and value heads in groups of H / K."""
    query_BHTE, key_BKSE = query_BHTE.to(value_BKSE.dtype), key_BKSE.to(value_BKSE.dtype)
    B, H, T, E = query_BHTE.shape
    slow_kernel = value_BKSE.dtype == torch.bfloat16 and value_BKSE.device.type == "cpu"
    if slow_kernel and context.causal and T <= MAX_TOKENS_IN_BLOCKS:
        mixed_BHTE = attend_in_blocks(query_BHTE, key_BKSE, value_BKSE, context.mask_BHTS)
    else:
        mixed_BHTE = nn.functional.scaled_dot_product_attention(
            query_BHTE,
            key_BKSE,
            value_BKSE,
            attn_mask=context.mask_BHTS,
            is_causal=context.causal and context.mask_BHTS is None,
            enable_gqa=key_BKSE.shape[1] != H,
        )
    return mixed_BHTE.transpose(1, 2).reshape(B, T, H * E)


def attend_in_blocks(query_BHTE: Tensor, key_BKTE: Tensor, value_BKTE: Tensor, mask_BHTT: Tensor | None) -> Tensor:
    """Causal attention, [B, H, T, E], written out: a block of queries at a time against the keys up to the block's end.

    Takes half the time of `scaled_dot_product_attention` on a CPU in bf16 at rows of 256 or 512 tokens, forward and
    backward, because the products are plain matrix products and half of the masked ones are left out.
    """
    H, T, E = query_BHTE.shape[1:]
    groups = H // key_BKTE.shape[1]
    if groups > 1:
        key_BKTE, value_BKTE = (x.repeat_interleave(groups, dim=1) for x in (key_BKTE, value_BKTE))
    query_BHTE = query_BHTE * E**-0.5
    if mask_BHTT is None:
        mask_BHTT = torch.ones(T, T, dtype=torch.bool, device=query_BHTE.device).tril()[None, None]
    mixed = []
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        scores_BHQS = query_BHTE[:, :, start:stop] @ key_BKTE[:, :, :stop].transpose(-1, -2)
        hidden_BHQS = ~mask_BHTT[:, :, start:stop, :stop]
        # Added, not filled in: the gradient of an addition costs no pass over the scores.
        scores_BHQS += torch.zeros_like(hidden_BHQS, dtype=scores_BHQS.dtype).masked_fill_(hidden_BHQS, float("-inf"))
        mixed.append(scores_BHQS.softmax(dim=-1) @ value_BKTE[:, :, :stop])
    return torch.cat(mixed, dim=2)


class Attention(Mixer):
    """Grouped-query attention with rotary positions and RMSNorm on each head of q and k, as in Qwen3 (arXiv 2505.09388).

    q, k and v stay three matrices, as Qwen3 names them: one product of their concatenation was no faster on a CPU.
    """

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.head_dim = section.resolved_head_dim
        query_width = section.num_heads * self.head_dim
        key_width = section.resolved_kv_heads * self.head_dim
        self.q_proj = nn.Linear(section.hidden_size, query_width, bias=False)
        self.k_proj = nn.Linear(section.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(section.hidden_size, key_width, bias=False)
        self.o_proj = nn.Linear(query_width, section.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, section.norm_eps)
        self.k_norm = RMSNorm(self.head_dim, section.norm_eps)

    def forward(self, hidden_BTD: Tensor, context: Context) -> Tensor:
        """Attention over whole rows."""
        return self.o_proj(attend(*self._query_key_value(hidden_BTD, context), context))

    def make_state(self, batch_size: int, max_tokens: int) -> KeyValues:
        """Room for the keys and values of `max_tokens` tokens."""
        return KeyValues(batch_size, max_tokens)

    def step(self, hidden_BTD: Tensor, context: Context, state: KeyValues) -> Tensor:
        """Attention of the next tokens over all so far."""
        query_BHTE, key_BKTE, value_BKTE = self._query_key_value(hidden_BTD, context)
        key_BKSE, value_BKSE = state.append(key_BKTE, value_BKTE, context.start)
        return self.o_proj(attend(query_BHTE, key_BKSE, value_BKSE, context))

    def _query_key_value(self, hidden_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        assert context.rotary is not None
        shape = (*hidden_BTD.shape[:2], -1, self.head_dim)
        query_BTHE = rotate(self.q_norm(self.q_proj(hidden_BTD).view(shape)), context.rotary)
        key_BTKE = rotate(self.k_norm(self.k_proj(hidden_BTD).view(shape)), context.rotary)
        value_BTKE = self.v_proj(hidden_BTD).view(shape)
        return query_BTHE.transpose(1, 2), key_BTKE.transpose(1, 2), value_BTKE.transpose(1, 2)
