"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (arXiv 1910.07467), in the precision of its weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x, same shape; bf16 from autocast is widened to the weight's dtype first."""
        return nn.functional.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)
