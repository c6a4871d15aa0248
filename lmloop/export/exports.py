"""A preset's `export` section: asked about before the run, done at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmloop.data.source import one_line
from lmloop.durable import in_words
from lmloop.export.bundle import Bundle
from lmloop.export.export import export_bundle, refusal
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
    try:
        wanted = (
            bundle_of_pretrained(preset, model, tokenizer)
            if isinstance(model, Pretrained)
            else bundle(preset.name, preset.model, model, tokenizer, preset.generation)
        )
    except ValueError as error:
        raise ValueError(f"export: {error}") from None
    for section in preset.export:
        refused = refusal(wanted, section.format, section.quantize)
        if refused is not None:
            raise ValueError(f"export: {section.format}: {refused}")


def make_exports(
    preset: Preset, run_dir: Path, *, notice: Callable[[str], None], should_stop: Callable[[], bool] = lambda: False
) -> list[dict[str, Any]]:
    """After a run: each of the preset's exports, of the run's best checkpoint; what `export_bundle` gives of each.

    An export that is there already and was made from the same checkpoint stays. One that fails, or comes after somebody
    asked to stop, does not keep the others from being made, nor the run from having finished: its entry has `error`
    instead, and `notice` is told in a line.
    """
    made: Bundle | None = None
    reports: list[dict[str, Any]] = []
    for section in preset.export:
        out = folder_of(section, run_dir)
        try:
            if should_stop():
                raise ValueError("stopped before it was begun")
            made = made or bundle_of_run(load_trained(run_dir))
            reports.append(_there(section, out, made) or export_bundle(made, section.format, out, section.quantize))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            why = in_words(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            why = one_line(why).removeprefix(f"{section.format}: ")
            reports.append({"out": str(out), "format": section.format, "error": why})
            notice(f"export: {section.format}: not made: {why} (the same command tries it again)")
    return reports


def _there(section: ExportSection, out: Path, made: Bundle) -> dict[str, Any] | None:
    """An export that is there already, of the same checkpoint."""
    present = read_record(out) or {}
    wanted = (section.format, section.quantize, made.origin["sha256"])
    if (present.get("format"), present.get("asked"), present.get("sha256")) != wanted:
        return None
    return {"out": str(out), **present, "bytes": sum(present["files"].values())}


def folder_of(section: ExportSection, run_dir: Path) -> Path:
    """Where an export goes."""
    if section.out is not None:
        return Path(section.out).expanduser()
    return run_dir / "export" / "-".join(filter(None, (section.format, section.quantize)))
