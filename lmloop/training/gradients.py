"""The gradients of one update: forward and backward over its micro-batches, in pieces that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lmloop.objectives.term import total_loss
from lmloop.tokens.batch import Batch
from lmloop.training.intake import Intake
from lmloop.training.parallel import Alone
from lmloop.training.state import Progress

_SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfRoomError(RuntimeError):
    """Memory does not suffice, and nothing is left to halve. One line for people."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch raised it because memory was short: CUDA has a class for that, CPU and MPS have words."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in _SHORT_OF_MEMORY)


class Gradients:
    """Adds up the gradients of an update. `progress.tokens_at_a_time` bounds a piece; 0: micro-batches as they come.

    An update that runs out of memory is computed again in pieces of half the size, and so are all that follow. Each term is
    divided by its count over the whole update, so that pieces never change the gradient but for rounding.
    """

    def __init__(self, parallel: Alone, progress: Progress, notice: Callable[[str], None]) -> None:
        self.parallel = parallel
        self.progress = progress
        self.notice = notice

    def of(self, intake: Intake) -> Tensor:
        """Leave the gradients in the parameters; the loss of this rank's rows, a scalar.

        Raises:
            OutOfRoomError: one row alone does not fit, or one of several processes, which the others cannot wait for.
        """
        while True:
            try:
                return self._sum(intake)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).splitlines()[0]
            self._halve(intake.batches, problem)  # not before the error, which holds on to memory, is gone

    def _sum(self, intake: Intake) -> Tensor:
        parallel = self.parallel
        loss = torch.zeros((), device=parallel.device)
        pieces = list(self._pieces(intake.batches))
        for number, piece in enumerate(pieces, 1):
            batch = piece.to(parallel.device)
            with parallel.micro_batch(last=number == len(pieces)):
                with torch.autocast(parallel.device.type, torch.bfloat16, enabled=parallel.autocast):
                    terms = parallel.forward(batch)
                total = total_loss(terms, intake.counts)
                total.backward()
            loss += total.detach()
        return loss

    def _pieces(self, batches: list[Batch]) -> Iterator[Batch]:
        at_a_time = self.progress.tokens_at_a_time
        for batch in batches:
            rows, length = batch.tokens_BT.shape
            yield from batch.split(max(at_a_time // length, 1) if at_a_time else rows)

    def _halve(self, batches: list[Batch], problem: str) -> None:
        for parameter in self.parallel.model.parameters():
            parameter.grad = None
        if self.parallel.device.type == "cuda":
            torch.cuda.empty_cache()
        rows, length = max(
            (tuple(piece.tokens_BT.shape) for piece in self._pieces(batches)), key=lambda shape: shape[0] * shape[1]
        )
        if rows == 1 or self.parallel.processes.world > 1:
            remedy = "lower model.seq_length" if rows == 1 else "halve train.per_gpu_batch_size"
            remedy += ", or set train.activation_checkpointing"
            raise OutOfRoomError(f"out of memory, {rows} x {length} tokens: {remedy} ({problem})")
        self.progress.tokens_at_a_time = rows // 2 * length
        self.notice(f"out of memory, {rows} x {length} tokens: this update again and all others {rows // 2} rows at a time")
