"""Checkpoints in parts: each rank writes its own of every tensor, and the small main file names them all.

The parts lie in a folder of their own for each save, `shards/<step>-<random>`, and are on the disk before the main file is
written. Its table has their SHA-256, and its manifest that of the table: so one that is missing or damaged makes this
checkpoint unusable, and nothing else. A folder that no manifest names is a rest, of a save that was killed or of one that
has been rotated out.

In the main file a tensor that is kept in parts is `{"shard": name, "shape": [...]}`; each part's file has its rows of that
name, in the order of the ranks.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from lmloop import durable

FOLDER = "shards"


class Unusable(Exception):  # noqa: N818 - a reason, not an error of the program
    """Why one checkpoint cannot be loaded."""


@dataclass(frozen=True)
class Part:
    """This rank's rows of a tensor whose whole has `shape`. Rows are dealt as `torch.chunk` does."""

    rows: Tensor
    shape: tuple[int, ...]


def split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`state` with its parts replaced by their names, and the rows of each name. A part that is there twice has one name."""
    names: dict[int, str] = {}
    rows: dict[str, Tensor] = {}

    def replace(value: Any, path: str) -> Any:
        if not isinstance(value, Part):
            return value
        name = names.setdefault(id(value), path)
        rows[name] = value.rows
        return {"shard": name, "shape": list(value.shape)}

    return _mapped(state, replace, ""), rows


def _mapped(value: Any, change: Callable[[Any, str], Any], path: str) -> Any:
    if isinstance(value, dict) and set(value) != {"shard", "shape"}:
        return {key: _mapped(item, change, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change, f"{path}.{index}") for index, item in enumerate(value))
    return change(value, path)


# ---- writing ----


def new_folder(step: int) -> str:
    """The name of the folder of a save: not that of an earlier save of the same step."""
    return f"{step}-{os.urandom(4).hex()}"


def write_part(run_dir: Path, folder: str, rows: dict[str, Tensor], *, rank: int, world: int) -> dict[str, Any]:
    """Write and sync one rank's file; what the table says of it. OSError of the disk, and then the file is gone again."""
    where = run_dir / FOLDER / folder
    where.mkdir(parents=True, exist_ok=True)
    path = where / f"rank-{rank}-of-{world}.pth"
    with durable.removed_on_error(path):
        with durable.HashingFile(path) as file:
            torch.save(rows, cast(IO[bytes], file))
        for changed in (where, where.parent, run_dir):
            durable.fsync_dir(changed)
    return {"name": path.name, "sha256": file.sha256, "bytes": file.bytes_written}


def require_all(run_dir: Path, folder: str, files: Iterable[dict[str, Any]]) -> None:
    """OSError if one of the files is not where it will be looked for."""
    for file in files:
        path = run_dir / FOLDER / folder / file["name"]
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            raise OSError(
                f"{path} is not there though its process has written it: under train.parallel 'fsdp' all machines need to "
                "share output_dir"
            )


def remove_unnamed(run_dir: Path, named: set[str]) -> list[Path]:
    """Remove the folders that are not `named`, as far as the disk lets us; what was removed."""
    removed = []
    for folder in sorted((run_dir / FOLDER).glob("*")) if (run_dir / FOLDER).is_dir() else []:
        if folder.name in named or not folder.is_dir():
            continue
        with contextlib.suppress(OSError):
            for path in sorted(folder.iterdir()):
                durable.unlink(path)
            durable.before_operation("rmdir", folder)
            folder.rmdir()
            removed.append(folder)
    return removed


# ---- reading ----


def load_plain(stream: Any) -> Any:
    """Tensors and plain values of a file whose content is vouched for; Unusable if it is none of ours all the same."""
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Unusable("it holds more than tensors and plain values, and no code is run from a checkpoint") from error
    except (EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if "memory" in str(error).lower():  # PyTorch reports a lack of it as a RuntimeError: the file is not to blame
            raise
        raise Unusable(
            f"PyTorch cannot read it ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def join(run_dir: Path, state: dict[str, Any]) -> dict[str, Any]:
    """`state` of a main file with its tensors whole again; every part is verified first.

    Raises:
        Unusable: a part is damaged, or they do not belong together.
        FileNotFoundError: a part is missing, as it does when a trainer rotates while this reads.
    """
    table = state["shards"]
    folder = run_dir / FOLDER / table["folder"]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context((folder / file["name"]).open("rb")) for file in table["files"]]
        parts = [_verified(stream, file) for stream, file in zip(streams, table["files"], strict=True)]
    whole: dict[str, Tensor] = {}

    def put_together(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            return value
        name = value["shard"]
        if name not in whole:
            try:
                whole[name] = torch.cat([part.pop(name) for part in parts])
            except (KeyError, RuntimeError) as error:
                raise Unusable(f"{FOLDER}/{table['folder']}: its parts do not belong together") from error
            if list(whole[name].shape) != value["shape"]:
                raise Unusable(f"{FOLDER}/{table['folder']}: {name} is not complete in its parts")
        return whole[name]

    return _mapped({key: value for key, value in state.items() if key != "shards"}, put_together, "")


def _verified(stream: Any, file: dict[str, Any]) -> dict[str, Tensor]:
    if os.fstat(stream.fileno()).st_size != file["bytes"] or durable.hash_stream(stream) != file["sha256"]:
        raise Unusable(f"its part {file['name']} has changed since it was saved")
    stream.seek(0)
    return load_plain(stream)
