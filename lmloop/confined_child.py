"""The child's side of `confined.py`, run as a script: read a call, make it, write the answer.

Messages are 8 bytes of length (little-endian) and JSON in UTF-8, lone surrogates included; in an answer a byte between them
says whether this process should be replaced. Only what a call needs is imported here, for this is started anew often.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

_WATCH_S = 0.2
_LARGE_SHARE = 0.25  # of the memory; freed memory may be in pieces


def main() -> None:
    """Serve calls until the input ends. Arguments: memory limit and longest answer in bytes, target."""
    memory_bytes, most_answer_bytes, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    requests, answers = _private_pipes()
    _limit(memory_bytes)
    function: Callable[..., Any] | None = None
    while (request := _read(requests)) is not None:
        is_call = function is not None
        try:
            if function is None:
                sys.path[:0] = request["paths"]
                module, _, name = target.partition(":")
                function = getattr(import_module(module), name)
                content = _json({"result": None})
            else:
                content = _called(function, request, most_answer_bytes)
        except MemoryError:
            content = _json({"out_of_memory": True})
        except ValueError as error:
            content = _json({"value_error": str(error)})
        except Exception as error:  # whatever it is, it must not end the parent
            content = _json({"failed": f"{type(error).__name__}: {error}"})
        answers.write(struct.pack("<Q?", len(content), is_call and _largest_bytes() > _LARGE_SHARE * memory_bytes))
        answers.write(content)
        answers.flush()


def _called(function: Callable[..., Any], request: dict[str, Any], most_answer_bytes: int) -> bytes:
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # ends the process: no handler could interrupt C code
    signal.setitimer(signal.ITIMER_REAL, request["patience_s"] + 1)
    try:
        result = function(*request["arguments"])
        try:
            content = _json({"result": result})
        except ValueError as error:  # a circle, not an answer
            content = _json({"failed": f"not JSON: {error}"})
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if len(content) > most_answer_bytes:
        return _json({"failed": f"its answer has more than {most_answer_bytes >> 20} MB"})
    return content


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the parent, under descriptors that nothing else prints to or reads from."""
    pipes = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return pipes


def _limit(memory_bytes: int) -> None:
    for alarm in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(alarm, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        memory_bytes = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    else:  # macOS takes the limit and does not keep it
        threading.Thread(target=_watch_memory, args=(memory_bytes,), daemon=True).start()


def _watch_memory(memory_bytes: int) -> None:
    while _largest_bytes() < memory_bytes:
        time.sleep(_WATCH_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _largest_bytes() -> int:
    """The largest resident size so far. (On Linux `getrusage` also counts the parent's, from before the exec.)"""
    with contextlib.suppress(OSError, IndexError), open("/proc/self/status", "rb") as status:
        return int(status.read().partition(b"VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _read(requests: BinaryIO) -> dict[str, Any] | None:
    header = requests.read(8)
    if len(header) < 8:
        return None
    content = requests.read(int.from_bytes(header, "little"))
    return json.loads(content.decode("utf-8", "surrogatepass"))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


if __name__ == "__main__":
    main()
