"""Model and objective as one module."""

from __future__ import annotations

from torch import nn

from lmloop.models.base import LanguageModel
from lmloop.objectives.base import Objective
from lmloop.objectives.term import Term
from lmloop.tokens.batch import Batch


class Trainee(nn.Module):
    """Model and objective as one module, so that a wrapper around it sees every use of every parameter."""

    def __init__(self, model: LanguageModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> dict[str, Term]:
        """Named terms of the loss on one micro-batch."""
        return self.objective(self.model, batch)
