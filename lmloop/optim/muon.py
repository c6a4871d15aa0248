"""Muon: momentum whose matrices are orthogonalised before they are applied, many matrices of one shape at once.

Jordan and others, "Muon: An optimizer for hidden layers in neural networks" (2024, kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lmloop.optim.together import local, on_rows, on_whole
from lmloop.processes import ALONE, Processes

NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a·s + b·s³ + c·s⁵ (the source's): steepest at 0, so that small singular values rise in few steps; it
leaves all of them between about 0.7 and 1.2 rather than at 1, which does no harm."""


def orthogonalise(matrices_NRC: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices (U Vᵀ of the singular value decomposition), roughly, [N, R, C].

    Newton–Schulz iteration in bf16, which is precise enough for a direction (fp64 stays fp64); zeros stay zeros.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrices_NRC if matrices_NRC.dtype == torch.float64 else matrices_NRC.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:  # x xᵀ is then the smaller product
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # singular values at most 1, where the iteration converges
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def update_scale(outputs: int, inputs: int) -> float:
    """Factor of an update by shape, sqrt(max(1, outputs / inputs)): one learning rate serves all shapes (same source)."""
    return max(1.0, outputs / inputs) ** 0.5


class Muon(Optimizer):
    """For matrices only. Groups with `transposed` hold matrices that are stored input by output (see `update_scale`).

    Nesterov momentum as a moving average, m ← μ m + (1 − μ) g and update (1 − μ) g + μ m; decoupled weight decay. Of several
    processes each orthogonalises its share of the matrices.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        processes: Processes = ALONE,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "transposed": False}
        super().__init__(groups, defaults)
        self._processes = processes
        for group in self.param_groups:
            for p in group["params"]:
                assert p.dim() == 2, f"Muon is for matrices, not for a tensor of shape {tuple(p.shape)}"

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            by_shape: dict[Any, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape, p.device, p.dtype].append(p)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        buffers = []
        for p in parameters:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(local(state["momentum_buffer"]))
        rows, columns = parameters[0].shape
        scale = update_scale(columns, rows) if group["transposed"] else update_scale(rows, columns)
        in_parts = local(parameters[0]) is not parameters[0]
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        weights = [local(p) for p in parameters]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        nesterov = torch._foreach_lerp(grads, buffers, momentum)  # pyright: ignore[reportPrivateImportUsage]
        if in_parts:
            updates_NRC = on_rows([n.bfloat16() for n in nesterov], rows, orthogonalise, self._processes)
        else:
            updates_NRC = on_whole(nesterov, orthogonalise, self._processes)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
        updates = list(updates_NRC.to(weights[0].dtype).unbind(0))
        torch._foreach_add_(weights, updates, alpha=-lr * scale)  # pyright: ignore[reportPrivateImportUsage]
