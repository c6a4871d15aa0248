"""The command and the preset's section, on a run that was trained a moment ago."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import lmloop.durable
from lmloop.cli import main
from lmloop.export.consult import Consumer
from lmloop.export.export import EXPORTERS, refusal
from lmloop.export.exports import make_exports, require_exportable
from lmloop.export.own import CARRIED, CARRIED_BY, CONFIGS, bundle
from lmloop.export.publish import RECORD
from lmloop.models.build import build_model
from lmloop.preset.reading import load_preset
from lmloop.preset.schema import ExportSection, GenerationSection, ModelSection
from lmloop.trained import load_trained
from tests.export.bundles import OWN, own, tokenizer
from tests.runs import quick_run, tree


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, `checkpoints/first`."""
    folder = tmp_path_factory.mktemp("workplace")
    before = Path.cwd()
    os.chdir(folder)
    try:
        quick_run(folder, name="first", output_dir="checkpoints/first", model={"seq_length": 32})
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def in_the_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    without = {exporter.consumer.name for exporter in EXPORTERS.values() if not exporter.consumer.here}
    monkeypatch.setattr(Consumer, "installed", property(lambda self: self.name not in without))


Capture = pytest.CaptureFixture[str]


def export(capsys: Capture, *words: str, status: int = 0) -> dict[str, Any]:
    """What `export --json` answers."""
    capsys.readouterr()
    assert main(["export", *words, "--json"]) == status
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


@pytest.mark.parametrize(
    ("format", "file"), [("hf", "model.safetensors"), ("gguf", "first-f32.gguf"), ("mlx", "model.safetensors")]
)
def test_a_run_goes_everywhere(format: str, file: str, capsys: Capture, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    report = export(capsys, "first", "--format", format, "--out", out)
    assert (report["out"], report["format"], report["quantize"], report["preset"]) == (out, format, "f32", "first")
    assert report["checkpoint"] == "lm_best.pth"
    assert report["files"][file] == (tmp_path / "out" / file).stat().st_size
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["sha256"] == load_trained(Path("checkpoints/first")).checkpoint.manifest.sha256
    assert sorted(record["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != RECORD)
    assert (report["check"]["reader"] is not None) == (format == "hf")
    capsys.readouterr()
    assert main(["export", "first", "--format", format, "--out", out, "--checkpoint", "newest"]) == 0  # over the older one
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{out}: {file} (")
    assert "read back: " in said[1]
    assert json.loads((tmp_path / "out" / RECORD).read_text())["checkpoint"] == "lm_current.pth"


WRONG: list[tuple[list[str], str]] = [
    (["first", "--format", "gguf"], "--out"),
    (["first", "--format", "onnx", "--out", "x"], "onnx"),
    (["no-such-run", "--format", "hf", "--out", "x"], "no such run folder"),
    (["first", "--format", "hf", "--out", "x", "--quantize", "q8_0"], "hf: --quantize q8_0: this format has f32, bf16, f16"),
    (["first", "--format", "gguf", "--out", "x", "--quantize", "q6_k"], "llama-quantize"),
    (["first", "--format", "hf", "--out", "checkpoints/first"], "checkpoints/first exists and is no export"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_an_error_is_one_line_and_leaves_nothing(words: list[str], said: str, capsys: Capture) -> None:
    before = tree(Path())
    assert main(["export", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert captured.out == ""
    assert tree(Path()) == before


def test_a_full_disk_is_said_before_anything_is_written(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmloop.durable, "free_bytes", lambda folder: 1_000)
    assert main(["export", "first", "--format", "hf", "--out", str(tmp_path / "out")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- what other programs lack ----


def test_every_key_of_the_model_is_carried_or_refused() -> None:
    """A key that is new to this table is refused until somebody says what it is elsewhere."""
    assert set(ModelSection.model_fields) >= CARRIED.union(*CARRIED_BY.values())
    assert CARRIED_BY.keys() <= CONFIGS.keys()
    for section, said in (
        (ModelSection(feed_forward="relu2"), "model.feed_forward is 'relu2', which no other program has"),
        (ModelSection(ngram_tables=[{"n": 2, "rows": 8, "width": 8}]), "model.ngram_tables is"),  # type: ignore[list-item]
    ):
        model = build_model(ModelSection(num_layers=1), tokenizer("bpe").vocab_size, seed=0)
        with pytest.raises(ValueError, match=said) as error:
            bundle("odd", section, model, tokenizer("bpe"), GenerationSection())
        assert "\n" not in str(error.value)


def test_the_matrix_in_the_documents() -> None:
    """What docs/run-elsewhere.md says is carried, is; of what is trained here one shape has one format less."""
    for name in OWN:
        for format, exporter in EXPORTERS.items():
            refused = refusal(own(name), format, exporter.kinds[0])
            assert (refused is not None) == ((format, name) == ("mlx", "gpt2, untied, narrow")), (format, name, refused)
    page = (Path(__file__).resolve().parents[2] / "docs" / "run-elsewhere.md").read_text()
    for exporter in EXPORTERS.values():
        for kind in exporter.kinds:
            assert f"`{kind}`" in page, kind


# ---- the preset's section ----


def preset_with(*sections: dict[str, Any]) -> Any:
    preset = load_preset(Path("first.json")).preset
    return preset.model_copy(update={"export": [ExportSection(**section) for section in sections]})


def test_the_section_is_done_once_for_a_checkpoint(tmp_path: Path) -> None:
    run_dir = Path("checkpoints/first")
    preset = preset_with({"format": "hf"}, {"format": "gguf", "quantize": "f16", "out": str(tmp_path / "mine")})
    said: list[str] = []
    reports = make_exports(preset, run_dir, notice=said.append)
    assert [report["out"] for report in reports] == ["checkpoints/first/export/hf", str(tmp_path / "mine")]
    assert [report["quantize"] for report in reports] == ["f32", "f16"]
    before = tree(run_dir / "export")
    again = make_exports(preset, run_dir, notice=said.append)
    assert [(report["format"], report["bytes"]) for report in again] == [(one["format"], one["bytes"]) for one in reports]
    assert tree(run_dir / "export") == before
    other = preset_with({"format": "hf", "quantize": "bf16", "out": "checkpoints/first/export/hf"})
    assert make_exports(other, run_dir, notice=said.append)[0]["quantize"] == "bf16"
    assert make_exports(preset_with(), run_dir, notice=said.append) == []
    assert said == []


def test_one_that_fails_does_not_keep_the_others(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("mine")
    preset = preset_with({"format": "hf", "out": str(tmp_path / "taken")}, {"format": "mlx", "out": str(tmp_path / "free")})
    said: list[str] = []
    first, second = make_exports(preset, Path("checkpoints/first"), notice=said.append)
    assert "is no export" in first["error"]
    assert said == [f"export: hf: not made: {first['error']} (the same command tries it again)"]
    assert second["quantize"] == "f32"
    assert (tmp_path / "free" / RECORD).exists()


def test_nothing_is_exported_after_a_stop(tmp_path: Path) -> None:
    said: list[str] = []
    preset = preset_with({"format": "hf", "out": str(tmp_path / "a")}, {"format": "mlx", "out": str(tmp_path / "b")})
    reports = make_exports(preset, Path("checkpoints/first"), notice=said.append, should_stop=lambda: True)
    assert ["error" in report for report in reports] == [True, True]
    assert len(said) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said_before_the_run() -> None:
    tokens = load_trained(Path("checkpoints/first")).tokenizer
    require_exportable(preset_with(), tokens)
    require_exportable(preset_with({"format": "gguf", "quantize": "q8_0"}, {"format": "hf"}), tokens)
    with pytest.raises(ValueError, match=r"^export: gguf: --quantize q8: this format has"):
        require_exportable(preset_with({"format": "hf"}, {"format": "gguf", "quantize": "q8"}), tokens)
    preset = preset_with({"format": "hf"})
    odd = preset.model_copy(update={"model": preset.model.model_copy(update={"feed_forward": "relu2"})})
    with pytest.raises(ValueError, match=r"model\.feed_forward is 'relu2'"):
        require_exportable(odd, tokens)
