"""Other names of keys: presets written for the documents that lmloop grew out of, for nanoGPT and for Hugging Face."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmloop.preset.aliases import ALIASES, UNSUPPORTED, UNSUPPORTED_SOURCES, VALUES, canonical, flat_keys
from lmloop.preset.check import check
from lmloop.preset.reading import load_preset
from lmloop.preset.schema import Preset
from lmloop.preset.shape import leaves, node_at, properties, root, sections
from lmloop.preset.sources import FilesSource, HubSource, PdfSource

SOURCES = {"data": {"sources": ["wikipedia"]}}

QA_PLUS_WIKI = r"""
{
  "name": "qa_plus_wiki",
  "model": {"hidden_size":256, "num_layers":3, "num_heads":4, "seq_length":256},
  "train": {"per_gpu_batch_size":128, "accumulation_steps":4, "eval_tokens":2000000},
  "data": {
    "sources": [
      {"type":"hf","dataset":"sentence-transformers/natural-questions","split":"train","fields":["question","answer"],"format":"Q: {question}\nA: {answer}"},
      "wikipedia"
    ],
    "mix_strategy": "round_robin",
    "min_text_length": 50
  }
}
"""  # noqa: E501

AUXILIARY = """
"auxiliary": {
  "enable_policy": true,
  "enable_value": true,
  "enable_dynamics": true,
  "enable_span_contrastive": true,
  "policy_kl_weight": 0.05,
  "value_weight": 0.05,
  "dynamics_weight": 0.05,
  "span_contrastive_weight": 0.05,
  "span_mask_fraction": 0.15,
  "span_contrastive_temperature": 0.07,
  "span_l2_normalize": true,
  "enable_adaptive_sources": true,
  "adaptive_interval_tokens": 5000000,
  "adaptive_min_weight": 0.5,
  "adaptive_max_weight": 3.0,
  "adaptive_smoothing": 0.9
}
"""

PDF_SOURCE = '{ "type": "pdf", "path": "./my_pdfs" }'
HF_SOURCE = '{ "type": "hf", "dataset": "owner/name", "split": "train", "text_field": "text" }'


def load(folder: Path, value: dict[str, Any] | str, ending: str = "json"):
    path = folder / f"p.{ending}"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return load_preset(path)


def error_of(folder: Path, value: dict[str, Any] | str) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        load(folder, value)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# the documents' own examples


def test_qa_plus_wiki_loads_unchanged(tmp_path: Path) -> None:
    loaded = load(tmp_path, QA_PLUS_WIKI)
    preset = loaded.preset
    assert loaded.notes == []
    assert preset.name == "qa_plus_wiki"
    assert (preset.model.hidden_size, preset.model.num_layers, preset.model.num_heads, preset.model.seq_length) == (
        256,
        3,
        4,
        256,
    )
    assert (preset.train.per_gpu_batch_size, preset.train.accumulation_steps, preset.train.eval_tokens) == (
        128,
        4,
        2_000_000,
    )
    questions, wikipedia = preset.data.sources
    assert isinstance(questions, HubSource)
    assert questions.dataset == "sentence-transformers/natural-questions"
    assert questions.fields == ["question", "answer"]
    assert questions.format == "Q: {question}\nA: {answer}"
    assert wikipedia == "wikipedia"
    assert (preset.data.mix_strategy, preset.data.min_text_length) == ("round_robin", 50)


def test_the_auxiliary_section_loads_unchanged(tmp_path: Path) -> None:
    text = QA_PLUS_WIKI.rstrip()[:-1] + "," + AUXILIARY + "}"
    preset = load(tmp_path, text).preset
    written = json.loads("{" + AUXILIARY + "}")["auxiliary"]
    assert preset.auxiliary.model_dump() == written
    assert len(preset.auxiliary.enabled) == 5


def test_a_source_of_pdfs_loads_unchanged(tmp_path: Path) -> None:
    text = '{"name": "books", "data": {"sources": [' + PDF_SOURCE + ', "wikipedia"]}}'
    assert load(tmp_path, text).preset.data.sources == [PdfSource(type="pdf", path="./my_pdfs"), "wikipedia"]


def test_a_data_section_with_a_hub_source_loads_unchanged(tmp_path: Path) -> None:
    text = '{"name": "hub", "data": {"sources": [' + HF_SOURCE + '], "source_weights": [2.0], "mix_strategy": "weighted"}}'
    assert load(tmp_path, text).preset.data.sources == [
        HubSource(type="hub", dataset="owner/name", split="train", text_field="text")
    ]


def test_train_tokens_is_answered_with_a_note(tmp_path: Path) -> None:
    for value in (
        {"train_tokens": 5_000_000},
        {"train": {"train_tokens": "7B"}},
        {"data": {"sources": ["c4"], "train_tokens": 1}},
    ):
        loaded = load(tmp_path, {**SOURCES, **value})
        assert len(loaded.notes) == 1
        assert "train_tokens" in loaded.notes[0]
        assert "a run is 100 M tokens" in loaded.notes[0]


META_LEARNING = {
    "output_dir": "./output/",
    "sequence_schedule": [1, 2400, 24000],
    "epochs_per_length": {"1": 1, "2400": 3, "24000": 38},
    "learning_rate": 0.11,
    "max_grad_norm": 442.0,
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "data_configs": [
        {
            "path": "./training-journal.txt",
            "weight": 1.0,
            "is_directory": False,
            "chunk_size": 0,
            "data_type": "text",
            "description": "Journal",
        },
        {
            "path": "./data/",
            "weight": 1.0,
            "is_directory": True,
            "file_pattern": "*.{txt,md}",
            "chunk_size": 100000,
            "data_type": "text",
            "description": "My data",
        },
    ],
}


def test_the_flat_configuration_of_the_meta_learning_trainer_loads(tmp_path: Path) -> None:
    loaded = load(tmp_path, META_LEARNING)
    preset, train = loaded.preset, loaded.preset.train
    assert train.sequence_schedule == [1, 2400, 24000]
    assert train.epochs_per_length == {"1": 1, "2400": 3, "24000": 38}
    assert (train.learning_rate, train.max_grad_norm, train.per_gpu_batch_size, train.accumulation_steps) == (
        0.11,
        442.0,
        1,
        1,
    )
    assert preset.output_dir == "./output/"
    assert preset.model.seq_length == 24000
    assert all(isinstance(source, FilesSource) for source in preset.data.sources)
    assert [source.description for source in preset.data.sources if not isinstance(source, str)] == ["Journal", "My data"]
    assert preset.data.mix_strategy == "sequential"
    assert any("sequential" in note for note in loaded.notes)
    assert any("24000" in note for note in loaded.notes)


def test_an_explicit_order_beats_that_of_data_configs(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"data_configs": [{"path": "x"}], "data": {"mix_strategy": "weighted"}})
    assert loaded.preset.data.mix_strategy == "weighted"
    assert loaded.notes == []


def test_yaml_of_the_fine_tuning_guide(tmp_path: Path) -> None:
    text = """
training:
  optimizer: adamw_torch_fused     # comment
  learning_rate: 2e-4
  lr_scheduler: cosine
  warmup_steps: 100
  max_steps: 1000
  gradient_clip: 1.0
generation:
  temperature: 0.7
  top_p: 0.9
  top_k: 50
  repetition_penalty: 1.1
  max_new_tokens: 512
data: {sources: [wikipedia], split: {validation: 0.1, test: 0.1}}
"""
    preset = load(tmp_path, text, "yaml").preset
    train, generation = preset.train, preset.generation
    assert (train.optimizer, train.learning_rate, train.lr_schedule, train.warmup_steps) == ("adamw", 2e-4, "cosine", 100)
    assert (train.max_steps, train.max_grad_norm) == (1000, 1.0)
    assert (generation.temperature, generation.top_k, generation.max_new_tokens) == (0.7, 50, 512)


def test_options_of_the_pretraining_script(tmp_path: Path) -> None:
    value = {
        "dataset": "fineweb-edu",
        "num_tokens": "10B",
        "batch_size": 8,
        "seq_len": 2048,
        "learning_rate": 3e-4,
        "output_dir": "checkpoints/pretrained",
    }
    preset = load(tmp_path, value).preset
    assert preset.data.sources == ["fineweb-edu"]
    assert preset.train.total_tokens == 10**10
    assert (preset.model.seq_length, preset.run_dir) == (2048, "checkpoints/pretrained")


def test_a_nanogpt_configuration(tmp_path: Path) -> None:
    value = {
        "out_dir": "out-shakespeare-char",
        "eval_interval": 250,
        "log_interval": 10,
        "dataset": "wikipedia",
        "gradient_accumulation_steps": 2,
        "batch_size": 64,
        "block_size": 256,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "dropout": 0.2,
        "learning_rate": 1e-3,
        "max_iters": 5000,
        "beta2": 0.99,
        "warmup_iters": 100,
        "grad_clip": 0.5,
        "dtype": "bfloat16",
        "compile": False,
        "wandb_log": True,
        "wandb_project": "shakespeare-char",
    }
    preset = load(tmp_path, value).preset
    model, train = preset.model, preset.train
    assert (model.num_layers, model.num_heads, model.hidden_size, model.seq_length, model.dropout) == (6, 6, 384, 256, 0.2)
    assert (train.max_steps, train.warmup_steps, train.max_grad_norm, train.beta2, train.compile) == (
        5000,
        100,
        0.5,
        0.99,
        False,
    )
    assert (train.eval_every_steps, train.log_every_steps, train.precision) == (250, 10, "bf16")
    assert (preset.tracking.wandb, preset.tracking.wandb_project, preset.run_dir) == (
        True,
        "shakespeare-char",
        "out-shakespeare-char",
    )


def test_hugging_face_training_arguments(tmp_path: Path) -> None:
    value = {
        **SOURCES,
        "run_name": "hf-run",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "adam_beta1": 0.8,
        "adam_epsilon": 1e-6,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_ratio": 0.1,
        "bf16": True,
        "gradient_checkpointing": True,
        "logging_steps": 5,
        "eval_steps": 50,
        "save_steps": 70,
        "optim": "adamw_torch",
        "dataloader_num_workers": 2,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
    preset = load(tmp_path, value).preset
    train = preset.train
    assert preset.name == "hf-run"
    assert (train.per_gpu_batch_size, train.epochs, train.beta1, train.adam_eps) == (4, 3, 0.8, 1e-6)
    assert (train.lr_schedule, train.warmup_fraction, train.precision, train.optimizer) == ("constant", 0.1, "bf16", "adamw")
    assert (train.log_every_steps, train.eval_every_steps, train.save_every_steps) == (5, 50, 70)
    assert train.activation_checkpointing
    assert (preset.model.num_layers, preset.model.num_heads, preset.model.num_kv_heads) == (3, 8, 2)
    assert preset.data.workers == 2


# the table


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_every_alias_arrives_from_the_top_and_from_its_section(alias: str) -> None:
    target = ALIASES[alias]
    section, _, key = target.rpartition(".")
    marker = ["wikipedia"] if target == "data.sources" else 123
    top = canonical({alias: marker})
    assert (top.values[section][key] if section else top.values[key]) == marker
    assert top.written == {target: alias}
    if section:
        inside = canonical({section: {alias: marker}})
        assert inside.values == top.values
    assert top.problems == []
    assert node_at(tuple(target.split(".")), {section: {}} if section else {}) is not None, (
        "the alias names a key that exists"
    )


def test_no_alias_hides_a_key_and_none_is_refused_too() -> None:
    keys = {dotted.rpartition(".")[2] for dotted, _ in leaves()} | set(properties(root()))
    assert not keys & set(ALIASES)
    assert not keys & set(UNSUPPORTED)
    assert not set(ALIASES) & set(UNSUPPORTED)
    names = [key for name, node in sections().items() for key in properties(node) if f"{name}.{key}" in flat_keys().values()]
    assert len(names) == len(set(names)), "a key that two sections have cannot stand at the top level"


@pytest.mark.parametrize("dotted", sorted(flat_keys().values()))
def test_every_key_may_stand_at_the_top_level(dotted: str) -> None:
    section, _, key = dotted.partition(".")
    assert canonical({key: 123}).values == {section: {key: 123}}


@pytest.mark.parametrize("target", sorted(VALUES))
def test_names_of_values_lead_to_values_that_exist(target: str) -> None:
    section, _, key = target.partition(".")
    for name, meaning in VALUES[target].items():
        if isinstance(name, str):
            preset = check({"name": "x", **canonical({section: {key: name}}).values})
            assert isinstance(preset, Preset)
            assert getattr(getattr(preset, section), key) == meaning


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_unsupported_is_refused_by_name(name: str, tmp_path: Path) -> None:
    for value in ({name: 1}, {"train": {name: 1}}, {"model": {name: {"r": 8}}}):
        message = error_of(tmp_path, {**SOURCES, **value})
        assert UNSUPPORTED[name] in message
        assert name in message


@pytest.mark.parametrize("kind", sorted(UNSUPPORTED_SOURCES))
def test_unsupported_sources_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    message = error_of(tmp_path, {"data": {"sources": ["c4", {"type": kind, "path": "./my_pdfs"}]}})
    assert "data.sources[1].type" in message
    assert UNSUPPORTED_SOURCES[kind] in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"batch_size": 3, "train": {"per_gpu_batch_size": 4}},
            ["batch_size", "3", "4", "train.per_gpu_batch_size", "keep one"],
        ),
        ({"batch_size": 3, "micro_batch_size": 4}, ["micro_batch_size", "keep one"]),
        ({"train": {"lr": 0.1}, "training": {"learning_rate": 0.2}}, ["training.learning_rate", "train.lr", "keep one"]),
        ({"compile": True, "torch_compile": 1}, ["keep one"]),
        ({"train": {"seed": 1}, "training": 5}, ["keep one"]),
    ],
)
def test_two_names_with_different_values_are_an_error(value: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    message = error_of(tmp_path, {**SOURCES, **value})
    for word in words:
        assert word in message, message


def test_two_names_with_the_same_value_are_one(tmp_path: Path) -> None:
    value = {**SOURCES, "batch_size": 3, "train": {"per_gpu_batch_size": 3, "micro_batch_size": 3}}
    assert load(tmp_path, value).preset.train.per_gpu_batch_size == 3


def test_vague_keys_do_not_wander_to_the_tokenizer(tmp_path: Path) -> None:
    message = error_of(tmp_path, {**SOURCES, "path": "x"})
    assert "path: unknown key here; it belongs at tokenizer.path" in message
