"""The menu: what is listed, and what each answer chooses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import lmloop.plan
import lmloop.run
from lmloop import menu
from lmloop.preset.reading import LoadedPreset
from tests.runs import quick_preset

Capture = pytest.CaptureFixture[str]


class Menu:
    """A folder of presets, answers to give, and which preset was trained."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "configs"
        self.folder.mkdir()
        self.trained: list[str] = []
        self._monkeypatch = monkeypatch

        def train(loaded: LoadedPreset, **named: Any) -> tuple[dict[str, Any], int]:
            self.trained.append(loaded.path.stem)
            return {}, 7

        monkeypatch.setattr(lmloop.run, "train", train)

    def add(self, *names: str, **changes: Any) -> None:
        for name in names:
            preset = {**quick_preset(), "name": name, "output_dir": f"runs/{name}", "description": f"About {name}."}
            (self.folder / f"{name}.json").write_text(json.dumps({**preset, **changes}))

    def answer(self, text: str) -> int:
        self._monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return menu.main()


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Menu:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(
        lmloop.plan, "menu_forecasts", lambda presets, console: {one.path: f"as {one.path.stem} takes" for one in presets}
    )
    return Menu(tmp_path, monkeypatch)


def test_each_preset_has_its_line(shown: Menu, capsys: Capture) -> None:
    shown.add("00_best_general", "beta")
    shown.add("alpha", name="beta")  # the name within is another file's too: the forecast is still its own
    assert shown.answer("\n") == 7
    out = capsys.readouterr().out
    for number, name in enumerate(("00_best_general", "alpha", "beta"), 1):
        (line,) = [line for line in out.splitlines() if f"as {name} takes" in line]
        assert line.split()[:2] == [str(number), name]
    assert "About beta." in out
    assert "Enter = 00_best_general" in out


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [
        ("\n", "00_best_general"),
        ("", "00_best_general"),  # the end of input
        ("1\n", "00_best_general"),
        ("2", "alpha"),  # without a line's end
        ("  3 \n", "beta"),
        ("beta\n", "beta"),
        ("9\nalpha\n", "alpha"),
        ("gamma\n0\n-1\n2\n", "alpha"),
        ("nonsense\n\n", "00_best_general"),
    ],
)
def test_an_answer_chooses(typed: str, chosen: str, shown: Menu, capsys: Capture) -> None:
    shown.add("00_best_general", "alpha", "beta")
    assert shown.answer(typed) == 7  # what training answers is the exit status
    assert shown.trained == [chosen]
    out = capsys.readouterr().out
    assert out.count("Which one?") == max(typed.rstrip("\n").count("\n") + 1, 2 if typed == "nonsense\n\n" else 1)


@pytest.mark.parametrize("typed", ["gamma", "gamma\n", "9\n8\n", "[bold]\n"])
def test_a_wrong_answer_and_then_nothing_trains_nothing(typed: str, shown: Menu, capsys: Capture) -> None:
    shown.add("00_best_general", "alpha")
    assert shown.answer(typed) == 2
    assert shown.trained == []
    assert f"'{typed.split()[0]}' is not in the list" in capsys.readouterr().out


def test_without_the_usual_default_the_first_is_it(shown: Menu) -> None:
    shown.add("alpha", "beta")
    assert shown.answer("\n") == 7
    assert shown.trained == ["alpha"]


@pytest.mark.parametrize("typed", ["2\n", "broken\n"])
def test_a_broken_preset_is_listed_with_its_fault_and_cannot_be_chosen(typed: str, shown: Menu, capsys: Capture) -> None:
    shown.add("alpha", "zeta")
    (shown.folder / "broken.json").write_text('{"modle": {}}')
    assert shown.answer(typed + "3\n") == 7
    assert shown.trained == ["zeta"]
    out = capsys.readouterr().out
    assert out.count("modle") >= 2  # in the list, and as the answer
    assert shown.answer(typed) == 2
    assert shown.trained == ["zeta"]


def test_a_broken_default_ends_with_the_input(shown: Menu, capsys: Capture) -> None:
    shown.add("alpha")
    (shown.folder / "00_best_general.json").write_text("[]")
    assert shown.answer("") == 2
    assert shown.trained == []


def test_an_empty_folder_says_what_to_do(shown: Menu, capsys: Capture) -> None:
    assert shown.answer("\n") == 2
    assert "no presets in configs/" in capsys.readouterr().out


def test_what_training_refuses_is_one_line(shown: Menu, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    shown.add("alpha")
    for error, status in ((ValueError("no data"), 2), (OSError(28, "No space left"), 1), (KeyboardInterrupt(), 130)):

        def refuse(*args: Any, error: BaseException = error, **named: Any) -> Any:
            raise error

        monkeypatch.setattr(lmloop.run, "train", refuse)
        assert shown.answer("\n") == status
        err = capsys.readouterr().err
        assert err.count("\n") == (0 if status == 130 else 1)
