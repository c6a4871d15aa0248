"""What may enter a checkpoint: finite weights, and nothing but tensors and plain values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_PLAIN = {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size}
_CONTAINERS = {dict, OrderedDict, list, tuple, set}


class NonFiniteError(ValueError):
    """The model or the optimizer holds NaN or infinity: such a state is never saved."""


def check_finite(state: dict[str, Any], step: int) -> None:
    """Raise NonFiniteError if a floating tensor under `model` or `optimizer` is not finite throughout."""
    verdicts = [
        (name, _is_finite(value))
        for part in ("model", "optimizer")
        for name, value in leaves(state.get(part), part)
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()) and value.numel()
    ]
    # The verdicts are read only now, so that an accelerator is waited for once and not for each tensor.
    bad = [name for name, finite in verdicts if not bool(finite)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFiniteError(f"step {step}: {bad[0]}{more} holds NaN or infinity: the state is not saved")


def check_plain(state: dict[str, Any]) -> None:
    """Assert that `state` can be read back with `weights_only=True`; a checkpoint that cannot is worth nothing.

    Types are compared exactly: a `numpy.float64` passes for a float, yet is refused on loading.
    """
    for name, value in leaves(state, "state"):
        assert isinstance(value, Tensor) or type(value) in _PLAIN, (
            f"{name} is a {type(value).__name__}: it could not be loaded"
        )


def tensor_bytes(state: dict[str, Any]) -> int:
    """Bytes of the tensors in `state`, each storage once: about what a checkpoint of it takes on disk."""
    storages = [value.untyped_storage() for _, value in leaves(state, "state") if isinstance(value, Tensor)]
    return sum({(str(s.device), s.data_ptr()): s.nbytes() for s in storages}.values())


def leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    """What `value` is made of below its dictionaries, lists, tuples and sets, each with its path."""
    if type(value) not in _CONTAINERS:
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(key, f"{name} (key {key!r})")
            yield from leaves(item, f"{name}.{key}")
    elif isinstance(value, list | tuple | set):
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}[{index}]")


def _is_finite(tensor: Tensor) -> Tensor:
    """A boolean tensor without dimensions.

    Least and greatest value carry NaN and infinity, and unlike a mask they need no memory of the tensor's size.
    """
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    if values.element_size() == 1:  # 8-bit floats have no comparison of their own
        values = values.float()
    least, greatest = torch.aminmax(values)
    return torch.isfinite(least) & torch.isfinite(greatest)
