from __future__ import annotations

from typing import Any

import pytest
import torch

from lmloop.models.build import build_model
from lmloop.models.prepared import can_prepare, prepare
from lmloop.models.steps import Steps
from lmloop.models.transformer import Transformer
from lmloop.preset.schema import ModelSection

VOCAB, PROMPT, WRITTEN = 61, 5, 12
MAX_TOKENS = PROMPT + WRITTEN
SHAPES: dict[str, dict[str, Any]] = {
    "decoder": {},
    "grouped": {"num_kv_heads": 2, "tie_embeddings": False},
    "one key head, squared ReLU": {"num_kv_heads": 1, "feed_forward": "relu2"},
    "wide heads, yarn": {
        "head_dim": 24,
        "norm_eps": 1e-2,
        "position_scaling": "yarn",
        "original_seq_length": 16,
    },
    "gpt2": {"architecture": "gpt2"},
    "gpt2, exact GELU": {"architecture": "gpt2", "feed_forward": "gelu"},
    "gpt2 untied": {"architecture": "gpt2", "tie_embeddings": False},
}


def model_of(shape: str, **changes: Any) -> Transformer:
    """Random weights, those of norms and biases too, and with the small numbers that make eps matter."""
    section = ModelSection(hidden_size=32, num_layers=3, num_heads=4, seq_length=32, **{**SHAPES[shape], **changes})
    model = build_model(section, VOCAB, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() == 1 else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    assert isinstance(model, Transformer)
    return model.eval()


def tokens(rows: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, MAX_TOKENS), generator=torch.Generator().manual_seed(rows))


@torch.no_grad()
def logits_of_both(
    model: Transformer, tokens_BT: torch.Tensor, dtype: torch.dtype, pads: list[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after each token behind the prompt: by the model's own `decode`, and with prepared weights; [B, T, V] each."""
    rows = len(tokens_BT)
    long, short = model.make_cache(rows, MAX_TOKENS), model.make_cache(rows, PROMPT)
    if pads is not None:
        long.pad_B, short.pad_B = torch.tensor(pads), torch.tensor(pads)
    for cache in (long, short):
        model.decode(tokens_BT[:, :PROMPT], cache)
    steps = Steps(prepare(model, rows, dtype), short, MAX_TOKENS)
    own, prepared = [], []
    for place in range(PROMPT, MAX_TOKENS):
        own.append(model.head(model.decode(tokens_BT[:, place : place + 1], long)[:, -1]))
        prepared.append(steps.logits(tokens_BT[:, place]))
    return torch.stack(own, 1), torch.stack(prepared, 1)


@pytest.mark.parametrize("pads", [None, [0, 2, 4]], ids=["full", "ragged"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_logits_are_those_of_decode(shape: str, pads: list[int] | None) -> None:
    own, prepared = logits_of_both(model_of(shape), tokens(3), torch.float32, pads)
    torch.testing.assert_close(prepared, own, rtol=1e-5, atol=1e-5)
    assert own.std() > 0.01, "the cases are all alike"


@pytest.mark.parametrize("shape", SHAPES)
def test_one_row(shape: str) -> None:
    own, prepared = logits_of_both(model_of(shape), tokens(1), torch.float32)
    torch.testing.assert_close(prepared, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("shape", ["decoder", "gpt2"])
def test_bf16_is_near(shape: str, rows: int) -> None:
    own, prepared = logits_of_both(model_of(shape), tokens(rows), torch.bfloat16)
    assert prepared.dtype == torch.float32
    error = (prepared - own).norm() / own.norm()
    assert 1e-4 < error < 0.03, f"relative error {error}: bf16 rounds to 1 part in 256"


def test_one_row_in_16_bits_is_nearer_than_bf16() -> None:
    """Its weights are in fp16 where PyTorch has that product, which rounds to 1 part in 2,048."""
    model = model_of("decoder")
    if not prepare(model, 1, torch.bfloat16).layout.fp16:
        pytest.skip(f"no product with weights in fp16: {torch.backends.quantized.engine}")
    own, prepared = logits_of_both(model, tokens(1), torch.bfloat16)
    error = (prepared - own).norm() / own.norm()
    assert 1e-5 < error < 2e-3, error


def test_weights_beyond_fp16_stay_in_bf16() -> None:
    model = model_of("decoder")
    with torch.no_grad():
        next(model.parameters())[0, 0] = 300.0  # of two such and √32 the product is too large
    assert not prepare(model, 1, torch.bfloat16).layout.fp16


@pytest.mark.parametrize("rows", [1, 3])
def test_keys_and_values_beyond_fp16(rows: int) -> None:
    """Values of a million would be infinite."""
    model = model_of("gpt2")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attn.c_attn.bias"):
                parameter[64:] += 1e6  # that of the values
            if name.endswith("attn.c_proj.weight"):
                parameter.mul_(1e-6)
    own, prepared = logits_of_both(model, tokens(rows), torch.bfloat16)
    assert (prepared - own).norm() / own.norm() < 0.03


def test_results_can_be_changed_where_gradients_may_be_on() -> None:
    """They are no tensors of inference mode, which refuse that, and no buffer that the next step overwrites."""
    model, rows = model_of("decoder"), tokens(2)
    with torch.no_grad():
        cache = model.make_cache(2, PROMPT)
        model.decode(rows[:, :PROMPT], cache)
    steps = Steps(prepare(model, 2, torch.float32), cache, MAX_TOKENS)
    first = steps.logits(rows[:, 5])
    kept = first.clone()
    steps.logits(rows[:, 6])
    assert torch.equal(first, kept)
    first.mul_(2)
    model.hidden(rows).sum().backward()


def test_it_serves_until_a_weight_changes() -> None:
    model = model_of("decoder")
    prepared = prepare(model, 2, torch.float32)
    assert prepared.serves(2, torch.float32)
    assert not prepared.serves(1, torch.float32)
    assert not prepared.serves(2, torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.hidden(tokens(2)).sum().backward()
    assert prepared.serves(2, torch.float32), "gradients are no change"
    optimizer.step()
    assert not prepared.serves(2, torch.float32)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_matrix_is_the_models_own(dtype: torch.dtype, rows: int) -> None:
    model = model_of("gpt2 untied")
    prepared = prepare(model, rows, dtype)
    ones = torch.ones(rows, 32)

    def outputs() -> list[torch.Tensor]:
        layer = prepared.layers[0]
        maps = [layer.query_key_value, layer.out, layer.feed_forward, prepared.head]
        return [layer.mixer_norm(ones), *(one(ones.to(prepared.layout.inputs)) for one in maps)]

    with torch.no_grad():
        before = outputs()
        for parameter in model.parameters():
            parameter.mul_(2)
        assert all(map(torch.equal, outputs(), before))


def test_what_has_no_prepared_form() -> None:
    assert can_prepare(model_of("decoder"))
    assert not can_prepare(model_of("decoder", ngram_tables=[{"n": 2, "rows": 64, "width": 16}]))
    assert not can_prepare(torch.nn.Linear(2, 2))
    assert not can_prepare(model_of("decoder").bfloat16())
    assert not can_prepare(model_of("decoder").to("meta"))


def test_a_full_cache_is_an_error() -> None:
    model, rows = model_of("gpt2"), tokens(1)
    with torch.no_grad():
        cache = model.make_cache(1, PROMPT)
        model.decode(rows[:, :PROMPT], cache)
    steps = Steps(prepare(model, 1, torch.float32), cache, PROMPT + 1)
    steps.logits(rows[:, 5])
    with pytest.raises(AssertionError, match="no room behind 6 tokens"):
        steps.logits(rows[:, 6])
