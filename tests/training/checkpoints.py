"""Small states and what must hold of a folder of checkpoints at every moment."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from lmloop.training.checkpoint import BEST, CURRENT, MIRROR, NEWEST_FIRST, CheckpointStore
from lmloop.training.manifest import manifest_path, read_manifest, read_manifests

PRESET = "0123abcd"


def make_state(step: int) -> dict[str, Any]:
    """A state with every kind of value that a real one has; different for each step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"w": torch.randn(4, 3, generator=generator), "b": torch.randn(3, generator=generator).bfloat16()},
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), "m": torch.randn(4, generator=generator)}},
            "groups": [0],
        },
        "rng": {"torch": generator.get_state()[:64].clone(), "python": (3, (1, 2, 3), None)},
        "feed": {"position": {"file": "ä.txt", "line": step}, "progress": 0.25},
        "progress": {"step": step, "done": False},
    }


def same(left: object, right: object) -> bool:
    """Equal bit for bit, types included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        raw = [value.contiguous().view(-1).view(torch.uint8) for value in (left, right)]
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*raw)
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def save(folder: Path, step: int, *, best: bool = False) -> None:
    CheckpointStore(folder).save(make_state(step), step=step, tokens=step * 10, preset_hash=PRESET, best=best)


def kept_steps(folder: Path) -> list[int]:
    """Steps in current, prev, prev2, by content; every file there must be vouched for by some manifest."""
    manifests = read_manifests(folder)
    steps = {}
    for name in (*NEWEST_FIRST, BEST, MIRROR):
        if (folder / name).exists():
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            assert digest in manifests, f"{name} looks damaged; in the folder: {sorted(p.name for p in folder.iterdir())}"
            steps[name] = manifests[digest].step
    return [steps[name] for name in NEWEST_FIRST if name in steps]


def loads(folder: Path, allowed: set[int]) -> int:
    """The newest checkpoint loads without a complaint and is one of `allowed`, bit for bit; its step."""
    loaded = CheckpointStore(folder).load()
    assert loaded is not None, sorted(path.name for path in folder.iterdir())
    assert loaded.notices == []
    assert loaded.path.name == CURRENT
    step = loaded.state["progress"]["step"]
    assert step in allowed
    assert loaded.manifest.step == step
    assert same(loaded.state, make_state(step)), f"step {step} came back changed"
    return step


def is_tidy(folder: Path) -> None:
    """No temporary is left, and every checkpoint has its own manifest."""
    assert list(folder.glob(".*.tmp")) == []
    assert not (folder / "lm_next.manifest.json").exists()
    for name in (*NEWEST_FIRST, BEST):
        if (folder / name).exists():
            manifest = read_manifest(manifest_path(folder / name))
            assert manifest is not None, name
            content = (folder / name).read_bytes()
            assert (manifest.sha256, manifest.bytes) == (hashlib.sha256(content).hexdigest(), len(content)), name
