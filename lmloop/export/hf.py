"""A folder that transformers 4 and 5, vLLM and mlx-lm load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lmloop.export.bundle import Bundle
from lmloop.export.consult import Consumer
from lmloop.export.exporter import BF16_NOISE, TORCH_NAMES, Exporter, Stored, natural_kind, rounded, rounding_slack

SHARD_BYTES = 5_000_000_000
"""Weights beyond this are split over several files, as the hub likes them."""


class HuggingFace(Exporter):
    """config.json, safetensors, tokenizer and generation_config.json."""

    kinds = ("f32", "bf16", "f16")
    consumer = Consumer("transformers", "transformers", "transformers", "ask_transformers", "make env", here=True)

    def refusal(self, bundle: Bundle, kind: str) -> str | None:
        """Nothing: whatever has a configuration of transformers can be carried."""
        return None

    def write(self, bundle: Bundle, kind: str, folder: Path) -> None:
        """Write the folder."""
        write_json(folder / "config.json", {**config_of(bundle), "torch_dtype": TORCH_NAMES[kind]})
        write_tokenizer(bundle, folder)
        write_weights({name: rounded(name, tensor, kind) for name, tensor in bundle.weights.items()}, folder)

    def tolerance(self, bundle: Bundle, kind: str) -> float:
        """The same arithmetic: measured below 2e-6."""
        return BF16_NOISE if natural_kind(bundle) != "f32" else 1e-5

    def stored(self, bundle: Bundle, folder: Path) -> Iterator[Stored]:
        """The safetensors files' content."""
        for name, tensor in read_weights(folder):
            yield Stored(name, tensor.float(), rounding_slack(bundle.weights[name].float(), tensor.dtype))


def config_of(bundle: Bundle) -> dict[str, Any]:
    """config.json with the token ids."""
    return {**bundle.config, **token_ids(bundle)}


def token_ids(bundle: Bundle) -> dict[str, Any]:
    """What config.json and generation_config.json say of tokens."""
    stops = list(bundle.stops)
    start = {"bos_token_id": bundle.prefix[0]} if bundle.prefix else {}
    return {**start, "eos_token_id": stops if len(stops) > 1 else stops[0], "pad_token_id": bundle.tokenizer.pad_id}


def write_tokenizer(bundle: Bundle, folder: Path) -> None:
    """The tokenizer's two files, the chat template once more as a file of its own, and generation_config.json."""
    write_json(folder / "tokenizer.json", bundle.tokenizer_json)
    write_json(folder / "tokenizer_config.json", bundle.tokenizer_config)
    if bundle.chat_template is not None:
        (folder / "chat_template.jinja").write_text(bundle.chat_template, encoding="utf-8")
    write_json(folder / "generation_config.json", {**bundle.sampling, **token_ids(bundle)})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON file for people to read."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_weights(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """model.safetensors, or several files and their index where the weights exceed SHARD_BYTES."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(
            folder / "model.safetensors.index.json", {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        )


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's safetensors files."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, file.get_tensor(name)
