"""Whether a model became worse: against many draws of documents, and sums for each document made the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lmloop.models.build import build_model
from lmloop.preset.schema import ModelSection, TokenizerSection
from lmloop.tokens.build import build_tokenizer
from lmloop.training.evaluate import evaluate, held_out
from lmloop.training.paired import FEWEST, Losses, difference, losses
from tests.tokens.sources import MemorySource, expected_pairs, texts


def draw(rng: np.random.Generator, units: int, shift: float) -> tuple[Losses, Losses]:
    tokens = rng.integers(5, 200, units)
    gained = tokens * rng.normal(shift, 0.3, units) + rng.normal(0, 2.0, units)
    before = tokens * 3.0
    return Losses(before.tolist(), tokens.tolist()), Losses((before + gained).tolist(), tokens.tolist())


def test_the_standard_error_is_that_of_many_draws() -> None:
    rng = np.random.default_rng(1)
    drawn = [difference(*draw(rng, 60, 0.05)) for _ in range(2_000)]
    spread = float(np.std([one.mean for one in drawn]))
    assert np.mean([one.error for one in drawn]) == pytest.approx(spread, rel=0.08)


def test_chance_alone_is_rarely_taken_for_harm() -> None:
    rng = np.random.default_rng(2)
    harmless = [difference(*draw(rng, 60, 0.0)).is_worse for _ in range(1_000)]
    harmful = [difference(*draw(rng, 60, 0.3)).is_worse for _ in range(300)]
    assert np.mean(harmless) < 0.06
    assert np.mean(harmful) > 0.99


def test_one_document_tells_nothing() -> None:
    assert not difference(Losses([1.0], [1]), Losses([9.0], [1])).is_worse
    assert math.isinf(difference(Losses([1.0], [1]), Losses([9.0], [1])).error)


@pytest.mark.parametrize("count", [FEWEST + 3, 2])
def test_losses_are_those_of_each_document(count: int) -> None:
    source = MemorySource("s", [text + "abc" for text in texts(count, 3)])
    tokenizer = build_tokenizer(TokenizerSection(type="char"), [source])
    model = build_model(ModelSection(hidden_size=8, num_layers=1, num_heads=2, seq_length=16), tokenizer.vocab_size, seed=0)
    data = held_out([source], tokenizer, length=16, rows=3, max_tokens=None)
    found = losses(model, data, torch.device("cpu"), autocast=False)
    whole = evaluate(model, data, torch.device("cpu"), autocast=False)
    assert found is not None
    assert whole is not None
    assert sum(found.tokens_U) == whole.tokens
    assert found.mean == pytest.approx(whole.cross_entropy, rel=1e-6)
    if count >= FEWEST:
        pairs = [name for name, _ in expected_pairs(tokenizer, source)]
        assert found.tokens_U == [pairs.count(f"s:{at}") for at in range(count)]
    else:
        assert len(found.tokens_U) == sum(len(batch.documents_B) for batch in data.batches)
    assert losses(model, data, torch.device("cpu"), autocast=False, should_stop=lambda: True) is None
