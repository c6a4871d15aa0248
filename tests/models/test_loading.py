"""What fits a model, what is refused, and how parameters are counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmloop.models.build import build_model
from lmloop.models.gpt2 import GPT2
from lmloop.models.loading import load_weights, parameter_counts
from lmloop.preset.schema import ModelSection

DECODER = ModelSection(hidden_size=32, num_layers=2, num_heads=4, seq_length=16)
GPT = ModelSection(architecture="gpt2", hidden_size=32, num_layers=2, num_heads=4, seq_length=16)
TOKENS = torch.arange(16)[None]


@pytest.mark.parametrize("section", [DECODER, GPT, DECODER.model_copy(update={"tie_embeddings": False})])
def test_everything_is_taken_over(section: ModelSection) -> None:
    old, model = build_model(section, 50, seed=1), build_model(section, 50, seed=2)
    report = load_weights(model, old.state_dict())
    assert set(report.loaded) == set(dict(old.named_parameters()))
    assert (report.grown, report.new) == ((), ())
    assert torch.equal(model.hidden(TOKENS), old.hidden(TOKENS))
    assert str(report) == f"{len(report.loaded)} tensors loaded"


def test_longer_learned_positions_grow() -> None:
    old = build_model(GPT, 50, seed=1)
    model = build_model(GPT.model_copy(update={"seq_length": 24}), 50, seed=2)
    fresh = model.state_dict()["transformer.wpe.weight"][16:].clone()
    report = load_weights(model, old.state_dict())
    assert report.grown == ("transformer.wpe.weight",)
    assert "transformer.wpe.weight" in str(report)
    assert torch.equal(model.hidden(TOKENS), old.hidden(TOKENS))
    assert torch.equal(model.state_dict()["transformer.wpe.weight"][16:], fresh)


def test_a_longer_rotary_context_needs_no_growth() -> None:
    model = build_model(DECODER.model_copy(update={"seq_length": 64}), 50, seed=2)
    assert not load_weights(model, build_model(DECODER, 50, seed=1).state_dict()).grown


def test_a_new_module_is_new() -> None:
    model = build_model(DECODER, 50, seed=2)
    model.value_head = nn.Linear(32, 1)
    report = load_weights(model, build_model(DECODER, 50, seed=1).state_dict())
    assert report.new == ("value_head.weight", "value_head.bias")
    assert "new and fresh: value_head.weight" in str(report)


@pytest.mark.parametrize(
    ("section", "changes", "vocab", "named"),
    [
        (DECODER, {"num_layers": 3}, 50, "model.layers.2.self_attn.q_proj.weight is missing"),
        (DECODER, {"num_layers": 1}, 50, "model.layers.1.self_attn.q_proj.weight is not in the model"),
        (DECODER, {"hidden_size": 64}, 50, "lm_head.weight is 50x32 in the weights and 50x64 in the model"),
        (DECODER, {}, 51, "50x32 in the weights and 51x32 in the model"),
        (DECODER, {"architecture": "gpt2"}, 50, "not in the model"),
        (DECODER, {"num_kv_heads": 2}, 50, "k_proj.weight is 32x32 in the weights and 16x32 in the model"),
        (GPT, {"seq_length": 8}, 50, "transformer.wpe.weight is 16x32 in the weights and 8x32 in the model"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(
    section: ModelSection, changes: dict[str, object], vocab: int, named: str
) -> None:
    model = build_model(section.model_copy(update=changes), vocab, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=named) as error:
        load_weights(model, build_model(section, 50, seed=1).state_dict())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_untied_head_is_not_dropped_silently() -> None:
    untied = build_model(DECODER.model_copy(update={"tie_embeddings": False}), 50, seed=1)
    with pytest.raises(ValueError, match="are tied in the model and differ in the weights"):
        load_weights(build_model(DECODER, 50, seed=2), untied.state_dict())


def test_a_missing_head_is_not_taken_for_a_new_module() -> None:
    weights = {n: t for n, t in build_model(DECODER, 50, seed=1).state_dict().items() if n != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing"):
        load_weights(build_model(DECODER.model_copy(update={"tie_embeddings": False}), 50, seed=2), weights)


def test_an_empty_state_dict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"missing|none of the model's tensors"):
        load_weights(build_model(DECODER, 50, seed=2), {})


def test_positions_can_be_extended_in_place() -> None:
    model = build_model(GPT, 50, seed=1)
    assert isinstance(model, GPT2)
    before_BTD = model.hidden(TOKENS)
    model.extend_max_seq_len(40, seed=3)
    assert model.context_length == 40
    assert torch.equal(model.hidden(TOKENS), before_BTD)
    hidden_BTD = model.hidden(torch.arange(40)[None])
    weights_BTD = torch.randn(hidden_BTD.shape, generator=torch.Generator().manual_seed(0))  # a plain sum is flat: a norm's
    (hidden_BTD * weights_BTD).sum().backward()
    grad = model.get_parameter("transformer.wpe.weight").grad
    assert grad is not None
    assert grad.abs().sum(dim=1).gt(0).all()
    with pytest.raises(ValueError, match="seq_length 39 is shorter than the 40 learned positions"):
        model.extend_max_seq_len(39)


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_parameters_are_counted_as_on_paper(tied: bool) -> None:
    section = ModelSection(
        hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=80, tie_embeddings=tied
    )
    counts = parameter_counts(build_model(section, 50, seed=0))
    assert counts == {
        "embedding": 50 * 32,
        "blocks": 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 80 * 32),
        "head": 0 if tied else 50 * 32,
        "norms": 3 * (2 * 32 + 2 * 8) + 32,
        "total": counts["embedding"] + counts["blocks"] + counts["head"] + counts["norms"],
    }


def test_gpt2_small_has_its_known_size() -> None:
    section = ModelSection(architecture="gpt2", hidden_size=768, num_layers=12, num_heads=12, seq_length=1024)
    with torch.device("meta"):
        model = build_model(section, 50_257, seed=0)
    counts = parameter_counts(model)
    assert counts["total"] == 124_439_808
    assert counts["embedding"] == (50_257 + 1024) * 768
