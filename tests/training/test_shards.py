"""Checkpoints in parts: killed, refused by the disk and damaged at every point, they keep what whole ones promise."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop import durable
from lmloop.processes import ALONE
from lmloop.training.checkpoint import CURRENT, CheckpointError, CheckpointStore
from lmloop.training.manifest import manifest_path
from lmloop.training.saving import save_together
from lmloop.training.shards import FOLDER, Part, new_folder, split, write_part
from lmloop.training.soundness import NonFiniteError
from tests.faults import failing_at, killed_at, operations_of
from tests.training.checkpoints import is_tidy, kept_steps, make_state, same

NEW, LATER = 50, 60


@pytest.fixture(autouse=True)
def several_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "BUFFER_BYTES", 1024)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def in_parts(step: int) -> dict[str, Any]:
    """The state of a step with its large tensors as the parts of a single rank; two names of one of them."""
    state = make_state(step)
    state["model"] = {name: Part(tensor, tuple(tensor.shape)) for name, tensor in state["model"].items()}
    state["model"]["tied"] = state["model"]["w"]
    moments = state["optimizer"]["state"][0]
    moments["m"] = Part(moments["m"], tuple(moments["m"].shape))
    return state


def whole(step: int) -> dict[str, Any]:
    state = make_state(step)
    state["model"]["tied"] = state["model"]["w"]
    return state


def save(folder: Path, step: int, *, best: bool = False) -> None:
    save_together(CheckpointStore(folder), ALONE, lambda: in_parts(step), step=step, tokens=step, preset_hash="", best=best)


def loads(folder: Path, allowed: set[int]) -> int:
    loaded = CheckpointStore(folder).load()
    assert loaded is not None
    assert loaded.notices == []
    step = loaded.manifest.step
    assert step in allowed
    assert same(loaded.state, whole(step)), f"step {step} came back changed"
    return step


def folders(folder: Path) -> list[int]:
    """Steps whose parts are there, from new to old."""
    return sorted((int(path.name.partition("-")[0]) for path in (folder / FOLDER).iterdir()), reverse=True)


def three(folder: Path) -> Path:
    """Steps 30, 20 and 10, the last of them the best."""
    folder.mkdir()
    for step in (10, 20, 30):
        save(folder, step, best=step == 10)
    return folder


def copy(source: Path, target: Path) -> Path:
    """With hard links as they are."""
    shutil.copytree(source, target, copy_function=lambda old, new: os.link(old, new))
    return target


def test_what_is_saved_in_parts_loads_whole(tmp_path: Path) -> None:
    three(tmp_path / "run")
    loads(tmp_path / "run", {30})
    best = CheckpointStore(tmp_path / "run").load("best")
    assert best is not None
    assert same(best.state, whole(10))
    assert best.state["model"]["tied"] is best.state["model"]["w"]  # in memory once
    for step in (40, NEW, LATER):
        save(tmp_path / "run", step)
    assert folders(tmp_path / "run") == [LATER, NEW, 40, 10]  # the newest three and the best
    is_tidy(tmp_path / "run")


@pytest.mark.parametrize("ending", ["killed", "refused"])
def test_at_every_operation(ending: str, tmp_path: Path) -> None:
    template = three(tmp_path / "template")
    total = len(operations_of(lambda: save(copy(template, tmp_path / "count"), NEW, best=True)))
    assert total > 25
    for index in range(total):
        folder = copy(template, tmp_path / f"case{index}")
        strike(ending, index, lambda folder=folder: save(folder, NEW, best=True))
        kept = loads(folder, {30, NEW})
        assert kept_steps(folder)[0] == kept
        CheckpointStore(folder).clean()
        is_tidy(folder)
        assert set(folders(folder)) == {*kept_steps(folder), *best_steps(folder)}
        save(folder, LATER)
        assert loads(folder, {LATER}) == LATER
        assert kept_steps(folder) == [LATER, *([NEW] if kept == NEW else []), 30, 20][:3]
        assert set(folders(folder)) == {*kept_steps(folder), *best_steps(folder)}


def strike(ending: str, index: int, action: Callable[[], object]) -> None:
    if ending == "killed":
        assert killed_at(index, action)
        return
    # Nothing is raised where only what is left over could not be removed: the checkpoint is saved.
    with failing_at(index, (errno.ENOSPC, errno.EIO)[index % 2]), contextlib.suppress(OSError):
        action()


def best_steps(folder: Path) -> set[int]:
    best = CheckpointStore(folder).load("best")
    assert best is not None
    assert same(best.state, whole(best.manifest.step))
    return {best.manifest.step}


def part_of(folder: Path, step: int) -> Path:
    return next(next((folder / FOLDER).glob(f"{step}-*")).iterdir())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [Path.unlink, flip_a_bit, lambda path: os.truncate(path, 100)], ids=["missing", "bit", "cut"]
)
def test_a_damaged_part_costs_its_own_checkpoint_only(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = three(tmp_path / "run")
    damage(part_of(folder, 30))
    loaded = CheckpointStore(folder).load()
    assert loaded is not None
    assert loaded.manifest.step == 20
    assert same(loaded.state, whole(20))
    (notice,) = loaded.notices
    assert "lm_current.pth is not used: its part" in notice
    for step in (20, 10):
        damage(part_of(folder, step))
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        CheckpointStore(folder).load()


def test_a_manifest_that_is_damaged_does_not_cost_the_parts(tmp_path: Path) -> None:
    folder = three(tmp_path / "run")
    manifest = manifest_path(folder / CURRENT)
    good = manifest.read_bytes()
    manifest.write_bytes(good[:20])
    CheckpointStore(folder).clean()
    manifest.write_bytes(good)
    assert loads(folder, {30}) == 30


def test_a_part_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    folder = three(tmp_path / "run")

    def broken() -> dict[str, Any]:
        state = in_parts(NEW)
        state["model"]["w"].rows[0, 0] = torch.nan
        return state

    with pytest.raises(NonFiniteError, match=r"model\.w"):
        save_together(CheckpointStore(folder), ALONE, broken, step=NEW, tokens=0, preset_hash="", best=False)
    assert folders(folder) == [30, 20, 10]
    assert loads(folder, {30}) == 30


def test_parts_of_several_ranks_come_together_row_by_row(tmp_path: Path) -> None:
    """Also where the last rank has no row of a tensor."""
    full = {"w": torch.arange(12.0).view(4, 3), "b": torch.arange(2.0)}
    world, step = 3, 7
    files, name, state = [], new_folder(step), {}
    for rank in range(world):
        rows = {key: ([*tensor.chunk(world), *[tensor[:0]] * world])[rank] for key, tensor in full.items()}
        state, mine = split({"model": {key: Part(rows[key], tuple(full[key].shape)) for key in full}})
        files.append(write_part(tmp_path, name, mine, rank=rank, world=world))
    store = CheckpointStore(tmp_path)
    table = {"shards": {"folder": name, "files": files}}
    store.save({**state, **table}, step=step, tokens=0, preset_hash="", shards=name)
    loaded = store.load()
    assert loaded is not None
    assert same(loaded.state, {"model": full})
    fewer = {"shards": {"folder": name, "files": files[1:]}}  # as no save of ours makes it
    store.save({**state, **fewer}, step=step + 1, tokens=0, preset_hash="", shards=name)
    again = CheckpointStore(tmp_path).load()
    assert again is not None
    assert again.manifest.step == step
    assert "not complete" in again.notices[0]
