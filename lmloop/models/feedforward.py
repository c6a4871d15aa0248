"""The decoder's feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lmloop.preset.schema import ModelSection


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), without biases (arXiv 2002.05202)."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        width = section.resolved_intermediate_size
        self.gate_proj = nn.Linear(section.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(section.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, section.hidden_size, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden_BTD)) * self.up_proj(hidden_BTD))


class SquaredReLU(nn.Module):
    """down(relu(up(x))²), without biases (arXiv 2109.08668): a third fewer products than SwiGLU at the same width."""

    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        width = section.resolved_intermediate_size
        self.up_proj = nn.Linear(section.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, section.hidden_size, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.down_proj(nn.functional.relu(self.up_proj(hidden_BTD)).square())


FEED_FORWARDS: dict[str, Callable[[ModelSection], nn.Module]] = {"swiglu": SwiGLU, "relu2": SquaredReLU}
"""What `model.feed_forward` can name."""
