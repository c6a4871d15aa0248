"""Each preset in configs/ in miniature: a few steps of a small model on the preset's own kinds of data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import lmloop.data.hub
import lmloop.run
from lmloop.data.hub_files import Streamed
from lmloop.data.shape import shape_of
from lmloop.preset.reading import LoadedPreset, load_preset, preset_from_resolved, resolved
from lmloop.preset.sources import HubSource
from tests import pdfs
from tests.finetuning import write_base, write_chats
from tests.runs import lines
from tests.torture.harness import write_corpus

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(path.name for path in CONFIGS.iterdir())
MINIATURE: dict[str, dict[str, Any]] = {
    "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "seq_length": 32},
    "train": {"per_gpu_batch_size": 2, "threads": 1, "eval_tokens": 400, "sample_every_steps": 4, "log_every_steps": 1},
    "generation": {"max_new_tokens": 4},
}
BUDGETS = {"epochs": None, "num_tokens": None, "epochs_per_length": None}


def miniature(name: str, steps: int = 4) -> LoadedPreset:
    """The preset with everything that takes time made small; sources, mixing, tokenizer's kind and optimizer as they are."""
    loaded = load_preset(CONFIGS / name)
    values = resolved(loaded.preset)
    for section, changes in MINIATURE.items():
        if section != "model" or values["model"]["pretrained"] is None:
            values[section] |= changes
    values["train"] |= {**BUDGETS, "max_steps": steps}
    values["tokenizer"] |= {"train_bytes": 20_000, "vocab_size": 300}
    if values["journal"] is not None:  # an entry after each update, which a tenth of the next may be
        values["journal"] |= {"every_tokens": 100, "reflection_tokens": 40}
        values["train"] |= {"sequence_schedule": [1, 8, 32]}
    if values["model"]["pretrained"] is not None:  # a base that a user has made with `lmloop export`, say
        if not Path("my_base").exists():
            write_base(Path("my_base"), "llama" if "llama" in values["model"]["pretrained"] else "qwen3")
        values["model"] |= {"pretrained": "./my_base", "seq_length": 96}
        values["tokenizer"] |= {"path": "./my_base"}
    return LoadedPreset(preset_from_resolved(values, name), loaded.path)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a user's files in it, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lmloop.data.hub, "unreachable", lambda: "no route to host")
    write_corpus(tmp_path / "my_files")
    (tmp_path / "my_files" / "notes.md").write_text("# Notes\n\n" + "Some words about nothing in particular.\n" * 30)
    (tmp_path / "my_pdfs").mkdir()
    for number in range(4):
        paragraphs = [f"Some words of book {number} for paragraph {k}." for k in range(90)]
        pdfs.write_book(tmp_path / "my_pdfs" / f"{number}.pdf", paragraphs)
    (tmp_path / "my_files" / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"row {number} of a table of words"}) + "\n" for number in range(30))
    )
    for path in ("my_chats.jsonl", "training_data/sharegpt_format.jsonl"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        write_chats(tmp_path / path)
    write_corpus(tmp_path / "training-data" / "books")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(
        "".join(
            json.dumps({"instruction": "What is two and two?", "input": f"{number}", "output": "Four. " * (number % 7 + 1)})
            + "\n"
            for number in range(60)
        )
    )
    return tmp_path


OWN = (
    "python_stdlib",
    "./my_files",
    "./training-data",
    "./my_pdfs",
    "./my_chats.jsonl",
    "./training_data/sharegpt_format.jsonl",
)
"""Sources that need no network."""


def test_there_is_a_preset() -> None:
    assert len(NAMES) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_without_a_network(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = miniature(name)
    answer, status = lmloop.run.train(loaded)
    assert (status, answer["status"], answer["step"]) == (0, "finished", 4)
    run = Path(loaded.preset.run_dir)
    assert answer["val_loss"] is not None
    metrics = lines(run / "metrics.jsonl")
    written = lines(run / "samples.jsonl")
    assert {line["prompt"] for line in written} == set(loaded.preset.generation.prompts)
    said = " ".join(capsys.readouterr().out.split())
    trained = {source for line in metrics for source in line["sources"]}
    for source in loaded.preset.data.sources:
        known = source if isinstance(source, str) else getattr(source, "dataset", getattr(source, "path", ""))
        offline = known not in (*OWN, "./data/train.jsonl")
        assert (f"left out: source '{known}'" in said) == offline
        assert (known in trained) != offline
    if loaded.preset.adapter is not None:
        assert (run / "adapter_model.safetensors").exists()


def split_of_the_hub(section: HubSource, commit: str | None) -> Streamed:
    """A stream with the columns that the data set of this name has on the hub."""
    import datasets

    columns = {"sentence-transformers/natural-questions": ("query", "answer")}.get(section.dataset, ("text",))
    rows = [
        {column: f"{column} {number} of {section.dataset}: " + "many more words " * 8 for column in columns}
        for number in range(60)
    ]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    return Streamed(stream, "train/", shape_of(section, section.data_type))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("0")])
def test_a_preset_trains_on_all_its_sources_when_the_hub_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmloop.data.hub, "unreachable", lambda: None)
    monkeypatch.setattr(lmloop.data.hub, "commit_of", lambda dataset, revision: "0" * 40)
    monkeypatch.setattr(lmloop.data.hub, "open_split", split_of_the_hub)
    loaded = miniature(name, steps=6)
    answer, status = lmloop.run.train(loaded)
    assert (status, answer["step"]) == (0, 6)
    run = Path(loaded.preset.run_dir)
    trained = {source for line in lines(run / "metrics.jsonl") for source in line["sources"]}
    assert len(trained) == len(loaded.preset.data.sources)
    assert (run / "quarantine.jsonl").read_text() == ""
    held_out = (run / "validation.jsonl").read_text()
    assert "many more words" in held_out
    if name == "01_best_qa.json":
        assert re.search(r"Q: query (\d+) of .*\\nA: answer \1 of ", held_out)


def test_the_curated_two_continue_one_model() -> None:
    first, _ = lmloop.run.train(miniature("00_best_general.json"))
    second, _ = lmloop.run.train(miniature("01_best_qa.json"))
    assert first["run"] == second["run"] == "checkpoints"
    assert (first["step"], second["step"]) == (4, 8)
    third, _ = lmloop.run.train(miniature("00_best_general.json"))
    assert third["step"] == 12
