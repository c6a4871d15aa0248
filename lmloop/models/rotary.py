"""Rotary positions (arXiv 2104.09864), stretched by interpolation or YaRN when the context outgrows the trained one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lmloop.preset.schema import ModelSection

FAST_ROTATIONS, SLOW_ROTATIONS = 32, 1
"""YaRN's β and α for Llama-shaped models: turns within the trained context above which a frequency is kept, and below
which it is interpolated (arXiv 2309.00071, section 3.2)."""


class Rotary(nn.Module):
    """Cosines and sines for positions, shared by all layers."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        frequencies, self.amplitude = rotary_frequencies(
            head_dim=section.resolved_head_dim,
            theta=section.rope_theta,
            scaling=section.position_scaling,
            length=section.seq_length,
            original_length=section.original_seq_length or section.seq_length,
        )
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", frequencies, persistent=False)  # made from the preset, so not in checkpoints

    def forward(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [B, T, 1, E] each, of int64 positions [B, T]."""
        angles_BTE = (positions_BT[..., None].to(self.inv_freq.dtype) * self.inv_freq).repeat(1, 1, 2)
        angles_BT1E = angles_BTE[:, :, None]
        return angles_BT1E.cos() * self.amplitude, angles_BT1E.sin() * self.amplitude


def rotate(x_BTHE: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x_i, x_{i + E/2}) by the angle of its position and frequency; same shape."""
    cosine, sine = rotary
    first, second = x_BTHE.chunk(2, dim=-1)
    return x_BTHE * cosine + torch.cat((-second, first), dim=-1) * sine


def rotary_frequencies(
    *, head_dim: int, theta: float, scaling: str, length: int, original_length: int
) -> tuple[Tensor, float]:
    """Angle for one position of each of the E / 2 pairs, fp32, and the factor of all cosines and sines.

    With factor s = length / original_length (never below 1), `linear` divides every frequency by s (arXiv 2306.15595).
    `yarn` (arXiv 2309.00071) keeps frequencies that turn often within the trained context, divides those that turn less
    than once by s, blends in between, and makes cosines and sines 0.1 ln s + 1 times as large.
    """
    powers = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    frequencies = 1.0 / powers
    factor = max(1.0, length / original_length)
    if scaling == "none" or factor == 1.0:
        return frequencies, 1.0
    if scaling == "linear":
        return frequencies / factor, 1.0
    assert scaling == "yarn", scaling

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(original_length / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(FAST_ROTATIONS)), 0)
    high = min(math.ceil(pair_that_turns(SLOW_ROTATIONS)), head_dim - 1)
    steps = torch.arange(head_dim // 2, dtype=torch.float32)
    interpolated = ((steps - low) / (high - low if high != low else 0.001)).clamp(0, 1)  # 0: kept, 1: divided by s
    blended = interpolated / (factor * powers) + (1 - interpolated) * frequencies
    return blended, 0.1 * math.log(factor) + 1.0
