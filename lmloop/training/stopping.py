"""Stopping a run from outside: the first SIGINT or SIGTERM asks for it, the second ends the process at once.

Python runs a signal's handler between two of its own instructions, which in training can be seconds apart, and two signals
in that time count as one. So the signals are counted by a thread that reads them from a pipe, into which Python writes them
the moment they arrive; it runs while PyTorch computes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h\n"
_END = 0


class StopRequest:
    """Context manager around a run; `requested` says whether to stop at the next step boundary.

    On leaving, the former handlers are back. Outside the main thread, where Python allows no handlers, it does nothing.
    `announcement` is given to `announce` on the first signal ('' for nothing), in a thread that is not the main one; by
    default it is written to standard error.
    """

    def __init__(
        self,
        announcement: str = "stopping at the next step and saving (once more: stop at once, without saving)",
        announce: Callable[[str], None] | None = None,
        one_signal_s: float = 0.0,
    ) -> None:
        """`one_signal_s`: signals that follow the first within this time are one with it. A launcher passes on what it gets,
        and whoever signals it may have signalled its processes too.
        """
        self.announcement = announcement
        self.announce = announce or (lambda message: _say(b"\n" + message.encode() + b"\n"))
        self.one_signal_s = one_signal_s
        self._signal: int | None = None
        self._first_at: float | None = None
        self._former: dict[int, Any] = {}
        self._former_wakeup = -1
        self._pipe: tuple[int, int] | None = None
        self._watcher: threading.Thread | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._signal is not None

    @property
    def signal_name(self) -> str | None:
        """`SIGINT` or `SIGTERM`, the first that arrived; None before."""
        return None if self._signal is None else signal.Signals(self._signal).name

    def __call__(self) -> bool:
        """`requested`, for those who want a function."""
        return self.requested

    def __enter__(self) -> StopRequest:
        global _active
        if threading.current_thread() is not threading.main_thread():
            return self
        assert self._pipe is None, "this StopRequest is in use"
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._watcher = threading.Thread(target=self._watch, args=(self._pipe[0],), name="stop request", daemon=True)
        self._watcher.start()
        self._former_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._former[number] = signal.signal(number, self._arrived)
        _active = self
        return self

    def __exit__(self, *error: object) -> None:
        global _active
        if self._pipe is None or self._watcher is None:
            return
        _active = None
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        os.write(self._pipe[1], bytes([_END]))
        self._watcher.join()
        for descriptor in self._pipe:
            os.close(descriptor)
        self._pipe = self._watcher = None
        self._former.clear()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        """In the main thread: whoever looks at `requested` right after its signal sees it."""
        self._signal = self._signal or number

    def _watch(self, descriptor: int) -> None:
        while True:
            for number in os.read(descriptor, 1):
                if number == _END:
                    return
                if number not in _SIGNALS:
                    continue
                self._signal = self._signal or number
                if self._first_at is None:
                    self._first_at = time.monotonic()
                    if self.announcement:
                        self.announce(self.announcement)
                elif time.monotonic() - self._first_at >= self.one_signal_s:
                    _leave(number)

    def forget(self) -> None:
        """In a forked child: what it receives is not written into the parent's pipe.

        Ctrl-C reaches children too, but they belong to the parent, which still needs them for its last step: they ignore it.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
        self._pipe = self._watcher = None


_active: StopRequest | None = None


def _leave(number: int) -> None:
    """End the process with the status that shells give to one ended by this signal. Nothing is flushed or saved."""
    if os.isatty(2):
        _say(_SHOW_CURSOR)  # a progress display hides it
    os._exit(128 + number)


def _say(text: bytes) -> None:
    """Write to standard error past Python's buffers, whose locks the main thread may hold."""
    try:
        os.write(2, text)
    except OSError:
        return


def _forget_in_child() -> None:
    global _active
    if _active is not None:
        active, _active = _active, None
        active.forget()


os.register_at_fork(after_in_child=_forget_in_child)
