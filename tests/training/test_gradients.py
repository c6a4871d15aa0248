"""An update that does not fit in memory is computed again in smaller pieces, and comes out the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.tokens.batch import Batch
from lmloop.training.gradients import is_out_of_memory
from lmloop.training.trainee import Trainee
from tests.training.trainers import Bench, Steps, random_batch, small_model, weights_of


def room_for(monkeypatch: pytest.MonkeyPatch, tokens: int, *, in_backward: bool = False) -> list[int]:
    """Have passes of more than `tokens` tokens run out of memory; the sizes of those that did not."""
    passed: list[int] = []
    forward = Trainee.forward

    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise torch.OutOfMemoryError("no memory for the backward pass\nsecond line")

    def bounded(self: Trainee, batch: Batch) -> Any:
        if batch.tokens_BT.numel() <= tokens:
            passed.append(batch.tokens_BT.numel())
            return forward(self, batch)
        if not in_backward:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        terms = forward(self, batch)
        for term in terms.values() if isinstance(terms, dict) else terms:
            object.__setattr__(term, "sum", Full.apply(term.sum))
        return terms

    monkeypatch.setattr(Trainee, "forward", bounded)
    return passed


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_step_out_of_memory_is_repeated_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_backward: bool
) -> None:
    """The same weights as where the feed gives pieces of that size, which is gradient accumulation."""

    def whole(step: int) -> list[Batch]:
        return [random_batch(8, 4, step, trained=0.7)]

    def pieces(step: int) -> list[Batch]:
        return whole(step)[0].split(2)

    expected = Bench(tmp_path / "a", model=small_model(), feed=Steps(make=pieces), max_steps=3)
    assert expected.trainer.run().status == "finished"
    passed = room_for(monkeypatch, tokens=11, in_backward=in_backward)
    bench = Bench(tmp_path / "b", model=small_model(), feed=Steps(make=whole), max_steps=3)
    assert bench.trainer.run().status == "finished"
    assert passed == [8] * 4 * 3
    assert bench.progress.tokens_at_a_time == 8
    assert [line for line in bench.notices if "memory" in line] == [
        "out of memory, 8 x 4 tokens: this update again and all others 4 rows at a time",
        "out of memory, 4 x 4 tokens: this update again and all others 2 rows at a time",
    ]
    assert torch.equal(weights_of(bench.model), weights_of(expected.model))


def test_one_row_that_does_not_fit_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(monkeypatch, tokens=3)
    bench = Bench(tmp_path, max_steps=3)
    outcome = bench.trainer.run()
    assert outcome.status == "failed"
    assert outcome.reason.startswith("out of memory, 1 x 4 tokens: lower model.seq_length, or set train.activation")
    assert len(outcome.reason.splitlines()) == 1


def test_other_errors_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Trainee, batch: Batch) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Trainee, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Bench(tmp_path, max_steps=1).trainer.run()


def test_what_running_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)  # more than any machine has
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not is_out_of_memory(RuntimeError("a memory format that is not supported"))


def test_a_batch_in_parts() -> None:
    batch = random_batch(5, 3, seed=1)
    assert batch.split(5) == [batch]
    parts = batch.split(2)
    assert [len(part.documents_B) for part in parts] == [2, 2, 1]
    for name in ("tokens_BT", "targets_BT", "weights_BT", "source_B"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
