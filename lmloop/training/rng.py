"""The random number generators that training draws from."""

from __future__ import annotations

from typing import Any

import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of PyTorch's global generators: on the CPU, and on `device`. Nothing else in a run draws from a global one."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def seed_rank(seed: int, *, rank: int, step: int) -> None:
    """Fresh generators, other ones on each rank: each drops other units out. `step`: a rank that joins a run later."""
    torch.manual_seed((seed + rank + step * _STRIDE) % 2**63)


_STRIDE = 1_000_003
"""More than there are ranks, so that a later step's seed is no other rank's of an earlier one."""


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back; those of a device that is not there are left alone."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
