import os
import sys
from pathlib import Path

import pytest

from lmloop.training.commands import command


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an environment in `.venv` that is not activated."""
    program = tmp_path / ".venv" / "bin" / "lmloop"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    return program


def test_a_program_that_is_not_found_by_name_is_named_by_its_path(environment: Path) -> None:
    assert command("chat", "checkpoints/tiny") == ".venv/bin/lmloop chat checkpoints/tiny"


def test_from_another_folder_the_path_is_absolute(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert command("chat") == f"{environment} chat"


def test_a_program_on_the_path_is_named_alone(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(environment.parent) + os.pathsep + "elsewhere")
    assert command("chat") == "lmloop chat"


def test_without_a_program_the_name_has_to_do(environment: Path) -> None:
    environment.unlink()
    assert command("plan") == "lmloop plan"


def test_words_are_quoted_for_the_shell(environment: Path) -> None:
    assert command("train", "my presets/a.json") == ".venv/bin/lmloop train 'my presets/a.json'"
