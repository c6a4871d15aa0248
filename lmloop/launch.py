"""Starts a run: in this process alone, or as one of those that `torchrun` has started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lmloop.run
from lmloop.durable import in_words
from lmloop.hardware import claim_device
from lmloop.preset.reading import LoadedPreset, preset_from_resolved, resolved
from lmloop.processes import Notes, Place, Processes, RankLostError, find_place

Choose = Callable[[], LoadedPreset | int]
"""Asks which preset is trained; an exit status where none is. Only the first process asks."""


def train_chosen(choose: Choose, *, json_mode: bool = False) -> tuple[dict[str, Any] | None, int]:
    """Train what is chosen: what `train --json` prints (None: nothing, another process does), and the exit status.

    Raises:
        ValueError, OSError: as from `train`; of several processes on the first alone, which speaks for the others.
    """
    place = find_place()
    if place.world == 1:
        chosen = choose()
        return (None, chosen) if isinstance(chosen, int) else lmloop.run.train(chosen, json_mode=json_mode)
    try:
        notes = Notes(place)
    except RuntimeError as error:
        return _ended(place, OSError(f"the launcher does not answer: {str(error).splitlines()[0]}"), 1)
    try:
        return _train_as_one_of(notes, choose, json_mode)
    except RankLostError as error:
        return _ended(place, OSError(str(error)), 1)
    except (ValueError, OSError) as error:
        notes.explain(in_words(error))
        return _ended(place, error, 2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt as error:  # before there is a run
        return _ended(place, error, 130)
    except BaseException as error:  # a fault of the program
        notes.explain(f"{type(error).__name__}: {error}".splitlines()[0])
        raise


def _ended(place: Place, error: BaseException, status: int) -> tuple[None, int]:
    """The first process says what went wrong, the others end in silence."""
    if place.first:
        raise error
    return None, status


def _train_as_one_of(notes: Notes, choose: Choose, json_mode: bool) -> tuple[dict[str, Any] | None, int]:
    place = notes.place
    claim_device(place.local_rank, place.local_world)
    chosen = _tell(notes, choose) if place.first else _hear(notes)
    if isinstance(chosen, int):
        return None, chosen
    limit_s = chosen.preset.train.rank_timeout_s
    processes = Processes.start(notes, cuda=torch.cuda.is_available(), limit_s=limit_s)
    answer, status = lmloop.run.train(chosen, json_mode=json_mode, processes=processes)
    processes.close()
    return (answer if place.first else None), status


def _tell(notes: Notes, choose: Choose) -> LoadedPreset | int:
    """Choose, and tell the others: the whole preset, since their machines need not have its file."""
    told: dict[str, Any] = {"status": 2}
    try:
        chosen = choose()
        if isinstance(chosen, int):
            told = {"status": chosen}
        else:
            told = {"preset": resolved(chosen.preset), "path": str(chosen.path)}
        return chosen
    finally:
        notes.leave("chosen", json.dumps(told))


def _hear(notes: Notes) -> LoadedPreset | int:
    """What the first process has chosen, however long its user takes."""
    try:
        text = notes.read("chosen")
    except RuntimeError as error:
        raise RankLostError("the launcher has ended") from error
    assert text is not None
    told = json.loads(text)
    if "preset" not in told:
        return told["status"]
    return LoadedPreset(preset_from_resolved(told["preset"], origin=told["path"]), Path(told["path"]))
