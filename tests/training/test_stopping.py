"""Signals: the first asks, the second ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO

import pytest

from lmloop.training.stopping import StopRequest

SIGNALS = [signal.SIGINT, signal.SIGTERM]
POLITE = """
import time
from lmloop.training.stopping import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print(stop.signal_name, flush=True)
"""
DEAF = """
import hashlib
from lmloop.training.stopping import StopRequest
with StopRequest():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha512", b"a", b"b", 100_000_000)  # minutes in one call, as a step of a large model
"""


def start(program: str) -> tuple[subprocess.Popen[str], IO[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process, process.stdout


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_asks(number: signal.Signals) -> None:
    process, _ = start(POLITE)
    process.send_signal(number)
    output, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert output == f"{number.name}\n"
    assert errors.count("stopping at the next step") == 1


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_second_signal_ends_at_once_even_while_computing(first: signal.Signals, second: signal.Signals) -> None:
    process, _ = start(DEAF)
    process.send_signal(first)
    assert process.stderr is not None
    process.stderr.readline()
    assert "stopping" in process.stderr.readline()
    sent = time.monotonic()
    process.send_signal(second)
    process.communicate(timeout=20)
    assert process.returncode == 128 + second
    assert time.monotonic() - sent < 2


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS], signal.set_wakeup_fd(-1)
    descriptors = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with contextlib.suppress(KeyError), StopRequest(announcement=""):
            assert [signal.getsignal(number) for number in SIGNALS] != before[0]
            raise KeyError
    assert ([signal.getsignal(number) for number in SIGNALS], signal.set_wakeup_fd(-1)) == before
    assert len(os.listdir("/dev/fd")) == descriptors
    assert not any(thread.name == "stop request" for thread in threading.enumerate())


@pytest.mark.parametrize("number", SIGNALS)
def test_requested_is_seen_right_after_the_signal(number: signal.Signals) -> None:
    with StopRequest(announcement="") as stop:
        assert not stop.requested
        assert stop.signal_name is None
        signal.raise_signal(number)
        assert stop.requested
        assert stop.signal_name == number.name
    assert stop.requested


def test_other_signals_do_not_count() -> None:
    seen = []
    former = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        with StopRequest(announcement="") as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGUSR1)
            time.sleep(0.05)
            assert len(seen) == 3
            assert not stop.requested
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_outside_the_main_thread_it_does_nothing() -> None:
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_signal_to_a_forked_worker_is_not_the_trainers() -> None:
    with StopRequest(announcement="") as stop:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, b"x")
            time.sleep(30)
            os._exit(0)
        os.read(reader, 1)
        os.kill(child, signal.SIGINT)  # Ctrl-C reaches the workers, too: the trainer still needs them
        time.sleep(0.05)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.05)
        assert not stop.requested
        os.close(reader)
        os.close(writer)


def test_signals_that_follow_at_once_are_one_where_a_launcher_passes_them_on() -> None:
    process, _ = start(POLITE.replace("StopRequest()", "StopRequest(one_signal_s=0.5)").replace("0.01", "1.5"))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert errors.count("stopping at the next step") == 1


def test_a_signal_long_after_the_first_ends_at_once_under_a_launcher_too() -> None:
    process, _ = start(DEAF.replace("StopRequest()", "StopRequest(one_signal_s=0.3)"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
