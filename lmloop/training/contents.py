"""What a checkpoint holds, and how the parts of a run take it up again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from lmloop.models.base import LanguageModel
from lmloop.models.loading import load_weights
from lmloop.preset.compare import preset_hash, resolved
from lmloop.preset.schema import Preset
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.checkpoint import FORMAT
from lmloop.training.metrics import MetricsFile
from lmloop.training.rng import rng_state


@dataclass(frozen=True)
class Contents:
    """The parts of a run whose state is its checkpoint; the counters (`Progress`) come to it when it is saved."""

    preset: Preset
    tokenizer: Tokenizer
    feed: TextFeed
    model: LanguageModel
    optimizer: Optimizer
    metrics: MetricsFile
    samples: MetricsFile
    device: torch.device
    precision: str

    def capture(self) -> dict[str, Any]:
        """The state between two steps: tensors and plain values only. OSError if the line files cannot be synced."""
        self.metrics.sync()
        self.samples.sync()
        return {
            "format": FORMAT,
            "model": on_cpu(self.model.state_dict(), {}),
            "optimizer": on_cpu(self.optimizer.state_dict(), {}),
            "rng": rng_state(self.device),
            "feed": self.feed.state_dict(),
            "tokenizer": self.tokenizer.to_json(),
            "preset": resolved(self.preset),
            "preset_hash": preset_hash(self.preset),
            "precision": self.precision,
            "files": {"metrics": self.metrics.offset, "samples": self.samples.offset},
            "environment": {
                "torch": str(torch.__version__),
                "device": self.device.type,
                "threads": torch.get_num_threads(),
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back weights and optimizer alone: a rollback goes on with the data that comes next."""
        load_weights(self.model, state["model"])
        load_optimizer(self.optimizer, state["optimizer"])


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
