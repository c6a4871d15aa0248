"""States of model and optimizer on their way to a checkpoint and back."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


def on_cpu(value: Any, copies: dict[tuple[int, torch.Size], torch.Tensor]) -> Any:
    """A state with its tensors on the CPU, so that it loads on any machine; two names of one tensor stay that.

    `copies` takes note of what was copied, by address and shape.
    """
    if isinstance(value, torch.Tensor):
        if value.device.type == "cpu":
            return value
        key = (value.data_ptr(), value.shape)
        if key not in copies:
            copies[key] = value.detach().cpu()
        return copies[key]
    if isinstance(value, dict):
        return {key: on_cpu(item, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(item, copies) for item in value)
    return value


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments, but keep the preset's own rates and decays: PyTorch would put the saved ones in their place."""
    state_of_the_run = ("params", "lr")  # `lr` is what the schedule made of it for the last step
    settings = [
        {key: value for key, value in group.items() if key not in state_of_the_run} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
