"""Something that happens in the middle of a run: what these put into the program stays there, in a process that ends with
its run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmloop.generation.engine
import lmloop.tokens.feed
import lmloop.training.measures
import lmloop.training.trainee
from lmloop import durable

Install = Callable[[], None]
"""Called in the process of a run before it begins."""


def kill() -> None:
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(at: int, action: Callable[[], None]) -> Callable[[], None]:
    """A function that acts at its `at`-th call (counted from 1)."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            action()

    return count


def wrap(owner: Any, name: str, made: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Install:
    """Put what is `made` of a function in its place: of a module, where it is used, or of a class."""

    def install() -> None:
        setattr(owner, name, made(getattr(owner, name)))

    return install


def before(owner: Any, name: str, strike: Callable[[], None]) -> Install:
    """Call `strike` before each call of the function."""

    def made(inner: Callable[..., Any]) -> Callable[..., Any]:
        def struck(*args: Any, **named: Any) -> Any:
            strike()
            return inner(*args, **named)

        return struck

    return wrap(owner, name, made)


def after(owner: Any, name: str, strike: Callable[[], None]) -> Install:
    """Call `strike` after each call of the function."""

    def made(inner: Callable[..., Any]) -> Callable[..., Any]:
        def struck(*args: Any, **named: Any) -> Any:
            result = inner(*args, **named)
            strike()
            return result

        return struck

    return wrap(owner, name, made)


# ---- where to strike ----


def at_operation(at: int, action: Callable[[], None], names: tuple[str, ...] = (), *, of: str = "lm_") -> Install:
    """Act before the `at`-th disk operation on a checkpoint or its manifest, or on files with `of` in their name."""
    return before_operations(at_call(at, action), names, of=of)


def before_operations(strike: Callable[[], None], names: tuple[str, ...] = (), *, of: str = "lm_") -> Install:
    """Call `strike` before each of these disk operations; names: of the kinds of operations, all by default."""

    def hook(operation: str, path: Path) -> None:
        if (of in path.name or operation == "fsync_dir") and (not names or operation in names):
            strike()

    def install() -> None:
        durable.before_operation = hook

    return install


def in_evaluation(at: int, action: Callable[[], None]) -> Install:
    """Act before the `at`-th batch that is evaluated."""
    strike = at_call(at, action)

    def made(inner: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(*args: Any, should_stop: Callable[[], bool], **named: Any) -> Any:
            def asked() -> bool:
                strike()
                return should_stop()

            return inner(*args, should_stop=asked, **named)

        return evaluate

    return wrap(lmloop.training.measures, "evaluate", made)


def in_sampling(at: int, action: Callable[[], None]) -> Install:
    """Act when the `at`-th sample begins to be written."""
    return before(lmloop.generation.engine.Engine, "generate", at_call(at, action))


def in_step(at: int, action: Callable[[], None]) -> Install:
    """Act in the middle of the `at`-th micro-batch."""
    return before(lmloop.training.trainee.Trainee, "forward", at_call(at, action))


def waiting_for_data(at: int, action: Callable[[], None]) -> Install:
    """Act when the `at`-th step asks for its batches."""
    return before(lmloop.tokens.feed.TextFeed, "next_step", at_call(at, action))


def with_data(at: int, action: Callable[[], None]) -> Install:
    """Act when the `at`-th step has got its batches."""
    return after(lmloop.tokens.feed.TextFeed, "next_step", at_call(at, action))
