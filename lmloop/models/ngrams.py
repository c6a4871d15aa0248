"""Embeddings of the last tokens together: what a first layer would have to compute, looked up instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lmloop.preset.schema import NgramTable

_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
"""2⁶⁴ over the golden ratio as a signed number: it spreads keys evenly (Knuth, The Art of Computer Programming 3, 6.4)."""


class NgramTables(nn.Module):
    """For each table the vector of the n tokens that end at a position, added up and widened with zeros to the model's.

    An n-gram has a row of its own where the table has room for all, else the row that its hash says, which it shares. Tokens
    before the document's first are a token of their own. Parameters without arithmetic: on a small vocabulary they replace
    whole layers (`docs/benchmarks.md`).
    """

    def __init__(self, tables: Sequence[NgramTable], vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.orders = [table.n for table in tables]
        self.symbols = vocab_size + 1
        self.hidden_size = hidden_size
        self.tables = nn.ModuleList(
            nn.Embedding(min(table.rows, self.symbols**table.n), min(table.width, hidden_size)) for table in tables
        )

    @property
    def tokens_before(self) -> int:
        """How many tokens before a position its vector depends on."""
        return max(self.orders) - 1

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, before_BN: Tensor | None) -> Tensor:
        """Vectors of the positions, [B, T, D].

        positions_BT: of each token in its document, [B or 1, T]: what lies before position 0 is not looked at.
        before_BN: the N = `tokens_before` tokens before the first; None where that begins a document.
        """
        N, T = self.tokens_before, tokens_BT.shape[1]
        if before_BN is None:
            before_BN = tokens_BT.new_zeros(tokens_BT.shape[0], N)
        all_BS = torch.cat([before_BN, tokens_BT], dim=1)
        total_BTD: Tensor | None = None
        for order, module in zip(self.orders, self.tables, strict=True):
            key_BT = tokens_BT
            for back in range(1, order):
                earlier_BT = all_BS[:, N - back : N - back + T]
                key_BT = key_BT * self.symbols + torch.where(positions_BT >= back, earlier_BT, self.symbols - 1)
            table = cast(nn.Embedding, module)
            if table.num_embeddings < self.symbols**order:
                key_BT = ((key_BT * _MULTIPLIER) >> 24) % table.num_embeddings
            vector_BTE = nn.functional.pad(table(key_BT), (0, self.hidden_size - table.embedding_dim))
            total_BTD = vector_BTE if total_BTD is None else total_BTD + vector_BTE
        assert total_BTD is not None, "no tables"
        return total_BTD
