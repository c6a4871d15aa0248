"""From a file to a preset: hostile presets, extends, the menu's list."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmloop.data.files import Files
from lmloop.data.quarantine import Quarantine
from lmloop.preset.reading import LoadedPreset, find_preset, list_presets, load_preset, preset_from_resolved, resolved
from lmloop.preset.schema import Preset
from lmloop.preset.shape import leaves, properties, sections
from lmloop.preset.sources import FilesSource

SOURCES = {"data": {"sources": ["wikipedia"]}}


def write(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def error_of(path: Path | str) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        load_preset(path)
    assert type(error.value) is ValueError
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert len(message) < 600, message
    return message


def data(**keys: Any) -> dict[str, Any]:
    return {"data": {"sources": ["wikipedia"], **keys}}


def train(**keys: Any) -> dict[str, Any]:
    return {**SOURCES, "train": keys}


def source(**keys: Any) -> dict[str, Any]:
    return {"data": {"sources": [keys]}}


HOSTILE: list[tuple[dict[str, Any], list[str]]] = [
    # unknown keys
    ({**SOURCES, "modle": {}}, ["modle", "unknown key", "nearest is model"]),
    ({**SOURCES, "model": {"hiden_size": 3}}, ["model.hiden_size", "nearest is hidden_size"]),
    ({**SOURCES, "seqlength": 3}, ["seqlength", "nearest is model.seq_length"]),
    ({**SOURCES, "batchsize": 3}, ["batchsize", "nearest is train.per_gpu_batch_size"]),
    ({**SOURCES, "qqqqqqqqqq": 3}, ["qqqqqqqqqq", "unknown key", "allowed:", "tokenizer"]),
    ({**SOURCES, "x\ny": 3}, ["x\\ny", "unknown key"]),
    ({**SOURCES, "": 3}, ['""', "unknown key"]),
    ({**SOURCES, "k" * 5000: 3}, ["kkk…", "unknown key"]),
    (train(seq_length=3), ["train.seq_length", "belongs at model.seq_length"]),
    (train(n_layer=3), ["train.n_layer", "another name of model.num_layers"]),
    (train(lerning_rate=3), ["train.lerning_rate", "nearest is learning_rate"]),
    (data(split={"validaton": 0.1}), ["data.split.validaton", "nearest is validation"]),
    (source(type="hub", datset="a/b"), ["data.sources[0].datset", "nearest is dataset", "and 1 more"]),
    (source(type="hub", dataset="a/b", path="x"), ["data.sources[0].path", "unknown key"]),
    (source(type="files", path="x", chunksize=3), ["data.sources[0].chunksize", "nearest is chunk_size"]),
    (train(sequence_schedule=[{"lenght": 3, "epochs": 1}]), ["sequence_schedule[0].lenght", "nearest is length"]),
    (train(sequence_schedule={"start": 3, "end": 4, "untill": 1.0}), ["sequence_schedule.untill", "nearest is until"]),
    # whole numbers
    (
        {**SOURCES, "model": {"num_layers": True}},
        ["model.num_layers", "true is not allowed", "whole number from 1 to 1,024"],
    ),
    ({**SOURCES, "model": {"num_layers": -3}}, ["-3 is not allowed"]),
    ({**SOURCES, "model": {"num_layers": 0}}, ["0 is not allowed"]),
    ({**SOURCES, "model": {"num_layers": 10**9}}, ["1000000000 is not allowed"]),
    ({**SOURCES, "model": {"num_layers": 10**29}}, ["is not allowed"]),
    ({**SOURCES, "model": {"num_layers": "4"}}, ['"4" is not allowed', "write 4, without quotes"]),
    ({**SOURCES, "model": {"num_layers": 4.0}}, ["4.0 is not allowed", "write 4"]),
    ({**SOURCES, "model": {"num_layers": 4.5}}, ["4.5 is not allowed", "whole number"]),
    ({**SOURCES, "model": {"num_layers": [4]}}, ["[4] is not allowed"]),
    ({**SOURCES, "model": {"num_layers": {"a": 1}}}, ['{"a": 1} is not allowed']),
    ({**SOURCES, "model": {"num_layers": None}}, ["null is not allowed"]),
    (train(max_steps=0), ["train.max_steps", "0 is not allowed"]),
    (train(seed=-1), ["train.seed", "-1 is not allowed"]),
    (train(seed=2**63), ["train.seed", "is not allowed"]),
    (data(workers=1000), ["data.workers", "from 0 to 64"]),
    # numbers
    (train(learning_rate="3e-4"), ["train.learning_rate", '"3e-4" is not allowed', "write 3e-4, without quotes"]),
    (train(learning_rate=0), ["0 is not allowed", "above 0"]),
    (train(learning_rate=-0.1), ["-0.1 is not allowed"]),
    (train(learning_rate=True), ["true is not allowed", "a number"]),
    (train(learning_rate=1e300), ["1e+300 is not allowed"]),
    ({**SOURCES, "model": {"dropout": 1.0}}, ["model.dropout", "below 1"]),
    (data(split={"validation": 0.9}), ["data.split.validation", "0.9 is not allowed", "from 0 to 0.5"]),
    # other kinds
    ({**SOURCES, "model": 5}, ["model: 5 is not allowed", "an object"]),
    ({**SOURCES, "model": "gpt2"}, ['model: "gpt2" is not allowed', "an object"]),
    ({**SOURCES, "model": []}, ["model: [] is not allowed", "an object"]),
    ({**SOURCES, "train": None}, ["train: null is not allowed"]),
    ({"data": []}, ["data: [] is not allowed", "an object"]),
    ({**SOURCES, "tracking": {"wandb": "yes"}}, ["tracking.wandb", "write true, without quotes"]),
    ({**SOURCES, "tracking": {"wandb": 1}}, ["tracking.wandb", "1 is not allowed", "true or false"]),
    (train(compile="no"), ["train.compile", "write false"]),
    (train(optimizer="adam"), ["train.optimizer", "'adamw', 'muon' or 'sgd'"]),
    (train(optimizer=["adamw"]), ["train.optimizer", "is not allowed"]),
    ({**SOURCES, "name": "a b"}, ["name", '"a b" is not allowed', "letters"]),
    ({**SOURCES, "name": "../x"}, ["name", "is not allowed"]),
    ({**SOURCES, "name": "x\n"}, ["name", "is not allowed"]),
    ({**SOURCES, "name": ""}, ["name", "is not allowed"]),
    ({**SOURCES, "name": 3}, ["name", "3 is not allowed"]),
    ({**SOURCES, "output_dir": ""}, ["output_dir", "not empty"]),
    ({**SOURCES, "description": "x" * 2_000}, []),
    # sources
    ({}, ["data.sources", "empty"]),
    ({"data": {"sources": []}}, ["data.sources", "empty", "python_stdlib"]),
    ({"data": {"sources": "wikipedia"}}, ["data.sources", 'write ["wikipedia"]']),
    ({"data": {"sources": [5]}}, ["data.sources[0]", "5 is not allowed", "'files', 'hub' or 'pdf'"]),
    ({"data": {"sources": ["a", None]}}, ["data.sources[1]", "null is not allowed"]),
    ({"data": {"sources": [""]}}, ["data.sources[0]", '"" is not allowed']),
    (source(type="zip", path="x"), ["data.sources[0].type", '"zip": unknown type', "'files', 'hub' or 'pdf'"]),
    (source(type=["files"], path="x"), ["data.sources[0].type", "unknown type"]),
    (source(), ["data.sources[0].type", "missing"]),
    (source(path="x", dataset="y"), ["data.sources[0].type", "missing"]),
    (source(type="pdf"), ["data.sources[0].path", "missing"]),
    (source(type="pdf", path="x", text_field="text"), ["data.sources[0].text_field", "unknown key"]),
    (source(type="pdf", path="x", chunk_size=-1), ["data.sources[0].chunk_size", "-1 is not allowed"]),
    (source(type="files"), ["data.sources[0].path", "missing"]),
    (source(type="files", path=5), ["data.sources[0].path", "5 is not allowed", "text"]),
    (source(type="files", path="x", weight=0), ["data.sources[0].weight", "above 0"]),
    (source(type="hub", dataset="a", fields=["q"]), ["data.sources[0]", "fields and format belong together"]),
    (source(type="hub", dataset="a", fields=["q"], format="{x}"), ["data.sources[0]", "does not use the field 'q'"]),
    (data(validation=[{"type": "tar"}]), ["data.validation[0].type", "unknown type"]),
    (data(source_weights=[1.0, 2.0]), ["source_weights", "2 weights for 1 sources"]),
    (data(source_weights=[-1]), ["data.source_weights[0]", "-1 is not allowed"]),
    (data(source_weights={"wikipedia": "a"}), ["data.source_weights.wikipedia", '"a" is not allowed']),
    (data(source_weights=3), ["data.source_weights", "3 is not allowed"]),
    # unions of the schedule and budgets
    (train(sequence_schedule=[]), ["sequence_schedule", "empty"]),
    (train(sequence_schedule=[1, -5]), ["train.sequence_schedule[1]", "-5 is not allowed"]),
    (train(sequence_schedule=[1, "a"]), ["train.sequence_schedule[1]", '"a" is not allowed', "whole number"]),
    (train(sequence_schedule=[{"length": 0, "epochs": 1}]), ["train.sequence_schedule[0].length", "0 is not allowed"]),
    (train(sequence_schedule=[{"epochs": 1}]), ["train.sequence_schedule[0].length", "missing"]),
    (train(sequence_schedule={"start": 4}), ["train.sequence_schedule.end", "missing"]),
    (train(sequence_schedule="abc"), ["train.sequence_schedule", "a list", "an object with 'start'"]),
    (train(sequence_schedule=[{"length": 3}]), ["sequence_schedule", "give every stage"]),
    (
        {**train(sequence_schedule=[1, 600]), "model": {"seq_length": 512}},
        ["length 600 is longer than model.seq_length 512"],
    ),
    ({**train(sequence_schedule={"start": 1, "end": 99}), "model": {"seq_length": 64}}, ["length 99 is longer"]),
    (train(sequence_schedule=[1, 2], epochs_per_length={"1": 1}), ["epochs_per_length"]),
    (train(epochs_per_length={"1": 1}), ["epochs_per_length", "needs a sequence_schedule"]),
    (train(epochs=1, max_steps=2), ["train: epochs and max_steps are both budgets"]),
    (train(num_tokens="10X"), ["train.num_tokens", '"10X" is not allowed', '"10B"']),
    (train(num_tokens="0"), ["train.num_tokens", "is not allowed"]),
    (train(num_tokens="9" * 400), ["train.num_tokens", "is not allowed"]),
    (train(num_tokens="9999T"), ["train.num_tokens", "is not allowed"]),
    (train(num_tokens=-1), ["train.num_tokens", "-1 is not allowed"]),
    (train(num_tokens=True), ["train.num_tokens", "true is not allowed"]),
    # what does not fit together
    ({**SOURCES, "model": {"hidden_size": 100, "num_heads": 3}}, ["model", "100", "num_heads 3"]),
    ({**SOURCES, "tokenizer": {"type": "pretrained"}}, ["tokenizer", "path"]),
    ({**SOURCES, "tokenizer": {"type": "bpe", "vocab_size": 100}}, ["tokenizer.vocab_size", "256"]),
    # several
    ({**SOURCES, "model": {"num_layers": -1, "num_heads": -1}, "train": {"seed": -1}}, ["num_layers", "and 2 more"]),
]
HOSTILE = [case for case in HOSTILE if case[1]]


@pytest.mark.parametrize(("preset", "words"), HOSTILE, ids=[json.dumps(p)[:70] for p, _ in HOSTILE])
def test_hostile_presets_get_one_line(preset: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, "p.json", preset)
    message = error_of(path)
    assert message.startswith(str(path))
    for word in words:
        assert word in message, message


def test_there_are_at_least_sixty_hostile_presets() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("preset", [c[0] for c in HOSTILE if "\n" not in json.dumps(c[0])][::3])
def test_yaml_says_the_same_as_json(preset: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(preset)  # JSON is YAML
    of_json, of_yaml = error_of(write(tmp_path, "p.json", text)), error_of(write(tmp_path, "p.yaml", text))
    assert of_json.replace("p.json", "p.yaml") == of_yaml


def test_missing_files_and_folders_name_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "alpha.json", SOURCES)
    write(tmp_path, "beta.yaml", "data: {sources: [wikipedia]}")
    message = error_of(tmp_path / "betta.yaml")
    assert "no such file" in message
    assert "beta.yaml, alpha.json" in message  # the most similar first
    assert "a folder" in error_of(tmp_path)
    assert "alpha.json" in error_of(tmp_path)
    (tmp_path / "folder.json").mkdir()
    assert "a folder" in error_of(tmp_path / "folder.json")
    assert "no such file" in error_of(tmp_path / "none" / "x.json")
    assert "no such file" in error_of("a\0b.json")
    assert "no such file" in error_of("x" * 5_000 + ".json")
    assert ".json, .yaml or .yml" in error_of(write(tmp_path, "notes.txt", "{}"))


def test_a_file_name_with_a_line_break_stays_one_line(tmp_path: Path) -> None:
    assert "a\\nb.json" in error_of(write(tmp_path, "a\nb.json", "{"))


def test_a_minimal_preset_takes_its_name_from_the_file(tmp_path: Path) -> None:
    loaded = load_preset(write(tmp_path, "my own notes.json", {"$schema": "x", **SOURCES}))
    assert loaded.preset == Preset.model_validate({"name": "my-own-notes", **SOURCES})
    assert loaded.notes == []
    assert loaded.path == tmp_path / "my own notes.json"


def test_extends_merges_sections_and_replaces_the_rest(tmp_path: Path) -> None:
    base = {
        "name": "base",
        "description": "the base",
        "output_dir": "somewhere",
        "model": {"hidden_size": 128, "num_heads": 2},
        "data": {"sources": ["c4", "wikipedia"], "split": {"validation": 0.2, "test": 0.1}, "min_text_length": 5},
        "train": {"epochs": 3, "learning_rate": 0.5},
        "generation": {"stop": ["a", "b"]},
    }
    write(tmp_path, "base.json", base)
    child = {
        "extends": "base",
        "model": {"hidden_size": 64},
        "data": {"sources": ["c4"], "split": {"test": 0.0}},
        "train": {"max_steps": 7},
        "generation": {"stop": []},
    }
    preset = load_preset(write(tmp_path, "child.json", child)).preset
    assert (preset.name, preset.description, preset.output_dir) == ("child", "", None)
    assert (preset.model.hidden_size, preset.model.num_heads) == (64, 2)
    assert preset.data.sources == ["c4"]
    assert (preset.data.split.validation, preset.data.split.test, preset.data.min_text_length) == (0.2, 0.0, 5)
    assert (preset.train.epochs, preset.train.max_steps, preset.train.learning_rate) == (None, 7, 0.5)
    assert preset.generation.stop == []


def test_extends_finds_files_chains_and_aliases(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, "one.yaml", "n_layer: 7\ndata: {sources: [c4]}\ntrain_tokens: 5")
    write(tmp_path, "two.json", {"extends": "one.yaml", "training": {"batch_size": 3}})
    loaded = load_preset(write(tmp_path / "deep", "three.json", {"extends": "../two.json", "lr": 0.5}))
    assert loaded.preset.model.num_layers == 7
    assert loaded.preset.train.per_gpu_batch_size == 3
    assert loaded.preset.train.learning_rate == 0.5
    assert len(loaded.notes) == 1


@pytest.mark.parametrize(
    ("extends", "words"),
    [
        ("child", ["extends", "circle", "child.json → child.json"]),
        ("there", ["circle", "child.json → there.json → child.json"]),
        ("nowhere", ["extends", '"nowhere": no such preset', "there.json"]),
        ("sub/x.json", ["no such preset"]),
        ("twice", ["extends", "twice.json and twice.yaml", "write the ending"]),
        (["a"], ["extends", '["a"] is not allowed']),
        ("", ["extends", '"" is not allowed']),
        (3, ["extends", "3 is not allowed"]),
        (".", ["a folder"]),
        ("a\0b", ["NUL"]),
        ("broken", ["broken.json", "line 1"]),
    ],
)
def test_extends_errors(extends: object, words: list[str], tmp_path: Path) -> None:
    write(tmp_path, "there.json", {"extends": "child"})
    write(tmp_path, "broken.json", "{")
    write(tmp_path, "twice.json", SOURCES)
    write(tmp_path, "twice.yaml", "{}")
    message = error_of(write(tmp_path, "child.json", {"extends": extends, **SOURCES}))
    for word in words:
        assert word in message, message


def test_an_endless_chain_is_refused(tmp_path: Path) -> None:
    for index in range(40):
        write(tmp_path, f"p{index}.json", {"extends": f"p{index + 1}"})
    write(tmp_path, "p40.json", SOURCES)
    assert "chain of more than 16" in error_of(tmp_path / "p0.json")


def test_errors_name_the_file_that_wrote_the_value(tmp_path: Path) -> None:
    write(tmp_path, "base.json", {**SOURCES, "batch_size": -3, "modle": 1})
    message = error_of(write(tmp_path, "child.json", {"extends": "base", "model": {"num_layers": 2}}))
    assert message.startswith(str(tmp_path / "base.json"))
    write(tmp_path, "base.json", {**SOURCES, "batch_size": -3})
    message = error_of(tmp_path / "child.json")
    assert "base.json: train.per_gpu_batch_size (written as batch_size): -3" in message


def test_an_epochs_per_length_follows_the_order_of_the_schedule(tmp_path: Path) -> None:
    text = "train:\n  sequence_schedule: [64, 8, 128]\n  epochs_per_length: {8: 2, 64: 1, 128: 3}\ndata: {sources: [c4]}"
    preset = load_preset(write(tmp_path, "p.yaml", text)).preset
    assert list((preset.train.epochs_per_length or {}).items()) == [("64", 1), ("8", 2), ("128", 3)]


def test_list_presets_goes_on_after_a_broken_one(tmp_path: Path) -> None:
    write(tmp_path, "b.json", SOURCES)
    write(tmp_path, "a.yaml", "model: [")
    write(tmp_path, "c.yml", "data: {sources: [c4]}")
    write(tmp_path, "notes.txt", "x")
    write(tmp_path, ".hidden.json", "{")
    (tmp_path / "d.json").mkdir()
    listed = list_presets(tmp_path)
    assert [path.name for path, _ in listed] == ["a.yaml", "b.json", "c.yml"]
    assert isinstance(listed[0][1], ValueError)
    assert str(tmp_path / "a.yaml") in str(listed[0][1])
    assert [entry.preset.name for _, entry in listed if isinstance(entry, LoadedPreset)] == ["b", "c"]
    assert list_presets(tmp_path / "none") == []


def test_find_preset_takes_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", "tiny.yaml", "{}")
    write(tmp_path, "here.json", "{}")
    monkeypatch.chdir(tmp_path)
    assert find_preset("tiny") == Path("configs/tiny.yaml")
    assert find_preset("tiny.yaml") == Path("configs/tiny.yaml")
    assert find_preset("here.json") == Path("here.json")
    assert find_preset("configs/tiny.yaml") == Path("configs/tiny.yaml")
    with pytest.raises(ValueError, match=r"tinny: no such file.*tiny\.yaml"):
        find_preset("tinny")


def test_a_resolved_preset_comes_back(tmp_path: Path) -> None:
    preset = load_preset(
        write(tmp_path, "p.json", {**source(type="hf", dataset="a/b"), "train": {"num_tokens": "2K"}})
    ).preset
    values = json.loads(json.dumps(resolved(preset), sort_keys=True, allow_nan=False))
    assert values["train"]["num_tokens"] == 2_000
    again = preset_from_resolved(values, origin="x.pth")
    assert resolved(again) == resolved(preset)
    with pytest.raises(ValueError, match=r"^x\.pth: model\.hidden: unknown key; nearest is hidden_size$"):
        preset_from_resolved({**values, "model": {"hidden": 3}}, origin="x.pth")


_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["hub", "hf", "files"])
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
_names = st.sampled_from(
    [dotted.rpartition(".")[2] for dotted, _ in leaves()] + ["batch_size", "data_configs", "extends", "lora"]
)
_source = st.dictionaries(
    st.sampled_from(["type", "path", "dataset", "weight", "fields", "format", "x"]), _values, max_size=4
)
_section = st.dictionaries(_names, _values | st.lists(_source, max_size=2), max_size=4)
_presets = st.dictionaries(
    st.sampled_from([*sections(), "training", "extends", "name"]) | _names, _section | _values, max_size=5
)


@settings(deadline=None, derandomize=True, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=_presets | _values)
def test_any_json_is_a_preset_or_one_line(value: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "p.json", json.dumps(value))
    try:
        loaded = load_preset(path)
    except ValueError as error:
        assert type(error) is ValueError  # noqa: PT017
        assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017
        assert len(str(error)) < 1_000, str(error)  # noqa: PT017
    else:
        assert resolved(loaded.preset)["data"]["sources"]


_valid = {
    "model": st.fixed_dictionaries({}, optional={"num_layers": st.integers(1, 9), "dropout": st.floats(0, 0.9)}),
    "train": st.fixed_dictionaries({}, optional={"seed": st.integers(0, 2**62), "learning_rate": st.floats(1e-9, 1.0)}),
    "tracking": st.fixed_dictionaries({}, optional={"wandb": st.booleans()}),
}


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.fixed_dictionaries({}, optional=_valid))
def test_valid_values_arrive_unchanged(value: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    preset = resolved(load_preset(write(tmp_path, "p.json", {**SOURCES, **value})).preset)
    assert {section: {key: preset[section][key] for key in keys} for section, keys in value.items()} == value


def test_every_section_is_closed(tmp_path: Path) -> None:
    for name, node in sections().items():
        assert properties(node), name
        values = {"data": {"sources": ["c4"], "qqqq": 1}} if name == "data" else {**SOURCES, name: {"qqqq": 1}}
        assert f"{name}.qqqq: unknown key" in error_of(write(tmp_path, "p.json", values))


def test_a_journal_in_the_folder_of_a_source_is_left_out_of_it(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    journal = {"path": "my/notes/journal [1].md"}
    sources = [{"type": "files", "path": "./my"}, {"type": "files", "path": "myself"}, "python_stdlib"]
    path.write_text(json.dumps({"journal": journal, "data": {"sources": sources}, "train": {"epochs": 1}}))
    first, second, third = load_preset(path).preset.data.sources
    assert getattr(first, "exclude", None) == ["./notes/journal ?1?.md"]
    assert getattr(second, "exclude", None) == []
    assert third == "python_stdlib"
    (tmp_path / "my" / "notes").mkdir(parents=True)
    for name in ("journal [1].md", "other.md"):
        (tmp_path / "my" / "notes" / name).write_text("text\n")
    section = FilesSource(path=str(tmp_path / "my"), exclude=getattr(first, "exclude", []))
    files = Files("my", section, Quarantine(None, 0.5), print)
    assert [document.id for document, _ in files.read({})] == ["notes/other.md"]
