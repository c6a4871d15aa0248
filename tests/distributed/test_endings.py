"""How a run in several processes ends: all together, saved once, or at once where one of them is lost."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.distributed import faults
from tests.distributed.harness import Fault, differences, metrics, newest, record, run, saved_step, start, write

PROMPTLY_S = 10.0
"""Less than the 30 s after which a process is missed: a connection that closes is noticed at once."""

STOPS = {
    "in a step": partial(faults.in_step, at=5),
    "waiting for data": partial(faults.in_data, at=5),
    "in an evaluation": partial(faults.in_evaluation, at=2),
    "in a save": partial(faults.in_save, at=30),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = write(tmp_path_factory.mktemp("reference"), model={"dropout": 0.1}, train={"save_every_steps": 4})
    run(folder)
    return folder


@pytest.mark.parametrize("place", STOPS)
def test_a_signal_to_one_stops_all_and_saves_once(place: str, reference: Path, tmp_path: Path) -> None:
    on = 0 if place == "in a save" else 1
    folder = write(tmp_path, model={"dropout": 0.1}, train={"save_every_steps": 4})
    ended = run(folder, fault=partial(STOPS[place], on=on, what="SIGTERM"))
    assert record(folder)["status"] == "stopped"
    assert ended.outputs[0].count("Stopped: asked to stop") == 1
    assert ended.outputs[1] == ""
    assert saved_step(folder) == newest(folder)["progress"]["step"] < 12
    run(folder)
    assert differences(reference, folder) == []


def test_a_launchers_signal_after_the_users_does_not_abort_the_save(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for rank in (0, 1):
        ended = run(folder, fault=partial(faults.in_step, on=rank, at=3, what="impatient"))
        assert "Stopped" in ended.outputs[0]
    assert newest(folder)["progress"]["step"] == 6


LOST = {
    "killed in a step": (partial(faults.in_step, at=5, what="SIGKILL"), 1, "has ended"),
    "killed while data is read": (partial(faults.in_data, at=5, what="SIGKILL"), 1, "has ended"),
    "killed in an evaluation": (partial(faults.in_evaluation, at=2, what="SIGKILL"), 1, "has ended"),
    "the first killed in a save": (partial(faults.in_save, at=40, what="SIGKILL"), 0, ""),
    "failing": (partial(faults.in_step, at=5, what="raise"), 1, "rank 1: ArithmeticError: made to fail"),
    "the first failing": (partial(faults.in_step, at=5, what="raise"), 0, "ArithmeticError: made to fail"),
    "killed while it sets up": (partial(faults.before_the_run, what="SIGKILL"), 1, "has ended"),
    "failing while it sets up": (partial(faults.before_the_run, what="unreadable"), 1, "rank 1: source 'corpus': made"),
}


@pytest.mark.parametrize("name", LOST)
def test_one_that_is_lost_ends_all_and_the_last_checkpoint_is_good(name: str, reference: Path, tmp_path: Path) -> None:
    fault, on, said = LOST[name]
    folder = write(tmp_path, model={"dropout": 0.1}, train={"save_every_steps": 4})
    going = start(folder, fault=partial(fault, on=on))
    going.ranks[on].join(60.0)
    ended = going.wait(PROMPTLY_S)
    assert all(ended.statuses), ended
    assert said in " ".join(ended.outputs[0].split())
    run(folder)
    assert differences(reference, folder) == []


@pytest.mark.parametrize(
    ("fault", "on"),
    [
        (partial(faults.in_step, at=5, what="SIGSTOP"), 1),
        (partial(faults.in_save, at=40, what="SIGSTOP"), 0),
    ],
    ids=["in a step", "the first in a save"],
)
def test_one_that_is_stopped_is_missed_in_the_stated_time(fault: Fault, on: int, reference: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, model={"dropout": 0.1}, train={"save_every_steps": 4, "rank_timeout_s": 3.0})
    other = 1 - on
    ended = start(folder, fault=partial(fault, on=on)).wait(30.0, ranks=[other])
    assert ended.statuses[other] == 1
    assert f"rank {on} has given no sign of life for 3 s" in ended.outputs[other]
    run(write(folder, model={"dropout": 0.1}, train={"save_every_steps": 4}))
    assert differences(reference, folder) == []


def test_one_that_is_only_slow_is_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path, train={"rank_timeout_s": 2.0})
    run(folder, fault=partial(faults.in_data, on=1, at=3, what="slow"))
    assert len(metrics(folder)) == 12


def test_data_that_fails_on_one_is_saved_on_all_and_costs_no_step(reference: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, model={"dropout": 0.1}, train={"save_every_steps": 4})
    ended = start(folder, fault=partial(faults.in_data, on=1, at=7, what="unreadable")).wait()
    assert ended.statuses == [1, 1]
    assert "Failed: rank 1: source 'corpus': made unreadable" in ended.outputs[0]
    assert newest(folder)["progress"]["step"] == 6
    run(folder)
    assert differences(reference, folder) == []
