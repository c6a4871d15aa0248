"""Muon's matrices dealt over the ranks: each works on its share of them, and the results go round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from lmloop.processes import Processes

Work = Callable[[Tensor], Tensor]
"""From matrices of one shape, [N, R, C], to as many of that shape; each by itself."""


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor that is held in parts; one that is whole as it is."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def on_whole(matrices: Sequence[Tensor], work: Work, processes: Processes) -> Tensor:
    """`work` on matrices [R, C] that every rank has alike: each rank does its share of them, and all get all, [N, R, C]."""
    if processes.world == 1:
        return work(torch.stack(list(matrices)))
    share = -(-len(matrices) // processes.world)
    mine = list(matrices[processes.rank * share : (processes.rank + 1) * share])
    done = work(torch.stack([*mine, *[torch.zeros_like(matrices[0])] * (share - len(mine))]))
    every = done.new_empty(processes.world * share, *done.shape[1:])
    with processes.explained():
        dist.all_gather_into_tensor(every, done.contiguous())
    return every[: len(matrices)]


def on_rows(matrices: Sequence[Tensor], rows: int, work: Work, processes: Processes) -> Tensor:
    """`work` on matrices of which each rank has some of the `rows`, dealt as `torch.chunk` deals them: these rows of the
    results. Whole they are only where they are worked on, each on one rank.
    """
    world, columns = processes.world, matrices[0].shape[1]
    share, height = -(-len(matrices) // world), -(-rows // world)
    parts = matrices[0].new_zeros(world * share, height, columns)
    parts[: len(matrices), : len(matrices[0])] = torch.stack(list(matrices))
    received = _swapped(parts.view(world, share, height, columns), processes)
    # Only the last ranks have fewer rows than `height`, so what fills them up is behind the rows.
    whole = received.transpose(0, 1).reshape(share, world * height, columns)
    whole[:, :rows] = work(whole[:, :rows])
    back = _swapped(whole.view(share, world, height, columns).transpose(0, 1), processes)
    return back.flatten(0, 1)[: len(matrices), : len(matrices[0])]


def _swapped(parts: Tensor, processes: Processes) -> Tensor:
    """Entry r of every rank's `parts`, on rank r."""
    received = torch.empty_like(parts, memory_format=torch.contiguous_format)
    with processes.explained():
        dist.all_to_all_single(received, parts.contiguous())
    return received
