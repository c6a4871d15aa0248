"""The processes that train one model together, one for each device, and what they say to one another.

`torchrun` starts them and says in the environment which is which. Numbers, flags and small objects travel on the CPU
(gloo); gradients on the devices (NCCL on CUDA). A single process needs none of this: it is `ALONE`, where every method
returns what it was given and no process group exists.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, rendezvous  # pyright: ignore[reportPrivateImportUsage]

from lmloop.heartbeat import Heartbeat

T = TypeVar("T")

LONGEST_WORK_S = 3_600.0
"""How long a process that gives signs of life may work while others wait for it: a save, a source that answers late."""

_SHOW_CURSOR = "\x1b[?25h"


class RankLostError(RuntimeError):
    """Another process of the run has ended or does not answer, so this one cannot go on. One line for people."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is: of all (`rank`, `world`), and of those on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """The one that speaks with the user and writes the files."""
        return self.rank == 0


def find_place() -> Place:
    """What the launcher says; the only process where there is none."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(os.environ.get(name, "").isdecimal() for name in names):
        return Place()
    return Place(*(int(os.environ[name]) for name in names))


def launched() -> bool:
    """A launcher started this process: signals may come from it as well as from the user."""
    return "TORCHELASTIC_RUN_ID" in os.environ or find_place().world > 1


class Notes:
    """Words that processes leave for one another in the launcher's store, before and after they can talk."""

    def __init__(self, place: Place) -> None:
        """Connect. RuntimeError where the launcher's store does not answer."""
        self.place = place
        self.store = _connect()

    def leave(self, key: str, text: str) -> None:
        """Write; nothing where the launcher is gone."""
        with contextlib.suppress(RuntimeError):
            self.store.set(key, text)

    def explain(self, why: str) -> None:
        """Tell the others why this process ends: whoever waits for it finds the reason here."""
        self.leave("reason", why if self.place.first else f"rank {self.place.rank}: {why}")

    def read(self, key: str, *, wait_s: float | None = None) -> str | None:
        """What was left, at the latest after `wait_s` (None: for ever); None if nothing was. RuntimeError: no launcher."""
        ends = None if wait_s is None else time.monotonic() + wait_s
        while not self.store.check([key]):  # and not `wait`, which no signal could interrupt
            if ends is not None and time.monotonic() >= ends:
                return None
            time.sleep(0.05)
        return self.store.get(key).decode()


def _connect() -> Store:
    store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=60))))
    return PrefixStore(f"lmloop/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class Processes:
    """The processes of a run. Every method but the properties is called by all of them, in the same order.

    RankLostError: one of them has ended.
    """

    def __init__(self, place: Place = Place()) -> None:
        self.rank, self.world = place.rank, place.world
        self.local_rank, self.local_world = place.local_rank, place.local_world
        self._room = 64
        self._notes: Notes | None = None
        self._heartbeat: Heartbeat | None = None

    @property
    def first(self) -> bool:
        """This process speaks with the user and writes the files."""
        return self.rank == 0

    # ---- beginning and end ----

    @staticmethod
    def start(notes: Notes, *, cuda: bool, limit_s: float) -> Processes:
        """Find the others. `limit_s`: how long one of them may give no sign of life before this process ends itself."""
        place = notes.place
        processes = Processes(place)
        processes._notes = notes
        try:
            store = _connect()  # another one: whoever waits in `notes` blocks it
            processes._heartbeat = Heartbeat(
                store,
                rank=place.rank,
                world=place.world,
                limit_s=limit_s,
                lost=lambda rank: _leave(store, f"rank {rank} has given no sign of life for {limit_s:g} s: {_GOES_ON}"),
            )
            processes._heartbeat.start()
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=PrefixStore("group", notes.store),
                rank=place.rank,
                world_size=place.world,
                timeout=timedelta(seconds=LONGEST_WORK_S),
            )
        except RuntimeError as error:
            raise RankLostError(f"the processes did not find one another in {limit_s:g} s: {_first_line(error)}") from error
        return processes

    def close(self) -> None:
        """Leave together, after the last word; not after an error, when others may not come."""
        if self.world == 1:
            return
        with contextlib.suppress(RuntimeError):  # a process that left first has taken its connections with it
            self.exchange([])
        if self._heartbeat is not None:
            self._heartbeat.stop()
        dist.destroy_process_group()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of a connection that is gone, also out of PyTorch's own calls, into RankLostError with the reason."""
        try:
            yield
        except RankLostError:
            raise
        except RuntimeError as error:
            if self.world == 1 or not any(word in str(error) for word in ("gloo", "NCCL", "onnection")):
                raise
            raise RankLostError(self._reason()) from error

    def _reason(self) -> str:
        """What a process that ended left as its reason."""
        reason = None
        if self._notes is not None:
            with contextlib.suppress(RuntimeError):
                reason = self._notes.read("reason", wait_s=0.5)
        return reason or f"another process of this run has ended (killed, or its machine is gone): {_GOES_ON}"

    # ---- talk ----

    def exchange(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, in the order of the ranks; each may give another count. Whole ones are exact to 2⁵³."""
        if self.world == 1:
            return [list(numbers)]
        while True:
            mine = torch.zeros(1 + self._room, dtype=torch.float64)
            given = [len(numbers), *numbers[: self._room]]
            mine[: len(given)] = torch.tensor(given, dtype=torch.float64)
            every = [torch.empty_like(mine) for _ in range(self.world)]
            with self.explained():
                dist.all_gather(every, mine)
            counts = [int(one[0]) for one in every]
            if max(counts) <= self._room:
                return [one[1 : 1 + count].tolist() for one, count in zip(every, counts, strict=True)]
            self._room = 2 * max(counts)  # on every rank alike

    def any(self, flag: bool) -> bool:
        """Whether one of the ranks says yes."""
        return flag if self.world == 1 else any(numbers[0] for numbers in self.exchange([float(flag)]))

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, in place."""
        if self.world > 1:
            with self.explained():
                dist.all_reduce(tensor)
            tensor /= self.world
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.world == 1:
            return [value]
        every: list[Any] = [None] * self.world
        with self.explained():
            dist.all_gather_object(every, value)
        return every

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` returns on the first rank, on every rank. An error of it leaves the first rank and ends the others."""
        return self.broadcast(work() if self.first else None)

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns on this rank, once it is done on all.

        Raises:
            OSError, ValueError: of `work` here, or an OSError that says on which other rank it failed.
        """
        problem: OSError | ValueError | None = None
        result = None
        try:
            result = work()
        except (OSError, ValueError) as error:
            problem = error
        said = self.gather("" if problem is None else str(problem) or type(problem).__name__)
        if problem is not None:
            raise problem
        for rank, text in enumerate(said):
            if text:
                raise OSError(f"rank {rank}: {text}")
        return cast(T, result)

    def broadcast(self, value: Any, take: Callable[[tuple[Any, ...], Tensor], Any] | None = None) -> Any:
        """The first rank's value, on every rank; what the others give is ignored.

        Tensors in dictionaries and lists travel one by one on the CPU, and each rank keeps of one what `take` makes of its
        path and itself: so a rank never needs room for more than it keeps and one tensor.
        """
        if self.world == 1:
            return value if take is None else _taken(value, take, ())
        take = take or (lambda path, tensor: tensor)
        outline: list[Any] = [_outline(value) if self.first else None]
        with self.explained():
            dist.broadcast_object_list(outline)
            return _taken(outline[0], lambda path, blank: take(path, self._send(blank, value, path)), ())

    def _send(self, blank: Any, value: Any, path: tuple[Any, ...]) -> Tensor:
        if self.first:
            for key in path:
                value = value[key]
            tensor = value.detach().cpu().contiguous()
        else:
            tensor = torch.empty(blank.shape, dtype=blank.dtype)
        if tensor.numel():
            dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0)
        return tensor


ALONE = Processes()
"""The only process."""

_GOES_ON = "the last checkpoint is whole, and the same command goes on from there"


@dataclass(frozen=True)
class _Blank:
    """Stands for a tensor that is sent by itself."""

    shape: torch.Size
    dtype: torch.dtype


def _outline(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Blank(value.shape, value.dtype)
    if isinstance(value, dict):
        return {key: _outline(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_outline(item) for item in value)
    return value


def _taken(value: Any, take: Callable[[tuple[Any, ...], Any], Any], path: tuple[Any, ...]) -> Any:
    """`value` with its tensors (or what stands for them) replaced by what `take` makes of them."""
    if isinstance(value, Tensor | _Blank):
        return take(path, value)
    if isinstance(value, dict):
        return {key: _taken(item, take, (*path, key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_taken(item, take, (*path, index)) for index, item in enumerate(value))
    return value


def _leave(store: Store, why: str) -> None:
    """End this process at once, from whatever it waits in; one of those that are left says why."""
    with contextlib.suppress(RuntimeError, OSError):
        if store.add("said", 1) == 1:
            os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}\nlmloop: {why}\n".encode())
    os._exit(1)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
