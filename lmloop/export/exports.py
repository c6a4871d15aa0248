"""A preset's `export` section: asked about before the run, done at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmloop.durable import in_words
from lmloop.export.export import export_bundle, lines_of, refusal
from lmloop.export.own import bundle, bundle_of_pretrained, bundle_of_run
from lmloop.export.publish import read_record
from lmloop.models.build import build_model
from lmloop.models.pretrained import Pretrained
from lmloop.preset.schema import ExportSection, Preset
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.trained import load_trained


def require_exportable(preset: Preset, tokenizer: Tokenizer) -> None:
    """Before a run: ValueError where its end could not make one of its exports."""
    if not preset.export:
        return
    with torch.device("meta"):
        model = build_model(preset.model, tokenizer.vocab_size, seed=0)  # an adapter is merged: the shapes are the base's
    wanted = (
        bundle_of_pretrained(preset, model, tokenizer)
        if isinstance(model, Pretrained)
        else bundle(preset.name, preset.model, model, tokenizer, preset.generation)
    )
    for section in preset.export:
        refused = refusal(wanted, section.format, section.quantize)
        if refused is not None:
            raise ValueError(f"export: {section.format}: {refused}")


def with_exports(preset: Preset, answer: dict[str, Any], status: int, *, json_mode: bool) -> tuple[dict[str, Any], int]:
    """What a run answers and its status, once the exports of a finished run are made; 1 where one of them failed."""
    if answer["status"] != "finished" or not preset.export:
        return answer, status
    stream = sys.stderr if json_mode else sys.stdout
    reports = make_exports(preset, Path(answer["run"]), lambda line: print(line, file=stream, flush=True))
    failed = any("error" in report for report in reports)
    return {**answer, "exports": reports}, 1 if failed else status


def make_exports(preset: Preset, run_dir: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """After a run: each of the preset's exports, of the run's best checkpoint; `say` is told of each in a few lines.

    An export that is there already and was made from the same checkpoint stays. One that fails does not keep the others
    from being made: its entry has `error` instead of what `export_bundle` gives.
    """
    if not preset.export:
        return []
    made = bundle_of_run(load_trained(run_dir))
    reports: list[dict[str, Any]] = []
    for section in preset.export:
        out = folder_of(section, run_dir)
        present = read_record(out) or {}
        if (present.get("format"), present.get("asked"), present.get("sha256")) == (
            section.format,
            section.quantize,
            made.origin["sha256"],
        ):
            reports.append({"out": str(out), **present})
            say(f"{out}: there already, of this checkpoint")
            continue
        try:
            report = export_bundle(made, section.format, out, section.quantize)
        except (ValueError, OSError) as error:
            reports.append({"out": str(out), "format": section.format, "error": in_words(error)})
            say(f"export failed: {in_words(error)}")
            continue
        reports.append(report)
        for line in lines_of(report):
            say(line)
    return reports


def folder_of(section: ExportSection, run_dir: Path) -> Path:
    """Where an export goes."""
    if section.out is not None:
        return Path(section.out).expanduser()
    return run_dir / "export" / "-".join(filter(None, (section.format, section.quantize)))
