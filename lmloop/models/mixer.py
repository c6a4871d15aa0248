"""The seam of whatever mixes information across positions: softmax attention, or another behind the same calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Context:
    """What all blocks of one forward pass share, computed once for the batch.

    positions_BT: int64 [B or 1, T], counted from the start of each document.
    rotary: cosines and sines of the positions, [B or 1, T, 1, E] each; None for models with learned positions.
    mask_BHTS: bool [B or 1, 1, T, S], True where query t may see key s; None: nothing is hidden beyond `causal`.
    causal: query t sees no key behind t, and T = S. Holds beside a mask too.
    start: number of tokens before the first of this pass, in the mixer's state.
    """

    positions_BT: Tensor
    rotary: tuple[Tensor, Tensor] | None
    mask_BHTS: Tensor | None
    causal: bool = True
    start: int = 0
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    def additive_mask(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as something to add to scores, made once: 0, and minus infinity where a key is hidden."""
        if self.mask_BHTS is not None and dtype not in self._biases:
            zeros = torch.zeros_like(self.mask_BHTS, dtype=dtype)
            self._biases[dtype] = zeros.masked_fill_(~self.mask_BHTS, float("-inf"))
        return self._biases.get(dtype)


class Mixer(nn.Module, ABC):
    """Mixes positions causally: `step` after `step` over pieces of a row gives what `forward` gives for the whole row."""

    @abstractmethod
    def forward(self, hidden_BTD: Tensor, context: Context) -> Tensor:
        """Whole rows, for training: [B, T, D] to [B, T, D]."""

    @abstractmethod
    def make_state(self, batch_size: int, max_tokens: int) -> Any:
        """An empty state for `batch_size` rows of up to `max_tokens` tokens."""

    @abstractmethod
    def step(self, hidden_BTD: Tensor, context: Context, state: Any) -> Tensor:
        """The next T tokens of each row: [B, T, D] to [B, T, D]; changes `state`."""
