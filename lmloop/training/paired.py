"""Whether a model has become worse on held-out data: the same documents before and after, compared one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmloop.models.base import LanguageModel
from lmloop.processes import ALONE, Processes
from lmloop.tokens.batch import Batch
from lmloop.training.evaluate import HeldOut, each_batch

FEWEST = 8
"""Of fewer documents a standard error says little: then rows are compared, of which a long document has many."""


@dataclass(frozen=True)
class Losses:
    """Of each held-out document (or row): the sum of its tokens' losses in nats, and how many tokens that are."""

    nll_U: list[float]
    tokens_U: list[int]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return math.fsum(self.nll_U) / max(sum(self.tokens_U), 1)


@dataclass(frozen=True)
class Difference:
    """By how much the loss per token rose (nats), and the standard error of that."""

    mean: float
    error: float

    @property
    def is_worse(self) -> bool:
        """By more than two standard errors."""
        return self.mean > 2 * self.error


def difference(before: Losses, after: Losses) -> Difference:
    """`after` less `before`, on the same documents.

    The mean over all tokens is a ratio of two sums over documents, whose variance is (Cochran 1977, section 6.4)
    U / (U - 1) · Σ (d_u - r n_u)² / (Σ n_u)², with d_u what document u gained, n_u its tokens and r = Σ d_u / Σ n_u.
    """
    assert before.tokens_U == after.tokens_U, (len(before.tokens_U), len(after.tokens_U))
    tokens_U = np.asarray(before.tokens_U, np.float64)
    gained_U = np.asarray(after.nll_U, np.float64) - np.asarray(before.nll_U, np.float64)
    total, units = float(tokens_U.sum()), len(tokens_U)
    mean = float(gained_U.sum()) / max(total, 1.0)
    if units < 2:
        return Difference(mean, math.inf)
    spread = float(np.square(gained_U - mean * tokens_U).sum())
    return Difference(mean, math.sqrt(units / (units - 1) * spread) / total)


def losses(
    model: LanguageModel,
    data: HeldOut,
    device: torch.device,
    *,
    autocast: bool,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
) -> Losses | None:
    """The losses of each held-out document, or of each row where there are fewer than FEWEST documents; None when
    `should_stop` asked to leave it. Several processes deal the batches among them, and all get the same."""
    found = each_batch(model, data, device, _pieces, autocast=autocast, should_stop=should_stop, processes=processes)
    if found is None:
        return None
    by_document = len({piece.document for pieces in found for piece in pieces}) >= FEWEST
    sums: dict[object, tuple[float, int]] = {}
    for at, pieces in enumerate(found):
        for piece in pieces:
            unit = piece.document if by_document else (at, piece.row)
            nll, tokens = sums.get(unit, (0.0, 0))
            sums[unit] = nll + piece.nll, tokens + piece.tokens
    return Losses([nll for nll, _ in sums.values()], [tokens for _, tokens in sums.values()])


class _Piece(NamedTuple):
    """What a row has of a document: the sum of its tokens' losses, and their number."""

    row: int
    document: str
    nll: float
    tokens: int


def _pieces(batch: Batch, losses_BT: Tensor) -> list[_Piece]:
    nll_BT = losses_BT.float().cpu().double().numpy()  # MPS has no fp64
    trained_BT = batch.weights_BT.cpu().numpy() > 0
    segments_BT = np.zeros(nll_BT.shape, np.int64) if batch.segments_BT is None else batch.segments_BT.cpu().numpy()
    pieces: list[_Piece] = []
    for row, names in enumerate(batch.documents_B):
        for segment, name in enumerate(names):
            own_T = trained_BT[row] & (segments_BT[row] == segment)
            if own_T.any():
                pieces.append(_Piece(row, name, float(nll_BT[row][own_T].sum()), int(own_T.sum())))
    return pieces
