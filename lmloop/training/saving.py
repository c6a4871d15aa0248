"""A checkpoint of a run in several processes: what each of them does for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from lmloop import durable
from lmloop.processes import Processes
from lmloop.training import shards
from lmloop.training.checkpoint import CheckpointStore
from lmloop.training.soundness import check_finite, tensor_bytes


def save_together(
    store: CheckpointStore,
    processes: Processes,
    capture: Callable[[], dict[str, Any]],
    *,
    step: int,
    tokens: int,
    preset_hash: str,
    best: bool,
) -> None:
    """Save what `capture` gives: the first rank the state, and every rank its parts of the tensors that are held in parts.

    Raises:
        OSError, NonFiniteError: it could not be saved, as from `CheckpointStore.save`; on the first rank at least. What was
            saved before is intact.
    """
    state, parts = processes.together(lambda: shards.split(capture()))
    named: dict[str, Any] = {"step": step, "tokens": tokens, "preset_hash": preset_hash, "best": best}
    if not any(processes.gather(bool(parts))):
        if processes.first:
            store.save(state, **named)
        return
    folder = processes.on_first(lambda: shards.new_folder(step))
    need_bytes = sum(processes.gather(tensor_bytes({"parts": parts})))

    def write() -> dict[str, Any]:
        check_finite({"model": parts}, step)
        durable.require_space(store.run_dir, need_bytes)
        return shards.write_part(store.run_dir, folder, parts, rank=processes.rank, world=processes.world)

    try:
        files = processes.gather(processes.together(write))
        if processes.first:
            shards.require_all(store.run_dir, folder, files)
            store.save({**state, "shards": {"folder": folder, "files": files}}, shards=folder, **named)
    except BaseException:
        if processes.first:
            with contextlib.suppress(OSError):
                store.remove_unnamed_parts()
        raise
