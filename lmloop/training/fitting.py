"""`per_gpu_batch_size: auto`: the most rows at a time that fit in memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lmloop.hardware import Machine, memory_in_use_bytes
from lmloop.objectives.base import Objective
from lmloop.tokens.batch import Batch
from lmloop.training.gradients import is_out_of_memory
from lmloop.training.rehearsal import rehearse

SHARE_OF_MEMORY = 0.8
"""What training may take of the memory that is there: the rest is for evaluation, samples, checkpoints and the system."""


def most_rows(
    at_most: int,
    trainee: nn.Module,
    objective: Objective,
    batch: Callable[[int], Batch],
    machine: Machine,
    *,
    autocast: bool,
) -> int:
    """The largest divisor of `at_most` (an update's rows) whose forward and backward fit in memory; 1 where nothing larger
    does. `batch` makes one of so many rows.

    Raises:
        RuntimeError: PyTorch's, where not even one row fits.
    """
    device = machine.torch_device

    def peak_bytes(rows: int) -> int:
        return rehearse(trainee, objective, batch(rows), device, autocast=autocast).memory_bytes

    room_bytes = int(SHARE_OF_MEMORY * machine.memory_bytes)
    return largest_divisor(at_most, peak_bytes, before_bytes=memory_in_use_bytes(device), room_bytes=room_bytes)


def largest_divisor(at_most: int, peak_bytes: Callable[[int], int], *, before_bytes: int, room_bytes: int) -> int:
    """The largest divisor of `at_most` that takes no more than `room_bytes`, or else 1.

    peak_bytes: tries a number, and gives the peak of memory since the program began or raises as PyTorch does when there is
    none left. before_bytes: the peak before. On a CPU no allocation fails (the kernel ends the process instead), so what a
    larger number takes is foreseen from the two before it, and not tried where that exceeds the room.
    """
    known = [(0, before_bytes), (1, peak_bytes(1))]
    for number in (number for number in range(2, at_most + 1) if at_most % number == 0):
        (fewer, less), (more, most) = known[-2:]
        foreseen = most + (most - less) / (more - fewer) * (number - more)
        if foreseen > room_bytes:
            break
        try:
            known.append((number, peak_bytes(number)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
    return known[-1][0]
