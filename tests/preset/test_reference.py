"""The generated documents: fresh, complete, and true."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from lmloop.preset import reference
from lmloop.preset.aliases import ALIASES, UNSUPPORTED
from lmloop.preset.shape import PATTERNS, allowed, leaves, root

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_the_documents_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--check"]) == 0, capsys.readouterr().err


def test_stale_or_missing_documents_fail_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "DOCS", tmp_path / "docs")
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    with (tmp_path / "docs" / "presets.md").open("a") as file:
        file.write("\nby hand")
    assert reference.main(["--check"]) == 1
    assert "docs/presets.md is stale" in capsys.readouterr().err
    assert reference.main(["--what"]) == 2


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lmloop.preset.reference", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_key_alias_and_refusal_is_in_the_reference() -> None:
    text = reference.render_markdown()
    for dotted, node in leaves():
        section, _, key = dotted.partition(".")
        assert f"| `{key or section}` | " in text, dotted
        assert node["description"].replace("\n", " ") in text, dotted
    for name in [*ALIASES, *UNSUPPORTED]:
        assert f"`{name}`" in text
    assert "100,000,000" in text


def test_tables_have_two_or_four_columns() -> None:
    for line in reference.render_markdown().splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (3, 5), line


def test_every_pattern_of_the_schema_is_put_in_words() -> None:
    for _, node in leaves():
        allowed(node)  # a pattern without words is a KeyError
    assert all(words for words in PATTERNS.values())


def test_the_schema_is_valid_and_describes_every_key() -> None:
    schema = json.loads(reference.render_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    for dotted, _ in leaves(root()):
        place = schema
        for key in dotted.split("."):
            place = place["properties"][key]
            assert place["description"]
            place = next(iter(place.get("anyOf", [])), place)  # a section that may be left out
            if "$ref" in place:
                place = schema["$defs"][place["$ref"].rsplit("/", 1)[1]]


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_an_editor_accepts_the_shipped_presets(path: Path) -> None:
    schema = json.loads(reference.render_schema())
    value = yaml.safe_load(path.read_text().replace("2e-3", "0.002"))  # PyYAML reads YAML 1.1
    jsonschema.validate(value, schema)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ({"extends": "x", "$schema": "y"}, True),
        ({"data": {"sources": ["a", {"type": "hf", "dataset": "b"}, {"type": "files", "path": "c"}]}}, True),
        ({"data": {"sources": [{"type": "tar", "path": "c"}]}}, False),
        ({"modle": {}}, False),
        ({"train": {"learning_rate": "x"}}, False),
        ({"train": {"sequence_schedule": {"start": 1, "end": 2}, "num_tokens": "10B"}}, True),
    ],
)
def test_what_an_editor_accepts(value: dict, accepted: bool) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(reference.render_schema()))
    assert validator.is_valid(value) == accepted
