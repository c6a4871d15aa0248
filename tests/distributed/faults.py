"""What goes wrong in one of the processes: functions to be made `partial`, called in each with its rank."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmloop.run
import lmloop.tokens.feed
import lmloop.training.gradients
import lmloop.training.measures
from lmloop import durable
from lmloop.data.source import SourceError

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


def _strike(at: int, what: str) -> Callable[[], None]:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            act(what)

    return count


def in_step(rank: int, *, on: int, at: int, what: str) -> None:
    """In the middle of the `at`-th update on rank `on`."""
    if rank != on:
        return
    strike, inner = _strike(at, what), lmloop.training.gradients.total_loss

    def total_loss(*args: Any) -> Any:
        strike()
        return inner(*args)

    lmloop.training.gradients.total_loss = total_loss


def in_data(rank: int, *, on: int, at: int, what: str) -> None:
    """When rank `on` asks for the rows of its `at`-th update."""
    if rank != on:
        return
    strike, inner = _strike(at, what), lmloop.tokens.feed.TextFeed.next_step

    def next_step(self: Any, length: int) -> Any:
        strike()
        return inner(self, length)

    lmloop.tokens.feed.TextFeed.next_step = next_step  # type: ignore[method-assign]


def in_evaluation(rank: int, *, on: int, at: int, what: str) -> None:
    """Before the `at`-th batch that rank `on` evaluates."""
    if rank != on:
        return
    strike, inner = _strike(at, what), lmloop.training.measures.evaluate

    def evaluate(*args: Any, should_stop: Callable[[], bool], **named: Any) -> Any:
        def asked() -> bool:
            strike()
            return should_stop()

        return inner(*args, should_stop=asked, **named)

    lmloop.training.measures.evaluate = evaluate  # type: ignore[assignment]


def in_save(rank: int, *, on: int, at: int, what: str) -> None:
    """Before the `at`-th operation of rank `on` on a file of a checkpoint."""
    if rank != on:
        return
    strike = _strike(at, what)

    def hook(operation: str, path: Path) -> None:
        if "lm_" in path.name or path.name.startswith("rank-"):
            strike()

    durable.before_operation = hook


def before_the_run(rank: int, *, on: int, what: str) -> None:
    """While rank `on` sets up."""
    if rank == on:
        inner = lmloop.run.open_together

        def open_together(*args: Any) -> Any:
            act(what)
            return inner(*args)

        lmloop.run.open_together = open_together


def not_finite(rank: int, *, on: int, first: int, last: int) -> None:
    """Losses of rank `on` are NaN from its update `first` to `last`."""
    if rank != on:
        return
    inner, calls = lmloop.training.gradients.total_loss, 0

    def total_loss(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return inner(*args) * (math.nan if first <= calls <= last else 1.0)

    lmloop.training.gradients.total_loss = total_loss


def with_notices(rank: int) -> None:
    """Each rank has something to say about the data: the same, and something of its own."""
    inner = lmloop.run.open_together

    def open_together(*args: Any) -> Any:
        corpus = inner(*args)
        corpus.notices.extend(["all of us see this", f"only {rank} sees this"])
        return corpus

    lmloop.run.open_together = open_together
