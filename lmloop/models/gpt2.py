"""The GPT-2-shaped model, named like transformers' GPT2LMHeadModel: LayerNorm, GELU, learned positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from lmloop.models.attention import KeyValues, attend
from lmloop.models.gelu import tanh_gelu
from lmloop.models.mixer import Context, Mixer
from lmloop.models.transformer import INIT_STD, Block, Transformer
from lmloop.preset.schema import ModelSection


class Conv1D(nn.Module):
    """A linear layer that stores its matrix input by output, as GPT-2's checkpoints do (a convolution of width 1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        if x.device.type != "cpu":
            return nn.functional.linear(x, self.weight.T, self.bias)
        # On a CPU PyTorch fills the result with the bias before the product: that takes longer than adding it afterwards.
        product = nn.functional.linear(x, self.weight.T)
        return product.add_(self.bias.to(product.dtype))


class GPT2Attention(Mixer):
    """Multi-head attention with one matrix for q, k and v."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.num_heads = section.num_heads
        self.c_attn = Conv1D(section.hidden_size, 3 * section.hidden_size)
        self.c_proj = Conv1D(section.hidden_size, section.hidden_size)

    def forward(self, hidden_BTD: Tensor, context: Context) -> Tensor:
        """Attention over whole rows."""
        return self.c_proj(attend(*self._query_key_value(hidden_BTD), context))

    def make_state(self, batch_size: int, max_tokens: int) -> KeyValues:
        """Room for the keys and values of `max_tokens` tokens."""
        return KeyValues(batch_size, max_tokens)

    def step(self, hidden_BTD: Tensor, context: Context, state: KeyValues) -> Tensor:
        """Attention of the next tokens over all so far."""
        query_BHTE, key_BHTE, value_BHTE = self._query_key_value(hidden_BTD)
        key_BHSE, value_BHSE = state.append(key_BHTE, value_BHTE, context.start)
        return self.c_proj(attend(query_BHTE, key_BHSE, value_BHSE, context))

    def _query_key_value(self, hidden_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, D = hidden_BTD.shape
        # Parted along dimension 2 of what c_attn gives, the gradients are put together in one pass and in its layout.
        parts = self.c_attn(hidden_BTD).view(B, T, 3, self.num_heads, D // self.num_heads).unbind(2)
        query_BHTE, key_BHTE, value_BHTE = (part_BTHE.transpose(1, 2) for part_BTHE in parts)
        return query_BHTE, key_BHTE, value_BHTE


class GPT2MLP(nn.Module):
    """project(gelu(fc(x))), with the tanh form of GELU that GPT-2 uses, or the exact one."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.gelu: Callable[[Tensor], Tensor] = nn.functional.gelu if section.feed_forward == "gelu" else tanh_gelu
        self.c_fc = Conv1D(section.hidden_size, section.resolved_intermediate_size)
        self.c_proj = Conv1D(section.resolved_intermediate_size, section.hidden_size)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.c_proj(self.gelu(self.c_fc(hidden_BTD)))


class GPT2Block(Block):
    """One layer, with GPT-2's names."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__(section.dropout)
        self.ln_1 = nn.LayerNorm(section.hidden_size, eps=section.norm_eps)
        self.attn = GPT2Attention(section)
        self.ln_2 = nn.LayerNorm(section.hidden_size, eps=section.norm_eps)
        self.mlp = GPT2MLP(section)

    def parts(self) -> tuple[nn.Module, Mixer, nn.Module, nn.Module]:
        """Norm, mixer, norm, feed-forward."""
        return self.ln_1, self.attn, self.ln_2, self.mlp


class GPT2(Transformer):
    """State-dict names and layouts equal GPT2LMHeadModel's, so that weights load unchanged both ways."""

    residual_projections = ("c_proj",)
    growable = frozenset({"transformer.wpe.weight"})

    def __init__(self, section: ModelSection, vocab_size: int) -> None:
        super().__init__(section, vocab_size)
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(vocab_size, section.hidden_size)
        self.transformer.wpe = nn.Embedding(section.seq_length, section.hidden_size)
        self.transformer.h = nn.ModuleList(GPT2Block(section) for _ in range(section.num_layers))
        self.transformer.ln_f = nn.LayerNorm(section.hidden_size, eps=section.norm_eps)
        if section.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def blocks(self) -> Iterable[Block]:
        """The layers in order."""
        return cast(Iterable[Block], self.transformer.h)

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, before_BN: Tensor | None = None) -> Tensor:
        """Token embeddings plus position embeddings."""
        wte, wpe = cast(nn.Embedding, self.transformer.wte), cast(nn.Embedding, self.transformer.wpe)
        length = positions_BT.shape[1]
        assert length <= wpe.num_embeddings, f"rows of {length} tokens, but the model has {wpe.num_embeddings} positions"
        return wte(tokens_BT) + wpe(positions_BT)

    def rotary_tables(self, positions_BT: Tensor) -> None:
        """Positions are in the embedding."""
        return

    def last_norm(self, hidden_BTD: Tensor) -> Tensor:
        """The norm behind the last layer."""
        return cast(nn.LayerNorm, self.transformer.ln_f)(hidden_BTD)

    def extend_max_seq_len(self, positions: int, seed: int = 0) -> None:
        """Make room for `positions` positions: learned ones stay as they are, new ones start fresh from `seed`.

        The table becomes another parameter, so an optimizer is built after this. ValueError if it would shrink.
        """
        wpe = cast(nn.Embedding, self.transformer.wpe)
        known = wpe.num_embeddings
        if positions < known:
            raise ValueError(f"seq_length {positions} is shorter than the {known} learned positions: use at least {known}")
        fresh = torch.empty(positions, wpe.embedding_dim).normal_(
            0.0, INIT_STD, generator=torch.Generator().manual_seed(seed)
        )
        fresh = fresh.to(wpe.weight)
        fresh[:known] = wpe.weight.detach()
        self.transformer.wpe = nn.Embedding.from_pretrained(fresh, freeze=not wpe.weight.requires_grad)
        self.context_length = positions
