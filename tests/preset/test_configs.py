"""The presets in configs/: they load, and say what they promise."""

from pathlib import Path

import pytest

from lmloop.preset.reading import LoadedPreset, list_presets, load_preset, resolved
from lmloop.preset.sources import FilesSource, HubSource

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_all_of_them_load_without_a_note() -> None:
    listed = list_presets(CONFIGS)
    names = ["00_best_general.json", "01_best_qa.json", "my_files.json", "pdf_library.json", "tiny_gpt.yaml"]
    assert [path.name for path, _ in listed] == names
    for path, entry in listed:
        assert isinstance(entry, LoadedPreset), entry
        assert entry.preset.name == path.stem
        assert entry.notes == []
        assert 20 <= len(entry.preset.description) <= 110  # a line of the menu


def test_the_curated_two_share_folder_model_and_tokenizer() -> None:
    general, questions = (load_preset(CONFIGS / f"{name}.json").preset for name in ("00_best_general", "01_best_qa"))
    assert general.run_dir == questions.run_dir == "checkpoints"
    assert general.model == questions.model
    assert general.tokenizer == questions.tokenizer
    assert general.train == questions.train
    assert general.data.mix_strategy == "round_robin"
    assert "python_stdlib" in general.data.sources
    assert "python_stdlib" in questions.data.sources
    assert questions.generation.chat_format.format(user="why?") == "Q: why?\nA:"


def test_questions_are_written_as_they_are_asked() -> None:
    preset = load_preset(CONFIGS / "01_best_qa.json").preset
    source = next(source for source in preset.data.sources if isinstance(source, HubSource))
    document = (source.format or "").format(query="why?", answer="because")
    assert document == preset.generation.chat_format.format(user="why?") + " because"
    assert any(stop in "\n" + document for stop in preset.generation.stop)


@pytest.mark.parametrize("name", ["00_best_general.json", "01_best_qa.json"])
def test_curated_presets_train_a_hundred_million_tokens_a_run(name: str) -> None:
    train = load_preset(CONFIGS / name).preset.train
    assert (train.epochs, train.max_steps, train.num_tokens, train.epochs_per_length) == (None, None, None, None)


def test_tiny_gpt_needs_nothing_but_python() -> None:
    preset = load_preset(CONFIGS / "tiny_gpt.yaml").preset
    assert preset.data.sources == ["python_stdlib"]
    assert preset.tokenizer.type == "char"
    assert (preset.train.max_steps, preset.train.sample_every_steps, preset.train.learning_rate) == (1500, 100, 0.002)
    assert 128 <= preset.model.hidden_size <= 256
    assert 256 <= preset.model.seq_length <= 512
    assert 2 <= preset.model.num_layers <= 4


def test_the_line_that_tiny_gpt_offers_in_a_comment_works(tmp_path: Path) -> None:
    text = (CONFIGS / "tiny_gpt.yaml").read_text()
    assert "  #   - { type: files, path: ./my_text.txt }\n" in text
    text = text.replace("    - python_stdlib\n", "    - { type: files, path: ./my_text.txt }\n")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_preset(tmp_path / "mine.yaml").preset.data.sources == [FilesSource(type="files", path="./my_text.txt")]


def test_pdf_library_reads_a_folder() -> None:
    preset = load_preset(CONFIGS / "pdf_library.json").preset
    values = resolved(preset)["data"]["sources"]
    assert [(source["type"], source["path"], source["chunk_size"]) for source in values] == [("pdf", "./my_pdfs", 5000)]
    assert preset.train.epochs is not None


def test_my_files_reads_a_folder() -> None:
    preset = load_preset(CONFIGS / "my_files.json").preset
    values = resolved(preset)["data"]["sources"]
    assert [(source["type"], source["path"]) for source in values] == [("files", "./my_files")]
    assert preset.tokenizer.vocab_size == 4096
    assert preset.train.epochs is not None
