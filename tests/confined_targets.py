"""What `tests/test_confined.py` runs in a process of its own."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any


def echo(*arguments: Any) -> Any:
    return list(arguments)


def pid() -> int:
    return os.getpid()


def refuse(message: str) -> None:
    raise ValueError(message)


def refuse_small(number: int) -> int:
    if number < 2:
        raise ValueError("small")
    return os.getpid()


def wrong() -> None:
    raise KeyError("x")


def not_json() -> object:
    return {1, 2}


def circle() -> object:
    inside: list[object] = []
    inside.append(inside)
    return inside


def not_text_keys() -> object:
    return {b"x": 1}


def endless() -> None:
    while True:
        pass


def wait(seconds: float) -> str:
    time.sleep(seconds)
    return "waited"


def report_then_endless(path: str) -> None:
    report = socket.socket(socket.AF_UNIX)
    report.connect(path)
    report.sendall(str(os.getpid()).encode())
    endless()


def allocate(megabytes: int) -> int:
    return len(bytearray(megabytes << 20))


def hoard() -> None:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def abort() -> None:
    """As a library does that gets no memory and knows no exceptions."""
    os.abort()


def keep(megabytes: int, kept: list[bytearray] = []) -> int:  # noqa: B006 (a leak)
    kept.append(bytearray(b"x") * (megabytes << 20))
    return len(kept)


def close_pipes() -> None:
    os.closerange(0, 100)
    time.sleep(60)


def leave(code: int) -> None:
    os._exit(code)


def leave_politely() -> None:
    sys.exit(3)


def segfault() -> None:
    ctypes.string_at(0)


def long_answer(megabytes: int) -> str:
    return "x" * (megabytes << 20)


def print_much() -> str:
    print("{}" * 1_000_000)
    os.write(1, b"\0" * 100_000)
    print("x" * 1_000_000, file=sys.stderr)
    return sys.stdin.read()


def write_file(path: str) -> None:
    Path(path).write_text("written")


def surroundings() -> dict[str, Any]:
    return {
        "environment": sorted(os.environ),
        "descriptors": sorted(
            number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{number}")
        ),
        "session": os.getsid(0) == os.getpid(),
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    }
