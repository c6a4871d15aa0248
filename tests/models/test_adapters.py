"""Adapters: peft's own numbers and files, a base that stays what it is, and one in 4 bits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import layer as peft_layers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lmloop.models import adapters, lora_layers
from lmloop.models.adapters import adapter_weights, merge, save_adapter
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights, trainable_and_total
from lmloop.models.pretrained import Pretrained
from lmloop.objectives.language import LanguageObjective
from lmloop.preset.schema import AdapterSection, ModelSection
from lmloop.tokens.batch import Batch
from tests.generation.fakes import tokenizer_of
from tests.models.bases import VOCAB, make_base

TOLERANCE = 1e-5
NF4 = AdapterSection(rank=4, alpha=8, dropout=0.1, quantize="nf4")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for family in ("llama", "qwen2", "gpt2"):
        make_base(folder / family, family)
    # bitsandbytes counts in blocks of 64.
    make_base(folder / "wide", "llama", hidden_size=64, intermediate_size=128)
    return folder


def adapted(folder: Path, section: AdapterSection, *, trained: bool = True, **named: Any) -> Pretrained:
    """A model whose adapter is no longer the nothing that it starts as."""
    model = build_model(ModelSection(pretrained=str(folder), seq_length=32), VOCAB, 0, section, **named)
    assert isinstance(model, Pretrained)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.trainable_state_dict().values() if trained else ():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: Pretrained, tokens_BT: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model.head(model.hidden(tokens_BT))


KINDS = {
    "plain": ("llama", AdapterSection(rank=4, alpha=8)),
    "some layers, rank-stabilised": (
        "llama",
        AdapterSection(rank=4, alpha=3.5, target_modules=["q_proj", "down_proj"], rslora=True),
    ),
    "weight-decomposed": ("llama", AdapterSection(rank=3, dora=True)),
    "with all biases, tied head": ("qwen2", AdapterSection(rank=4, bias="all")),
    "with the targets' biases": ("qwen2", AdapterSection(rank=4, bias="lora_only", target_modules=["q_proj"])),
    "peft's choice": ("qwen2", AdapterSection(rank=4, target_modules=None)),
    "matrices input by output": ("gpt2", AdapterSection(rank=4)),
}


# ---- files ----


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_the_folder_unchanged(kind: str, bases: Path, tmp_path: Path) -> None:
    family, section = KINDS[kind]
    model = adapted(bases / family, section)
    tokenizer = tokenizer_of("some text")
    save_adapter(model, tmp_path / "out", tokenizer)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    base = AutoModelForCausalLM.from_pretrained(bases / family)
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    with torch.no_grad():
        expected_BTV = theirs(tokens(2, 20)).logits
    torch.testing.assert_close(logits_of(model, tokens(2, 20)), expected_BTV, atol=TOLERANCE, rtol=TOLERANCE)
    with torch.no_grad(), theirs.disable_adapter():
        assert not torch.allclose(theirs(tokens(2, 20)).logits, expected_BTV, atol=0.1)
    assert trainable_and_total(model)[1] == sum(p.numel() for p in theirs.parameters())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["inference_mode"]) == (str(bases / family), True)


def test_the_counts_are_pefts(bases: Path) -> None:
    for family, section in KINDS.values():
        model = adapted(bases / family, section)
        assert trainable_and_total(model) == cast(Any, model.network).get_nb_trainable_parameters()


def test_an_untrained_adapter_changes_nothing(bases: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(bases / "llama").eval()
    model = adapted(bases / "llama", AdapterSection(), trained=False)
    with torch.no_grad():
        expected_BTV = base(tokens(2, 20)).logits
    torch.testing.assert_close(logits_of(model, tokens(2, 20)), expected_BTV, atol=TOLERANCE, rtol=TOLERANCE)


def test_layers_that_are_not_there_are_refused_with_those_that_are(bases: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter\.target_modules: \['c_attn'\] does not suit LlamaForCausalLM") as error:
        adapted(bases / "llama", AdapterSection(target_modules=["c_attn"]))
    message = str(error.value)
    assert "its linear layers are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in message
    assert len(message.splitlines()) == 1


# ---- what a checkpoint stores ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_the_adapter_alone(kind: str, bases: Path) -> None:
    family, section = KINDS[kind]
    old = adapted(bases / family, section)
    state = copy.deepcopy(old.trainable_state_dict())
    assert sum(tensor.numel() for tensor in state.values()) == trainable_and_total(old)[0]
    model = adapted(bases / family, section, trained=False, saved_base=old.base_identity)
    assert set(load_weights(model, state).loaded) == set(state)
    torch.testing.assert_close(logits_of(model, tokens(2, 20)), logits_of(old, tokens(2, 20)), atol=0, rtol=0)
    name = sorted(state)[0]
    with pytest.raises(ValueError, match="is missing from the weights"):
        load_weights(model, {key: tensor for key, tensor in state.items() if key != name})
    with pytest.raises(ValueError, match="do not fit the model"):
        load_weights(adapted(bases / family, section.model_copy(update={"rank": 5})), state)


def test_another_base_is_refused(bases: Path, tmp_path: Path) -> None:
    saved = adapted(bases / "llama", AdapterSection()).base_identity
    assert json.loads(json.dumps(saved)) == saved
    other = make_base(tmp_path)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.001
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model.pretrained: {tmp_path} is another base than this run was begun on, "):
        adapted(tmp_path, AdapterSection(), saved_base=saved)


# ---- merging ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_the_adapted_one(kind: str, bases: Path) -> None:
    family, section = KINDS[kind]
    model = adapted(bases / family, section)
    merged = merge(model).eval()
    with torch.no_grad():
        merged_BTV = merged(tokens(2, 20)).logits
    torch.testing.assert_close(merged_BTV, logits_of(model, tokens(2, 20)), atol=1e-4, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(bases / family)
    assert type(merged) is type(base)
    assert {name: t.shape for name, t in merged.state_dict().items()} == {n: t.shape for n, t in base.state_dict().items()}
    assert {tensor.dtype for tensor in merged.state_dict().values()} == {torch.float32}


def test_a_base_kept_in_bf16_is_merged_in_full_precision(bases: Path) -> None:
    model = adapted(bases / "llama", AdapterSection(rank=4), bf16=True)
    assert model.body.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16
    merged = merge(model)
    fp32 = load_file(bases / "llama" / "model.safetensors")
    side = model.body.layers[0].self_attn.q_proj
    delta = side.scaling["default"] * side.lora_B["default"].weight @ side.lora_A["default"].weight
    own = merged.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(own, fp32["model.layers.0.self_attn.q_proj.weight"] + delta, atol=1e-6, rtol=1e-6)
    assert torch.equal(merged.model.embed_tokens.weight, fp32["model.embed_tokens.weight"])


# ---- the short passes, against peft's own layers ----


@pytest.fixture
def layer() -> peft_layers.Linear:
    """A layer of peft's with everything that is plain, in fp64."""
    from peft import LoraConfig

    torch.manual_seed(0)
    base = nn.Linear(12, 7).double().requires_grad_(False)
    made = peft_layers.Linear(base, "default", LoraConfig(r=3, lora_alpha=5), r=3, lora_alpha=5).double()
    nn.init.normal_(made.lora_B["default"].weight)
    return made


def passes(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, and of A and B."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]


def test_the_short_way_gives_what_peft_gives(layer: peft_layers.Linear) -> None:
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    expected = passes(layer, x)
    lora_layers.use_short_passes(layer)
    assert type(layer) is lora_layers.Linear
    given = passes(layer, x)
    assert len(given) == len(expected) == 4
    for own, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-12, rtol=1e-12)
    frozen_x = torch.randn(3, 12, dtype=torch.float64)
    layer(frozen_x).sum().backward()  # the first layer's input needs no gradient


def test_the_short_way_under_autocast(layer: peft_layers.Linear) -> None:
    """Weights in bf16 with sides in fp32, as they are trained, against fp64."""
    x = torch.randn(4, 9, 12, dtype=torch.float64)
    expected = passes(layer, x)
    layer.float()
    layer.base_layer.bfloat16()
    lora_layers.use_short_passes(layer)
    with torch.autocast("cpu", torch.bfloat16):
        given = passes(layer, x.bfloat16())
    assert [t.dtype for t in given] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for own, theirs in zip(given, expected, strict=True):
        assert (own.double() - theirs).norm() < 0.02 * theirs.norm()


def test_dropout_of_the_short_way(layer: peft_layers.Linear) -> None:
    """What is dropped is dropped alike in both directions; what is kept makes up for it; evaluation drops nothing."""
    lora_layers.use_short_passes(layer)
    layer.base_layer.weight.zero_()
    layer.base_layer.bias.zero_()
    x = torch.rand(1000, 12, dtype=torch.float64) + 0.5
    whole = passes(layer, x)
    layer.lora_dropout["default"] = nn.Dropout(0.3)
    layer.train()
    torch.manual_seed(1)
    y, of_x, of_down, _ = passes(layer, x)
    kept = of_x != 0
    assert kept.double().mean().item() == pytest.approx(0.7, abs=0.02)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scale = 5 / 3 / 0.7
    torch.testing.assert_close(y, scale * (x * kept) @ down.T @ up.T, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(of_x, whole[1] * kept / 0.7, atol=1e-3, rtol=1e-3)
    of_inner = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y) @ up
    torch.testing.assert_close(of_down, scale * of_inner.T @ (x * kept), atol=1e-3, rtol=1e-3)
    torch.manual_seed(1)
    assert torch.equal(passes(layer, x)[0], y), "the same random state, the same dropout"
    assert not torch.equal(passes(layer, x)[0], y)
    layer.eval()
    torch.testing.assert_close(passes(layer, x)[0], whole[0])


def test_where_layers_are_not_plain_peft_computes_them(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(lora_layers._Product, "apply", lambda *arguments: calls.append(1) or arguments[0])
    adapted(bases / "llama", AdapterSection(dora=True))
    adapted(bases / "qwen2", AdapterSection(bias="all", target_modules=["q_proj"]))
    adapted(bases / "gpt2", AdapterSection())
    assert not calls
    model = adapted(bases / "gpt2", AdapterSection(target_modules=["c_attn"]))
    with cast(Any, model.network).disable_adapter():
        logits_of(model, tokens(1, 4))
    assert not calls


# ---- in 4 bits ----


def batch(seed: int) -> Batch:
    """Rows of two documents in which each token tells the next."""
    start = tokens(4, 1, seed)
    tokens_BT = (start + 7 * torch.arange(25)) % VOCAB
    segments_BT = torch.tensor([[0] * 10 + [1] * 14]).expand(4, -1).int()
    weights_BT = torch.ones(4, 24)
    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], weights_BT, segments_BT, torch.zeros(4, dtype=torch.int64), ((),) * 4)


def losses(model: Pretrained, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    found = []
    for step in steps:
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            term = LanguageObjective()(model, batch(step))["loss"]
        (term.sum / term.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(term.sum.detach() / term.count))
    return found


def optimizer_of(model: Pretrained) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)


def packed_weights(model: Pretrained) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}


def test_a_base_in_4_bits_trains_and_resumes_exactly(bases: Path) -> None:
    model = adapted(bases / "wide", NF4, trained=False, bf16=True)
    before = packed_weights(model)
    assert len(before) == 14
    assert all("base_layer" in name for name in before)
    optimizer = optimizer_of(model)
    torch.manual_seed(0)
    first = losses(model, optimizer, range(20))
    state = copy.deepcopy((dict(model.trainable_state_dict()), optimizer.state_dict(), torch.random.get_rng_state()))
    # What an evaluation does to the base must not show in what follows: a resumed run has not made it.
    with torch.autocast("cpu", torch.bfloat16):
        logits_of(model, tokens(2, 20))
    rest = losses(model, optimizer, range(20, 40))
    assert sum(rest[-5:]) < 0.7 * sum(first[:5])
    assert all(torch.equal(own, before[name]) for name, own in packed_weights(model).items())

    resumed = adapted(bases / "wide", NF4, trained=False, bf16=True, saved_base=model.base_identity)
    load_weights(resumed, state[0])
    optimizer = optimizer_of(resumed)
    optimizer.load_state_dict(state[1])
    torch.random.set_rng_state(state[2])
    assert losses(resumed, optimizer, range(20, 40)) == rest
    assert not any("base_layer" in name for name in state[0])


def test_a_merge_never_touches_the_weights_in_4_bits(bases: Path) -> None:
    """Against its arithmetic on the base's file, also after an evaluation, and with the same model used on."""
    model = adapted(bases / "wide", NF4, bf16=True)
    with torch.autocast("cpu", torch.bfloat16):
        used_BTV = logits_of(model, tokens(2, 20))
    before = packed_weights(model)
    merged = merge(model)
    base = load_file(bases / "wide" / "model.safetensors")
    saved = adapter_weights(model)
    for name, tensor in merged.state_dict().items():
        stem = "base_model.model." + name.removesuffix(".weight")
        delta = 0.0
        if f"{stem}.lora_A.weight" in saved:
            delta = 2.0 * saved[f"{stem}.lora_B.weight"] @ saved[f"{stem}.lora_A.weight"]
        torch.testing.assert_close(tensor, base[name] + delta, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(own, before[name]) for name, own in packed_weights(model).items())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits_of(model, tokens(2, 20)), used_BTV)


def test_parameters_in_4_bits_are_counted_as_what_they_stand_for(bases: Path) -> None:
    whole = adapted(bases / "wide", NF4.model_copy(update={"quantize": None}))
    assert trainable_and_total(adapted(bases / "wide", NF4)) == trainable_and_total(whole)


def test_the_folder_of_an_adapter_in_4_bits_is_like_any_other(bases: Path, tmp_path: Path) -> None:
    model = adapted(bases / "wide", NF4)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases / "wide"), str(tmp_path)).eval()
    with torch.no_grad():
        expected_BTV = theirs(tokens(2, 20)).logits
        merged_BTV = merge(model).eval()(tokens(2, 20)).logits
    torch.testing.assert_close(merged_BTV, expected_BTV, atol=1e-4, rtol=1e-4)


def test_where_4_bits_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'nf4' is for CUDA and CPUs, and this machine trains on 'mps': leave it out"):
        adapters.quantization(NF4, torch.device("mps"), torch.float32)
    found = adapters.importlib.util.find_spec
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(ValueError, match=r"needs bitsandbytes: install it with `pip install 'lmloop\[qlora\]'`"):
        adapters.quantization(NF4, torch.device("cpu"), torch.float32)
