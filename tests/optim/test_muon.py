"""Muon against the same rule written out for one matrix at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmloop.optim.muon import Muon, orthogonalise, update_scale


def orthogonalise_one(matrix: Tensor) -> Tensor:
    """Newton–Schulz as the publication states it, for a single matrix."""
    x = matrix
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48), (1, 8)])
def test_a_batch_equals_matrix_by_matrix(shape: tuple[int, int]) -> None:
    matrices_NRC = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected_NRC = torch.stack([orthogonalise_one(matrix) for matrix in matrices_NRC])
    torch.testing.assert_close(orthogonalise(matrices_NRC), expected_NRC, atol=1e-10, rtol=0)
    rough_NRC = orthogonalise(matrices_NRC.float())
    assert rough_NRC.dtype == torch.bfloat16
    assert (rough_NRC.double() - expected_NRC).norm() < 0.1 * expected_NRC.norm()


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
def test_the_result_is_nearly_the_polar_factor(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalise(matrix[None])[0].float()
    u, singular, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert singular.max() / singular.min() > 1.5  # the input is far from orthogonal
    values = torch.diagonal(u.T @ result @ vt.T)
    assert values.min() > 0.6
    assert values.max() < 1.3
    off_diagonal = u.T @ result @ vt.T - torch.diag(values)
    assert off_diagonal.abs().max() < 0.05


def test_zero_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6, dtype=torch.bfloat16))


@pytest.mark.parametrize("transposed", [False, True])
def test_updates_equal_the_written_out_rule(transposed: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = [(8, 8), (24, 8), (8, 24), (8, 8), (24, 8)]
    parameters = [torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator)) for shape in shapes]
    expected = [p.detach().clone() for p in parameters]
    momentum = [torch.zeros_like(p) for p in expected]
    groups = [{"params": parameters, "transposed": transposed}]
    optimizer = Muon(groups, lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(4):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            momentum[i] = 0.9 * momentum[i] + 0.1 * p.grad
            nesterov = 0.1 * p.grad + 0.9 * momentum[i]
            outputs, inputs = reversed(p.shape) if transposed else p.shape
            scale = max(1.0, outputs / inputs) ** 0.5
            expected[i] = expected[i] * (1 - 0.1 * 0.2) - 0.1 * scale * orthogonalise_one(nesterov)
        optimizer.step()
    for p, e in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, atol=1e-10, rtol=0)


def test_a_matrix_stored_the_other_way_moves_the_same_way() -> None:
    generator = torch.Generator().manual_seed(3)
    start, grad = (torch.randn(24, 8, generator=generator) for _ in range(2))
    plain, turned = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.T.clone())
    plain.grad, turned.grad = grad, grad.T.clone()
    groups = [{"params": [plain]}, {"params": [turned], "transposed": True}]
    Muon(groups, lr=0.1, momentum=0.9, weight_decay=0.0).step()
    torch.testing.assert_close(plain.detach(), turned.detach().T, atol=1e-3, rtol=0)
    assert (plain.detach() - start).abs().max() > 0.01


def test_scale_by_shape() -> None:
    assert update_scale(4, 16) == 1.0
    assert update_scale(16, 4) == 2.0


def test_only_matrices_are_taken() -> None:
    with pytest.raises(AssertionError, match=r"not for a tensor of shape \(3,\)"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3))]}], lr=0.1, momentum=0.9, weight_decay=0.0)
