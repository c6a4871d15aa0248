"""What a model remembers while it decodes: one state for each mixer, and how far the rows have come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Cache:
    """The states of all mixers, and which of the cached tokens are padding.

    pad_B: number of padding tokens at the left of each row, int64 [B]; set before the first tokens come.
    length: tokens appended so far, padding included. It can be set back to forget the newest tokens where every mixer's
    state is addressed by position, as attention's is.
    """

    def __init__(
        self, states: Sequence[Any], batch_size: int, max_tokens: int, device: torch.device, *, tokens_before: int = 0
    ) -> None:
        """tokens_before: how many earlier tokens `before` gives; 0 keeps none."""
        self.states = states
        self.max_tokens = max_tokens
        self.length = 0
        self._padded = False
        self.pad_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._tokens_before = tokens_before
        self._tokens_BS = self.pad_B.new_zeros(batch_size, tokens_before + max_tokens if tokens_before else 0)

    def before(self, tokens_BT: Tensor) -> Tensor | None:
        """The `tokens_before` tokens before these, which are the next ones, int64 [B, N]; takes note of these."""
        N, T = self._tokens_before, tokens_BT.shape[1]
        if N == 0:
            return None
        assert self.length + T <= self.max_tokens, f"{self.length} + {T} tokens do not fit into a cache of {self.max_tokens}"
        self._tokens_BS[:, N + self.length : N + self.length + T] = tokens_BT
        return self._tokens_BS[:, self.length : self.length + N]

    def positions(self, length: int) -> Tensor:
        """Positions of the next `length` tokens, int64 [B, T], or [1, T] when no row is padded; padding has position 0."""
        if self.length == 0:
            self._padded = bool(self.pad_B.any())  # kept, because asking a GPU at each token would stall it
        index_T = torch.arange(self.length, self.length + length, device=self.pad_B.device)
        if not self._padded:
            return index_T[None]
        return (index_T - self.pad_B[:, None]).clamp_min(0)

    def visible(self, length: int) -> Tensor | None:
        """Which of the cached tokens and the next `length` are no padding, bool [B, S]; None: all of them.

        Asked before `positions` and `mask`, or after them, for the same tokens.
        """
        if self.length == 0:
            self._padded = bool(self.pad_B.any())
        if not self._padded:
            return None
        return torch.arange(self.length + length, device=self.pad_B.device) >= self.pad_B[:, None]

    def mask(self, length: int) -> Tensor | None:
        """Which of the cached tokens and themselves the next `length` tokens see, bool [B or 1, 1, T, S].

        None where nothing needs to be hidden beyond plain causal order: a first chunk without padding, or a single token.
        """
        if not self._padded and (self.length == 0 or length == 1):
            return None
        key_S = torch.arange(self.length + length, device=self.pad_B.device)
        query_T1 = key_S[self.length :, None]
        mask_BTS = (key_S <= query_T1)[None]
        if self._padded:
            # Padding sees itself: a softmax over nothing would be NaN.
            mask_BTS = (mask_BTS & (key_S >= self.pad_B[:, None, None])) | (key_S == query_T1)
        return mask_BTS[:, None]
