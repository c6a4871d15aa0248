"""When a checkpoint is due, and what a disk that refuses it changes."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

import lmloop.training.snapshot as snapshot
from lmloop.training.snapshot import MAX_FAILED_SAVES, RETRY_AFTER_S
from tests.training.trainers import Bench, weights_of


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Disk:
    """Between a bench and its store: refuses the saves of some attempts, counted from 1, and remembers the steps of all."""

    def __init__(self, bench: Bench, refused: set[int] | range) -> None:
        self.refused = refused
        self.attempts: list[int] = []
        self.saved: list[int] = []
        self._save = bench.store.save
        bench.store.save = self.save  # type: ignore[method-assign]

    def save(self, state: dict[str, Any], **named: Any) -> Any:
        self.attempts.append(named["step"])
        if len(self.attempts) in self.refused:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.saved.append(named["step"])
        return self._save(state, **named)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(snapshot, "time", clock)
    return clock


def is_due(bench: Bench) -> bool:
    return bench.snapshots.due(time_is_up=bench.snapshots.time_is_up())


def test_a_run_saves_before_its_first_step_when_due_and_at_its_end(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, max_steps=11, save_every_steps=4)
    disk = Disk(bench, set())
    bench.trainer.run()
    assert disk.attempts == [0, 4, 8, 11]


def test_minutes_count_too(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, max_steps=10, save_every_minutes=1.0)
    disk = Disk(bench, set())
    inner = bench.feed.next_step

    def next_step(length: int) -> Any:
        clock.now_s += 25.0
        return inner(length)

    bench.feed.next_step = next_step  # type: ignore[method-assign]
    bench.trainer.run()
    assert disk.attempts == [0, 3, 6, 9, 10]


def test_a_run_that_was_loaded_is_not_saved_again(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, max_steps=11)
    bench.snapshots.mark_loaded()
    assert not is_due(bench)
    assert bench.snapshots.save()  # what is on disk is what there is
    assert list(tmp_path.glob("lm_*")) == []
    bench.progress.step += 1
    assert bench.snapshots.save()
    assert (tmp_path / "lm_current.pth").exists()


def test_a_refused_save_is_counted_said_and_tried_again_at_the_next_one_due(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, max_steps=14, save_every_steps=4)
    disk = Disk(bench, {2, 3})
    outcome = bench.trainer.run()
    assert outcome.status == "finished"
    assert disk.attempts == [0, 4, 8, 12, 14]
    assert [notice.split(" (")[1] for notice in bench.notices] == ["attempt 1 of 3)", "attempt 2 of 3)"]
    assert all("No space left on device" in notice for notice in bench.notices)


def test_a_refused_save_is_tried_again_after_a_minute(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, save_every_minutes=30.0)
    Disk(bench, {2})
    assert bench.snapshots.save()
    bench.progress.step += 1
    assert not bench.snapshots.save()
    assert not is_due(bench)
    clock.now_s += RETRY_AFTER_S - 1
    assert not is_due(bench)
    clock.now_s += 1
    assert is_due(bench)
    assert bench.snapshots.save()
    assert bench.snapshots.problem is None
    assert not is_due(bench)


def test_a_success_between_failures_starts_the_count_anew(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, max_steps=20, save_every_steps=2)
    disk = Disk(bench, {2, 3, 5, 6, 8, 9})
    assert bench.trainer.run().status == "finished"
    assert disk.saved == [0, 6, 12, 18, 20]


def test_training_stops_after_three_failures_in_a_row_with_the_reason(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, max_steps=100, save_every_steps=5)
    disk = Disk(bench, range(3, 1000))
    outcome = bench.trainer.run()
    assert outcome.status == "failed"
    assert "No space left on device" in outcome.reason
    assert disk.attempts == [0, 5, 10, 15, 20]
    assert MAX_FAILED_SAVES == 3
    newest = bench.store.load("newest")
    assert newest is not None
    assert newest.manifest.step == 5


def test_a_stop_that_cannot_be_saved_is_a_failure_that_says_why(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, max_steps=100)
    bench.trainer.should_stop = lambda: bench.progress.step >= 3
    Disk(bench, {2})
    outcome = bench.trainer.run()
    assert outcome.status == "failed"
    assert "No space left on device" in outcome.reason


def test_the_last_save_has_a_second_chance(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, max_steps=4, save_every_steps=4)
    disk = Disk(bench, {2})
    assert bench.trainer.run().status == "finished"
    assert disk.attempts == [0, 4, 4]


def test_a_best_model_that_could_not_be_saved_does_not_stand_in_the_way_of_a_later_one(tmp_path: Path, clock: Clock) -> None:
    losses = [3.0, 1.0, 2.0, 2.5]
    bench = Bench(tmp_path, losses=losses, max_steps=8, eval_every_steps=2, save_every_minutes=30.0)
    disk = Disk(bench, {3})  # the start, the first evaluation, and the second, which would be the best
    assert bench.trainer.run().status == "finished"
    assert disk.saved == [0, 2, 6, 8]
    assert (bench.progress.best_step, bench.progress.best_val_loss) == (6, 2.0)
    best = bench.store.load("best")
    assert best is not None
    assert best.manifest.step == 6


def test_a_best_model_is_saved_also_while_saves_fail(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, losses=[3.0, 2.0], max_steps=6, eval_every_steps=3, save_every_steps=2)
    disk = Disk(bench, {2})  # step 2 fails; step 3 is the best so far, and not due but for that
    assert bench.trainer.run().status == "finished"
    assert disk.attempts == [0, 2, 3, 4, 6]
    assert (bench.progress.best_step, bench.progress.best_val_loss) == (6, 2.0)


def test_a_best_model_that_is_saved_at_the_second_attempt_is_known_as_such(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path, losses=[3.0, 2.0], max_steps=4, eval_every_steps=2)
    disk = Disk(bench, {3})  # the last step's first attempt; the end of the run tries again
    assert bench.trainer.run().status == "finished"
    assert disk.attempts == [0, 2, 4, 4]
    best = bench.store.load("best")
    assert best is not None
    assert best.manifest.step == 4
    assert (bench.progress.best_step, bench.progress.best_val_loss) == (4, 2.0)
    assert best.state["progress"]["best_val_loss"] == 2.0


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, clock: Clock) -> None:
    bench = Bench(tmp_path)
    assert bench.snapshots.save()
    before = weights_of(bench.model)
    bench.progress.step = 7
    with torch.no_grad():
        next(bench.model.parameters())[0, 0] = torch.inf
    assert not bench.snapshots.save()
    assert bench.snapshots.problem is not None
    assert "NaN or infinity" in bench.snapshots.problem
    assert bench.snapshots.restore_weights() == 0
    assert torch.equal(weights_of(bench.model), before)


def test_there_is_nothing_to_go_back_to_before_the_first_save(tmp_path: Path) -> None:
    assert Bench(tmp_path).snapshots.restore_weights() is None
