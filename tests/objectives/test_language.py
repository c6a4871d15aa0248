"""Next-token prediction: sums and counts, and accumulation that does not change the gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.objectives.language import LanguageObjective
from lmloop.objectives.term import Term, total_loss
from lmloop.preset.schema import ModelSection
from lmloop.tokens.batch import Batch

VOCAB = 40
SECTION = ModelSection(hidden_size=32, num_layers=2, num_heads=4, seq_length=24)


def make_batch(rows: int, masked: list[float], seed: int = 0) -> Batch:
    """Packed rows of which `masked[i]` of the targets carry no weight; the others carry unequal ones."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(VOCAB, (rows, 25), generator=generator)
    weights_BT = torch.randint(1, 8, (rows, 24), generator=generator) / 4  # quarters: their fp32 sums are exact
    weights_BT *= torch.rand(rows, 24, generator=generator) >= torch.tensor(masked)[:, None]
    segments_BT = (torch.arange(24) >= torch.randint(1, 24, (rows, 1), generator=generator)).int()
    documents = tuple(("a", "b") for _ in range(rows))
    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], weights_BT, segments_BT, torch.zeros(rows).long(), documents)


def part(batch: Batch, rows: slice) -> Batch:
    assert batch.segments_BT is not None
    tensors = (batch.tokens_BT, batch.targets_BT, batch.weights_BT, batch.segments_BT, batch.source_B)
    return Batch(*(t[rows] for t in tensors), batch.documents_B[rows])


def gradients(model: LanguageModel, batches: list[Batch]) -> list[torch.Tensor]:
    """As the loop does it: counts of the whole update first, then backward for each micro-batch."""
    model.zero_grad()
    count = sum(LanguageObjective().counts(batch)["loss"] for batch in batches)
    for batch in batches:
        total_loss(LanguageObjective()(model, batch), {"loss": count}).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_sum_and_count_equal_pytorchs_mean() -> None:
    model = build_model(SECTION, VOCAB, seed=0).double()
    batch = make_batch(4, [0.0, 0.9, 0.5, 1.0])
    terms = LanguageObjective()(model, batch)
    assert list(terms) == ["loss"]
    logits_NV = model.head(model.hidden(batch.tokens_BT, batch.segments_BT)).flatten(0, 1)
    nll_N = functional.cross_entropy(logits_NV, batch.targets_BT.flatten(), reduction="none")
    expected = (nll_N * batch.weights_BT.flatten()).sum()
    torch.testing.assert_close(terms["loss"].sum, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(terms["loss"].count, batch.weights_BT.sum())
    assert LanguageObjective().counts(batch) == {"loss": pytest.approx(batch.weights_BT.double().sum().item(), rel=1e-6)}
    nll_BT = LanguageObjective().token_losses(model, batch)
    torch.testing.assert_close(nll_BT.flatten(), nll_N.detach(), atol=1e-10, rtol=1e-10)
    assert not nll_BT.requires_grad


@pytest.mark.parametrize("cuts", [[3, 3], [1, 1, 4], [5, 1]])
def test_accumulated_gradient_equals_the_large_batchs(cuts: list[int]) -> None:
    model = build_model(SECTION, VOCAB, seed=0).double()
    batch = make_batch(6, [0.0, 0.95, 0.5, 1.0, 0.2, 0.9])
    starts = [sum(cuts[:i]) for i in range(len(cuts))]
    parts = [part(batch, slice(start, start + rows)) for start, rows in zip(starts, cuts, strict=True)]
    large, accumulated = gradients(model, [batch]), gradients(model, parts)
    assert len(large) == len(list(model.parameters()))
    for a, b in zip(large, accumulated, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)

    # The mean of the micro-batches' means is another gradient: these masks would show the mistake.
    model.zero_grad()
    for piece in parts:
        terms = LanguageObjective()(model, piece)
        total_loss(terms, {"loss": terms["loss"].count * len(parts)}).backward()
    assert not torch.allclose(model.head_weight().grad, large[0], rtol=1e-3)  # type: ignore[arg-type]


def test_terms_add_up_with_their_coefficients() -> None:
    terms = {"a": Term(torch.tensor(6.0), 3), "b": Term(torch.tensor(10.0), 4, coefficient=0.1)}
    assert total_loss(terms, {"a": 3, "b": 4}).item() == pytest.approx(2.25)
    assert total_loss(terms, {"a": 6, "b": 8}).item() == pytest.approx(1.125)


def test_training_on_a_batch_learns_it() -> None:
    model = build_model(SECTION, VOCAB, seed=0)
    batch = make_batch(2, [0.0, 0.0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        terms = LanguageObjective()(model, batch)
        loss = total_loss(terms, {"loss": terms["loss"].count})
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
