"""What is due after a step: when, once, and what its line says."""

from pathlib import Path
from typing import Any

import pytest

from lmloop.training.boundary import Boundary
from tests.training.trainers import Bench, Steps


def no_stop() -> bool:
    return False


def after(boundary: Boundary, source_rows: list[int], **changes: Any) -> None:
    """Take note of a step of two seconds, one of them spent waiting."""
    boundary.progress.step += 1
    boundary.progress.tokens += changes.get("tokens", 8)
    facts = {"epoch": 0, "seq_len": 4, "lr": 0.1, "grad_norm": 1.0, "stage": 0, "fraction": 0.5, "memory_bytes": 1}
    boundary.after_step(
        source_rows, **{"loss": 1.0, "tokens": 8, "seconds": 2.0, "waited_s": 1.0, "facts": facts, **changes}
    )


def test_evaluation_and_log_come_at_their_steps(tmp_path: Path) -> None:
    bench = Bench(tmp_path, losses=[3.0, 2.0, 1.0], max_steps=10, eval_every_steps=4, log_every_steps=3)
    bench.trainer.run()
    assert bench.evaluated == [4, 8, 10]
    # A line at each logged step, at each evaluation and at the end.
    assert [line["step"] for line in bench.lines()] == [3, 4, 6, 8, 9, 10]
    assert [line["step"] for line in bench.lines() if "val_loss" in line] == [4, 8, 10]


def test_samples_come_early_and_then_at_their_steps(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_steps=250, sample_every_steps=100, log_every_steps=1000)
    bench.trainer.run()
    assert [line["step"] for line in bench.lines("samples")] == [16, 32, 64, 100, 200, 250]
    assert set(bench.lines("samples")[0]) == {"step", "tokens", "prompt", "text"}


def test_no_samples_where_none_are_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_steps=40, sample_every_steps=0, log_every_steps=1000)
    bench.trainer.run()
    assert bench.lines("samples") == []


def test_a_line_says_what_happened_since_the_last_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, log_every_steps=3)
    boundary = bench.boundary
    boundary.source_names = ["one", "two"]
    after(boundary, [3, 0], loss=3.0, tokens=10)
    assert boundary.pass_through(no_stop, final=False)
    after(boundary, [1, 2], loss=6.0, tokens=20)
    assert boundary.pass_through(no_stop, final=False)
    assert bench.lines() == []
    after(boundary, [3, 0], loss=None, tokens=30)  # a skipped update: trained on, but without a loss
    assert boundary.pass_through(no_stop, final=False)
    (line,) = bench.lines()
    assert line["step"] == 3
    assert line["tokens"] == 60
    assert line["loss"] == pytest.approx((3.0 * 10 + 6.0 * 20) / 30)
    assert line["tokens_per_s"] == pytest.approx(60 / 6.0)
    assert line["feed_wait"] == pytest.approx(0.5)
    assert line["sources"] == {"one": pytest.approx(7 / 9, abs=1e-4), "two": pytest.approx(2 / 9, abs=1e-4)}
    assert set(line) == {
        *("step", "tokens", "loss", "tokens_per_s", "seq_len", "lr", "grad_norm", "epoch", "stage", "fraction"),
        *("feed_wait", "memory_bytes", "sources", "elapsed_s", "skipped"),
    }
    for _ in range(3):
        after(boundary, [3, 0], loss=1.0)
        assert boundary.pass_through(no_stop, final=False)
    assert bench.lines()[1]["loss"] == 1.0  # the sums began anew
    assert bench.lines()[1]["sources"] == {"one": 1.0}


def test_an_evaluation_adds_its_figures(tmp_path: Path) -> None:
    bench = Bench(tmp_path, losses=[1.5], eval_every_steps=1)
    after(bench.boundary, [1])
    assert bench.boundary.pass_through(no_stop, final=False)
    (line,) = bench.lines()
    assert line["val_loss"] == pytest.approx(1.5)
    assert line["val_perplexity"] == pytest.approx(2.718281828**1.5)
    assert line["val_bits_per_byte"] == pytest.approx(1.5 * 100 / 0.69314718 / 300)
    assert line["val_tokens"] == 100


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, losses=[1.5], eval_every_steps=1, sample_every_steps=1)
    after(bench.boundary, [1])
    for final in (False, False, True, True):
        assert bench.boundary.pass_through(no_stop, final=final)
    assert (bench.evaluated, len(bench.lines()), len(bench.lines("samples"))) == ([1], 1, 1)


def test_an_interrupted_evaluation_stays_due(tmp_path: Path) -> None:
    bench = Bench(tmp_path, losses=[None, 1.5], eval_every_steps=1)
    after(bench.boundary, [1])
    assert not bench.boundary.pass_through(no_stop, final=False)
    assert not bench.progress.boundary_done
    assert (bench.lines(), bench.progress.best_val_loss, bench.progress.last_eval_step) == ([], None, 0)
    assert bench.boundary.pass_through(no_stop, final=False)
    assert bench.progress.boundary_done
    assert [line["val_loss"] for line in bench.lines()] == [1.5]


@pytest.mark.parametrize("losses", [[2.0, 3.0], [2.0, 1.0]])
def test_an_evaluation_made_twice_counts_once(losses: list[float | None], tmp_path: Path) -> None:
    """The sample that follows was interrupted: the evaluation is made again when the run goes on."""
    written: list[list[tuple[str, str]] | None] = [None, [("a", "b")]]
    bench = Bench(
        tmp_path,
        losses=[*losses, losses[-1]],
        sampler=lambda stop: written.pop(0),
        eval_every_steps=1,
        sample_every_steps=2,
        early_stopping_evals=1,
    )
    for step in (1, 2):
        after(bench.boundary, [1])
        done = bench.boundary.pass_through(no_stop, final=False)
        assert done == (step == 1)
    before = bench.progress.state_dict()
    assert bench.boundary.pass_through(no_stop, final=False)
    for counter in ("best_val_loss", "best_step", "evals_since_best", "stopped_early"):
        assert getattr(bench.progress, counter) == before[counter]
    assert bench.progress.stopped_early == (losses[1] == 3.0)
    assert [line["val_loss"] for line in bench.lines()] == losses


def test_without_held_out_text_nothing_is_evaluated(tmp_path: Path) -> None:
    bench = Bench(tmp_path, feed=Steps(per_epoch=3), epochs=2, eval_every_steps=1)
    assert bench.trainer.run().status == "finished"
    assert all("val_loss" not in line for line in bench.lines())
    assert bench.progress.best_val_loss is None
    assert not (tmp_path / "lm_best.pth").exists()
