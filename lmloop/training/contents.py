"""What a checkpoint holds, and how the parts of a run take it up again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from lmloop.preset.compare import preset_hash, resolved
from lmloop.preset.schema import Preset
from lmloop.tokens.feed import TextFeed, merge_states
from lmloop.tokens.preface import PrefaceFeed
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.checkpoint import FORMAT
from lmloop.training.metrics import MetricsFile
from lmloop.training.parallel import Alone
from lmloop.training.rng import rng_state


@dataclass(frozen=True)
class Contents:
    """The parts of a run whose state is its checkpoint; the counters (`Progress`) come to it when it is saved."""

    preset: Preset
    tokenizer: Tokenizer
    feed: TextFeed | PrefaceFeed
    parallel: Alone
    optimizer: Optimizer
    metrics: MetricsFile
    samples: MetricsFile
    precision: str
    global_batch_size: int

    def capture(self) -> dict[str, Any]:
        """The state between two steps: tensors (or parts of them) and plain values only; of all ranks, on every rank.

        OSError if the line files cannot be synced.
        """
        processes, device = self.parallel.processes, self.parallel.device
        feeds, generators = processes.gather(self.feed.state_dict()), processes.gather(rng_state(device))
        base = self.parallel.model.base_identity
        self.metrics.sync()
        self.samples.sync()
        return {
            "format": FORMAT,
            **self.parallel.state(self.optimizer),
            **({} if base is None else {"base": base}),
            "rng": generators[0],
            "rng_of_others": generators[1:],
            "feed": merge_states(feeds),
            "global_batch_size": self.global_batch_size,
            "tokenizer": self.tokenizer.to_json(),
            "preset": resolved(self.preset),
            "preset_hash": preset_hash(self.preset),
            "precision": self.precision,
            "files": {"metrics": self.metrics.offset, "samples": self.samples.offset},
            "environment": {
                "torch": str(torch.__version__),
                "device": device.type,
                "threads": torch.get_num_threads(),
                "processes": processes.world,
                "parallel": self.preset.train.parallel,
            },
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put back weights and optimizer alone: a rollback goes on with the data that comes next."""
        self.parallel.put_weights(state and state["model"])
        self.parallel.put_moments(self.optimizer, state and state["optimizer"])
