"""N-gram tables against tables looked up one n-gram at a time in plain Python."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from lmloop.models.build import build_model
from lmloop.models.ngrams import NgramTables
from lmloop.preset.schema import ModelSection, NgramTable

VOCAB = 5


def test_a_table_with_room_has_a_row_for_each_ngram() -> None:
    torch.manual_seed(0)
    tables = NgramTables([NgramTable(n=2, rows=1000, width=4), NgramTable(n=3, rows=1000, width=6)], VOCAB, 6)
    assert [table.num_embeddings for table in tables.tables] == [36, 216]  # five tokens and "before the document"
    tokens_BT = torch.randint(VOCAB, (3, 20))
    got_BTD = tables(tokens_BT, torch.arange(20)[None], None)
    for b, t in itertools.product(range(3), range(20)):
        row = [VOCAB, VOCAB, *tokens_BT[b].tolist()]
        two, one, now = row[t : t + 3]
        wanted = tables.tables[1].weight[(now * 6 + one) * 6 + two].clone()
        wanted[:4] += tables.tables[0].weight[now * 6 + one]
        torch.testing.assert_close(got_BTD[b, t], wanted)


def test_ngrams_do_not_reach_into_the_document_before() -> None:
    tables = NgramTables([NgramTable(n=3, rows=50, width=8)], VOCAB, 8)
    row_T = torch.randint(VOCAB, (12,), generator=torch.Generator().manual_seed(1))
    packed = tables(row_T[None], torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]), None)[0]
    torch.testing.assert_close(packed[5:], tables(row_T[None, 5:], torch.arange(7)[None], None)[0])


@pytest.mark.parametrize("vocab", [300, 50_000])
def test_hashing_spreads_ngrams_evenly(vocab: int) -> None:
    """Of 20,000 different trigrams over 4,096 rows the fullest row has about as many as balls thrown at random give it."""
    tables = NgramTables([NgramTable(n=3, rows=4096, width=1)], vocab, 1)
    tables.tables[0].weight.data[:, 0] = torch.arange(4096.0)
    tokens_BT = torch.stack([torch.arange(20_000) % 40, torch.arange(20_000) // 40 % 25, torch.arange(20_000) // 1000], 1)
    rows = tables(tokens_BT, torch.arange(3)[None], None)[:, 2, 0].tolist()
    loads = Counter(rows)
    assert max(loads.values()) <= 20  # mean 4.9; a random function has more than 20 in any row once in 10,000 trials
    assert len(loads) > 0.95 * 4096


def test_squared_relu_is_what_it_says() -> None:
    model = build_model(ModelSection(hidden_size=16, num_layers=1, num_heads=2, feed_forward="relu2"), VOCAB, seed=0)
    layer = model.model.layers[0].mlp
    x = torch.randn(2, 3, 16)
    up = layer.up_proj.weight
    assert up.shape == (64, 16)
    torch.testing.assert_close(layer(x), torch.clamp(x @ up.T, min=0) ** 2 @ layer.down_proj.weight.T)
