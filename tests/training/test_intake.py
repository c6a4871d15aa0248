"""What the ranks agree on before an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lmloop.data.source import SourceError
from lmloop.objectives.language import LanguageObjective
from lmloop.processes import ALONE, Place, Processes
from lmloop.tokens.batch import Batch
from lmloop.tokens.feed import Interrupted
from lmloop.training.intake import Inlet
from tests.training.trainers import Steps, random_batch

PROBLEM, STOP, TELLING, SAVE_DUE, MICRO_BATCHES, FINGERPRINT, TOKENS, COUNT, ROWS = range(9)
"""Where these stand in the numbers of a rank."""


class Pair(Processes):
    """The first of two; what the other says is made from what this one says."""

    def __init__(self, change: Callable[[list[float]], None] = lambda numbers: None, problem: str = "") -> None:
        super().__init__(Place(0, 2, 0, 2))
        self.change = change
        self.problem = problem

    def exchange(self, numbers: Any) -> list[list[float]]:
        other = list(numbers)
        self.change(other)
        return [list(numbers), other]

    def gather(self, value: Any) -> list[Any]:
        return [value, self.problem]


class Voting(Steps):
    """Made-up steps with a ballot."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.settled: list[list[int]] = []
        self.refuses = False

    def ballot(self) -> list[int]:
        return [0, 1, -3]

    def settle(self, ballot: list[int]) -> None:
        self.settled.append(ballot)
        if self.refuses:
            raise SourceError("no source is left")


def inlet(feed: Steps, processes: Processes = ALONE, stop: bool = False, **named: Any) -> Inlet:
    return Inlet(feed, LanguageObjective(), sources=2, processes=processes, should_stop=lambda: stop, **named)


def said(at: int, value: float) -> Callable[[list[float]], None]:
    def change(numbers: list[float]) -> None:
        numbers[at] = value

    return change


def with_filler(batch: Batch) -> Batch:
    """The last row is there only so that all ranks have one."""
    weights_BT = batch.weights_BT.clone()
    weights_BT[-1] = 0
    sources_B = torch.tensor([1] * (len(weights_BT) - 1) + [0])
    return Batch(batch.tokens_BT, batch.targets_BT, weights_BT, None, sources_B, (("d",),) * (len(weights_BT) - 1) + ((),))


def test_alone_it_counts_its_own_rows() -> None:
    batches = [random_batch(3, 4, 1, trained=0.5), with_filler(random_batch(3, 4, 2))]
    taken = inlet(Steps(make=lambda step: batches)).take(4)
    trained = sum(int(batch.weights_BT.sum()) for batch in batches)
    assert taken.batches is batches
    assert taken.counts == {"loss": trained}
    assert taken.tokens == trained
    assert taken.source_rows == [3, 2]
    assert (taken.problem, taken.stop, taken.save_due) == ("", False, False)


def test_an_epochs_end_is_neither_stop_nor_problem() -> None:
    feed = Steps(per_epoch=1)
    assert inlet(feed).take(4).batches
    over = inlet(feed).take(4)
    assert (over.batches, over.stop, over.problem) == ([], False, "")


def test_figures_are_those_of_all_ranks_and_sums_are_divided_by_the_mean_count() -> None:
    def more(numbers: list[float]) -> None:
        numbers[TOKENS], numbers[COUNT], numbers[ROWS], numbers[ROWS + 1] = 100, 40, 7, 9

    feed = Voting(make=lambda step: [random_batch(2, 4, 1)])
    taken = inlet(feed, Pair(more)).take(4)
    assert taken.tokens == 8 + 100
    assert taken.counts == {"loss": (8 + 40) / 2}  # gradients are averaged over two ranks
    assert taken.source_rows == [2 + 7, 9]


def test_ballots_are_settled_by_their_greatest() -> None:
    feed = Voting()
    inlet(feed, Pair(lambda numbers: numbers.__setitem__(slice(-3, None), [1, 0, -5]))).take(4)
    assert feed.settled == [[1, 1, -3]]
    feed.refuses = True
    taken = inlet(feed, Pair()).take(4)
    assert taken.problem == "no source is left"
    assert taken.sound


@pytest.mark.parametrize("here", [True, False])
def test_a_stop_on_one_is_a_stop_on_all_and_no_row_is_lost(here: bool) -> None:
    feed = Voting()
    one = inlet(feed, Pair() if here else Pair(said(STOP, 1.0)), stop=here)
    taken = one.take(4)
    assert taken.stop
    assert not taken.problem
    assert feed.given == 0  # asked for and given back, or never asked for
    assert feed.settled == []


@pytest.mark.parametrize("error", [SourceError("gone"), OSError(5, "Input/output error", "a.txt"), Interrupted()])
def test_what_goes_wrong_in_reading_here_ends_it_for_all(error: Exception) -> None:
    feed = Voting()

    def fail(length: int) -> Any:
        raise error

    feed.next_step = fail  # type: ignore[method-assign]
    taken = inlet(feed, Pair()).take(4)
    assert taken.sound
    expected = {SourceError: "gone", OSError: "a.txt: Input/output error", Interrupted: ""}
    assert taken.problem == expected[type(error)]
    assert taken.stop or taken.problem


def test_what_goes_wrong_elsewhere_is_told_with_the_rank() -> None:
    feed = Voting()
    taken = inlet(feed, Pair(said(PROBLEM, 1.0), problem="gone")).take(4)
    assert taken.problem == "rank 1: gone"
    assert taken.sound
    assert feed.given == 0


@pytest.mark.parametrize(("at", "value"), [(MICRO_BATCHES, 2), (FINGERPRINT, 77)])
def test_other_data_elsewhere_is_found_and_not_saved(at: int, value: int) -> None:
    taken = inlet(Voting(), Pair(said(at, value))).take(4)
    assert "different data" in taken.problem
    assert not taken.sound


def test_the_fingerprint_of_a_step_is_compared_with_the_next_one() -> None:
    heard: list[float] = []
    feed = Voting()
    one = inlet(feed, Pair(lambda numbers: heard.append(numbers[FINGERPRINT])))
    for _ in range(3):
        one.take(4)
    assert heard == [0, 1, 2]  # the feed's are the steps that it has given


@pytest.mark.parametrize(("mine", "due"), [(True, True), (False, False)])
def test_the_first_ones_clock_says_when_to_save(mine: bool, due: bool) -> None:
    taken = inlet(Voting(), Pair(said(SAVE_DUE, float(not mine)))).take(4, save_due=lambda: mine)
    assert taken.save_due is due


def test_whoever_has_something_to_say_is_heard_by_all() -> None:
    calls: list[int] = []
    for heard in (0.0, 1.0):
        inlet(Voting(), Pair(said(TELLING, heard)), collect=lambda: calls.append(1)).take(4)
    assert len(calls) == 1
