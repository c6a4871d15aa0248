"""Attention of one new token for each row, on a CPU: keys and values in tables, read by weighted sums of their rows.

Why tables. PyTorch's batched products of one row with a matrix, and its attention kernel for one query, read keys and values
at a fifth to a third of the memory's speed; its weighted sum of rows of a table (`embedding_bag`) reads at the full speed,
and of 16-bit numbers half as many bytes. Mixing the values is such a sum, weighted by the probabilities. The scores are one
too once keys are stored by element: the sum of an element's row over all elements, weighted by the query.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
"""Tokens in a row of the keys' table: scores are computed for whole blocks, so that at most 31 of them are for nothing."""


class StepAttention:
    """Keys and values of all layers for up to `max_tokens` tokens. X is B · K, a row's key heads; G the queries of each.

    length: tokens that `mix` looks at, the newest included; set by `move_to`.
    """

    def __init__(self, layers: int, shape_BHKE: tuple[int, int, int, int], max_tokens: int, dtype: torch.dtype) -> None:
        B, H, K, E = self._shape = shape_BHKE
        X, self._blocks = B * K, -(-max_tokens // BLOCK)
        self.dtype, self.length = dtype, 0
        keys_LBKNEW = torch.zeros(layers, B, K, self._blocks, E, BLOCK, dtype=dtype)
        values_LBKSE = torch.empty(layers, B, K, max_tokens, E, dtype=dtype)
        self._keys, self._values = keys_LBKNEW.unbind(), values_LBKSE.unbind()
        self._key_tables = [keys.view(-1, BLOCK) for keys in self._keys]
        self._value_tables = [values.view(-1, E) for values in self._values]
        heads_X = torch.arange(X, dtype=torch.int32).repeat_interleave(H // K)[:, None]  # of each query
        self._element_rows = heads_X * self._blocks * E + torch.arange(self._blocks * E, dtype=torch.int32)
        self._token_rows = heads_X * max_tokens + torch.arange(max_tokens, dtype=torch.int32)
        self._used_blocks = 0

    def fill(self, layer: int, keys_BKSE: Tensor, values_BKSE: Tensor) -> None:
        """Store the first S tokens of a layer."""
        S = keys_BKSE.shape[2]
        for start in range(0, S, BLOCK):
            block_BKTE = keys_BKSE[:, :, start : start + BLOCK]
            self._keys[layer][:, :, start // BLOCK, :, : block_BKTE.shape[2]] = block_BKTE.mT
        self._values[layer][:, :, :S] = values_BKSE

    def move_to(self, length: int) -> None:
        """The next `mix` of each layer is for the token at `length` - 1."""
        B, H, _, E = self._shape
        self.length, newest = length, length - 1
        self._key_slots = [keys[:, :, newest // BLOCK, :, newest % BLOCK] for keys in self._keys]
        self._value_slots = [values[:, :, newest] for values in self._values]
        self._tokens = self._token_rows[:, :length].reshape(-1)
        self._token_bags = torch.arange(0, B * H * length, length, dtype=torch.int32)
        used = newest // BLOCK + 1
        if used != self._used_blocks:
            self._used_blocks = used
            self._elements = self._element_rows[:, : used * E].reshape(-1)
            self._element_bags = torch.arange(0, B * H * used * E, E, dtype=torch.int32)
            self._weights_BHNE = torch.empty(B, H, used, E, dtype=self.dtype)

    def mix(self, layer: int, query_BHE: Tensor, key_BKE: Tensor, value_BKE: Tensor, bias_BHS: Tensor | None) -> Tensor:
        """The newest token's mixture of values, [B, H, E]; its own key and value are stored first.

        query_BHE: scaled already. bias_BHS: added to the scores, [B, 1, S].
        """
        B, H, _, E = self._shape
        self._key_slots[layer].copy_(key_BKE)
        self._value_slots[layer].copy_(value_BKE)
        weights = self._weights_BHNE.copy_(query_BHE[:, :, None]).view(-1)
        scores = _weighted_sums(self._key_tables[layer], self._elements, self._element_bags, weights)
        scores_BHS = scores.view(B, H, -1)[:, :, : self.length]
        if bias_BHS is not None:
            scores_BHS = scores_BHS + bias_BHS
        weights = scores_BHS.softmax(-1).view(-1)
        return _weighted_sums(self._value_tables[layer], self._tokens, self._token_bags, weights).view(B, H, E)


def _weighted_sums(table: Tensor, rows: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    return torch.embedding_bag(table, rows, bags, False, 0, False, weights)[0]
