"""The files of a pretrained model: found in a folder or fetched from the hub, looked through before they are loaded.

Only safetensors are read, never pickles, and no code comes out of a folder unless its name is trusted in the preset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmloop.data.source import one_line
from lmloop.models.base_hub import fetch_code, fetch_config, fetch_weights
from lmloop.models.tensor_files import TensorFile, require_whole

_NO_PART_OF_IT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")
"""Keys of config.json that say nothing of what the model computes: whoever saves it again may write others."""

_SAMPLE_BYTES = 64


@dataclass(frozen=True)
class Base:
    """A pretrained model that is there with all of its files.

    name: as the preset has it, a path or a hub id. revision: the commit, of a hub id. folder: where config.json lies.
    config: the content of that.
    """

    name: str
    revision: str | None
    folder: Path
    config: dict[str, Any]
    trusted: bool = False
    """Its own code may run."""
    saved: Mapping[str, Any] | None = None
    """What a checkpoint said of it, where its files are not looked at."""

    @cached_property
    def files(self) -> list[TensorFile]:
        """Its safetensors, whole and complete. ValueError, one line."""
        return require_whole(self.folder, f"model.pretrained: {self.name}")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint says of the base that its adapter belongs to: plain values. ValueError as of `files`."""
        if self.saved is not None:
            return dict(self.saved)
        return {
            "name": self.name,
            "revision": self.revision,
            "config_sha256": _config_hash(self.config),
            "weights_sha256": _weights_hash(self.files),
            "config": self.config,
        }


def find_base(name: str, revision: str | None = None, trusted: str | None = None, *, weights: bool = True) -> Base:
    """The pretrained model in the folder `name`, or else the hub's, at `revision`.

    trusted: the name whose own code may run, if any. weights: fetch them, where they are on the hub.

    Raises:
        ValueError: it is not there, or cannot be used as a base. One line.
    """
    if trusted not in (None, name):
        raise ValueError(
            f"model.trust_remote_code: '{trusted}' is not model.pretrained, '{name}': write that, if you trust it"
        )
    folder = Path(name).expanduser()
    commit = None
    if not folder.is_dir():
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ValueError(f"model.pretrained: {name} is not a folder: name one that holds config.json, or a hub id")
        folder = fetch_config(name, revision)
        commit = folder.name  # of the hub's cache: a folder for each commit
        if weights:
            fetch_weights(name, commit)
        if trusted:
            fetch_code(name, commit)
    elif revision is not None:
        raise ValueError(
            f"model.revision: '{revision}', but model.pretrained {name} is a folder, which has none: leave it out"
        )
    base = Base(name, commit, folder, _config(folder, name), trusted is not None)
    _require_usable(base)
    if weights:
        assert base.files
    return base


def saved_base(saved: Mapping[str, Any]) -> Base | None:
    """A base as a checkpoint describes it, for a model whose weights the checkpoint has: its folder need not be there."""
    if "auto_map" in saved["config"]:
        return None
    return Base(saved["name"], saved["revision"], Path(), dict(saved["config"]), saved=saved)


def require_same(base: Base, saved: Mapping[str, Any]) -> None:
    """ValueError, one line, unless `base` is what `saved` (an `identity`) describes; it may lie somewhere else by now."""
    own = base.identity
    differing = [what for what in ("config", "weights") if own[f"{what}_sha256"] != saved[f"{what}_sha256"]]
    if differing:
        known = saved["name"] + (f" at {saved['revision'][:12]}" if saved["revision"] else "")
        raise ValueError(
            f"model.pretrained: {base.name} is another base than this run was begun on, {known}: its "
            f"{' and '.join(differing)} differ; name that base, or choose another output_dir to start anew"
        )


def _config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    what = f"model.pretrained: {name}"
    if not path.is_file():
        if any(folder.glob("lm_*.pth")):
            raise ValueError(
                f"{what} is a run's folder: make a base of it with `lmloop export {name} --format hf --out DIR`"
            )
        if (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{what} holds an adapter, not a base: name the base it was made for (adapter_config.json says it)"
            )
        if any(folder.glob("*.gguf")):
            raise ValueError(f"{what} holds GGUF files, which are for llama.cpp: name the folder they were made from")
        raise ValueError(f"{what} holds no config.json: name a folder that transformers has saved a model in, or a hub id")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ValueError("it names no model_type")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{what}: config.json cannot be used ({one_line(error, 160)}): fetch it again") from None
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{what} holds an adapter beside a model: merge it first, or move adapter_config.json away")
    return config


def _require_usable(base: Base) -> None:
    """What can be said from config.json alone."""
    quantized = base.config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise ValueError(
            f"model.pretrained: {base.name} is stored quantized ({method}): name the full-precision original; "
            "adapter.quantize 'nf4' quantizes it while loading"
        )


def _config_hash(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in _NO_PART_OF_IT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _weights_hash(files: list[TensorFile]) -> str:
    """SHA-256 over name, type, shape and two samples of every tensor, however they are spread over files.

    Reading all of an 8B model takes half a minute. The samples tell a model from another of the same shape, because
    training changes every matrix.
    """
    digests = []
    for file in files:
        with file.path.open("rb") as stream:
            for name, entry in file.tensors.items():
                begin, end = entry["data_offsets"]
                digest = hashlib.sha256(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
                for offset in (begin, (begin + end) // 2):
                    stream.seek(file.data_start + offset)
                    digest.update(stream.read(min(_SAMPLE_BYTES, end - offset)))
                digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
