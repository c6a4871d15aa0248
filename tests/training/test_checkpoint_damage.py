"""Files that were cut or changed on disk are never loaded, and no code runs from one."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmloop.training.checkpoint import NEWEST_FIRST, CheckpointError, CheckpointStore
from lmloop.training.manifest import manifest_path, read_manifest
from tests.faults import clone
from tests.training.checkpoints import make_state, same, save

STEPS = (30, 20, 10)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    for step in reversed(STEPS):
        save(folder, step)
    return folder


def cut(path: Path, choose: random.Random) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: choose.randrange(len(content))])


def flip(path: Path, choose: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip])
def test_two_hundred_damaged_files(template: Path, tmp_path: Path, damage) -> None:
    choose = random.Random(f"damage {damage.__name__}")
    for case in range(200):
        folder = clone(template, tmp_path / str(case))
        number = 1 + case % 3
        for name in NEWEST_FIRST[:number]:
            damage(folder / name, choose)
        if number == 3:
            with pytest.raises(CheckpointError) as caught:
                CheckpointStore(folder).load()
            assert all(name in str(caught.value) for name in NEWEST_FIRST)
            assert "\n" not in str(caught.value)
            continue
        loaded = CheckpointStore(folder).load()
        assert loaded is not None
        assert loaded.path.name == NEWEST_FIRST[number]
        assert same(loaded.state, make_state(STEPS[number]))
        assert len(loaded.notices) == number
        for name, notice in zip(NEWEST_FIRST, loaded.notices, strict=False):
            assert f"{name} is not used" in notice
            assert f"step {STEPS[number]}" in notice


def test_damaged_manifest_never_brings_a_wrong_state(template: Path, tmp_path: Path) -> None:
    choose = random.Random("manifests")
    refused = 0
    for case in range(200):
        folder = clone(template, tmp_path / str(case))
        (flip if case % 2 else cut)(folder / "lm_current.manifest.json", choose)
        loaded = CheckpointStore(folder).load()
        assert loaded is not None
        index = len(loaded.notices)
        refused += index
        assert loaded.path.name == NEWEST_FIRST[index]
        assert same(loaded.state, make_state(STEPS[index]))
    assert refused > 100


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("vouched_for", [False, True])
def test_no_code_runs_from_a_checkpoint(template: Path, tmp_path: Path, vouched_for: bool) -> None:
    folder, sung = clone(template, tmp_path / "run"), tmp_path / "sung"
    path = folder / "lm_current.pth"
    path.unlink()
    torch.save({"model": {"w": Canary(sung)}}, path)
    if vouched_for:
        manifest = read_manifest(manifest_path(path))
        assert manifest is not None
        content = path.read_bytes()
        forged = replace(manifest, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        manifest_path(path).write_text(forged.to_json())
    loaded = CheckpointStore(folder).load()
    assert not sung.exists()
    assert loaded is not None
    assert loaded.manifest.step == 20
    assert ("no code is run" in loaded.notices[0]) == vouched_for
    torch.load(path, weights_only=False)
    assert sung.exists(), "the canary of this test does not sing"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text", b"\x80\x02}q\x00."])
def test_vouched_for_and_still_no_checkpoint(template: Path, tmp_path: Path, content: bytes) -> None:
    folder = clone(template, tmp_path / "run")
    path = folder / "lm_current.pth"
    manifest = read_manifest(manifest_path(path))
    assert manifest is not None
    path.unlink()
    path.write_bytes(content)
    forged = replace(manifest, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    manifest_path(path).write_text(forged.to_json())
    loaded = CheckpointStore(folder).load()
    assert loaded is not None
    assert loaded.manifest.step == 20
    assert "\n" not in loaded.notices[0]


def test_unreadable_is_passed_over(template: Path, tmp_path: Path) -> None:
    folder = clone(template, tmp_path / "run")
    (folder / "lm_current.pth").unlink()
    (folder / "lm_current.pth").mkdir()
    loaded = CheckpointStore(folder).load()
    assert loaded is not None
    assert loaded.manifest.step == 20
    assert "cannot be read" in loaded.notices[0]
