"""Softmax attention: the kernel choice that all models share, and the decoder's attention with per-head norms of q and k."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmloop.models.mixer import Context, Mixer
from lmloop.models.norm import RMSNorm
from lmloop.models.rotary import rotate
from lmloop.preset.schema import ModelSection

BLOCK = 128
"""Queries that `attend_in_blocks` takes at a time."""

LENGTH_STEP = 32
"""What `attend_in_blocks` gets without a bias is filled up to a multiple of so many tokens: oneDNN compiles each product
once for every length and keeps the code, which over documents of all lengths came to hundreds of megabytes."""

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
        return self.written(start + T)

    def written(self, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `length` tokens."""
        assert self._stored is not None, "nothing has been written"
        return self._stored[0, :, :, :length], self._stored[1, :, :, :length]


def attend(query_BHTE: Tensor, key_BKSE: Tensor, value_BKSE: Tensor, context: Context) -> Tensor:
    """Scaled dot-product attention, [B, T, H * E]; the H query heads share the K key and value heads in groups of H / K."""
    query_BHTE, key_BKSE = query_BHTE.to(value_BKSE.dtype), key_BKSE.to(value_BKSE.dtype)
    B, H, T, E = query_BHTE.shape
    slow_kernel = value_BKSE.dtype == torch.bfloat16 and value_BKSE.device.type == "cpu"
    if slow_kernel and context.causal and T <= MAX_TOKENS_IN_BLOCKS:
        mixed_BHTE = attend_in_blocks(query_BHTE, key_BKSE, value_BKSE, context.additive_mask(value_BKSE.dtype))
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


def attend_in_blocks(
    query_BHTE: Tensor,
    key_BKTE: Tensor,
    value_BKTE: Tensor,
    bias_BHTT: Tensor | None,
    scale: float | None = None,
) -> Tensor:
    """Causal attention, [B, H, T, E], written out: a block of queries at a time against the keys up to the block's end.

    bias_BHTT: added to the scores, [B or 1, 1, T, T]; minus infinity where a key is hidden, later keys among them. None:
    only later keys are hidden. scale: what the products are multiplied by; default: 1 / √E.

    Takes half the time of `scaled_dot_product_attention` on a CPU in bf16 at rows of 256 or 512 tokens, forward and
    backward, because the products are plain matrix products and half of the masked ones are left out.
    """
    H, E = query_BHTE.shape[1], query_BHTE.shape[-1]
    groups = H // key_BKTE.shape[1]
    if groups > 1:
        key_BKTE, value_BKTE = (x.repeat_interleave(groups, dim=1) for x in (key_BKTE, value_BKTE))
    scale = E**-0.5 if scale is None else scale
    return cast(Tensor, _InBlocks.apply(query_BHTE, key_BKTE, value_BKTE, bias_BHTT, scale))


class _InBlocks(torch.autograd.Function):
    """Laid out by hand for a CPU, where a pass over memory costs as much as a product with heads this narrow.

    The shape for the products, [B · H, T, E], is made once and not for each block; the softmax overwrites the scores; the
    results of the blocks are written into one tensor. Kept for the backward pass: q, k, v and each block's softmax.
    """

    @staticmethod
    def forward(
        ctx: Any, query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, bias_BHTT: Tensor | None, scale: float
    ) -> Tensor:
        B, H, asked, E = query_BHTE.shape
        T = asked if bias_BHTT is not None else -(-asked // LENGTH_STEP) * LENGTH_STEP
        query, key, value = (_filled_up(x, T) for x in (query_BHTE, key_BHTE, value_BHTE))
        query = query * scale
        mixed, softmaxes = torch.empty_like(query), []
        for start, stop in _blocks(T):
            scores = query[:, start:stop] @ key[:, :stop].mT
            if bias_BHTT is None:
                scores[:, :, start:] += _later(stop - start, scores.dtype, scores.device)
            else:
                scores.view(B, H, stop - start, stop).add_(bias_BHTT[:, :, start:stop, :stop])
            softmaxes.append(torch.softmax(scores, -1, out=scores))
            mixed[:, start:stop] = scores @ value[:, :stop]
        ctx.save_for_backward(query, key, value, *softmaxes)
        ctx.scale = scale
        return mixed.view(B, H, T, E)[:, :, :asked]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, *softmaxes = ctx.saved_tensors
        B, H, asked, E = grad_outputs[0].shape
        T = query.shape[1]
        grad = _filled_up(grad_outputs[0], T)
        query_grad, key_grad, value_grad = torch.empty_like(query), torch.empty(0), torch.empty(0)
        for (start, stop), softmax in zip(reversed(_blocks(T)), reversed(softmaxes), strict=True):
            scores_grad = grad[:, start:stop] @ value[:, :stop].mT
            scores_grad = torch._softmax_backward_data(  # pyright: ignore[reportPrivateImportUsage]
                scores_grad, softmax, -1, softmax.dtype
            )
            torch.mul(scores_grad @ key[:, :stop], ctx.scale, out=query_grad[:, start:stop])
            of_key, of_value = scores_grad.mT @ query[:, start:stop], softmax.mT @ grad[:, start:stop]
            if stop == T:  # the last block is the first one here, and has all keys
                key_grad, value_grad = of_key, of_value
            else:
                key_grad[:, :stop] += of_key
                value_grad[:, :stop] += of_value
        return *(x.view(B, H, T, E)[:, :, :asked] for x in (query_grad, key_grad, value_grad)), None, None


def _filled_up(x_BHTE: Tensor, length: int) -> Tensor:
    """[B · H, length, E]: zeros behind the T tokens, which none of them sees."""
    B, H, T, E = x_BHTE.shape
    if length == T:
        return x_BHTE.reshape(B * H, T, E)
    filled_BHTE = x_BHTE.new_empty(B, H, length, E)
    filled_BHTE[:, :, :T] = x_BHTE
    filled_BHTE[:, :, T:] = 0.0
    return filled_BHTE.flatten(0, 1)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


@lru_cache(maxsize=16)
def _later(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[T, T]: minus infinity where the key comes after the query, else 0."""
    with torch.inference_mode(False):  # kept for passes of every kind
        return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)


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
