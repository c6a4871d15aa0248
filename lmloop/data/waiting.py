"""Reading what may hang, the network above all, without being deaf to a request to stop.

The work is done in a thread of its own; who wants its results waits in short steps and asks between them whether to go on
waiting. A thread that hangs is left behind: it ends with the process.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar
from weakref import WeakSet

_POLL_S = 0.05
_PARTING_S = 1.0

_check: ContextVar[Callable[[], None]] = ContextVar("while waiting", default=lambda: None)

T = TypeVar("T")


@contextmanager
def while_waiting(check: Callable[[], None]) -> Iterator[None]:
    """Within it, sources that wait in this thread call `check` several times a second; it may raise, to leave."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def present_check() -> Callable[[], None]:
    """What `while_waiting` has this thread call; for those whom a library calls from threads of its own."""
    return _check.get()


def elsewhere(work: Callable[[], T], check: Callable[[], None] | None = None) -> T:
    """The result of `work`, done in another thread; what it raises, or what `check` raises (default: the present one)."""
    done = threading.Event()
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome[:] = [None, error]
        finally:
            done.set()

    threading.Thread(target=run, name="hub request", daemon=True).start()
    check = check or _check.get()
    while not done.wait(_POLL_S):
        check()
    if len(outcome) > 1:
        raise outcome[1]
    return outcome[0]


class Failed(Exception):  # noqa: N818
    """The work in the thread raised `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Unwanted(Exception):  # noqa: N818
    """Nobody waits for this any more."""


class Ahead(Generic[T]):
    """Runs an iterator in a thread, ahead of who takes its items, in order.

    It rests while the items that wait to be taken have a size of `room` or more together. When it is closed, or the process
    ends, `while_waiting` in its thread raises Unwanted: Python must not end while a library that calls it is at work.
    """

    def __init__(self, make: Callable[[], Iterator[T]], *, size: Callable[[T], int], room: int) -> None:
        self._make = make
        self._size = size
        self._room = room
        self._items: deque[tuple[T, int]] = deque()
        self._held = 0
        self._error: Exception | None = None
        self._ended = self._closed = False
        self._changed = threading.Condition()
        thread = threading.Thread(target=self._run, name="hub", daemon=True)
        _readers.add(thread)
        thread.start()

    def take(self) -> T | None:
        """The next item; None at the end. Failed, after the items before; what the present `while_waiting` raises."""
        check = _check.get()
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait(_POLL_S)
                check()
            if self._items:
                item, size = self._items.popleft()
                self._held -= size
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise Failed(self._error)
        return None

    def close(self) -> None:
        """No more is wanted. Does not wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _ask(self) -> None:
        if self._closed or _exiting.is_set():
            raise Unwanted

    def _run(self) -> None:
        try:
            with while_waiting(self._ask):
                for item in self._make():
                    self._put(item, self._size(item))
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: T, size: int) -> None:
        with self._changed:
            while self._held >= self._room:
                self._ask()
                self._changed.wait(_POLL_S)
            self._ask()
            self._items.append((item, size))
            self._held += size
            self._changed.notify_all()


_readers: WeakSet[threading.Thread] = WeakSet()
_exiting = threading.Event()


def _part() -> None:
    """Have the readers leave the libraries that they are in."""
    _exiting.set()
    until = time.monotonic() + _PARTING_S
    for thread in list(_readers):
        thread.join(max(until - time.monotonic(), 0.0))


atexit.register(_part)
