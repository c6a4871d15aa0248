"""What a format is: what it can carry, how it is written and read back, and which program reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lmloop.export.bundle import Bundle
from lmloop.export.consult import Consumer

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
"""Types of numbers that every format has, by the names of `--quantize`."""

TORCH_NAMES = {kind: str(dtype).removeprefix("torch.") for kind, dtype in DTYPES.items()}
"""As configurations call them."""

BF16_NOISE = 0.05
"""Of `Exporter.tolerance`, where the model itself computes in bf16: two such computations differ by about a fifth of it."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it stands in what was written: in fp32, by the bundle's name and in the bundle's layout.

    slack: how far each number may be from the bundle's, from the type it is stored in; same shape.
    """

    name: str
    tensor: Tensor
    slack: Tensor


class Exporter(ABC):
    """One format. `kinds` are the types of numbers it can be asked for."""

    kinds: ClassVar[tuple[str, ...]]
    consumer: ClassVar[Consumer]

    @abstractmethod
    def refusal(self, bundle: Bundle, kind: str) -> str | None:
        """Why this model cannot be carried, in one line; None: it can."""

    def notes(self, bundle: Bundle, kind: str) -> list[str]:
        """What is carried in part, a line each."""
        context = self.context_tokens(bundle)
        if context == bundle.context_tokens:
            return []
        return [f"its context is {context:,} tokens there, of {bundle.context_tokens:,}: the sliding window is not carried"]

    def context_tokens(self, bundle: Bundle) -> int:
        """The longest text that the reader computes as the model does."""
        return bundle.context_tokens

    def same_tokens(self, bundle: Bundle, texts: Sequence[str]) -> list[str]:
        """Those of `texts` of which the reader is to make the same tokens; why not of the others is in `notes`."""
        return list(texts)

    @abstractmethod
    def write(self, bundle: Bundle, kind: str, folder: Path) -> None:
        """Write the model into an empty folder. OSError; ValueError where its numbers do not fit `kind`."""

    @abstractmethod
    def stored(self, bundle: Bundle, folder: Path) -> Iterator[Stored]:
        """What was written, each of the bundle's tensors once."""

    @abstractmethod
    def tolerance(self, bundle: Bundle, kind: str) -> float:
        """How far the reader's logits may be from the model's under the same weights: root of the mean squared difference,
        as a share of the logits' standard deviation. About five times what was measured on trained and on random models."""


def natural_kind(bundle: Bundle) -> str:
    """The type of the model's own numbers, fp32 where they have several: with it nothing is rounded."""
    types = {tensor.dtype for tensor in bundle.weights.values()}
    return next((kind for kind, dtype in DTYPES.items() if types == {dtype}), "f32")


def rounded(name: str, tensor: Tensor, kind: str) -> Tensor:
    """A tensor in one of `DTYPES`, contiguous. ValueError where a number is too large for it."""
    result = tensor.to(DTYPES[kind]).contiguous()
    if not bool(result.isfinite().all()):
        require_finite(name, tensor)
        raise ValueError(f"{name} has numbers beyond the range of {kind}: use --quantize bf16 or f32")
    return result


def require_finite(name: str, tensor: Tensor) -> None:
    """ValueError where a weight is not a number."""
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} is not finite: export an older checkpoint (--checkpoint best)")


def rounding_slack(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """How far a number may be from `tensor`'s, fp32, where those were rounded to the nearest in `dtype`; 0 for fp32."""
    if dtype == torch.float32:
        return torch.zeros_like(tensor)
    limits = torch.finfo(dtype)
    return tensor.abs() * limits.eps / 2 * (1 + limits.eps) + limits.smallest_normal * limits.eps
