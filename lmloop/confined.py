"""A function in a process of its own, with limits of time and memory: for what reads data that nobody vouches for.

The other side is `confined_child.py`. The child has nothing of this process: no environment, no open files but its two
pipes, no terminal, a session of its own (Ctrl-C is for the trainer). It cannot write into files, nor leave a core.

Time is the child's own computing time, so that a busy machine does not make a good file a bad one; what only waits is cut
off after `PATIENCE` times as long. Both limits also hold in the child itself, by timers of the system: it outlives a killed
parent by no more than that, and an idle child ends at once, as its input does. (The parent-death signal of Linux comes when
the *thread* that started the child ends, and threads that read ahead end with each epoch.)
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

PATIENCE = 3
"""Seconds of the clock for each second of computing."""

MOST_ANSWER_BYTES = 64 << 20
"""A longer answer is a violation: the parent has to hold it several times over."""

_START_S = 60  # for starting Python and importing the target; a cold disk in a busy machine takes a while
_END_S = 1.0  # from the end of the pipe to that of the process
_PIECE_BYTES = 1 << 20
_HEADER = struct.Struct("<Q")  # of a request: its length
_ANSWER_HEADER = struct.Struct("<Q?")  # its length, and whether the process has become too large for another call
_CHILD = Path(__file__).with_name("confined_child.py")
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")  # what Python may need to start, nothing else


class ConfinedError(Exception):
    """The function gave no result; the message is one line. Not a ValueError, which is the function's own answer."""


class CannotStart(ConfinedError):  # noqa: N818 (the reason is the name)
    """There is no process, or it cannot import the function: not the arguments are at fault but the machine."""


class OutOfTime(ConfinedError):  # noqa: N818
    """It computed or waited longer than it may."""


class OutOfMemory(ConfinedError):  # noqa: N818
    """It asked for more memory than it may have."""


class Died(ConfinedError):  # noqa: N818
    """Its process ended: a fault in a library, or an exit."""


class Confined:
    """`target` ("package.module:function") in a process that starts at the first call and is kept between calls.

    Arguments and results are what JSON can say (tuples come back as lists; lone surrogates survive). After a violation the
    process is replaced at the next call, as it is when a call has left it large: each finds the memory that was promised.
    Calls from several threads wait for one another.

    memory_bytes: of address space on Linux; elsewhere the resident size is watched, a few times a second.
    """

    def __init__(self, target: str, *, memory_bytes: int) -> None:
        assert ":" in target, target
        self.target = target
        self.memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end = weakref.finalize(self, lambda: None)

    def call(self, *arguments: Any, timeout_s: float) -> Any:
        """The function's result, after at most `timeout_s` seconds of computing.

        ValueError: raised by the function, with its message. ConfinedError: anything else that happened to it; CannotStart:
        nothing did.
        """
        request = _encoded({"arguments": arguments, "seconds": timeout_s, "patience_s": PATIENCE * timeout_s})
        with self._lock:
            process = self._process or self._start()
            try:
                answer = self._exchange(process, request, PATIENCE * timeout_s)
            except BaseException:  # also Ctrl-C: an answer that comes late must not be taken for the next one's
                self._stop()
                raise
            if "value_error" in answer:
                raise ValueError(answer["value_error"])
            return answer["result"]

    def close(self) -> None:
        """End the process; a later call starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = [str(self.memory_bytes), str(MOST_ANSWER_BYTES), self.target]
        try:
            process = subprocess.Popen(  # -I -S -B: nothing from the environment, the folder or `site`; nothing is written
                [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            )
        except OSError as error:
            raise CannotStart(f"no process can be started: {error}") from None
        self._process = process
        self._end = weakref.finalize(self, _kill, process)
        assert process.stdin is not None, self.target
        assert process.stdout is not None, self.target
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        root = str(_CHILD.parent.parent)
        paths = [*([] if root in sys.path else [root]), *(path for path in sys.path if path)]
        try:
            answer = self._exchange(process, _encoded({"paths": paths}), _START_S)
        except ConfinedError as error:
            answer = {"value_error": str(error)}
        except BaseException:
            self._stop()
            raise
        if "value_error" in answer:
            self._stop()
            raise CannotStart(f"{self.target} cannot be imported: {answer['value_error']}")
        return process

    def _stop(self) -> None:
        self._end()
        self._process = None

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes, patience_s: float) -> dict[str, Any]:
        """What came back: a `result` or a `value_error`."""
        deadline = time.monotonic() + patience_s
        assert process.stdin is not None, self.target
        assert process.stdout is not None, self.target
        try:
            _send(process.stdin.fileno(), request, deadline)
            header = _receive(process.stdout.fileno(), _ANSWER_HEADER.size, deadline)
            length, is_large = _ANSWER_HEADER.unpack(header)
            if length > MOST_ANSWER_BYTES:
                raise ConfinedError(f"its answer has more than {MOST_ANSWER_BYTES >> 20} MB")
            answer = json.loads(_receive(process.stdout.fileno(), length, deadline).decode("utf-8", "surrogatepass"))
        except TimeoutError:
            raise OutOfTime(_time_words(patience_s)) from None
        except (EOFError, BrokenPipeError):
            raise self._cause_of_death(process, patience_s) from None
        except (ValueError, RecursionError) as error:
            raise ConfinedError(f"its answer is not JSON: {error}") from None
        if is_large:
            self._stop()
        match answer:
            case {"result": _} | {"value_error": str()}:
                return answer
            case {"out_of_memory": True}:
                raise OutOfMemory(self._memory_words())
            case {"failed": str(message)}:
                raise ConfinedError(message)
        raise ConfinedError("its answer makes no sense")

    def _cause_of_death(self, process: subprocess.Popen[bytes], patience_s: float) -> ConfinedError:
        end = time.monotonic() + _END_S
        while (code := process.poll()) is None:
            if time.monotonic() > end:
                return Died("it closed its pipe")
            time.sleep(_END_S / 1000)
        if code >= 0:
            return Died(f"its process ended by itself with code {code}")
        if -code in (signal.SIGPROF, signal.SIGALRM):
            return OutOfTime(_time_words(patience_s))
        if -code == signal.SIGKILL:  # by the watch over its memory, or by the system, which had none left
            return OutOfMemory(self._memory_words())
        if -code == signal.SIGABRT:  # libraries written in C abort when they get no memory, and seldom for another reason
            return OutOfMemory(f"it was aborted, most likely because {self._memory_words()}")
        return Died(f"its process was ended by {signal.Signals(-code).name}")

    def _memory_words(self) -> str:
        return f"it needs more than {self.memory_bytes / 2**20:,.0f} MB of memory"


def _time_words(patience_s: float) -> str:
    return f"it takes longer than {patience_s / PATIENCE:g} s"


def _kill(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.kill()
    process.wait()


def _encoded(value: object) -> bytes:
    content = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return _HEADER.pack(len(content)) + content


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _send(descriptor: int, data: bytes, deadline: float) -> None:
    rest = memoryview(data)
    while rest:
        _wait(descriptor, select.POLLOUT, deadline)
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(descriptor, rest[:_PIECE_BYTES]) :]


def _receive(descriptor: int, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        _wait(descriptor, select.POLLIN, deadline)
        piece = os.read(descriptor, min(size - len(data), _PIECE_BYTES))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
