from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from lmloop.data.waiting import Ahead, Failed, Unwanted, elsewhere, present_check, while_waiting


class Stop(Exception):  # noqa: N818
    pass


def stop_after(seconds: float):
    until = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > until:
            raise Stop

    return check


def ahead_of(items, room: int = 3) -> Ahead[int]:
    return Ahead(lambda: iter(items), size=lambda item: 1, room=room)


def everything(ahead: Ahead[int]) -> list[int]:
    taken: list[int] = []
    while (item := ahead.take()) is not None:
        taken.append(item)
    return taken


def test_items_come_in_order_and_end() -> None:
    assert everything(ahead_of(range(1000))) == list(range(1000))
    ended = ahead_of([])
    assert ended.take() is None
    assert ended.take() is None


def test_no_more_is_made_than_there_is_room_for() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = Ahead(make, size=lambda number: 10, room=35)
    for taken in range(3):
        until = time.monotonic() + 9.0
        while len(made) < 5 + taken and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert made == list(range(5 + taken))  # four wait to be taken, one to be put
        assert ahead.take() == taken
    ahead.close()


def test_what_the_thread_raises_comes_after_what_it_made() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    ahead = Ahead(make, size=lambda number: 1, room=9)
    assert ahead.take() == 1
    for _ in range(2):
        with pytest.raises(Failed) as failed:
            ahead.take()
        assert isinstance(failed.value.error, KeyError)


def test_who_waits_can_leave_and_come_back() -> None:
    release = threading.Event()

    def make() -> Iterator[int]:
        release.wait()
        yield 7

    ahead = Ahead(make, size=lambda number: 1, room=1)
    start = time.monotonic()
    with while_waiting(stop_after(0.1)), pytest.raises(Stop):
        ahead.take()
    assert time.monotonic() - start < 5.0
    release.set()
    assert ahead.take() == 7


def test_a_check_holds_only_within_its_block_and_its_thread() -> None:
    checks: list[object] = []
    with while_waiting(stop_after(9.0)):
        inner = present_check()
        thread = threading.Thread(target=lambda: checks.append(present_check()))
        thread.start()
        thread.join()
    assert present_check() is checks[0] is not inner


def test_the_thread_leaves_when_nobody_waits() -> None:
    left = threading.Event()

    def make() -> Iterator[int]:
        try:
            elsewhere(lambda: time.sleep(9.0))
        except Unwanted:
            left.set()
            raise
        yield 1

    ahead = Ahead(make, size=lambda number: 1, room=1)
    ahead.close()
    assert left.wait(4.0)


def test_work_elsewhere() -> None:
    assert elsewhere(threading.get_ident) != threading.get_ident()
    assert elsewhere(lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        elsewhere(lambda: 1 // 0)
    start = time.monotonic()
    with while_waiting(stop_after(0.1)), pytest.raises(Stop):
        elsewhere(lambda: time.sleep(9.0))
    with pytest.raises(Stop):
        elsewhere(lambda: time.sleep(9.0), stop_after(0.1))
    assert time.monotonic() - start < 8.0
