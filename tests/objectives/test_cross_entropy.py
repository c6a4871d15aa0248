"""Chunked cross-entropy against F.cross_entropy, and how much memory it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lmloop.objectives.cross_entropy import chunk_rows, linear_cross_entropy, linear_nll

N, D, V = 37, 12, 29


def case(dtype: torch.dtype = torch.float64, masked: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = 3 * torch.randn(N, D, dtype=dtype, generator=generator)
    weight_VD = torch.randn(V, D, dtype=dtype, generator=generator)
    targets_N = torch.randint(V, (N,), generator=generator)
    weights_N = torch.rand(N, dtype=dtype, generator=generator) * (torch.rand(N, generator=generator) >= masked)
    return hidden_ND.requires_grad_(), weight_VD.requires_grad_(), targets_N, weights_N


def reference(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    return (functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="none") * weights_N).sum()


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000])
@pytest.mark.parametrize("masked", [0.0, 0.5, 1.0])
def test_loss_and_gradients_equal_pytorchs_in_fp64(chunk: int, masked: float) -> None:
    hidden_ND, weight_VD, targets_N, weights_N = case(masked=masked, seed=chunk)
    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N, weights_N, chunk)
    ours = torch.autograd.grad(loss * 0.37, (hidden_ND, weight_VD))
    expected = reference(hidden_ND, weight_VD, targets_N, weights_N)
    theirs = torch.autograd.grad(expected * 0.37, (hidden_ND, weight_VD))
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert (ours[0][weights_N == 0] == 0).all()


def test_gradcheck() -> None:
    hidden_ND, weight_VD, targets_N, weights_N = case()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets_N, weights_N, 8), (hidden_ND, weight_VD))


def test_large_logits_do_not_overflow() -> None:
    hidden_ND, weight_VD, targets_N, weights_N = case(torch.float32)
    big_ND = (1e4 * hidden_ND).detach().requires_grad_()
    loss = linear_cross_entropy(big_ND, weight_VD, targets_N, weights_N, 8)
    loss.backward()
    torch.testing.assert_close(loss, reference(big_ND, weight_VD, targets_N, weights_N), atol=0, rtol=1e-5)
    assert big_ND.grad is not None
    assert big_ND.grad.isfinite().all()


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_asked_for_gradients_are_made(needs: tuple[bool, bool]) -> None:
    hidden_ND, weight_VD, targets_N, weights_N = case()
    hidden_ND.requires_grad_(needs[0])
    weight_VD.requires_grad_(needs[1])
    linear_cross_entropy(hidden_ND, weight_VD, targets_N, weights_N, 8).backward()
    assert (hidden_ND.grad is not None, weight_VD.grad is not None) == needs


def test_bf16_autocast_is_close_and_sums_in_fp32() -> None:
    hidden_ND, weight_VD, targets_N, weights_N = case(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N, weights_N, 8)
    assert loss.dtype == torch.float32
    ours = torch.autograd.grad(loss, (hidden_ND, weight_VD))
    expected = reference(hidden_ND, weight_VD, targets_N, weights_N)
    theirs = torch.autograd.grad(expected, (hidden_ND, weight_VD))
    torch.testing.assert_close(loss, expected, atol=0, rtol=0.01)
    assert loss.item() != expected.item()  # the products did run in bf16
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_losses_of_single_positions(chunk: int) -> None:
    hidden_ND, weight_VD, targets_N, _ = case()
    nll_N = linear_nll(hidden_ND, weight_VD, targets_N, chunk)
    expected_N = functional.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="none")
    torch.testing.assert_close(nll_N, expected_N.detach(), atol=1e-12, rtol=1e-12)
    assert not nll_N.requires_grad


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_logits_of_the_whole_batch_are_never_held() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(1_000, 8, generator=generator, requires_grad=True)
    weight_VD = torch.randn(500, 8, generator=generator, requires_grad=True)
    targets_N = torch.randint(500, (1_000,), generator=generator)
    with LargestTensor() as ours:
        linear_cross_entropy(hidden_ND, weight_VD, targets_N, torch.ones(1_000), 20).backward()
        linear_nll(hidden_ND, weight_VD, targets_N, 20)
    assert ours.numel == 20 * 500
    with LargestTensor() as plain:
        reference(hidden_ND, weight_VD, targets_N, torch.ones(1_000)).backward()
    assert plain.numel == 1_000 * 500  # what the measure shows where they are held


def test_any_number_of_trained_positions_makes_few_shapes() -> None:
    """Of products: oneDNN compiles each shape anew."""
    generator, positions, vocab = torch.Generator().manual_seed(0), 200, 500
    hidden_ND, weight_VD = (torch.randn(n, 4, generator=generator, requires_grad=True) for n in (positions, vocab))
    targets_N, rows = torch.randint(vocab, (positions,), generator=generator), set[int]()
    for trained in range(1, positions):
        with LargestTensor() as largest:
            linear_cross_entropy(hidden_ND, weight_VD, targets_N, (torch.arange(positions) < trained).float(), 1_000)
        rows.add(largest.numel // vocab)
    assert rows == {64, 128, 192, 256}


def test_a_chunk_of_logits_fits_its_memory() -> None:
    for vocab_size in (256, 8_192, 32_000, 128_256, 10**6):
        rows = chunk_rows(vocab_size)
        assert 64 <= rows <= 2_048
        assert rows == 64 or rows * vocab_size * 4 <= 2**25
