"""A stack of blocks between an embedding and a head: what the decoder and the GPT-2-shaped model have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmloop.models.base import LanguageModel
from lmloop.models.cache import Cache
from lmloop.models.mixer import Context, Mixer
from lmloop.preset.schema import ModelSection
from lmloop.tokens.batch import positions_in_segments

INIT_STD = 0.02
"""Standard deviation of fresh weights (GPT-2's)."""


class Dropout(nn.Module):
    """Dropout that costs nothing where it is off."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x, or while training with a rate above 0, x with elements dropped and the rest scaled up."""
        return nn.functional.dropout(x, self.rate) if self.training and self.rate > 0 else x


class Block(nn.Module, ABC):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)). The two architectures differ in parts and in their names."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)

    @abstractmethod
    def parts(self) -> tuple[nn.Module, Mixer, nn.Module, nn.Module]:
        """Norm, mixer, norm, feed-forward."""

    def forward(self, hidden_BTD: Tensor, context: Context, state: object = None) -> Tensor:
        """[B, T, D] to [B, T, D]; with a mixer's `state`, the next T tokens of each row."""
        mixer_norm, mixer, feed_forward_norm, feed_forward = self.parts()
        normed_BTD = mixer_norm(hidden_BTD)
        mixed_BTD = mixer(normed_BTD, context) if state is None else mixer.step(normed_BTD, context, state)
        hidden_BTD = hidden_BTD + self.dropout(mixed_BTD)
        return hidden_BTD + self.dropout(feed_forward(feed_forward_norm(hidden_BTD)))


class Transformer(LanguageModel):
    """Runs the blocks, in training and in decoding. An architecture says what its blocks, positions and names are."""

    residual_projections: ClassVar[tuple[str, ...]]
    """Names of the linear layers that write into the residual stream; they start smaller."""

    tokens_before: int = 0
    """How many earlier tokens of the document the embedding of a position depends on."""

    def __init__(self, section: ModelSection, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.context_length = section.seq_length
        self.lm_head = nn.Linear(section.hidden_size, vocab_size, bias=False)
        self.dropout = Dropout(section.dropout)

    @abstractmethod
    def blocks(self) -> Iterable[Block]:
        """The blocks in order."""

    @abstractmethod
    def embed(self, tokens_BT: Tensor, positions_BT: Tensor, before_BN: Tensor | None = None) -> Tensor:
        """What enters the first block, [B, T, D]. before_BN: the `tokens_before` tokens before these, if there are any."""

    @abstractmethod
    def rotary_tables(self, positions_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines for the mixers; None where positions are in the embedding."""

    @abstractmethod
    def last_norm(self, hidden_BTD: Tensor) -> Tensor:
        """The norm behind the last block."""

    def head_weight(self) -> Tensor:
        """[V, D]; the token embedding's own matrix when tied."""
        return self.lm_head.weight

    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, [B, T, D]; packed documents (`segments_BT`) do not see each other."""
        T = tokens_BT.shape[1]
        if segments_BT is None:
            positions_BT = torch.arange(T, device=tokens_BT.device)[None]
            mask_BHTS = None
        else:
            positions_BT = positions_in_segments(segments_BT)
            same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
            mask_BHTS = same_BTS.tril()[:, None]
        context = Context(positions_BT, self.rotary_tables(positions_BT), mask_BHTS)
        hidden_BTD = self.dropout(self.embed(tokens_BT, positions_BT))
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks():
            if recompute:
                hidden_BTD = checkpoint(block, hidden_BTD, context, use_reentrant=False, preserve_rng_state=True)
            else:
                hidden_BTD = block(hidden_BTD, context)
        return self.last_norm(hidden_BTD)

    def make_cache(self, batch_size: int, max_tokens: int) -> Cache:
        """An empty cache for `batch_size` rows of up to `max_tokens` tokens, padding included."""
        states = [block.parts()[1].make_state(batch_size, max_tokens) for block in self.blocks()]
        return Cache(states, batch_size, max_tokens, self.lm_head.weight.device, tokens_before=self.tokens_before)

    def decode(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        """Append T tokens to the cache; their hidden states after the last norm, [B, T, D]."""
        T = tokens_BT.shape[1]
        positions_BT = cache.positions(T)
        context = Context(
            positions_BT,
            self.rotary_tables(positions_BT),
            cache.mask(T),
            causal=cache.length == 0,
            start=cache.length,
        )
        hidden_BTD = self.dropout(self.embed(tokens_BT, positions_BT, cache.before(tokens_BT)))
        for block, state in zip(self.blocks(), cache.states, strict=True):
            hidden_BTD = block(hidden_BTD, context, state)
        cache.length += T
        return self.last_norm(hidden_BTD)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights: normal with deviation 0.02, layers that write into the residual stream 0.02 / sqrt(2 · blocks).

        The smaller ones keep the residual stream's variance independent of depth (GPT-2's rule); biases start at 0,
        norms at 1. A tied matrix is drawn once.
        """
        residual_std = INIT_STD / math.sqrt(2 * len(list(self.blocks())))
        drawn: set[int] = set()
        for name, module in self.named_modules():
            for kind, parameter in module.named_parameters(recurse=False):
                if id(parameter) in drawn:
                    continue
                drawn.add(id(parameter))
                if parameter.dim() >= 2:
                    residual = name.rpartition(".")[2] in self.residual_projections
                    parameter.normal_(0.0, residual_std if residual else INIT_STD, generator=generator)
                else:
                    parameter.fill_(0.0 if kind == "bias" else 1.0)
