"""Nothing runs from a pretrained model's folder, unless the preset trusts its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmloop.models.base_folder import find_base
from lmloop.models.from_transformers import open_model
from tests.hostile import canary

AUTO_MAP = {
    "AutoConfig": "configuration_custom.CustomConfig",
    "AutoModelForCausalLM": "modeling_custom.CustomModel",
}
FILES = [
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth", "adapter_model.bin", "adapter_config.json",
    "quantization_config.json", "chat_template.jinja", "modeling_custom.py", "configuration_custom.py",
    "custom_generate/generate.py", "tokenizer.model", "training_args.bin", "optimizer.pt",
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("saved")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """The model, with programs of its own beside it and in its configuration."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("modeling_custom.py", "configuration_custom.py", "custom_generate/generate.py"):
        canary.in_a_file(canary.as_python(tmp_path / "woken"))(folder / name)
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def opened(folder: Path) -> bool:
    """Whether it can be opened; where not, one line says why."""
    fault = ""
    try:
        open_model(find_base(str(folder)), dtype=torch.float32)
    except ValueError as error:
        fault = str(error)
    assert not (folder.parent / "woken").exists(), "it was woken"
    assert "\n" not in fault
    return not fault


def test_a_known_model_needs_no_program_of_its_own(folder: Path) -> None:
    assert opened(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [canary.as_pickle, canary.as_torch, canary.as_python, canary.as_template])
def test_each_file_in_turn(folder: Path, name: str, make: Callable[[Path], bytes | str]) -> None:
    canary.in_a_file(make(folder.parent / "woken"))(folder / name)
    needed = ("config.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")
    if name not in needed:
        assert opened(folder)
    else:
        opened(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
@pytest.mark.parametrize("make", [canary.as_pickle, canary.as_torch, canary.as_torch_of_old])
def test_weights_that_are_only_there_as_a_pickle(folder: Path, name: str, make: Callable[[Path], bytes]) -> None:
    os.remove(folder / "model.safetensors")
    (folder / name).write_bytes(make(folder.parent / "woken"))
    assert not opened(folder)


def test_a_model_that_is_nothing_but_a_program(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "custom", "architectures": ["CustomModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert not opened(folder)
