"""What goes wrong in one of the processes: functions to be made `partial`, called in each with its rank."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lmloop.run
import lmloop.training.gradients
from lmloop import durable
from lmloop.data.source import SourceError
from tests import strikes

Fault = Callable[[int], None]
"""Called in each process with its rank before it begins."""


def act(what: str) -> None:
    """Do it to this process: a signal by its name, an error, or time that passes."""
    if what == "raise":
        raise ArithmeticError("made to fail")
    if what == "unreadable":
        raise SourceError("source 'corpus': made unreadable")
    if what == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if what == "slow":
        time.sleep(4.0)
    elif what == "impatient":  # a launcher's signal follows the user's
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
    else:
        os.kill(os.getpid(), signal.Signals[what])
        if what == "SIGSTOP":
            time.sleep(0.5)  # it arrives when it arrives


def in_step(rank: int, *, on: int, at: int, what: str) -> None:
    """In the middle of the `at`-th update on rank `on`."""
    if rank == on:
        strikes.before(lmloop.training.gradients, "total_loss", strikes.at_call(at, partial(act, what)))()


def in_data(rank: int, *, on: int, at: int, what: str) -> None:
    """When rank `on` asks for the rows of its `at`-th update."""
    if rank == on:
        strikes.waiting_for_data(at, partial(act, what))()


def in_evaluation(rank: int, *, on: int, at: int, what: str) -> None:
    """Before the `at`-th batch that rank `on` evaluates."""
    if rank == on:
        strikes.in_evaluation(at, partial(act, what))()


def in_save(rank: int, *, on: int, at: int, what: str) -> None:
    """Before the `at`-th operation of rank `on` on a file of a checkpoint."""
    if rank != on:
        return
    strike = strikes.at_call(at, partial(act, what))

    def hook(operation: str, path: Path) -> None:
        if "lm_" in path.name or path.name.startswith("rank-"):
            strike()

    durable.before_operation = hook


def before_the_run(rank: int, *, on: int, what: str) -> None:
    """While rank `on` sets up."""
    if rank == on:
        strikes.before(lmloop.run, "open_together", partial(act, what))()


def not_finite(rank: int, *, on: int, first: int, last: int) -> None:
    """Losses of rank `on` are NaN from its update `first` to `last`."""
    if rank != on:
        return

    def made(inner: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def total_loss(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return inner(*args) * (math.nan if first <= calls <= last else 1.0)

        return total_loss

    strikes.wrap(lmloop.training.gradients, "total_loss", made)()


def with_notices(rank: int) -> None:
    """Each rank has something to say about the data: the same, and something of its own."""

    def made(inner: Callable[..., Any]) -> Callable[..., Any]:
        def open_together(*args: Any) -> Any:
            corpus = inner(*args)
            corpus.notices.extend(["all of us see this", f"only {rank} sees this"])
            return corpus

        return open_together

    strikes.wrap(lmloop.run, "open_together", made)()
