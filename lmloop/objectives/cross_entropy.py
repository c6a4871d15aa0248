"""Cross-entropy straight from hidden states: the logits of a chunk at a time, never those of the whole batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LOGITS_BYTES = 2**25
"""Memory that the fp32 logits of one chunk may take."""

SMALLEST_CHUNK, LARGEST_CHUNK = 64, 2_048

ROWS_STEP = 64
"""A chunk is filled up to a multiple of so many positions: where the number of trained ones varies, as in conversations,
oneDNN would compile and keep the products of every number there is, half a megabyte and more of each."""


def chunk_rows(vocab_size: int) -> int:
    """Positions of one chunk: as many as keep its fp32 logits within 32 MB, from 64 to 2,048."""
    return max(SMALLEST_CHUNK, min(LARGEST_CHUNK, LOGITS_BYTES // (4 * vocab_size)))


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor, chunk: int) -> Tensor:
    """Σ_n weights_n · −log softmax(weight_VD hidden_n)[targets_n], a scalar in fp32 (fp64 for fp64 input).

    `chunk` positions at a time; positions of weight 0 cost nothing. Gradients for hidden states and weight are made in
    the same pass as the loss, so that no logits are kept or computed twice. Under autocast the products run in its
    dtype; softmax, sum and the weight's gradient are fp32. No gradient flows into `weights_N`; there is no second
    derivative.
    """
    assert hidden_ND.dim() == 2, tuple(hidden_ND.shape)
    assert targets_N.shape == weights_N.shape == hidden_ND.shape[:1], (targets_N.shape, weights_N.shape, hidden_ND.shape)
    arguments = (hidden_ND, weight_VD, targets_N, weights_N.detach(), chunk, torch.is_grad_enabled())
    return cast(Tensor, _LinearCrossEntropy.apply(*arguments))


@torch.no_grad()
def linear_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
    """−log softmax(weight_VD hidden_n)[targets_n] for each position, [N], without gradient, `chunk` positions at a time."""
    dtype = _product_dtype(hidden_ND, weight_VD)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        weight_VD = weight_VD.to(dtype)
        parts = [
            _nll(_logits(h.to(dtype), weight_VD), t)
            for h, t in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
        ]
    return torch.cat(parts)


def _product_dtype(hidden_ND: Tensor, weight_VD: Tensor) -> torch.dtype:
    """What matrix products are computed in: autocast's dtype where it is on."""
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and weight_VD.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight_VD.dtype


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    logits_CV = hidden_CD @ weight_VD.T
    return logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()


def _nll(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    return -torch.log_softmax(logits_CV, dim=-1).gather(1, targets_C[:, None])[:, 0]


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of the sum is known once a chunk's softmax is: d/dlogits = weight · (softmax − one-hot)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor, chunk: int, grad: bool
    ) -> Tensor:
        dtype = _product_dtype(hidden_ND, weight_VD)
        sum_dtype = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32
        hidden_grad = torch.zeros_like(hidden_ND) if grad and ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight_VD, dtype=sum_dtype) if grad and ctx.needs_input_grad[1] else None
        total = hidden_ND.new_zeros((), dtype=sum_dtype)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            product_weight_VD = weight_VD.to(dtype)
            for index in weights_N.nonzero()[:, 0].split(chunk):
                filling = min(-len(index) % ROWS_STEP, chunk - len(index))  # positions of weight 0
                hidden_CD = nn.functional.pad(hidden_ND[index].to(dtype), (0, 0, 0, filling))
                targets_C = nn.functional.pad(targets_N[index], (0, filling))
                weights_C = nn.functional.pad(weights_N[index].to(sum_dtype), (0, filling))
                # One fused kernel; a separate logsumexp, difference and exponential take twice its time on a CPU.
                log_probabilities_CV = torch.log_softmax(_logits(hidden_CD, product_weight_VD), dim=-1)
                picked_C = log_probabilities_CV.gather(1, targets_C[:, None])[:, 0]
                total -= (picked_C * weights_C).sum()
                if hidden_grad is None and weight_grad is None:
                    continue
                gradient_CV = log_probabilities_CV.exp_()  # softmax, in the same memory
                gradient_CV.scatter_add_(1, targets_C[:, None], gradient_CV.new_full((len(targets_C), 1), -1.0))
                gradient_CV = gradient_CV.mul_(weights_C[:, None]).to(dtype)
                if hidden_grad is not None:
                    hidden_grad[index] = (gradient_CV @ product_weight_VD)[: len(index)].to(hidden_grad.dtype)
                if weight_grad is not None:
                    if dtype == weight_grad.dtype:
                        weight_grad.addmm_(gradient_CV.T, hidden_CD)
                    else:
                        weight_grad += gradient_CV.T @ hidden_CD
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = grad_outputs[0]
        scaled = [None if g is None else g * scale.to(g.dtype) for g in ctx.saved_tensors]
        return (*scaled, None, None, None, None)
