"""`python -m benchmarks.memory`: the peak of a training step beside what must be held, with and without recomputing.

What must be held: weights, gradients and AdamW's two moments (fp32), and the smallest activations. These are one chunk of
logits (32 MB, see objectives/cross_entropy.py) and what autograd keeps of the blocks, counted by hooks on the tensors
that it saves: of all blocks; with recomputing (`train.activation_checkpointing`) what enters each block, and the inside of
one. The peak is that of a process which makes two updates, less what it took when everything was imported. Beside it stands
what the logits of the whole batch would take alone, in fp32: they are never there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._dynamo  # what the first optimizer imports is not to be taken for the step's
from rich.console import Console
from rich.table import Table

from lmloop.hardware import memory_in_use_bytes, pick_precision, this_machine, use_machine
from lmloop.models.build import build_model
from lmloop.objectives.cross_entropy import chunk_rows
from lmloop.objectives.language import LanguageObjective
from lmloop.optim.build import build_optimizer
from lmloop.preset.schema import ModelSection, TrainSection
from lmloop.tokens.batch import Batch
from lmloop.training.figures import size
from lmloop.training.rehearsal import time_updates, worst_batch
from lmloop.training.trainee import Trainee


@dataclass(frozen=True)
class Shape:
    """A model, and the batch that it is trained on. Heads have 64 numbers, embeddings are tied."""

    hidden_size: int
    layers: int
    vocab_size: int
    rows: int
    length: int
    recomputes: bool = False

    @property
    def logits(self) -> int:
        """Bytes of all logits of the batch."""
        return 4 * self.rows * self.length * self.vocab_size


SHAPES = {
    "6 layers, 384 wide": Shape(384, 6, 4_096, 16, 512),
    "12 layers, 512 wide": Shape(512, 12, 8_192, 8, 512),
    "4 layers, 256 wide, 65,536 tokens": Shape(256, 4, 65_536, 16, 512),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", help=argparse.SUPPRESS)  # a shape as JSON: measured in this process
    options = parser.parse_args()
    if options.of:
        print(json.dumps(measure(Shape(**json.loads(options.of)))))
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    columns = ("model", "batch", "recomputes", "weights, gradients, moments", "activations", "sum", "peak", "peak / sum")
    for column in (*columns, "logits of the batch"):
        table.add_column(column)
    progress = Console(stderr=True)
    for name, plain in SHAPES.items():
        for shape in (plain, Shape(**{**asdict(plain), "recomputes": True})):
            progress.print(f"{name}{', recomputing' if shape.recomputes else ''}")
            command = [sys.executable, "-m", "benchmarks.memory", "--of", json.dumps(asdict(shape))]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            total = found["held"] + found["activations"]
            table.add_row(
                name,
                f"{shape.rows} x {shape.length}",
                "yes" if shape.recomputes else "no",
                *(size(value) for value in (found["held"], found["activations"], total, found["peak"])),
                f"{found['peak'] / total:.2f}",
                size(shape.logits),
            )
    console = Console()
    console.print(f"{this_machine().describe()}, {pick_precision('auto', this_machine())}; PyTorch {torch.__version__}")
    console.print(table)
    return 0


def measure(shape: Shape) -> dict[str, int]:
    """In bytes: what is `held` between steps and while gradients are there, the smallest `activations`, and the `peak`."""
    machine = this_machine()
    use_machine(machine, None)
    device, autocast = machine.torch_device, pick_precision("auto", machine) == "bf16"
    before = memory_in_use_bytes(device)
    section = ModelSection(
        hidden_size=shape.hidden_size,
        num_layers=shape.layers,
        num_heads=shape.hidden_size // 64,
        seq_length=shape.length,
    )
    model = build_model(section, shape.vocab_size, seed=0).to(device)
    model.activation_checkpointing = shape.recomputes
    objective = LanguageObjective()
    trainee = Trainee(model, objective)
    batch = worst_batch(shape.rows, shape.length, shape.vocab_size, packed=False)
    optimizer = build_optimizer(model, TrainSection())
    time_updates(trainee, objective, optimizer, lambda: [batch], device, autocast=autocast, at_least_s=0.0)
    peak = memory_in_use_bytes(device) - before
    held = 16 * sum(parameter.numel() for parameter in model.parameters())
    kept = kept_by_autograd(trainee, batch, device, autocast=autocast)
    inputs = 4 * shape.rows * shape.length * shape.hidden_size * shape.layers
    blocks = inputs + kept // shape.layers if shape.recomputes else kept
    return {"held": held, "activations": blocks + 4 * chunk_rows(shape.vocab_size) * shape.vocab_size, "peak": peak}


def kept_by_autograd(trainee: Trainee, batch: Batch, device: torch.device, *, autocast: bool) -> int:
    """Bytes that the blocks' forward pass leaves for the backward pass, without recomputing; parameters are not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainee.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    trainee.model.activation_checkpointing = False
    batch = batch.to(device)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast), hooks:
        hidden_BTD = trainee.model.hidden(batch.tokens_BT, batch.segments_BT)
    assert hidden_BTD.requires_grad, "nothing was kept"
    return sum(kept.values())


if __name__ == "__main__":
    sys.exit(main())
