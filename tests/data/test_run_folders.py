from __future__ import annotations

from pathlib import Path

import pytest

from lmloop.data.corpus import open_corpus
from lmloop.data.quarantine import Quarantine
from lmloop.data.run_folders import belongs_to
from lmloop.preset.schema import DataSection

WRITTEN = ["metrics.jsonl", "samples.jsonl", "validation.jsonl", "run.json", "preset.json", "tokenizer/tokenizer.json"]


def run_folder(folder: Path, mark: str = ".lock") -> Path:
    for name in WRITTEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "written by a run"}\n')
    (folder / mark).touch()
    return folder


def texts_of(path: Path, run_dir: Path | None) -> tuple[list[str], list[str]]:
    """What is trained on, and the notices."""
    section = DataSection.model_validate(
        {"sources": [{"type": "files", "path": str(path)}], "split": {"validation": 0.0}, "max_bad_fraction": 1.0}
    )
    corpus = open_corpus(section, seed=0, eval_tokens=0, run_dir=run_dir, quarantine=Quarantine(None, 1.0))
    return [document.text for source in corpus.train for document, _ in source.read({})], corpus.notices


@pytest.mark.parametrize("mark", [".lock", "lm_current.pth", "lm_best.pth"])
def test_a_source_around_run_folders(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "metrics.jsonl").write_text('{"text": "data"}')  # of no run
    run_folder(tmp_path / "checkpoints" / "mine", mark)
    run_folder(tmp_path / "checkpoints" / "other", mark)
    (tmp_path / "checkpoints" / "mine" / "notes.txt").write_text("notes")
    texts, notices = texts_of(tmp_path, tmp_path / "checkpoints" / "mine")
    assert texts == ["a", "notes", "data"]
    assert [notice.partition("what runs have written is left out ")[2] for notice in notices] == [
        "(checkpoints/mine)",
        "(checkpoints/other)",
    ]


def test_a_source_that_is_the_run_folder(tmp_path: Path) -> None:
    run_folder(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "b.txt").write_text("b")
    assert texts_of(tmp_path, tmp_path)[0] == ["a", "b"]
    assert texts_of(tmp_path / "corpus", tmp_path)[0] == ["b"]


@pytest.mark.parametrize(
    "name", ["samples.jsonl", "validation.jsonl", "tokenizer", "tokenizer/tokenizer.json", "link.jsonl"]
)
def test_a_source_that_the_run_itself_writes_is_refused(tmp_path: Path, name: str) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "run" / "link.jsonl").symlink_to("samples.jsonl")
    with pytest.raises(ValueError, match="is written by this very run: choose another path or output_dir"):
        texts_of(tmp_path / "run" / name, tmp_path / "run")
    assert texts_of(tmp_path / "run" / "samples.jsonl", tmp_path)[0]  # of another run: somebody wants it


def test_links_and_dots_do_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert belongs_to(Path("../run"), tmp_path / "link" / "samples.jsonl")
    assert belongs_to(tmp_path / "link", Path("../run/../run/lm_current.pth"))
    assert not belongs_to(Path("../run"), tmp_path / "run")
    assert not belongs_to(Path("../run"), tmp_path / "elsewhere")
    assert not belongs_to(Path("../run"), tmp_path / "loop")
