"""How long a run takes, part by part: how often it does what, times how long that takes. Nowhere else is it worked out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmloop.preset.schema import Preset
from lmloop.training.schedule import Schedule

SAVE_S, SAVED_BYTES_PER_S = 0.05, 5e8
"""Of a checkpoint: what it takes however small it is, and how fast an ordinary disk takes the rest."""

FORWARD_SHARE = 1 / 3
"""Of a training step: what reading takes where it was not measured (PaLM, arXiv 2204.02311, appendix B, counts as much)."""


@dataclass(frozen=True)
class Work:
    """What a run, or the rest of one, has to do.

    steps: its updates, those before `first` not counted. evaluated_positions: of one evaluation, padding included; 0 where
    nothing is held out. questions: asked before and after. reflections: entries of the journal.
    """

    steps: int
    first: int = 0
    evaluated_positions: int = 0
    questions: int = 0
    reflections: int = 0


@dataclass(frozen=True)
class Speeds:
    """How long things take here. start_s: from the start of the process to the first update. read_per_s: positions that are
    evaluated in a second. write_s: from one token of a text to the next, whatever is written beside it; 0: not known."""

    start_s: float
    compile_s: float
    update_s: float
    read_per_s: float
    write_s: float
    save_s: float


def time_by_part(preset: Preset, work: Work, speeds: Speeds) -> dict[str, float]:
    """Seconds of each part of the run, as long as it may get: no early stop, no text that ends before its time, and each
    evaluation the best so far, which saves a checkpoint.

    `start`: the program, its data, the worst batch. `train`: updates, with waiting for data. `evaluate`: held-out text, and
    what a model that is trained on can do before and after. `sample`: samples, and the journal. `save`: checkpoints.
    """
    train, options, journal = preset.train, preset.generation, preset.journal
    last = work.first + work.steps
    evaluation_s = work.evaluated_positions / speeds.read_per_s if work.evaluated_positions else 0.0
    text_s = options.max_new_tokens * speeds.write_s
    evaluations = _multiples(work.first, last, train.eval_every_steps, final=True) if work.evaluated_positions else 0
    evaluate = evaluations * evaluation_s
    if preset.model.pretrained is not None:
        halves = (work.first == 0) + 1
        evaluate += (work.first == 0) * evaluation_s + halves * text_s * (2 if work.questions else 1)
    sample = samples(work.first, last, train.sample_every_steps) * text_s
    if journal is not None:
        sample += work.reflections * journal.reflection_tokens * speeds.write_s
        if journal.rollback:
            evaluate += (work.reflections + 1) * evaluation_s
    parts = {
        "start": speeds.start_s,
        "compile": speeds.compile_s,
        "train": work.steps * speeds.update_s,
        "evaluate": evaluate,
        "sample": sample,
    }
    saves = (work.first == 0) + max(evaluations, 1)
    if train.save_every_steps is not None:
        saves += _multiples(work.first, last, train.save_every_steps, final=False)
    saves = max(saves, math.floor(sum(parts.values()) / (60 * train.save_every_minutes)))
    return {name: round(seconds, 3) for name, seconds in {**parts, "save": saves * speeds.save_s}.items()}


def save_seconds(checkpoint_bytes: int) -> float:
    """About how long a checkpoint of so many bytes takes."""
    return SAVE_S + checkpoint_bytes / SAVED_BYTES_PER_S


def reflections(preset: Preset, schedule: Schedule, tokens: int) -> int:
    """Entries of the journal in a run of so many trained tokens."""
    if preset.journal is None:
        return 0
    every = preset.journal.every_tokens
    return schedule.amount if every is None else math.ceil(tokens / every)


def samples(first: int, last: int, every: int) -> int:
    """How often samples are written behind update `first` up to `last`: every so many updates and at the end, and at powers
    of two from 16 on before that."""
    if every == 0:
        return 0
    early = sum(first < 2**power <= last and 2**power < every for power in range(4, every.bit_length()))
    at_the_end_too = not (16 <= last < every and last & (last - 1) == 0)
    return early + _multiples(first, last, every, final=at_the_end_too)


def _multiples(first: int, last: int, every: int, *, final: bool) -> int:
    """Multiples of `every` behind `first` up to `last`; with `final` the last number counts in any case."""
    return last // every - first // every + (final and last > first and last % every != 0)
