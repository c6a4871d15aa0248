"""Which parameter gets which optimizer, and that an optimizer's state survives a round trip."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.optim.build import OPTIMIZERS, build_optimizer
from lmloop.preset.schema import ModelSection, TrainSection

DECODER = ModelSection(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, seq_length=16, tie_embeddings=False)
GPT = ModelSection(architecture="gpt2", hidden_size=32, num_layers=2, num_heads=4, seq_length=16)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
both = pytest.mark.parametrize("section", [DECODER, GPT], ids=["decoder", "gpt2"])


def step(model: LanguageModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens_BT = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model.head(model.hidden(tokens_BT)).logsumexp(dim=-1).sum().backward()
    optimizer.step()


@every_optimizer
@both
def test_every_parameter_is_in_exactly_one_group(name: str, section: ModelSection) -> None:
    model = build_model(section, 50, seed=0)
    optimizer = build_optimizer(model, TrainSection(optimizer=name))  # type: ignore[arg-type]
    assert isinstance(optimizer, torch.optim.Optimizer)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    for group in optimizer.param_groups:
        assert group["lr"] == group["peak_lr"]
        decay = group.get("decay", group["weight_decay"])
        assert {p.dim() >= 2 for p in group["params"]} == {decay > 0}


@both
def test_muon_has_the_blocks_matrices_and_nothing_else(section: ModelSection) -> None:
    model = build_model(section, 50, seed=0)
    optimizer = build_optimizer(model, TrainSection(optimizer="muon", learning_rate=1e-3, muon_learning_rate=0.05))
    muon_ids = {id(p) for group in optimizer.param_groups if "transposed" in group for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in muon_ids}
    assert names == {name for name, p in model.named_parameters() if p.dim() == 2 and (".layers." in name or ".h." in name)}
    for group in optimizer.param_groups:
        assert group["peak_lr"] == (0.05 if "transposed" in group else 1e-3)
        assert group.get("transposed", False) == ("transposed" in group and section.architecture == "gpt2")


@both
def test_frozen_parameters_are_left_out(section: ModelSection) -> None:
    model = build_model(section, 50, seed=0)
    model.head_weight().requires_grad_(False)
    for name in OPTIMIZERS:
        optimizer = build_optimizer(model, TrainSection(optimizer=name))  # type: ignore[arg-type]
        assert all(p is not model.head_weight() for group in optimizer.param_groups for p in group["params"])


def test_adamw_is_fused() -> None:
    optimizer = build_optimizer(build_model(DECODER, 50, seed=0), TrainSection(beta1=0.8, beta2=0.9, adam_eps=1e-6))
    assert {(g["fused"], g["betas"], g["eps"]) for g in optimizer.param_groups} == {(True, (0.8, 0.9), 1e-6)}


@every_optimizer
@both
def test_the_schedule_reaches_every_parameter(name: str, section: ModelSection) -> None:
    model = build_model(section, 50, seed=0)
    optimizer = build_optimizer(model, TrainSection(optimizer=name))  # type: ignore[arg-type]
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer, seed=0)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    step(model, optimizer, seed=0)
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@every_optimizer
@both
def test_state_survives_a_file_exactly(name: str, section: ModelSection) -> None:
    train = TrainSection(optimizer=name)  # type: ignore[arg-type]
    model = build_model(section, 50, seed=0)
    optimizer = build_optimizer(model, train)
    for seed in range(3):
        step(model, optimizer, seed)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = build_model(section, 50, seed=1)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer = build_optimizer(resumed, train)
    resumed_optimizer.load_state_dict(saved["optimizer"])
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(resumed, resumed_optimizer, seed)
    for group in resumed_optimizer.param_groups:
        assert group["lr"] == group["peak_lr"] / 2  # and the parts read it: the weights below agree
    for (key, a), b in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    first, second = optimizer.state_dict(), resumed_optimizer.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for index, state in first["state"].items():
        assert state.keys() == second["state"][index].keys()
        for key, value in state.items():
            assert torch.equal(value, second["state"][index][key]) if torch.is_tensor(value) else value is None


@every_optimizer
def test_parameters_without_gradient_are_left_alone(name: str) -> None:
    model = build_model(DECODER, 50, seed=0)
    optimizer = build_optimizer(model, TrainSection(optimizer=name))  # type: ignore[arg-type]
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_sgd_decays_apart_from_the_momentum() -> None:
    model = build_model(DECODER, 50, seed=0)
    train = TrainSection(optimizer="sgd", learning_rate=0.1, weight_decay=0.5, momentum=0.9)
    optimizer = build_optimizer(model, train)
    names = {p: name for name, p in model.named_parameters()}
    expected = {p: p.detach().clone() for p in names}
    momentum = {p: torch.zeros_like(p) for p in names}
    for seed in range(3):
        step(model, optimizer, seed)
        for p, name in names.items():
            assert p.grad is not None
            momentum[p] = 0.9 * momentum[p] + p.grad
            expected[p] = expected[p] * (1 - 0.1 * 0.5 if p.dim() == 2 else 1.0) - 0.1 * momentum[p]
            torch.testing.assert_close(p.detach(), expected[p], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            expected[p] = p.detach().clone()
