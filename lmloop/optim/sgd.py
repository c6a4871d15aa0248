"""Stochastic gradient descent with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class DecoupledSGD(torch.optim.SGD):
    """PyTorch's SGD with momentum, whose weights shrink by lr · `decay` apart from the gradient (arXiv 1711.05101).

    PyTorch's own `weight_decay` adds to the gradient and passes through the momentum; groups carry `decay` instead.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, foreach=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "gradients are computed before the step"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["decay"] and parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["decay"])  # pyright: ignore[reportPrivateImportUsage]
        super().step()
