"""Reading ahead: a thread that builds steps while the model trains on earlier ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from lmloop.tokens.steps import Step

STEPS_AHEAD = 4
_POLL_S = 0.05


class Interrupted(Exception):  # noqa: N818 (not an error: somebody asked to stop)
    """`should_stop` became true while waiting for data."""


class Closed(Exception):  # noqa: N818
    """Raised in the reading thread to leave it."""


class ReadAhead:
    """Calls `build` in a thread of its own and hands out its steps in order.

    The thread ends with the end of an epoch, so that what is written between two epochs is read in the next, and with an
    exception, which `get` raises in the place of the step that it prevented. `build` must call `check` now and then.
    """

    def __init__(self, build: Callable[[], Step]) -> None:
        self._build = build
        self._steps: queue.Queue[Step | BaseException] = queue.Queue(STEPS_AHEAD)
        self._closing = threading.Event()
        # A daemon: a source that hangs in the network must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def check(self) -> None:
        """Leave the thread if it is being closed."""
        if self._closing.is_set():
            raise Closed

    def get(self, should_stop: Callable[[], bool]) -> Step:
        """The next step, waited for. Interrupted when `should_stop` says so; the step is not lost then."""
        while True:
            try:
                result = self._steps.get(timeout=_POLL_S)
            except queue.Empty:
                if should_stop():
                    raise Interrupted from None
                continue
            if isinstance(result, BaseException):
                raise result
            return result

    def close(self, should_stop: Callable[[], bool] = lambda: False, patience_s: float | None = None) -> None:
        """Throw away what was read ahead and wait for the thread, `patience_s` at most. Interrupted as in `get`."""
        self._closing.set()
        waited_s = 0.0
        while self._thread.is_alive() and (patience_s is None or waited_s < patience_s):
            self._thread.join(_POLL_S)
            waited_s += _POLL_S
            if self._thread.is_alive() and should_stop():
                raise Interrupted

    def _run(self) -> None:
        try:
            while True:
                step = self._build()
                self._put(step)
                if not step.batches:
                    return
        except Closed:
            return
        except BaseException as error:
            try:
                self._put(error)
            except Closed:
                return

    def _put(self, result: Step | BaseException) -> None:
        while True:
            self.check()
            try:
                self._steps.put(result, timeout=_POLL_S)
                return
            except queue.Full:
                continue
