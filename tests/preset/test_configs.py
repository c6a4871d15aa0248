"""The presets in configs/: they load, and say what they promise."""

from pathlib import Path

import pytest

from lmloop.preset.reading import LoadedPreset, list_presets, load_preset, resolved
from lmloop.preset.sources import FilesSource, HubSource

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_all_of_them_load_without_a_note() -> None:
    listed = list_presets(CONFIGS)
    names = ["00_best_general", "01_best_qa", "full_sft", "gpu_fast", "lora", "my_files", "pdf_library", "qlora_llama31_8b"]
    names += ["small_full_sft", "small_lora", "small_qlora", "tiny_fast", "tiny_gpt"]
    assert [path.stem for path, _ in listed if "journal" not in path.stem] == names
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


def test_qlora_says_what_the_guide_says() -> None:
    preset = load_preset(CONFIGS / "qlora_llama31_8b.json").preset
    assert (preset.model.pretrained, preset.model.seq_length) == ("meta-llama/Llama-3.1-8B", 2048)
    adapter = preset.adapter
    assert adapter is not None
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.bias, adapter.quantize) == (16, 32, 0.1, "none", "nf4")
    assert sorted(adapter.target_modules or "") == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    train = preset.train
    assert (train.per_gpu_batch_size, train.accumulation_steps, train.max_steps) == (6, 3, 1000)
    assert (train.learning_rate, train.lr_schedule, train.warmup_steps) == (2e-4, "cosine", 100)
    assert (train.weight_decay, train.max_grad_norm, train.beta2) == (0.01, 1.0, 0.999)
    assert (train.eval_every_steps, train.save_every_steps) == (500, 500)
    assert (preset.data.split.validation, preset.data.split.test, preset.data.template) == (0.1, 0.1, "alpaca")
    writes = preset.generation
    assert (writes.temperature, writes.top_p, writes.top_k, writes.repetition_penalty) == (0.7, 0.9, 50, 1.1)
    assert writes.max_new_tokens == 512


@pytest.mark.parametrize(
    "name", ["lora.yaml", "full_sft.json", "small_full_sft.json", "small_lora.json", "small_qlora.json"]
)
def test_presets_for_chats_read_them_in_any_format(name: str) -> None:
    preset = load_preset(CONFIGS / name).preset
    (source,) = preset.data.sources
    assert isinstance(source, FilesSource)
    assert source.data_type == "chat"
    assert preset.tokenizer.path == preset.model.pretrained
    assert preset.train.epochs == 3
    assert (preset.adapter is None) == ("full" in name)
    assert (preset.adapter is not None and preset.adapter.quantize == "nf4") == ("qlora" in name)


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


def test_meta_journal_says_what_the_seed_says() -> None:
    preset = load_preset(CONFIGS / "meta_journal.json").preset
    train, journal = preset.train, preset.journal
    assert train.sequence_schedule == [1, 2400, 24000]
    assert train.epochs_per_length == {"1": 1, "2400": 3, "24000": 38}
    assert (train.learning_rate, train.max_grad_norm) == (0.11, 442.0)
    assert (train.per_gpu_batch_size, train.accumulation_steps) == (1, 1)
    assert (preset.model.pretrained, preset.model.seq_length, preset.adapter) == ("./your-base-model", 24000, None)
    assert (preset.data.mix_strategy, preset.data.shuffle) == ("sequential", False)
    assert journal is not None
    assert journal.path == journal.system_prompt_path == "./training-journal.txt"


def test_the_small_meta_journal_has_the_same_course() -> None:
    large, small = (load_preset(CONFIGS / name).preset for name in ("meta_journal.json", "meta_journal_small.yaml"))
    for key in ("optimizer", "learning_rate", "max_grad_norm", "lr_schedule", "warmup_fraction"):
        assert getattr(large.train, key) == getattr(small.train, key)
    assert next(iter(small.train.epochs_per_length or {})) == "1"
    assert small.model.pretrained is None
    assert small.journal is not None


def test_a_preset_written_as_the_seed_writes_it_finds_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "seed.json"
    path.write_text(
        """{"checkpoint_dir": "./your-base-model/", "output_dir": "./output/",
        "system_prompt_path": "./training-journal.txt", "sequence_schedule": [1, 2400],
        "epochs_per_length": {"1": 1, "2400": 3},
        "learning_rate": 0.11, "max_grad_norm": 442.0, "batch_size": 1, "gradient_accumulation_steps": 1,
        "data_configs": [
            {"path": "training-journal.txt", "weight": 1.0, "is_directory": false, "data_type": "text"},
            {"path": "./training-data/journals/", "weight": 1.0, "is_directory": true, "file_pattern": "*.{txt,md}"}
        ]}"""
    )
    loaded = load_preset(path)
    assert loaded.preset.journal is not None
    assert loaded.preset.journal.path == "./training-journal.txt"
    assert [getattr(source, "path", "") for source in loaded.preset.data.sources] == ["./training-data/journals/"]
    assert any("is the journal" in note for note in loaded.notes)
