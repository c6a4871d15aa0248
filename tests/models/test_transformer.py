"""Packing, decoding, dropout, checkpointing, precision and initialisation of all architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.models.attention import attend, attend_in_blocks
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.models.mixer import Context
from lmloop.preset.schema import ModelSection, NgramTable

VOCAB = 50
SECTIONS = {
    "decoder": ModelSection(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, seq_length=40),
    "gpt2": ModelSection(architecture="gpt2", hidden_size=32, num_layers=2, num_heads=4, seq_length=40),
    "ngrams": ModelSection(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        seq_length=40,
        feed_forward="relu2",
        ngram_tables=[NgramTable(n=2, rows=10_000, width=32), NgramTable(n=4, rows=64, width=8)],
    ),
}
each = pytest.mark.parametrize("architecture", SECTIONS)


def make(architecture: str, **changes: object) -> LanguageModel:
    """A model in fp64 with weights large enough for attention to be far from uniform."""
    model = build_model(SECTIONS[architecture].model_copy(update=changes), VOCAB, seed=3).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 5
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@each
def test_packed_documents_equal_separate_rows(architecture: str) -> None:
    model = make(architecture)
    a, b, c = tokens(1, 11), tokens(1, 1, seed=1), tokens(1, 20, seed=2)
    segments_BT = torch.tensor([[0] * 11 + [1] + [2] * 20]).int()
    packed_BTD = model.hidden(torch.cat([a, b, c], dim=1), segments_BT)
    separate_BTD = torch.cat([model.hidden(x) for x in (a, b, c)], dim=1)
    torch.testing.assert_close(packed_BTD, separate_BTD, atol=1e-12, rtol=1e-12)


@each
def test_a_perturbed_neighbour_changes_nothing(architecture: str) -> None:
    model = make(architecture)
    tokens_BT = tokens(2, 32)
    segments_BT = torch.tensor([[0] * 12 + [1] * 20, [0] * 5 + [1] * 20 + [2] * 7]).int()
    perturbed_BT = tokens_BT.clone()
    perturbed_BT[0, :12] = (perturbed_BT[0, :12] + 1) % VOCAB
    perturbed_BT[1, 5:25] = (perturbed_BT[1, 5:25] + 1) % VOCAB
    before_BTD, after_BTD = model.hidden(tokens_BT, segments_BT), model.hidden(perturbed_BT, segments_BT)
    same_BT = (before_BTD == after_BTD).all(dim=-1)
    assert torch.equal(same_BT, tokens_BT == perturbed_BT)
    unpacked_BT = (model.hidden(tokens_BT) == model.hidden(perturbed_BT)).all(dim=-1)
    assert not unpacked_BT[0, 12:].any()  # without segments the neighbour is seen: the check can fail


@each
def test_a_later_token_changes_nothing_earlier(architecture: str) -> None:
    model = make(architecture)
    tokens_BT = tokens(1, 30)
    changed_BT = tokens_BT.clone()
    changed_BT[0, 17] = (changed_BT[0, 17] + 1) % VOCAB
    same_T = (model.hidden(tokens_BT) == model.hidden(changed_BT)).all(dim=-1)[0]
    assert same_T.tolist() == [True] * 17 + [False] * 13


@each
@pytest.mark.parametrize("chunks", [[24], [1] * 24, [7, 1, 5, 11]])
def test_decoding_equals_the_full_forward_pass(architecture: str, chunks: list[int]) -> None:
    model = make(architecture)
    tokens_BT = tokens(3, 24)
    cache = model.make_cache(3, 24)
    parts = [model.decode(piece, cache) for piece in tokens_BT.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(tokens_BT), atol=1e-11, rtol=1e-11)
    assert cache.length == 24


@each
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [3, 9, 8]])
def test_decoding_left_padded_rows_equals_each_row_alone(architecture: str, chunks: list[int]) -> None:
    model = make(architecture)
    pads = [0, 5, 13]
    tokens_BT = tokens(3, 20)
    cache = model.make_cache(3, 26)
    cache.pad_B = torch.tensor(pads)
    hidden_BTD = torch.cat([model.decode(piece, cache) for piece in tokens_BT.split(chunks, dim=1)], dim=1)
    assert hidden_BTD.isfinite().all()
    for row, pad in enumerate(pads):
        alone_TD = model.hidden(tokens_BT[row : row + 1, pad:])[0]
        torch.testing.assert_close(hidden_BTD[row, pad:], alone_TD, atol=1e-11, rtol=1e-11)


@each
def test_a_cache_can_forget_its_newest_tokens(architecture: str) -> None:
    model = make(architecture)
    tokens_BT = tokens(1, 12)
    cache = model.make_cache(1, 16)
    model.decode(tokens_BT[:, :8], cache)
    model.decode(tokens(1, 4, seed=9), cache)
    cache.length = 8
    torch.testing.assert_close(model.decode(tokens_BT[:, 8:], cache), model.hidden(tokens_BT)[:, 8:], atol=1e-11, rtol=1e-11)


@each
def test_a_full_cache_is_noticed(architecture: str) -> None:
    model = make(architecture)
    with pytest.raises(AssertionError, match="do not fit into a cache of 4"):
        model.decode(tokens(1, 5), model.make_cache(1, 4))


@each
def test_checkpointing_recomputes_the_same_gradients_with_the_same_dropout(architecture: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = make(architecture, dropout=0.3).train()
        model.activation_checkpointing = recompute
        torch.manual_seed(11)
        model.hidden(tokens(2, 16)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@each
def test_checkpointing_keeps_fewer_tensors(architecture: str) -> None:
    kept = []
    for recompute in (False, True):
        model = make(architecture)
        model.activation_checkpointing = recompute
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model.hidden(tokens(2, 32))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3, kept


@each
def test_dropout_acts_in_training_only_and_not_at_rate_0(architecture: str) -> None:
    model = make(architecture, dropout=0.5)
    x = tokens(1, 8)
    assert torch.equal(model.hidden(x), model.hidden(x))
    model.train()
    assert not torch.equal(model.hidden(x), model.hidden(x))
    state = torch.get_rng_state()
    make(architecture).train().hidden(x)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn


@each
@pytest.mark.parametrize("packed", [False, True])
def test_bf16_autocast_is_close_to_fp32(architecture: str, packed: bool) -> None:
    model = build_model(SECTIONS[architecture], VOCAB, seed=3)
    tokens_BT = tokens(2, 40)
    segments_BT = torch.arange(40).div(13, rounding_mode="floor").expand(2, 40).int() if packed else None
    exact_BTD = model.hidden(tokens_BT, segments_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough_BTD = model.hidden(tokens_BT, segments_BT)
    assert rough_BTD.dtype == torch.float32
    error = (rough_BTD - exact_BTD).square().mean().sqrt() / exact_BTD.square().mean().sqrt()
    assert 0 < error < 0.02, error


@each
def test_decoding_under_autocast(architecture: str) -> None:
    model = build_model(SECTIONS[architecture], VOCAB, seed=3).eval()
    tokens_BT = tokens(2, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        cache = model.make_cache(2, 20)
        decoded_BTD = torch.cat([model.decode(piece, cache) for piece in tokens_BT.split([9, 1, 10], dim=1)], dim=1)
        full_BTD = model.hidden(tokens_BT)
    assert (decoded_BTD - full_BTD).square().mean().sqrt() < 0.02 * full_BTD.square().mean().sqrt()


@pytest.mark.parametrize("length", [1, 127, 128, 300])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_in_blocks_equals_pytorchs(length: int, packed: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    query, upstream = (torch.randn(2, 4, length, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    key, value = (torch.randn(2, 2, length, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    segments_BT = torch.arange(length).div(50, rounding_mode="floor").expand(2, length)
    mask = (segments_BT[:, :, None] == segments_BT[:, None, :]).tril()[:, None] if packed else None
    results = []
    for kernel in ("blocks", "torch"):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        if kernel == "blocks":
            bias = Context(torch.arange(length)[None], None, mask).additive_mask(torch.float64)
            mixed = attend_in_blocks(*leaves, bias)
        else:
            context = Context(torch.arange(length)[None], None, mask)
            mixed = attend(*leaves, context).view(2, length, 4, 8).transpose(1, 2)
        mixed.backward(upstream)
        results.append([mixed, *(x.grad for x in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_attention_in_blocks_knows_few_lengths() -> None:
    """Of which each has code compiled for it."""
    seen: set[int] = set()
    for length in range(1, 200):
        query, key, value = (torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3))
        node: Any = attend_in_blocks(query, key, value, None).grad_fn  # of a class that PyTorch makes when it is run
        seen |= {one.shape[1] for one in node.saved_tensors[:3]}
    assert len(seen) == 7


@each
def test_fresh_weights_depend_on_the_seed_alone(architecture: str) -> None:
    section = SECTIONS[architecture]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build_model(section, VOCAB, seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again, other = build_model(section, VOCAB, seed=4).state_dict(), build_model(section, VOCAB, seed=5).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@each
def test_scale_of_fresh_weights(architecture: str) -> None:
    section = SECTIONS[architecture].model_copy(update={"hidden_size": 128, "num_layers": 8})
    for name, parameter in build_model(section, 500, seed=0).named_parameters():
        if parameter.dim() == 2:
            residual = any(part in name for part in ("o_proj", "down_proj", "c_proj"))
            assert parameter.std().item() == pytest.approx(0.005 if residual else 0.02, rel=0.1), name
        else:
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name


@each
def test_a_fresh_model_predicts_nearly_uniformly(architecture: str) -> None:
    model = build_model(SECTIONS[architecture], VOCAB, seed=0)
    logits_BTV = model.head(model.hidden(tokens(4, 32)))
    loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens(4, 32, seed=1).flatten())
    assert loss.item() == pytest.approx(torch.tensor(float(VOCAB)).log().item(), abs=0.1)


def test_positions_have_a_limit_only_when_learned() -> None:
    build_model(SECTIONS["decoder"], VOCAB, seed=0).hidden(tokens(1, 41))
    model = build_model(SECTIONS["gpt2"], VOCAB, seed=0)
    with pytest.raises(AssertionError, match="41 tokens, but the model has 40 positions"):
        model.hidden(tokens(1, 41))
