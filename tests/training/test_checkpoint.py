"""Saving and loading when nothing goes wrong, and what is refused before it is saved."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmloop.training.checkpoint import BEST, CURRENT, FORMAT, MIRROR, PREVIOUS, PREVIOUS_2, CheckpointError, CheckpointStore
from lmloop.training.manifest import manifest_path, read_manifest
from lmloop.training.soundness import NonFiniteError, tensor_bytes
from tests.training.checkpoints import PRESET, is_tidy, kept_steps, loads, make_state, same, save


def test_rotation_keeps_the_newest_three(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).load() is None
    expected: list[int] = []
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
        expected = [step, *expected][:3]
        assert kept_steps(tmp_path) == expected
        assert (tmp_path / MIRROR).samefile(tmp_path / CURRENT)
        is_tidy(tmp_path)
        loads(tmp_path, {step})
    assert not (tmp_path / BEST).exists()


def test_best_is_kept_however_many_follow(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(1, 8):
        store.save(make_state(step), step=step, tokens=step, preset_hash=PRESET, best=step in (1, 3))
    best = store.load("best")
    assert best is not None
    assert best.path.name == BEST
    assert same(best.state, make_state(3))
    assert best.notices == []
    is_tidy(tmp_path)


def test_best_is_the_newest_where_none_was_saved(tmp_path: Path) -> None:
    save(tmp_path, 1)
    best = CheckpointStore(tmp_path).load("best")
    assert best is not None
    assert best.path.name == CURRENT
    assert best.notices == []


def test_damaged_best_falls_back_loudly(tmp_path: Path) -> None:
    save(tmp_path, 1, best=True)
    save(tmp_path, 2)
    damage(tmp_path / BEST)
    best = CheckpointStore(tmp_path).load("best")
    assert best is not None
    assert best.path.name == CURRENT
    assert len(best.notices) == 1
    assert "lm_best.pth" in best.notices[0]


def test_manifest_says_what_and_where(tmp_path: Path) -> None:
    save(tmp_path, 7)
    manifest = read_manifest(manifest_path(tmp_path / CURRENT))
    assert manifest is not None
    assert (manifest.step, manifest.tokens, manifest.preset_hash) == (7, 70, PRESET)
    assert manifest.bytes == (tmp_path / CURRENT).stat().st_size
    assert manifest.torch == str(torch.__version__)


def test_scripts_can_read_it_with_pytorch_alone(tmp_path: Path) -> None:
    save(tmp_path, 7)
    state = torch.load(tmp_path / CURRENT, weights_only=True)
    assert same(state["model"], make_state(7)["model"])


def test_saving_a_step_again_drops_no_older_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 3, 3):
        save(tmp_path, step, best=True)
    assert kept_steps(tmp_path) == [3, 2, 1]


def test_damaged_file_is_never_kept_in_place_of_a_good_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    damage(tmp_path / CURRENT)
    store = CheckpointStore(tmp_path)
    loaded = store.load()
    assert loaded is not None
    assert loaded.manifest.step == 2
    store.save(make_state(4), step=4, tokens=4, preset_hash=PRESET)
    assert kept_steps(tmp_path) == [4, 2, 1]
    damage(tmp_path / PREVIOUS)
    save(tmp_path, 5)
    assert kept_steps(tmp_path) == [5, 4, 1]


def test_older_copy_put_back_by_hand_is_taken(tmp_path: Path) -> None:
    """Somebody wants to go on from an older checkpoint: `cp lm_prev2.pth lm_current.pth`."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    content = (tmp_path / PREVIOUS_2).read_bytes()
    (tmp_path / CURRENT).unlink()
    (tmp_path / CURRENT).write_bytes(content)
    loads(tmp_path, {1})
    save(tmp_path, 9)
    is_tidy(tmp_path)
    assert kept_steps(tmp_path) == [9, 1, 2]


def test_missing_current_is_loud(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / CURRENT).unlink()
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert loaded.manifest.step == 1
    assert "missing" in loaded.notices[0]


@pytest.mark.parametrize("name", [BEST, MIRROR])
def test_foreign_file_is_not_overwritten_by_a_new_run(tmp_path: Path, name: str) -> None:
    torch.save({"model": {}}, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: its manifest .* is missing"):
        CheckpointStore(tmp_path).load()


def test_cleaning_removes_temporaries_only(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".lm_next.pth.tmp").write_bytes(b"half")
    os.link(tmp_path / CURRENT, tmp_path / ".lm_prev.pth.tmp")
    (tmp_path / "notes.tmp").write_text("mine")
    removed = CheckpointStore(tmp_path).clean()
    assert [path.name for path in removed] == [".lm_next.pth.tmp", ".lm_prev.pth.tmp"]
    assert (tmp_path / "notes.tmp").exists()
    is_tidy(tmp_path)
    loads(tmp_path, {1})


def test_leftover_link_is_never_written_into(tmp_path: Path) -> None:
    """A temporary that is a second name of a checkpoint must not become the next one's file."""
    save(tmp_path, 1)
    os.link(tmp_path / CURRENT, tmp_path / ".lm_next.pth.tmp")
    save(tmp_path, 2)
    assert kept_steps(tmp_path) == [2, 1]
    is_tidy(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["weight", "bfloat16", "optimizer"])
def test_non_finite_state_is_refused(tmp_path: Path, place: str, value: float) -> None:
    save(tmp_path, 1)
    state = make_state(2)
    tensor = {
        "weight": state["model"]["w"],
        "bfloat16": state["model"]["b"],
        "optimizer": state["optimizer"]["state"][0]["m"],
    }[place]
    tensor.view(-1)[2] = value
    with pytest.raises(NonFiniteError, match=r"step 2: (model\.[wb]|optimizer\.state\.0\.m) holds NaN or infinity"):
        CheckpointStore(tmp_path).save(state, step=2, tokens=2, preset_hash=PRESET)
    assert kept_steps(tmp_path) == [1]
    is_tidy(tmp_path)


def test_large_and_empty_tensors_are_finite(tmp_path: Path) -> None:
    state = make_state(1)
    state["model"]["large"] = torch.full((64,), 3e38)
    state["model"]["empty"] = torch.zeros(0)
    state["model"]["eight bits"] = torch.ones(4).to(torch.float8_e4m3fn)
    state["rng"]["loss"] = torch.tensor(float("nan"))  # neither model nor optimizer: a record may hold it
    CheckpointStore(tmp_path).save(state, step=1, tokens=1, preset_hash=PRESET)
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert same(loaded.state, state)


@pytest.mark.parametrize("value", [np.float64(1.0), np.zeros(2), Path("x"), random.Random(0), len])
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, value: object) -> None:
    with pytest.raises(AssertionError, match=r"state\.feed\[1\] is a "):
        CheckpointStore(tmp_path).save({**make_state(1), "feed": [0, value]}, step=1, tokens=1, preset_hash=PRESET)
    assert list(tmp_path.iterdir()) == []


def test_shared_storage_counts_once() -> None:
    weight = torch.zeros(1_000)
    assert tensor_bytes({"model": {"in": weight, "out": weight, "part": weight[:10]}}) == 4_000


def test_reading_while_another_process_saves(tmp_path: Path) -> None:
    """Readers hold no lock: whatever moment they look at, the newest and the best are whole."""
    save(tmp_path, 1, best=True)
    writer = os.fork()
    if writer == 0:
        code = 1
        try:
            store = CheckpointStore(tmp_path)
            for step in range(2, 80):
                store.save(make_state(step), step=step, tokens=step, preset_hash=PRESET, best=step % 3 == 0)
            code = 0
        finally:
            os._exit(code)
    reads, steps = 0, []
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        newest, best = CheckpointStore(tmp_path).load(), CheckpointStore(tmp_path).load("best")
        assert newest is not None
        assert best is not None
        assert newest.notices == best.notices == []
        assert same(newest.state, make_state(newest.manifest.step))
        steps.append(newest.manifest.step)
        reads += 1
    assert reads > 5
    assert steps == sorted(steps)


@pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: p.write_text("{"), lambda p: p.write_text("[]")])
def test_folder_moved_without_a_manifest(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    save(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    change(tmp_path / "b" / "lm_current.manifest.json")
    with pytest.raises(
        CheckpointError, match=r"lm_current\.pth: its manifest lm_current\.manifest\.json is (missing|damaged)"
    ):
        CheckpointStore(tmp_path / "b").load()


def damage(path: Path) -> None:
    """Change one byte of this name's content, not of its other names'."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1])
def test_a_format_of_another_version_is_refused(tmp_path: Path, other: int) -> None:
    CheckpointStore(tmp_path).save({"model": {}, "format": other}, step=1, tokens=1, preset_hash="x")
    with pytest.raises(CheckpointError, match=f"format {other}, this version reads format {FORMAT}"):
        CheckpointStore(tmp_path).load()
