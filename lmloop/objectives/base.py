"""What every objective offers to the loop."""

from __future__ import annotations

from typing import Protocol

from lmloop.models.base import LanguageModel
from lmloop.objectives.term import Term
from lmloop.tokens.batch import Batch


class Objective(Protocol):
    """Named terms of a loss, each a sum and what to divide it by."""

    def __call__(self, model: LanguageModel, batch: Batch) -> dict[str, Term]:
        """The terms on one micro-batch; `sum` carries the gradient."""
        ...

    def counts(self, batch: Batch) -> dict[str, float]:
        """The count of each term, known before the model has run: an update adds them up over its micro-batches first."""
        ...
