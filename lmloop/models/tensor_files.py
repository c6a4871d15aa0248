"""A folder's safetensors, checked without reading them: all files there, each as long as its header says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmloop.data.source import one_line

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LARGEST_HEADER = 100_000_000
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_TAKE_AGAIN = "fetch it again"


@dataclass(frozen=True)
class TensorFile:
    """One file: its tensors' entries of the header, and where their bytes begin."""

    path: Path
    tensors: dict[str, dict[str, Any]]
    data_start: int


def require_whole(folder: Path, what: str) -> list[TensorFile]:
    """The files that hold a model's weights.

    Raises:
        ValueError: there are none, one is missing or cut off, or they do not hold what the index says. One line that
            begins with `what`.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [_opened(folder / SINGLE, what)]
    if not index.is_file():
        raise ValueError(f"{what} {_why_none(folder)}")
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no files of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{what}: {INDEX} cannot be used ({one_line(error, 120)}): {_TAKE_AGAIN}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{what}: {missing[0]}{more} of {len(names)} files of weights is missing: fetch the rest")
    files = {name: _opened(folder / name, what) for name in names}
    for tensor, name in places.items():
        if tensor not in files[name].tensors:
            raise ValueError(f"{what}: {name} does not hold {tensor}, which {INDEX} promises: fetch both again")
    return list(files.values())


def _opened(path: Path, what: str) -> TensorFile:
    """A file's header. The format: 8 bytes with its length, the header as JSON, the tensors' bytes."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            raise ValueError(f"{what}: {path.name} is a pointer of Git LFS, not the file: run `git lfs pull` in the folder")
        length = int.from_bytes(start, "little")
        header = stream.read(length) if len(start) == 8 and length <= min(size, _LARGEST_HEADER) else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        assert all(_is_entry(entry) for entry in entries.values())
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError, RecursionError):
        raise ValueError(f"{what}: {path.name} is no safetensors file, or a damaged one: {_TAKE_AGAIN}") from None
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        kind = "cut off" if size < wanted else "damaged"
        raise ValueError(f"{what}: {path.name} is {kind} ({size:,} bytes of {wanted:,}): {_TAKE_AGAIN}")
    return TensorFile(path, entries, 8 + length)


def _is_entry(entry: dict[str, Any]) -> bool:
    begin, end = entry["data_offsets"]
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end and isinstance(entry["dtype"], str)):
        return False
    elements = 1
    for length in entry["shape"]:
        elements *= length
    width = _ITEM_BYTES.get(entry["dtype"])
    return width is None or end - begin == elements * width


def _why_none(folder: Path) -> str:
    """What is there in the place of safetensors, and what to do."""
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in sorted(folder.glob(pattern))]
    if pickles:
        return (
            f"holds its weights as {pickles[0]}, a file that can run code when it is read: take a copy in safetensors "
            "(transformers' `save_pretrained` writes one)"
        )
    return f"holds no weights: {SINGLE} or {INDEX} belongs there"
