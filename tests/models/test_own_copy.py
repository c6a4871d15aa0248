"""A pretrained model as our own decoder: the same hidden states and texts, and none where the shape is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.generation.engine import Engine
from lmloop.models import own_copy as copying
from lmloop.models.build import build_model
from lmloop.models.own_copy import own_copy
from lmloop.models.prepared import can_prepare
from lmloop.models.pretrained import Pretrained
from lmloop.preset.schema import AdapterSection, GenerationSection, ModelSection
from tests.generation.fakes import tokenizer_of
from tests.models.bases import VOCAB, make_base

TOKENIZER = tokenizer_of("abcde \n")
LORA = AdapterSection(rank=4, alpha=8, dropout=0.1, target_modules=["q_proj", "v_proj", "down_proj"])


def opened(folder: Path, adapter: AdapterSection | None = None, family: str = "qwen3", **changes: Any) -> Pretrained:
    """With an adapter that has learned something."""
    make_base(folder, family, vocab_size=TOKENIZER.vocab_size, **changes)
    model = build_model(ModelSection(pretrained=str(folder), seq_length=32), TOKENIZER.vocab_size, 0, adapter)
    assert isinstance(model, Pretrained)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("adapter", [None, LORA])
@pytest.mark.parametrize("tied", [False, True])
def test_it_computes_the_same(tmp_path: Path, adapter: AdapterSection | None, tied: bool) -> None:
    model = opened(tmp_path, adapter, tie_word_embeddings=tied)
    copy = own_copy(model)
    assert copy is not None
    assert can_prepare(copy)
    assert copy.context_length == model.context_length
    tokens_BT = torch.randint(TOKENIZER.vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            copy.head(copy.hidden(tokens_BT)), model.head(model.hidden(tokens_BT)), atol=1e-4, rtol=1e-4
        )
    options, cpu = GenerationSection(temperature=0.0, max_new_tokens=25), torch.device("cpu")
    theirs, ours = (Engine(one, TOKENIZER, cpu).generate(["ab", "cde a"], options) for one in (model, copy))
    assert [one.text for one in ours] == [one.text for one in theirs]


def test_an_adapter_beside_a_base_in_bf16_is_added_in_fp32(tmp_path: Path) -> None:
    make_base(tmp_path, "qwen3")
    model = build_model(ModelSection(pretrained=str(tmp_path), seq_length=32), VOCAB, 0, LORA, bf16=True)
    assert isinstance(model, Pretrained)
    name = "layers.0.self_attn.q_proj"
    layer = model.body.get_submodule(name)
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1e-5)  # far below what bf16 tells apart
    copy = own_copy(model)
    assert copy is not None
    added = copy.get_parameter(f"model.{name}.weight") - layer.base_layer.weight.float()
    torch.testing.assert_close(added, layer.get_delta_weight("default"), atol=1e-7, rtol=1e-2)
    assert added.abs().max() > 0


@pytest.mark.parametrize(
    ("family", "adapter", "changes"),
    [
        ("llama", None, {}),
        ("qwen3", AdapterSection(rank=4, alpha=8, dora=True), {}),
        ("qwen3", None, {"attention_bias": True}),
        ("qwen3", None, {"hidden_act": "gelu"}),
        ("qwen3", None, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
        ("qwen3", None, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_what_computes_something_else_has_none(
    tmp_path: Path, family: str, adapter: AdapterSection | None, changes: dict[str, Any]
) -> None:
    assert own_copy(opened(tmp_path, adapter, family, **changes)) is None


def test_a_large_model_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(tmp_path)
    assert own_copy(model) is not None
    monkeypatch.setattr(copying, "LARGEST", 1_000)
    assert own_copy(model) is None
