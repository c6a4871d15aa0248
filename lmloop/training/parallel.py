"""How a model is spread over the processes of a run: not at all, whole on each (DDP), or in parts (FSDP2).

What the loop, evaluation, samples and checkpoints need to know of it is here, so that they are the same for all three.
Gradients come out averaged over the ranks; the loop divides its sums by the mean count of a rank, which makes them the
gradients of all rows together.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lmloop.models.base import LanguageModel
from lmloop.models.transformer import Block
from lmloop.objectives.base import Objective
from lmloop.processes import Processes
from lmloop.training.shards import Part
from lmloop.training.states import load_optimizer, on_cpu
from lmloop.training.trainee import Trainee

Build = Callable[[], LanguageModel]
"""Makes the model with fresh weights, which are the same on every rank."""
Fill = Callable[[LanguageModel], None]
"""Puts a checkpoint's weights into it; only the first rank has them."""


class Alone:
    """One process: the model as it is.

    forward: what a training step calls. trainee, model: what is inside of it. autocast: whether a step is to run under it.
    """

    forward: nn.Module

    def __init__(
        self, build: Build, fill: Fill, objective: Objective, *, processes: Processes, device: torch.device, bf16: bool
    ) -> None:
        self.processes = processes
        self.device = device
        self.autocast = bf16
        self.model = self._make(build, fill)
        self.trainee = Trainee(self.model, objective)
        self.forward = self.trainee

    def _make(self, build: Build, fill: Fill) -> LanguageModel:
        model = build()
        if self.processes.first:
            fill(model)
        return model.to(self.device)

    @staticmethod
    def parts(processes: Processes) -> int:
        """In how many parts weights, gradients and moments are held."""
        return 1

    def compile(self) -> None:
        """Compile what a step calls, from the next one on."""
        self.forward = torch.compile(self.forward)  # type: ignore[assignment]

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch, of which the `last` one of an update completes the gradients."""
        return nullcontext()

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients down to a global norm of `limit`; the norm before that, the same on every rank."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def in_use(self) -> AbstractContextManager[None]:
        """Around uses of `model` that do not go through `forward`: evaluation and samples."""
        return nullcontext()

    # ---- what a checkpoint holds ----

    def state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of model and optimizer on the CPU, on the ranks that write it."""
        weights = {name: tensor.detach() for name, tensor in self.model.trainable_state_dict().items()}
        return {"model": on_cpu(weights, {}), "optimizer": on_cpu(optimizer.state_dict(), {})}

    def put_weights(self, weights: dict[str, Tensor] | None) -> None:
        """Put back weights that this very model had; the first rank has them."""
        own = self.model.state_dict(keep_vars=True)
        with torch.no_grad():
            self.processes.broadcast(weights, lambda path, whole: self._assign(own[path[0]], whole))

    def put_moments(self, optimizer: Optimizer, state: dict[str, Any] | None) -> None:
        """Take over the optimizer's state; the first rank has it."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def part(path: tuple[Any, ...], whole: Tensor) -> Tensor:
            like = parameters[path[1]] if path[0] == "state" else whole
            return self._part(like, whole) if like.shape == whole.shape else whole

        load_optimizer(optimizer, self.processes.broadcast(state, part))

    def _assign(self, own: Tensor, whole: Tensor) -> None:
        own[: len(whole)].copy_(self._part(own, whole))  # learned positions may have become more

    def _part(self, like: Tensor, whole: Tensor) -> Tensor:
        """This rank's part of a tensor."""
        return whole


class Replicated(Alone):
    """The model whole on each rank (DistributedDataParallel): gradients are averaged while the backward pass goes on."""

    def __init__(self, build: Build, fill: Fill, objective: Objective, **named: Any) -> None:
        super().__init__(build, fill, objective, **named)
        # This also hands the first rank's weights to the others. Buffers are made from the preset and never change.
        ddp = nn.parallel.DistributedDataParallel
        sync = "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(ddp).parameters else "broadcast_buffers"
        options: dict[str, Any] = {"gradient_as_bucket_view": True, sync: False}
        self.wrapped = ddp(self.trainee, **options)
        self.forward = self.wrapped

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients travel once an update."""
        return nullcontext() if last else cast(AbstractContextManager[None], self.wrapped.no_sync())

    def state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The first rank writes what all of them have."""
        return super().state(optimizer) if self.processes.first else {}


class Sharded(Alone):
    """Each rank holds a part of every parameter, gradient and moment (FSDP2), and gathers a block's while it runs.

    With bf16 the gathered parameters are bf16 and gradients are added up in fp32, in place of autocast.
    """

    def __init__(self, build: Build, fill: Fill, objective: Objective, *, bf16: bool, **named: Any) -> None:
        self._bf16 = bf16
        super().__init__(build, fill, objective, bf16=False, **named)
        self._shard()

    @staticmethod
    def parts(processes: Processes) -> int:
        """One on each rank."""
        return processes.world

    def _make(self, build: Build, fill: Fill) -> LanguageModel:
        """Without weights: only the first rank makes them whole, on its CPU, and each takes its part of them afterwards."""
        self._source: dict[str, Tensor] | None = None
        if self.processes.first:
            whole = build()
            fill(whole)
            self._source = {**whole.state_dict(), **dict(whole.named_buffers())}
        with torch.device("meta"):
            return build()

    def _shard(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(self.device.type, (self.processes.world,))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if self._bf16 else MixedPrecisionPolicy()
        for block in self._blocks():
            fully_shard(block, mesh=mesh, mp_policy=policy)
        self.sharded = fully_shard(self.trainee, mesh=mesh, mp_policy=policy)
        self.trainee.to_empty(device=self.device)
        own = {**self.model.state_dict(keep_vars=True), **dict(self.model.named_buffers())}
        with torch.no_grad():
            self.processes.broadcast(self._source, lambda path, whole: self._assign(own[path[0]], whole))
        self._source = None

    def _blocks(self) -> list[Block]:
        return [module for module in self.model.modules() if isinstance(module, Block)]

    def compile(self) -> None:
        """Block by block: between them parameters come and go."""
        for block in self._blocks():
            block.compile()

    def clip(self, limit: float) -> Tensor:
        """The norm is that of all parts together."""
        return _whole(super().clip(limit))

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """What belongs to no block (embedding, head) is whole inside."""
        self.sharded.unshard()
        try:
            yield
        finally:
            self.sharded.reshard()

    def state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Every rank writes its part."""
        parts: dict[int, Part] = {}
        return {
            "model": _parted(self.model.state_dict(keep_vars=True), parts),
            "optimizer": _parted(optimizer.state_dict(), parts),
        }

    def _assign(self, own: Tensor, whole: Tensor) -> None:
        own.copy_(self._part(own, whole))

    def _part(self, like: Tensor, whole: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return whole
        whole = whole.to(like.device)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _whole(tensor: Tensor) -> Tensor:
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _parted(value: Any, parts: dict[int, Part]) -> Any:
    """A state with the parts of its tensors on the CPU; a tensor that has two names is one part."""
    if isinstance(value, Tensor):
        if not hasattr(value, "to_local"):
            return value.detach().cpu()
        if id(value) not in parts:
            parts[id(value)] = Part(cast(Any, value).to_local().detach().cpu(), tuple(value.shape))
        return parts[id(value)]
    if isinstance(value, dict):
        return {key: _parted(item, parts) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_parted(item, parts) for item in value)
    return value


PARALLEL: dict[str, type[Alone]] = {"ddp": Replicated, "fsdp": Sharded}
"""What `train.parallel` can name."""


def spread(kind: str, processes: Processes) -> type[Alone]:
    """How a run of so many processes holds its model."""
    return Alone if processes.world == 1 else PARALLEL[kind]
