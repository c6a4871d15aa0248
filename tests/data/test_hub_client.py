"""How long is waited between two attempts; the rest is seen over HTTP in test_hub_faults.py."""

from __future__ import annotations

import email.utils
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest

from lmloop.data import hub_client
from lmloop.data.hub_client import HubError


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        assert seconds <= 0.1 + 1e-9  # so that the end of the program is noticed
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(hub_client, "time", clock)
    return clock


def pauses(clock: Clock, after_s: float = 0.0) -> list[float]:
    """The pauses of a request that never succeeds."""
    moments: list[float] = []

    def ask() -> None:
        moments.append(clock.now)
        raise hub_client._Unfit("busy", after_s)

    library = SimpleNamespace(RequestError=OSError, TimeoutException=TimeoutError, TooManyRedirects=RecursionError)
    with pytest.raises(HubError, match="host: busy"):
        hub_client._patiently(ask, library, "host")
    return [later - sooner for sooner, later in pairwise(moments)]


def test_pauses_grow_and_are_random(clock: Clock) -> None:
    many = [pauses(clock) for _ in range(200)]
    for number, pause in enumerate(hub_client.PAUSES_S):
        own = [one[number] for one in many]
        assert pause * 0.5 <= min(own) < pause * 0.6
        assert pause * 1.4 < max(own) <= pause * 1.5 + 0.01
    assert max(sum(one) for one in many) <= 30.0


@pytest.mark.parametrize(("asked_s", "waited_s"), [(0.1, None), (30.0, 30.0), (119.0, 119.0), (121.0, 120.0), (1e9, 120.0)])
def test_what_a_server_asks_for_is_a_lower_bound_within_bounds(clock: Clock, asked_s: float, waited_s: float | None) -> None:
    for one in pauses(clock, asked_s):
        assert one == pytest.approx(waited_s) if waited_s else one < 30.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"Retry-After": "17"}, 17.0),
        ({"Retry-After": " 17 "}, 17.0),
        ({"Retry-After": "soon"}, 0.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "9" * 400}, float("inf")),
        ({"Retry-After": email.utils.formatdate(0)}, 0.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=9;t=55'}, 0.0),
        ({"RateLimit": '"api"; r=0; t=7', "Retry-After": ""}, 7.0),
    ],
)
def test_how_a_server_says_when_to_come_back(headers: dict[str, str], seconds: float) -> None:
    assert hub_client._retry_after_s(headers) == seconds


def test_a_date_to_come_back_at() -> None:
    at = email.utils.formatdate(time.time() + 90, usegmt=True)
    assert 85 < hub_client._retry_after_s({"Retry-After": at}) <= 91


def test_when_the_program_ends_nothing_is_tried_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "main_thread", lambda: SimpleNamespace(is_alive=lambda: False))
    assert pauses(clock) == []
