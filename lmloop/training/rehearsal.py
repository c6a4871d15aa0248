"""The worst batch, run before training: what will not fit fails now and not after an hour, and the speed is known."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lmloop.hardware import memory_in_use_bytes
from lmloop.objectives.base import Objective
from lmloop.objectives.term import total_loss
from lmloop.tokens.batch import Batch
from lmloop.training.gradients import is_out_of_memory
from lmloop.training.rng import rng_state, set_rng_state


@dataclass(frozen=True)
class Rehearsal:
    """What the worst batch took."""

    tokens_per_s: float
    memory_bytes: int


def worst_batch(rows: int, length: int, vocab_size: int, *, packed: bool, seed: int = 0) -> Batch:
    """Full rows of random tokens, every target trained; `packed` rows hold two documents and need the attention mask."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(vocab_size, (rows, length), generator=generator)
    segments_BT = None
    if packed and length > 1:
        segments_BT = (torch.arange(length) >= length // 2).int().expand(rows, length).contiguous()
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=tokens_BT.roll(-1, dims=1),
        weights_BT=torch.ones(rows, length),
        segments_BT=segments_BT,
        source_B=torch.zeros(rows, dtype=torch.int64),
        documents_B=((),) * rows,
    )


def too_large(error: RuntimeError, rows: int, length: int) -> Exception:
    """What to raise for an error of the rehearsal: in words where memory was short, the error itself where it was not."""
    if not is_out_of_memory(error):
        return error
    return ValueError(
        f"train.per_gpu_batch_size {rows}: a batch of rows of {length} tokens does not fit in memory: "
        f"halve it and double train.accumulation_steps ({str(error).splitlines()[0]})"
    )


def rehearse(
    trainee: nn.Module,
    objective: Objective,
    batch: Batch,
    device: torch.device,
    *,
    autocast: bool,
    optimizer: Optimizer | None = None,
    accumulation_steps: int = 1,
    at_least_s: float = 0.0,
) -> Rehearsal:
    """Forward and backward on `batch`, after one such pass to warm up; repeated until `at_least_s` is over.

    With an optimizer whole updates are made, of `accumulation_steps` passes each: for a model that is thrown away.
    Without one, weights, gradients and random numbers are as before.
    """
    batch = batch.to(device)
    saved = rng_state(device)
    counts = objective.counts(batch)

    def update() -> None:
        for _ in range(accumulation_steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                terms = trainee(batch)
            total_loss(terms, counts).backward()
        if optimizer is not None:
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            optimizer.step()
        for parameter in trainee.parameters():
            parameter.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    update()
    started, updates = time.perf_counter(), 0
    while not updates or time.perf_counter() - started < at_least_s:
        update()
        updates += 1
    seconds = time.perf_counter() - started
    memory_bytes = memory_in_use_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # what comes after is to be seen by itself
    set_rng_state(saved, device)
    return Rehearsal(updates * accumulation_steps * batch.trained_tokens / seconds, memory_bytes)
