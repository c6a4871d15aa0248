"""A function in a process of its own."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmloop.confined import MOST_ANSWER_BYTES, CannotStart, Confined, ConfinedError, Died, OutOfMemory, OutOfTime

MEMORY = 300 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of address space, and /proc")


@pytest.fixture(autouse=True)
def ended() -> Iterator[list[Confined]]:
    """Every Confined that a test made, closed after it."""
    made: list[Confined] = []
    yield made
    for confined in made:
        confined.close()


@pytest.fixture
def confine(ended: list[Confined]) -> Any:
    def make(name: str, memory_bytes: int = MEMORY) -> Confined:
        ended.append(Confined(f"tests.confined_targets:{name}", memory_bytes=memory_bytes))
        return ended[-1]

    return make


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    )


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_result_is_what_the_function_returns(confine: Any) -> None:
    values = [1, -0.5, "ä\n\0", "\ud800x", "\U0001f600", None, True, {"a": [1, {"b": []}]}, "x" * 3_000_000]
    assert confine("echo").call(*values, timeout_s=5) == values


def test_value_error_passes_and_the_process_stays(confine: Any) -> None:
    refusing = confine("refuse")
    for message in ("scanned: no text", "ä\ud800\n", ""):
        with pytest.raises(ValueError, match="^" + message) as caught:
            refusing.call(message, timeout_s=5)
        assert str(caught.value) == message
        assert type(caught.value) is ValueError
    answering = confine("refuse_small")
    with pytest.raises(ValueError, match="small"):
        answering.call(1, timeout_s=5)
    pid = answering.call(2, timeout_s=5)
    with pytest.raises(ValueError, match="small"):
        answering.call(1, timeout_s=5)
    assert answering.call(2, timeout_s=5) == pid


def test_process_is_kept_and_calls_are_quick(confine: Any) -> None:
    counting = confine("pid")
    pids = {counting.call(timeout_s=5) for _ in range(300)}
    assert len(pids) == 1
    assert pids != {os.getpid()}


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "words"),
    [
        ("endless", [], OutOfTime, "longer than 0.4 s"),
        ("wait", [60], OutOfTime, "longer than 0.4 s"),
        ("hoard", [], OutOfMemory, "more than 300 MB"),
        ("allocate", [1000], OutOfMemory, "more than 300 MB"),
        ("abort", [], OutOfMemory, "aborted, most likely because it needs more than 300 MB"),
        ("close_pipes", [], Died, "closed its pipe"),
        ("leave", [0], Died, "with code 0"),
        ("leave", [7], Died, "with code 7"),
        ("leave_politely", [], Died, "with code 3"),
        ("segfault", [], Died, "SIGSEGV"),
        ("long_answer", [(MOST_ANSWER_BYTES >> 20) + 1], ConfinedError, "more than 64 MB"),
        ("wrong", [], ConfinedError, "KeyError: 'x'"),
        ("not_json", [], ConfinedError, "set is not JSON serializable"),
        ("circle", [], ConfinedError, "not JSON: Circular"),
        ("not_text_keys", [], ConfinedError, "keys must be"),
        ("absent", [], CannotStart, "cannot be imported: AttributeError"),
    ],
)
@linux
def test_violation(confine: Any, name: str, arguments: list[Any], kind: type, words: str) -> None:
    confined = confine(name)
    for _ in range(2):  # the second time in a new process
        with pytest.raises(ConfinedError) as caught:
            confined.call(*arguments, timeout_s=0.4 if kind is OutOfTime else 10)
        assert type(caught.value) is kind, caught.value
        assert words in str(caught.value)


@linux
def test_process_is_replaced_after_a_violation(confine: Any) -> None:
    allocating = confine("allocate")
    assert allocating.call(10, timeout_s=5) == 10 << 20
    with pytest.raises(OutOfMemory):
        allocating.call(1000, timeout_s=5)
    assert allocating.call(10, timeout_s=5) == 10 << 20
    killed = confine("pid")
    os.kill(killed.call(timeout_s=5), signal.SIGKILL)
    with pytest.raises(OutOfMemory):
        killed.call(timeout_s=5)
    assert killed.call(timeout_s=5)


@linux
def test_each_call_has_all_of_the_memory(confine: Any) -> None:
    growing = confine("keep")
    assert [growing.call(200, timeout_s=10) for _ in range(3)] == [1, 1, 1]
    assert [growing.call(5, timeout_s=10) for _ in range(3)] == [1, 2, 3]


def test_long_answer_within_the_limit(confine: Any) -> None:
    assert len(confine("long_answer", 1 << 30).call(60, timeout_s=30)) == 60 << 20


def test_what_is_printed_is_not_the_answer(confine: Any) -> None:
    printing = confine("print_much")
    assert [printing.call(timeout_s=5) for _ in range(2)] == ["", ""]


def test_nothing_is_written(confine: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfinedError, match="File too large"):
        confine("write_file").call(str(tmp_path / "a"), timeout_s=5)
    assert not (tmp_path / "a").exists() or not (tmp_path / "a").read_bytes()


@linux
def test_surroundings_are_bare(confine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with socket.socket() as open_here:
        os.set_inheritable(open_here.fileno(), True)
        around = confine("surroundings").call(timeout_s=5)
    assert not {"HF_TOKEN", "HOME", "PYTHONPATH"} & set(around["environment"])
    assert len(around["descriptors"]) <= 6, around  # null device, two pipes, and what `os.urandom` may hold open
    assert around["session"]
    assert not {"torch", "numpy", "subprocess", "pydantic", "site"} & set(around["modules"])


def test_interrupt_of_the_terminal_does_not_reach_it(confine: Any) -> None:
    """Ctrl-C goes to the whole group: a file that was just being read must not count as a bad one."""
    child = confine("pid").call(timeout_s=5)
    assert os.getpgid(child) != os.getpgid(0)


def test_calls_from_threads_do_not_mix(confine: Any) -> None:
    echo = confine("echo")
    wrong: list[object] = []

    def ask(thread: int) -> None:
        for k in range(50):
            answer = echo.call(thread, k, "x" * k * 1000, timeout_s=5)
            if answer != [thread, k, "x" * k * 1000]:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_process_outlives_the_thread_that_started_it(confine: Any) -> None:
    """Threads that read ahead end with each epoch."""
    counting, seen = confine("pid"), []
    thread = threading.Thread(target=lambda: seen.append(counting.call(timeout_s=5)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert counting.call(timeout_s=5) == seen[0]


def test_two_at_once(confine: Any) -> None:
    first, second = confine("wait"), confine("echo")
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(first.call(1.0, timeout_s=5)))
    thread.start()
    begin = time.monotonic()
    assert second.call(1, timeout_s=5) == [1]
    assert time.monotonic() - begin < 1.0
    thread.join()
    assert answers == ["waited"]


@pytest.mark.parametrize("target", ["tests.no_such_module:x", "tests.hostile.no:x"])
def test_what_cannot_start_says_so(ended: list[Confined], target: str) -> None:
    ended.append(Confined(target, memory_bytes=MEMORY))
    with pytest.raises(CannotStart, match=f"{target} cannot be imported: ModuleNotFoundError"):
        ended[0].call(timeout_s=1)


def test_no_process(confine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(CannotStart, match="no process can be started"):
        confine("pid").call(timeout_s=1)


def test_close_and_garbage_collection_end_the_process(confine: Any) -> None:
    closed = confine("pid")
    pid = closed.call(timeout_s=5)
    closed.close()
    closed.close()
    assert not alive(pid)
    assert closed.call(timeout_s=5) != pid
    dropped = Confined("tests.confined_targets:pid", memory_bytes=MEMORY)
    pid = dropped.call(timeout_s=5)
    del dropped
    gc.collect()
    assert gone_within(pid, 2)


def test_watch_where_address_space_has_no_limit() -> None:
    """As on macOS; the child's own module, in a process of its own."""
    program = "import sys; from lmloop import confined_child as child; x = bytearray(b'x') * {0}; child._watch_memory({0})"
    assert subprocess.run([sys.executable, "-c", program.format(60 << 20)]).returncode == -signal.SIGKILL
    program = "from lmloop import confined_child as child; assert 3 << 20 < child._largest_bytes() < 60 << 20"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("busy", [False, True])
def test_child_ends_with_a_killed_parent(tmp_path: Path, busy: bool) -> None:
    address = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        call = f"'report_then_endless', {address!r}" if busy else "'pid'"
        program = (
            "import sys, time; from lmloop.confined import Confined\n"
            f"def go(name, *rest): return Confined('tests.confined_targets:' + name, memory_bytes={MEMORY}), rest\n"
            f"confined, rest = go({call})\n"
            "print(confined.call(*rest, timeout_s=1), flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
            if busy:
                pid = int(listening.accept()[0].recv(20))
            else:
                assert parent.stdout is not None
                pid = int(parent.stdout.readline())
            assert alive(pid)
            parent.kill()
        assert gone_within(pid, 6)  # busy: one second of computing, on a machine that may have more to do
