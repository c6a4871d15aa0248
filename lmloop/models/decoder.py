"""The dense decoder, shaped and named like transformers' Qwen3ForCausalLM: RMSNorm, rotary positions, QK-norm, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from torch import Tensor, nn

from lmloop.models.attention import Attention
from lmloop.models.feedforward import FEED_FORWARDS
from lmloop.models.mixer import Mixer
from lmloop.models.ngrams import NgramTables
from lmloop.models.norm import RMSNorm
from lmloop.models.rotary import Rotary
from lmloop.models.transformer import Block, Transformer
from lmloop.preset.schema import ModelSection

MIXERS: dict[str, Callable[[ModelSection], Mixer]] = {"attention": Attention}
"""What can mix positions in a block."""


class DecoderBlock(Block):
    """One layer, with Qwen3's names."""

    def __init__(self, section: ModelSection, mixer: str) -> None:
        super().__init__(section.dropout)
        self.self_attn = MIXERS[mixer](section)
        self.mlp = FEED_FORWARDS[section.feed_forward](section)
        self.input_layernorm = RMSNorm(section.hidden_size, section.norm_eps)
        self.post_attention_layernorm = RMSNorm(section.hidden_size, section.norm_eps)

    def parts(self) -> tuple[nn.Module, Mixer, nn.Module, nn.Module]:
        """Norm, mixer, norm, feed-forward."""
        return self.input_layernorm, self.self_attn, self.post_attention_layernorm, self.mlp


class Decoder(Transformer):
    """State-dict names equal Qwen3ForCausalLM's, so that weights load unchanged both ways."""

    residual_projections = ("o_proj", "down_proj")

    def __init__(self, section: ModelSection, vocab_size: int) -> None:
        super().__init__(section, vocab_size)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocab_size, section.hidden_size)
        self.model.layers = nn.ModuleList(DecoderBlock(section, "attention") for _ in range(section.num_layers))
        self.model.norm = RMSNorm(section.hidden_size, section.norm_eps)
        self.rotary = Rotary(section)
        if section.ngram_tables:
            self.model.ngrams = NgramTables(section.ngram_tables, vocab_size, section.hidden_size)
            self.tokens_before = self.model.ngrams.tokens_before
        if section.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def blocks(self) -> Iterable[Block]:
        """The layers in order."""
        return cast(Iterable[Block], self.model.layers)

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, before_BN: Tensor | None = None) -> Tensor:
        """Token embeddings, and those of n-grams if there are any; positions come in through the rotary tables."""
        embedded_BTD = cast(nn.Embedding, self.model.embed_tokens)(tokens_BT)
        if not self.tokens_before:
            return embedded_BTD
        return embedded_BTD + cast(NgramTables, self.model.ngrams)(tokens_BT, positions_BT, before_BN)

    def rotary_tables(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [B or 1, T, 1, E] each."""
        return self.rotary(positions_BT)

    def last_norm(self, hidden_BTD: Tensor) -> Tensor:
        """The norm behind the last layer."""
        return cast(RMSNorm, self.model.norm)(hidden_BTD)
