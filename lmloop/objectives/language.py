"""Next-token prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from lmloop.models.base import LanguageModel
from lmloop.objectives.cross_entropy import chunk_rows, linear_cross_entropy, linear_nll
from lmloop.objectives.term import Term
from lmloop.tokens.batch import Batch


class LanguageObjective:
    """Cross-entropy of the next token in nats, over the targets that have a weight."""

    def __call__(self, model: LanguageModel, batch: Batch) -> dict[str, Term]:
        """`loss`: the weighted sum of the tokens' losses, and the sum of their weights."""
        hidden_BTD = model.hidden(batch.tokens_BT, batch.segments_BT)
        loss = linear_cross_entropy(
            hidden_BTD.flatten(0, 1),
            model.head_weight(),
            batch.targets_BT.flatten(),
            batch.weights_BT.flatten(),
            chunk_rows(model.vocab_size),
        )
        return {"loss": Term(loss, batch.weights_BT.sum())}

    def counts(self, batch: Batch) -> dict[str, float]:
        """The weights of a batch's targets, added up."""
        return {"loss": float(batch.weights_BT.sum())}

    @torch.no_grad()
    def token_losses(self, model: LanguageModel, batch: Batch) -> Tensor:
        """Loss of each target in nats, [B, T], whatever its weight; for evaluation, with the model in `eval` mode."""
        hidden_BTD = model.hidden(batch.tokens_BT, batch.segments_BT)
        nll_N = linear_nll(
            hidden_BTD.flatten(0, 1), model.head_weight(), batch.targets_BT.flatten(), chunk_rows(model.vocab_size)
        )
        return nll_N.view_as(batch.targets_BT)
