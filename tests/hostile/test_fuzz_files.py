"""What the program itself wrote, and tokenizers that others wrote, read again after somebody has been at it."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lmloop.plan
from lmloop.cli import main
from lmloop.data import frozen
from lmloop.data.document import Document, Message, Pair
from lmloop.data.pins import FILE, Pins
from lmloop.data.quarantine import Quarantine
from lmloop.plan import menu_forecasts
from lmloop.preset.reading import load_preset
from lmloop.tokens.pretrained import read_folder
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.manifest import Manifest, read_manifest
from lmloop.training.metrics import MetricsFile
from lmloop.training.record import RunRecord
from lmloop.training.report import write_report
from tests.runs import write_preset
from tests.tokens.chats import byte_level, sp, tokenizer

Change = tuple[str, float, Any]

VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1.5,
        1e308,
        float("nan"),
        10**40,
        "",
        "x",
        "\ud800",
        "\0\x1b[2J\n",
        [],
        [1],
        {},
        {"a": {"b": []}},
        "9" * 5000,
    ]
)
CHANGES = st.lists(
    st.tuples(st.just("value"), st.floats(0, 1), VALUES)
    | st.tuples(st.sampled_from(["drop", "name", "twice"]), st.floats(0, 1), st.none())
    | st.tuples(st.just("cut"), st.floats(0, 1), st.floats(0, 1))
    | st.tuples(st.just("bytes"), st.floats(0, 1), st.binary(min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)
ODD = [
    b"",
    b"\0" * 100,
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b'"x"',
    b"NaN",
    b"1" * 9000,
]
SETTINGS = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def changed(content: bytes, changes: list[Change]) -> bytes:
    """JSON, or lines of it, with values replaced, dropped, renamed; or bytes."""
    for kind, place, what in changes:
        at = int(place * max(len(content) - 1, 0))
        if kind == "cut":
            content = content[:at] + content[at + int(what * 50) :]
        elif kind == "bytes":
            content = content[:at] + what + content[at + len(what) :]
        else:
            lines = content.split(b"\n")
            index = at % len(lines)
            try:
                value = json.loads(lines[index] if len(lines) > 2 else content)
            except (ValueError, RecursionError):
                continue
            new = json.dumps(_with(value, kind, place, what)).encode()
            content = b"\n".join([*lines[:index], new, *lines[index + 1 :]]) if len(lines) > 2 else new
    return content


def _with(value: Any, kind: str, place: float, what: Any) -> Any:
    """One of the values within replaced; which one, `place` says."""
    paths = list(_paths(value))
    path = paths[int(place * (len(paths) - 1))]
    if not path:
        return what
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if kind == "value":
        parent[path[-1]] = what
    elif kind == "drop":
        del parent[path[-1]]
    elif kind == "name" and isinstance(parent, dict):
        parent["x"] = parent.pop(path[-1])
    elif isinstance(parent, list):
        parent.append(parent[path[-1]])
    return value


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


@contextmanager
def refused_in_one_line() -> Iterator[None]:
    """ValueError of one line, or nothing."""
    try:
        yield
    except ValueError as error:
        assert "\n" not in str(error), str(error)  # noqa: PT017
        assert not isinstance(error, UnicodeError), error  # noqa: PT017


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert main(["train", str(write_preset(folder))]) == 0
    Quarantine(folder / "run" / "quarantine.jsonl", 1.0).bad("corpus", "a.txt", 3, "not UTF-8", "x")
    frozen.save(folder / "run" / "validation.jsonl", {"s": [document("a"), document("b")], "none": []})
    (folder / "run" / FILE).write_text(json.dumps({"owner/name@None": "0" * 40}))
    return folder / "run"


def document(name: str) -> Document:
    messages = (Message("user", "q"), Message("assistant", "a"))
    return Document(name, name, "text", 0.0, messages, Pair(messages[:1], messages[1:], (Message("assistant", "b"),), 1.0))


def read_all_documents(path: Path) -> None:
    for documents in frozen.load(path).values():
        for one in documents:
            assert all(isinstance(text, str) for text in (one.id, one.parent, one.text)), one
            assert all(isinstance(message, Message) for message in one.messages or ()), one


def record(path: Path) -> None:
    made = RunRecord(path.parent, name="x", preset={}, preset_hash="x")
    made.write()


READERS: dict[str, Callable[[Path], object]] = {
    "lm_current.manifest.json": read_manifest,
    "quarantine.jsonl": lambda path: Quarantine(path, 1.0).bad("s", "f", 1, "r"),
    "validation.jsonl": read_all_documents,
    FILE: lambda path: Pins(path.parent),
    "metrics.jsonl": lambda path: (MetricsFile(path).write({"step": 9}), MetricsFile(path).truncate(30)),
    "run.json": record,
}
REPORTED = ["metrics.jsonl", "samples.jsonl", "quarantine.jsonl", "run.json"]


@pytest.mark.parametrize("name", READERS)
@given(changes=CHANGES)
@SETTINGS
def test_files_of_a_run(finished: Path, name: str, changes: list[Change]) -> None:
    read(name, changed((finished / name).read_bytes(), changes))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", ODD)
def test_files_of_a_run_that_are_something_else(name: str, content: bytes) -> None:
    read(name, content)
    read(name, content + b"\n" + content + b"\n")


def read(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        with refused_in_one_line():
            READERS[name](Path(folder) / name)


@pytest.mark.parametrize("name", REPORTED)
@given(changes=CHANGES)
@SETTINGS
def test_the_report_is_written_whatever_its_files_say(finished: Path, name: str, changes: list[Change]) -> None:
    report(finished, name, changed((finished / name).read_bytes(), changes))


@pytest.mark.parametrize("name", REPORTED)
@pytest.mark.parametrize("content", ODD)
def test_the_report_is_written_without_its_files(finished: Path, name: str, content: bytes) -> None:
    report(finished, name, content)


def report(run: Path, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for one in REPORTED:
            (Path(folder) / one).write_bytes((run / one).read_bytes())
        (Path(folder) / name).write_bytes(content)
        assert write_report(Path(folder)).read_text().startswith("<!doctype html")


@given(changes=CHANGES)
@SETTINGS
def test_a_manifest_is_whole_or_none(finished: Path, changes: list[Change]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lm_current.manifest.json"
        path.write_bytes(changed((finished / path.name).read_bytes(), changes))
        manifest = read_manifest(path)
    if manifest is not None:
        assert all(type(getattr(manifest, field.name)).__name__ == field.type for field in dataclasses.fields(Manifest))
        assert len(manifest.sha256) == 64


# ---- plans that are remembered ----


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A preset, and what is remembered of its plan."""
    folder = tmp_path_factory.mktemp("remembered")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        monkeypatch.chdir(folder)
        path = write_preset(folder)
        lmloop.plan.this_plan(load_preset(path))
        return path, lmloop.plan._cache_path().read_bytes()


def no_plan(*arguments: Any, **named: Any) -> None:
    raise ValueError("not measured here")


def forecast(preset: Path, content: bytes) -> None:
    from rich.console import Console

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        monkeypatch.setattr(lmloop.plan, "_measure", no_plan)
        monkeypatch.chdir(preset.parent)
        lmloop.plan._cache_path().parent.mkdir(parents=True)
        lmloop.plan._cache_path().write_bytes(content)
        loaded = load_preset(preset)
        assert isinstance(menu_forecasts([loaded], Console(quiet=True))[loaded.path], str)


@given(changes=CHANGES)
@SETTINGS
def test_remembered_plans(remembered: tuple[Path, bytes], changes: list[Change]) -> None:
    forecast(remembered[0], changed(remembered[1], changes))


@pytest.mark.parametrize("content", ODD)
def test_remembered_plans_that_are_something_else(remembered: tuple[Path, bytes], content: bytes) -> None:
    forecast(remembered[0], content)


# ---- tokenizers ----


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Folders' files, of small ones."""
    made = {"bytes": tokenizer(byte_level()), "marks": tokenizer(sp(legacy=True))}
    folders = {}
    for kind, one in made.items():
        folder = tmp_path_factory.mktemp(kind)
        one.save(folder)
        folders[kind] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return folders


@pytest.mark.parametrize("kind", ["bytes", "marks"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@given(changes=CHANGES)
@settings(SETTINGS, max_examples=25)
def test_a_tokenizer_is_whole_or_refused(
    tokenizers: dict[str, dict[str, bytes]], kind: str, name: str, changes: list[Change]
) -> None:
    files = tokenizers[kind]
    original = files.get(name) or files["tokenizer_config.json"]
    open_tokenizer({**files, name: changed(original, changes)})


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
)
@pytest.mark.parametrize("content", ODD)
def test_a_tokenizer_that_is_something_else(tokenizers: dict[str, dict[str, bytes]], name: str, content: bytes) -> None:
    open_tokenizer({**tokenizers["bytes"], name: content})


def open_tokenizer(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        with refused_in_one_line():
            it = read_folder(Path(folder))
            ids = it.encode("some text </s> \U0001f600")
            assert ids.max(initial=0) < it.vocab_size
            it.decode(ids)
            assert Tokenizer.from_json(it.to_json()).fingerprint == it.fingerprint


def test_a_tokenizer_that_could_not_be_read_again_is_refused(tokenizers: dict[str, dict[str, bytes]]) -> None:
    described = json.loads(tokenizers["bytes"]["tokenizer.json"])
    vocabulary = described["model"]["vocab"]
    merged = next(left + right for left, right in described["model"]["merges"])
    vocabulary[merged] = vocabulary["a"]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {**tokenizers["bytes"], "tokenizer.json": json.dumps(described).encode()}.items():
            (Path(folder) / name).write_bytes(content)
        with pytest.raises(ValueError, match="out of vocabulary"):
            read_folder(Path(folder))
