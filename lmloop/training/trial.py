"""The trial before training: how many rows go at a time, and what the worst batch of the run takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lmloop.hardware import Machine
from lmloop.preset.schema import TrainSection
from lmloop.processes import Processes
from lmloop.training.fitting import most_rows
from lmloop.training.parts import Parts
from lmloop.training.rehearsal import Rehearsal, rehearse, too_large, worst_batch
from lmloop.training.state import Progress


def try_worst_batch(
    parts: Parts,
    section: TrainSection,
    *,
    length: int,
    machine: Machine,
    processes: Processes,
    progress: Progress,
    notice: Callable[[str], None],
) -> Rehearsal:
    """Run the worst batch: rows of `length` tokens, as many as go at a time; with `per_gpu_batch_size` "auto" find out how
    many these are, and note it in `progress`. All ranks call it.

    Raises:
        ValueError: it does not fit in memory.
    """
    contents = parts.contents
    parallel = contents.parallel
    at_most = -(-contents.global_batch_size // processes.world)
    rows = min(section.rows_at_once(auto=at_most), at_most)
    batch = partial(worst_batch, length=length, vocab_size=contents.tokenizer.vocab_size, packed=parts.packed)
    try:
        if section.per_gpu_batch_size == "auto" and not progress.tokens_at_a_time:
            share = machine.share(processes.local_world)
            fit = most_rows(at_most, parallel.trainee, parts.objective, batch, share, autocast=parallel.autocast)
            rows = int(min(numbers[0] for numbers in processes.exchange([fit])))
            progress.tokens_at_a_time = rows * length
            notice(f"train.per_gpu_batch_size auto: {rows} of an update's {at_most} rows at a time")
        elif progress.tokens_at_a_time:
            rows = min(rows, max(progress.tokens_at_a_time // length, 1))
        return rehearse(parallel.forward, parts.objective, batch(rows), parallel.device, autocast=parallel.autocast)
    except RuntimeError as error:
        raise too_large(error, rows, length) from None
