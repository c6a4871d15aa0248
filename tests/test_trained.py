"""Finding runs and loading what they made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from lmloop.trained import find_run, load_trained
from tests.runs import quick_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(folder)
    try:
        # The rate is so high that the model is best at its first evaluation.
        quick_run(folder, train={"learning_rate": 3.0, "warmup_steps": 4, "eval_every_steps": 1, "max_steps": 8})
    finally:
        os.chdir(before)
    return folder / "run"


def copy(run: Path, folder: Path, *, age_s: float = 0.0) -> Path:
    shutil.copytree(run, folder)
    path = folder / "lm_current.pth"
    moment = path.stat().st_mtime - age_s
    os.utime(path, (moment, moment))
    return folder


def test_the_newest_run_below_is_found_at_any_usual_depth(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no run below") as error:
        find_run(None)
    assert len(str(error.value).splitlines()) == 1
    copy(finished, tmp_path / "checkpoints" / "deep" / "old", age_s=50)
    assert find_run(None) == Path("checkpoints/deep/old")
    copy(finished, tmp_path / "checkpoints" / "newer", age_s=20)
    assert find_run(None) == Path("checkpoints/newer")
    copy(finished, tmp_path / "elsewhere", age_s=10)
    assert find_run(None) == Path("elsewhere")
    shutil.copy(finished / "lm_current.pth", tmp_path / "lm_current.pth")
    assert find_run(None) == Path()


def test_a_run_is_named_by_its_folder_or_its_name(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy(finished, tmp_path / "checkpoints" / "mine")
    assert find_run("mine") == find_run("checkpoints/mine") == Path("checkpoints/mine")
    assert find_run(str(tmp_path / "checkpoints" / "mine")) == tmp_path / "checkpoints" / "mine"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, reason in (("yours", "no such run folder"), ("empty", "no checkpoint"), ("file", "a file")):
        with pytest.raises(ValueError, match=f"^{name}: {reason}") as error:
            find_run(name)
        assert len(str(error.value).splitlines()) == 1


def test_best_and_newest_are_what_they_say(finished: Path) -> None:
    best, newest = load_trained(finished, "best"), load_trained(finished, "newest")
    assert best.checkpoint.path.name == "lm_best.pth"
    assert newest.checkpoint.path.name == "lm_current.pth"
    assert newest.checkpoint.manifest.step == 8
    assert best.checkpoint.manifest.step == newest.checkpoint.state["progress"]["best_step"] < 8
    for trained in (best, newest):
        assert not trained.model.training
        state = torch.load(trained.checkpoint.path, weights_only=True)["model"]
        own = trained.model.state_dict()
        assert all(torch.equal(own[name], state[name]) for name in state)


def test_the_newest_stands_in_where_there_is_no_best(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    for path in run.glob("lm_best*"):
        path.unlink()
    trained = load_trained(run, "best")
    assert trained.checkpoint.path.name == "lm_current.pth"
    assert trained.checkpoint.notices == []


def test_a_damaged_checkpoint_is_passed_over_with_a_notice(finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    damaged = run / "lm_current.pth"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()  # a file of its own: the copies may be hard links
    damaged.write_bytes(bytes(content))
    trained = load_trained(run, "newest")
    assert trained.checkpoint.path.name == "lm_prev.pth"
    assert len(trained.checkpoint.notices) == 1


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        load_trained(tmp_path)
