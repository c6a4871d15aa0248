"""Signs of life: who is missed, and who is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from lmloop.heartbeat import Heartbeat

LIMIT_S = 0.4


class Store:
    """What the launcher's store does, without a launcher; `gone`: it does not answer."""

    def __init__(self) -> None:
        self.words: dict[str, bytes] = {}
        self.gone = False

    def set(self, key: str, word: str) -> None:
        self._answer()
        self.words[key] = word.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self._answer()
        return [self.words[key] for key in keys]

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        if not set(keys) <= set(self.words):
            raise RuntimeError("wait timeout")

    def _answer(self) -> None:
        if self.gone:
            raise RuntimeError("Broken pipe")


def listening(store: Store, lost: Callable[[int], None], rank: int = 0) -> Heartbeat:
    return Heartbeat(cast(Any, store), rank=rank, world=2, limit_s=LIMIT_S, lost=lost)


def test_one_that_falls_silent_is_missed_after_the_limit_and_named() -> None:
    store, missed = Store(), threading.Event()
    store.words["alive/1"] = b"0"
    ranks: list[int] = []

    def lost(rank: int) -> None:
        ranks.append(rank)
        missed.set()

    first = listening(store, lost)
    first.start()
    other_until = time.monotonic() + 2 * LIMIT_S
    while time.monotonic() < other_until:  # it lives
        store.words["alive/1"] = str(time.monotonic()).encode()
        time.sleep(0.01)
    assert ranks == []
    silent_since = time.monotonic()
    assert missed.wait(10.0)
    assert time.monotonic() - silent_since >= 0.7 * LIMIT_S
    assert set(ranks) == {1}
    first.stop()


def test_nobody_misses_one_that_has_left_in_order() -> None:
    store, ranks = Store(), list[int]()
    store.words["alive/1"] = b"0"
    first, second = listening(store, ranks.append), listening(store, ranks.append, rank=1)
    store.words["alive/0"] = b"0"
    second.start()
    first.start()
    second.stop()
    time.sleep(3 * LIMIT_S)
    assert ranks == []
    first.stop()


def test_a_launcher_that_is_gone_is_no_sign_of_anything() -> None:
    store, ranks = Store(), list[int]()
    store.words["alive/1"] = b"0"
    first = listening(store, ranks.append)
    first.start()
    store.gone = True
    time.sleep(3 * LIMIT_S)
    assert ranks == []
    first.stop()


def test_one_that_never_comes_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="wait timeout"):
        listening(Store(), lambda rank: None).start()
