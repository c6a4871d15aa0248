"""What a run must survive. Each scenario compares with one that nothing happened to; it returns what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.torture.disks import disk_full, disk_stays_full
from tests.torture.kills import finetuning, journals, kill_at_every_operation_of_a_save, kills
from tests.torture.several import several_processes, two_trainers
from tests.torture.stops import bad_numbers, resumes_keep_the_order, second_signal, signals
from tests.torture.workshop import Result


@dataclass(frozen=True)
class Scenario:
    """A scenario at full size, and small enough for every run of the tests."""

    title: str
    full: Callable[[Path], Result]
    small: Callable[[Path], Result]


SCENARIOS: dict[str, Scenario] = {
    "kills": Scenario(
        "kill -9 at random times, inside saves and inside evaluations",
        partial(kills, timed=150, in_saves=50, in_evaluations=20),
        partial(kills, timed=4, in_saves=6, in_evaluations=3),
    ),
    "every_operation": Scenario(
        "kill -9 before every disk operation of a save",
        kill_at_every_operation_of_a_save,
        partial(kill_at_every_operation_of_a_save, every=9),
    ),
    "disk_full": Scenario("disk full or I/O error at every write of a save", disk_full, partial(disk_full, every=13)),
    "disk_stays_full": Scenario("disk that stays full", disk_stays_full, disk_stays_full),
    "signals": Scenario("SIGINT and SIGTERM wherever a run can be", partial(signals, repeats=3), signals),
    "resumes": Scenario("three resumes in a row, 0 and 2 workers", resumes_keep_the_order, resumes_keep_the_order),
    "finetuning": Scenario(
        "kill -9 of full fine-tuning, LoRA and QLoRA, at random times and inside saves",
        partial(finetuning, timed=20, in_saves=20),
        partial(finetuning, timed=1, in_saves=1),
    ),
    "journals": Scenario(
        "kill -9 of runs that keep a journal, from scratch and with LoRA, also while it is written",
        partial(journals, timed=20, in_appends=40, in_saves=20),
        partial(journals, timed=1, in_appends=3, in_saves=1),
    ),
    "two_trainers": Scenario("two trainers, stale lock", two_trainers, two_trainers),
    "second_signal": Scenario("second signal", second_signal, second_signal),
    "bad_numbers": Scenario("NaN and infinity", bad_numbers, bad_numbers),
    "several_processes": Scenario(
        "kill -9 of one or both of two processes (DDP, FSDP), at random times and inside saves",
        partial(several_processes, timed=30, in_saves=30),
        partial(several_processes, timed=1, in_saves=1),
    ),
}
