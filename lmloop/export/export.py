"""From a model to a folder that another program loads: written, checked, and only then given its name."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lmloop.durable import require_space
from lmloop.export.bundle import Bundle
from lmloop.export.check import check_export
from lmloop.export.exporter import DTYPES, Exporter, natural_kind
from lmloop.export.gguf_file import GGUF
from lmloop.export.hf import HuggingFace, write_json
from lmloop.export.mlx import MLX
from lmloop.export.own import bundle_of_run
from lmloop.export.publish import RECORD, published, read_record
from lmloop.trained import find_run, load_trained

EXPORTERS: dict[str, Exporter] = {"hf": HuggingFace(), "gguf": GGUF(), "mlx": MLX()}
"""The formats, by their names in `--format`."""


def export_run(
    run: str | None, which: Literal["best", "newest"], *, format: str, out: str, quantize: str | None
) -> dict[str, Any]:
    """Export a run's model; what `export --json` prints.

    Raises:
        ValueError: there is no such run, the format cannot carry it, or the result is not the model; one line.
    """
    trained = load_trained(find_run(run), which)
    report = export_bundle(bundle_of_run(trained), format, Path(out).expanduser(), quantize)
    return {**report, "notices": [*trained.checkpoint.notices, *report["notices"]]}


def export_bundle(bundle: Bundle, format: str, out: Path, quantize: str | None = None) -> dict[str, Any]:
    """Write a model in a format to the folder `out`, which is there in the end only if what was written is the model.

    Raises:
        ValueError: the format cannot carry it, `out` holds something else, or the check found a difference; one line.
        OSError: the disk.
    """
    exporter = EXPORTERS[format]
    kind = quantize or natural_kind(bundle)
    refused = refusal(bundle, format, kind)
    if refused is not None:
        raise ValueError(f"{format}: {refused}")
    with published(out) as folder:
        require_space(folder, _least_bytes(bundle, kind))
        exporter.write(bundle, kind, folder)
        try:
            check = check_export(bundle, exporter, kind, folder)
        except ValueError as error:
            raise ValueError(f"{format}: {out} was not made: {error}") from None
        record = {"format": format, "asked": quantize, "quantize": kind, **bundle.origin, "check": asdict(check)}
        write_json(folder / RECORD, record)
    files = (read_record(out) or {})["files"]
    return {
        "out": str(out),
        **record,
        "files": files,
        "bytes": sum(files.values()),
        "checks": check.lines(exporter),
        "notices": exporter.notes(bundle, kind),
    }


def _least_bytes(bundle: Bundle, kind: str) -> int:
    """The weights alone, at the fewest bytes that `kind` may mean."""
    numbers = sum(tensor.numel() for tensor in bundle.weights.values())
    return numbers * DTYPES[kind].itemsize if kind in DTYPES else numbers // 2


def lines_of(report: dict[str, Any]) -> list[str]:
    """What was made and how it was checked, for people."""
    names = [name for name in report["files"] if name.endswith((".gguf", ".safetensors"))]
    head = f"{report['out']}: {', '.join(names[:3])} ({report['bytes'] / 1e6:,.1f} MB, {report['quantize']})"
    return [head, *(f"  {line}" for line in [*report["checks"], *report["notices"]])]


def refusal(bundle: Bundle, format: str, quantize: str | None) -> str | None:
    """Why a format cannot carry a model; None: it can. Cheap: for asking before a run begins."""
    exporter = EXPORTERS[format]
    kind = quantize or natural_kind(bundle)
    if kind in exporter.kinds:
        return exporter.refusal(bundle, kind)
    if format == "gguf" and "_k" in kind.lower():
        return (
            f"--quantize {kind}: llama.cpp makes its K types itself: export f16, then `llama-quantize IN.gguf OUT.gguf "
            f"{kind.upper()}`"
        )
    return f"--quantize {kind}: this format has {', '.join(exporter.kinds)}"
