"""The worst batch, run before training: what will not fit fails now and not after an hour, and the speed is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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


def rehearse(trainee: nn.Module, objective: Objective, batch: Batch, device: torch.device, *, autocast: bool) -> Rehearsal:
    """Forward and backward on `batch`, after once to warm up. Weights, gradients and random numbers are as before."""
    batch = batch.to(device)
    saved = rng_state(device)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        _add_gradients(trainee, objective, [batch], device, autocast=autocast)
        _forget_gradients(trainee)
        seconds = _until_done(device) - started
    memory_bytes = memory_in_use_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # what comes after is to be seen by itself
    set_rng_state(saved, device)
    return Rehearsal(batch.trained_tokens / seconds, memory_bytes)


@dataclass(frozen=True)
class Pace:
    """How fast a model is trained: of one update the seconds, the trained tokens and the positions, padding included.

    extra_s: how much longer the first update took, in which a compiled model is compiled.
    """

    seconds: float
    tokens: float
    positions: float
    extra_s: float


def time_updates(
    trainee: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    next_step: Callable[[], list[Batch]],
    device: torch.device,
    *,
    autocast: bool,
    at_least_s: float,
) -> Pace:
    """Whole updates, for a model that is thrown away: one to warm up, then more until `at_least_s` is over.

    next_step: the micro-batches of the next one, as a feed gives them; waiting for them counts.
    """
    started = time.perf_counter()
    began, seconds, updates, tokens, positions = started, 0.0, -1, 0, 0
    while updates < 1 or seconds < at_least_s:
        batches = next_step() or next_step()  # [] once, where an epoch ends
        _add_gradients(trainee, objective, batches, device, autocast=autocast)
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        _forget_gradients(trainee)
        now = _until_done(device)
        updates += 1
        if updates == 0:  # that was to warm up
            began = now
            continue
        seconds = now - began
        tokens += sum(batch.trained_tokens for batch in batches)
        positions += sum(batch.tokens_BT.numel() for batch in batches)
    extra_s = max(began - started - seconds / updates, 0.0)
    return Pace(seconds / updates, tokens / updates, positions / updates, extra_s)


def _add_gradients(
    trainee: nn.Module, objective: Objective, batches: Sequence[Batch], device: torch.device, *, autocast: bool
) -> None:
    counts = [objective.counts(batch) for batch in batches]
    together = {name: sum(count[name] for count in counts) for name in counts[0]}
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            terms = trainee(batch.to(device))
        total_loss(terms, together).backward()


def _forget_gradients(trainee: nn.Module) -> None:
    for parameter in trainee.parameters():
        parameter.grad = None


def _until_done(device: torch.device) -> float:
    """The time when the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
