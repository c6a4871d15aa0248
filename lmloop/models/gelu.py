"""GPT-2's GELU, which spends more than a tenth of a training step on a CPU when PyTorch's kernel computes it."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_SLOPE, _CUBE = 2 * math.sqrt(2 / math.pi), 0.044715
"""tanh's argument is _SLOPE / 2 · (x + _CUBE · x³) (arXiv 1606.08415)."""

_CHUNK = 2**18
"""Elements at a time, so that the fp32 values in between stay in the processor's cache."""


def tanh_gelu(x: Tensor) -> Tensor:
    """x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, same shape and dtype."""
    if x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, _TanhGelu.apply(x))
    return nn.functional.gelu(x, approximate="tanh")


class _TanhGelu(torch.autograd.Function):
    """x · σ(u) with u = √(8/π) (x + 0.044715 x³), which is the same since (1 + tanh z) / 2 = σ(2 z).

    Value and derivative, σ + x σ (1 − σ) u', share σ. The derivative is kept in place of x, so that the backward pass is
    one multiplication; PyTorch computes two hyperbolic tangents, each of which takes five times as long as a σ.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        value, derivative = torch.empty_like(x), torch.empty_like(x)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        one, slope = torch.ones((), dtype=dtype), torch.full((), _SLOPE, dtype=dtype)
        chunks = (whole.view(-1).split(_CHUNK) for whole in (x, value, derivative))
        buffers = torch.empty(3, min(_CHUNK, x.numel()), dtype=dtype)
        for x_part, value_part, derivative_part in zip(*chunks, strict=True):
            product, square, sigma = buffers[:, : len(x_part)]
            product.copy_(x_part)
            torch.mul(product, product, out=square)
            torch.add(slope, square, alpha=_SLOPE * _CUBE, out=sigma).mul_(product).sigmoid_()
            value_part.copy_(product.mul_(sigma))  # x σ
            torch.add(slope, square, alpha=3 * _SLOPE * _CUBE, out=square).mul_(product)  # x σ u'
            derivative_part.copy_(torch.lerp(sigma, one, square, out=square))  # σ + x σ u' (1 − σ)
        ctx.save_for_backward(derivative)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_outputs[0] * ctx.saved_tensors[0]
