"""peft's LoRA layers with a forward and backward pass of fewer steps. Names, formats and all else stay peft's.

peft computes y = W x + s · B (A (dropout x)) in separate steps: under autocast it widens x to the adapter's fp32, which is
narrowed again at once, then come two passes over y, and one more over the gradient of x. Here the products of A and B are
added to those of W in place.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import layer as dense
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmloop.models.adapters import ADAPTER

_CHANCES = 1 << 16
"""Dropout's rate is rounded to one of so many: four elements share a random number of 64 bits."""


def use_short_passes(network: nn.Module) -> None:
    """Have the LoRA layers of `network` take the short way wherever they are plain."""
    for module in network.modules():
        if type(module) is dense.Linear:
            module.__class__ = Linear


class Linear(dense.Linear):
    """peft's layer beside a `torch.nn.Linear`."""

    @property
    def is_plain(self) -> bool:
        """It computes W x + s · B (A x) and nothing besides."""
        return not (self.merged or self.disable_adapters or self.lora_variant or self.lora_bias[ADAPTER])

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """W x + s · B (A (dropout x)), [..., outputs]."""
        base = self.get_base_layer()
        plain = (
            type(base) is nn.Linear
            and self.is_plain
            and not (args or options)
            and not (base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad))
        )
        if not plain:
            return super().forward(x, *args, **options)
        down, up = (cast(nn.Linear, side[ADAPTER]).weight for side in (self.lora_A, self.lora_B))
        rate = getattr(self.lora_dropout[ADAPTER], "p", 0.0) if self.training else 0.0
        return cast(Tensor, _Product.apply(x, base.weight, base.bias, down, up, self.scaling[ADAPTER], rate))


class _Product(torch.autograd.Function):
    """y = x Wᵀ + b + s · (z Aᵀ) Bᵀ with z = dropout(x); gradients for x, A and B; products in autocast's dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, rate: float
    ) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            ctx.of_x, ctx.of_sides, ctx.shape = x.dtype, down.dtype, x.shape
            weight, down, up = weight.to(dtype), down.to(dtype), up.to(dtype)
            z_ND = x_ND = x.to(dtype).flatten(0, -2)
            kept_ND = None
            if rate > 0.0:
                kept_ND, share = _keep(x_ND, rate)
                z_ND = torch.where(kept_ND, x_ND, 0.0)
                scale = scale / share
            inner_NR = z_ND @ down.T
            y_NF = nn.functional.linear(x_ND, weight, None if bias is None else bias.to(dtype))
            y_NF.addmm_(inner_NR, up.T, alpha=scale)
        ctx.save_for_backward(z_ND, kept_ND, inner_NR, weight, down, up)
        ctx.scale = scale
        return y_NF.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        z_ND, kept_ND, inner_NR, weight, down, up = ctx.saved_tensors
        with torch.autocast(z_ND.device.type, enabled=False):
            gradient_NF = gradients[0].to(weight.dtype).flatten(0, -2)
            of_inner_NR = (gradient_NF @ up).mul_(ctx.scale)
            of_up = (gradient_NF.T @ inner_NR).to(ctx.of_sides).mul_(ctx.scale)
            of_down = (of_inner_NR.T @ z_ND).to(ctx.of_sides)
            of_x = None
            if ctx.needs_input_grad[0]:
                of_x_ND = gradient_NF @ weight
                if kept_ND is None:
                    of_x_ND.addmm_(of_inner_NR, down)
                else:
                    of_x_ND += torch.where(kept_ND, of_inner_NR @ down, 0.0)
                of_x = of_x_ND.to(ctx.of_x).view(ctx.shape)
        return of_x, None, None, of_down, of_up, None, None


def _keep(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """Which elements dropout keeps, bool, and the share that is kept; in a quarter of PyTorch's time on a CPU."""
    dropped = min(round(rate * _CHANCES), _CHANCES - 1)
    drawn = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[: like.numel()] >= dropped - _CHANCES // 2
    return kept.view(like.shape), 1.0 - dropped / _CHANCES
