from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from lmloop.cli import main
from lmloop.data.catalog import BUILT_IN, built_in, listed
from lmloop.data.files import Files
from lmloop.data.quarantine import Quarantine
from lmloop.preset.schema import Preset
from lmloop.preset.sources import FilesSource, HubSource


def test_the_names_that_are_promised() -> None:
    assert {"python_stdlib", "wikipedia", "openwebtext", "c4", "bookcorpus", "pile_subset", "common_crawl"} <= set(BUILT_IN)
    assert "fineweb-edu" in BUILT_IN
    for name in BUILT_IN:
        section = built_in(name)
        assert section.description
        if isinstance(section, HubSource):
            assert section.dataset.count("/") == 1
            if section.data_type == "text":
                assert section.text_field in BUILT_IN[name].fields


def test_the_list() -> None:
    entries = listed()
    assert [entry["name"] for entry in entries] == list(BUILT_IN)
    assert {entry["kind"] for entry in entries} == {"pretraining", "fine-tuning", "preferences"}
    for entry in entries:
        assert entry.keys() == {"name", "description", "kind", "domain", "size", "licence", "fields", "section"}
        assert entry["domain"]
        preset = {"name": "x", "data": {"sources": [entry["section"]]}}
        again = Preset.model_validate(preset).data.sources[0]
        assert again.model_copy(update={"description": ""}) == BUILT_IN[entry["name"]].section.model_copy(
            update={"description": ""}
        )  # what is listed can be put into a preset as it is
    assert [entry["name"] for entry in listed("preferences")] == ["ultrafeedback"]


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"datasets": listed()}
    assert main(["datasets", "--kind", "fine-tuning"]) == 0
    shown = capsys.readouterr().out
    assert "alpaca" in shown
    assert "wikipedia" not in shown


@pytest.mark.parametrize(("name", "hint"), [("wikpedia", "did you mean 'wikipedia'?"), ("zzz", "known: python_stdlib, ")])
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match="no built-in source is called") as error:
        built_in(name)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_the_standard_library_opens_fast_and_is_clean() -> None:
    section = built_in("python_stdlib")
    assert isinstance(section, FilesSource)
    quarantine = Quarantine(None, 0.0)
    source = Files("python_stdlib", section, quarantine, print)
    start = time.perf_counter()
    parents = source.parents()
    first = next(iter(source.read({})))[0]
    assert time.perf_counter() - start < 1.5
    assert len(parents) > 300
    assert first.text
    assert {"argparse.py", "json/decoder.py"} <= set(parents)
    unwanted = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")
    assert [name for name in parents if set(name.split("/")[:-1]) & set(unwanted)] == []
    assert Path(section.path).samefile(Path(sys.modules["argparse"].__file__ or "").parent)
    characters = sum(len(document.text) for document, _ in source.read({}))
    assert characters > 5_000_000
    assert quarantine.reasons("python_stdlib") == {}
