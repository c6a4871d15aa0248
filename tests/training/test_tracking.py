import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from lmloop.preset.schema import TrackingSection
from lmloop.training.tracking import Trackers, open_trackers

LINE = {
    "step": 20,
    "tokens": 1_000,
    "loss": 2.5,
    "grad_norm": None,
    "lr": float("nan"),
    "name": "x",
    "flag": True,
    "sources": {"notes": 0.6, "web": 0.4},
}
SCALARS = {"tokens": 1_000, "loss": 2.5, "sources/notes": 0.6, "sources/web": 0.4}


class Writer:
    made: ClassVar[list["Writer"]] = []

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.scalars: dict[str, tuple[float, int]] = {}
        self.texts: list[tuple[str, str, int]] = []
        self.closed = False
        Writer.made.append(self)

    def add_scalar(self, key: str, value: float, step: int) -> None:
        self.scalars[key] = (value, step)

    def add_text(self, key: str, text: str, step: int) -> None:
        self.texts.append((key, text, step))

    def close(self) -> None:
        self.closed = True


class Wandb:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.exit_code: int | None = None

    def init(self, **settings: Any) -> "Wandb":
        if self.error:
            raise self.error
        self.settings = settings
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def opened(section: TrackingSection, run_dir: Path, notices: list[str], from_step: int = 0) -> Trackers:
    return open_trackers(
        section,
        run_dir=run_dir,
        name="tiny",
        preset={"name": "tiny"},
        preset_hash="abc",
        from_step=from_step,
        notify=notices.append,
    )


def test_nothing_is_asked_for_and_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    trackers = opened(TrackingSection(), tmp_path, [])  # type: ignore[call-arg]
    trackers.log(LINE)
    trackers.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("extra", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_one_line_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"^tracking\.{extra}: .*lmloop\[{extra}\]") as error:
        opened(TrackingSection.model_validate({extra: True}), tmp_path, [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("from_step", "purge_step"), [(0, None), (40, 41)])
def test_tensorboard_gets_finite_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_step: int, purge_step: int | None
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    trackers = opened(TrackingSection.model_validate({"tensorboard": True}), tmp_path, [], from_step)
    trackers.log(LINE)
    trackers.sample(20, "Once", " upon\na *time*")
    trackers.close()
    writer = Writer.made[-1]
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.purge_step == purge_step
    assert writer.scalars == {key: (value, 20) for key, value in SCALARS.items()}
    assert writer.texts == [("sample", "    Once upon\n    a *time*", 20)]
    assert writer.closed


@pytest.mark.parametrize(("failed", "exit_code"), [(False, 0), (True, 1)])
def test_wandb_continues_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool, exit_code: int) -> None:
    section = TrackingSection.model_validate({"wandb": True, "wandb_project": "mine"})
    identities = []
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        wandb = Wandb()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        trackers = opened(section, folder, [])
        trackers.log(LINE)
        trackers.close(failed=failed)
        assert wandb.logged == [(SCALARS, 20)]
        assert wandb.exit_code == exit_code
        assert wandb.settings["project"] == "mine"
        assert wandb.settings["resume"] == "allow"
        identities.append(wandb.settings["id"])
    assert identities[0] == identities[1] != identities[2]


def test_wandb_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Wandb(RuntimeError("no key\nlog in")))
    with pytest.raises(ValueError, match=r"^tracking\.wandb: .*no key log in.*WANDB_MODE=offline") as error:
        opened(TrackingSection.model_validate({"wandb": True}), tmp_path, [])
    assert "\n" not in str(error.value)


def test_a_tracker_that_fails_is_dropped_once_and_the_others_go_on() -> None:
    class Broken:
        name = "Broken"
        calls = 0

        def log(self, line: Any) -> None:
            self.calls += 1
            raise ConnectionError("gone")

        def sample(self, step: int, prompt: str, text: str) -> None: ...

        def close(self, *, failed: bool) -> None: ...

    class Working(Broken):
        name = "Working"

        def log(self, line: Any) -> None:
            self.calls += 1

    notices: list[str] = []
    broken, working = Broken(), Working()
    trackers = Trackers([broken, working], notices.append)
    trackers.log(LINE)
    trackers.log(LINE)
    assert (broken.calls, working.calls) == (1, 2)
    assert notices == ["Broken failed and is dropped for this session: ConnectionError: gone"]
