"""One term of a loss: a sum and what to divide it by, so that accumulation and ranks never change the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """Part of a loss over one micro-batch.

    sum: scalar with gradient. count: what the sum is divided by once it is added up over all micro-batches and ranks,
    for example the trained tokens; no gradient. coefficient: its weight in the loss.
    """

    sum: Tensor
    count: Tensor | float
    coefficient: float = 1.0


def total_loss(terms: Mapping[str, Term], counts: Mapping[str, Tensor | float]) -> Tensor:
    """Σ coefficient · sum / count with the counts of the whole update, by name: what a micro-batch calls backward on.

    Added up over the micro-batches of an update this is the large batch's loss, however unequal the micro-batches are.
    """
    assert terms, "an objective returns at least one term"
    parts = [term.coefficient * term.sum / counts[name] for name, term in terms.items()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
