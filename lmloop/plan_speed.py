"""How fast this machine trains, evaluates and writes with a preset's model, measured for a moment each."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from lmloop.data.document import Document
from lmloop.data.frozen import FrozenPart
from lmloop.generation.prompts import as_prompts
from lmloop.hardware import this_machine
from lmloop.models.base import LanguageModel
from lmloop.objectives.language import LanguageObjective
from lmloop.opening import ROWS_OF_EVALUATION
from lmloop.plan_data import Opened
from lmloop.preset.schema import Preset, TokenizerSection
from lmloop.processes import ALONE
from lmloop.tokens.batch import Batch
from lmloop.tokens.trained import train_char
from lmloop.training.evaluate import HeldOut, evaluate
from lmloop.training.rehearsal import Pace, time_updates, worst_batch
from lmloop.training.schedule import Schedule
from lmloop.training.writing import writing_engine

Rows = Callable[[int, int], Batch]
"""Makes a batch of so many rows of so many tokens."""


def time_training(
    preset: Preset,
    schedule: Schedule,
    trainee: nn.Module,
    optimizer: Optimizer,
    opened: Opened | None,
    worst: Rows,
    *,
    rows: int,
    passes: int,
    autocast: bool,
    at_least_s: float,
) -> Pace:
    """A mean update of the run: on the data where it is `opened`, else on the `worst` batches, of whose `rows` (of
    `model.seq_length`) an update has so many `passes`. With the weights as they are, if the optimizer's rates are 0."""
    length, device = preset.model.seq_length, this_machine().torch_device
    whole = preset.train.rows_per_step() * length
    seconds = tokens = extra_s = 0.0
    for row_length, share in schedule.shares().items():
        at_once = max(rows * length // row_length, 1)
        steps = _again([worst(at_once, row_length)] * passes) if opened is None else _split(opened, row_length, at_once)
        pace = time_updates(
            trainee,
            LanguageObjective(),
            optimizer,
            steps,
            device,
            autocast=autocast,
            at_least_s=at_least_s / len(schedule.shares()),
        )
        scale = whole / pace.positions if opened is None else 1.0  # the menu measures fewer rows than an update has
        seconds, tokens = seconds + share * scale * pace.seconds, tokens + share * scale * pace.tokens
        extra_s += pace.extra_s
    return Pace(seconds, tokens, whole, extra_s)


def _again(step: list[Batch]) -> Callable[[], list[Batch]]:
    return lambda: step


def _split(opened: Opened, length: int, at_once: int) -> Callable[[], list[Batch]]:
    return lambda: [piece for batch in opened.feed.next_step(length) for piece in batch.split(at_once)]


def time_reading(
    preset: Preset,
    model: LanguageModel,
    opened: Opened | None,
    vocab_size: int,
    *,
    autocast: bool,
    at_least_s: float,
) -> tuple[float, int]:
    """Positions that are evaluated in a second, and those of one evaluation; 0 where nothing is held out."""
    if opened is None:
        rows = preset.train.rows_at_once(auto=ROWS_OF_EVALUATION)
        batches = [worst_batch(rows, preset.model.seq_length, vocab_size, packed=True)]
        evaluated = preset.train.eval_tokens
    else:
        batches = opened.held_out.batches
        evaluated = sum(batch.tokens_BT.numel() for batch in batches)
    positions, seconds = 0, 0.0
    for number, batch in enumerate(batches[:1] + batches):  # the first one twice, of which once to warm up
        started = time.perf_counter()
        evaluate(model, HeldOut([batch], 0), this_machine().torch_device, autocast=autocast)
        if number:
            positions, seconds = positions + batch.tokens_BT.numel(), seconds + time.perf_counter() - started
        if seconds >= at_least_s:
            break
    return (positions / seconds if seconds else 0.0), evaluated


def time_writing(preset: Preset, model: LanguageModel, opened: Opened | None, *, autocast: bool, at_most_s: float) -> float:
    """Seconds from one token to the next when the preset's samples are written, their beginning included; 0 where nothing is
    written."""
    options, pretrained = preset.generation, preset.model.pretrained is not None
    if not preset.train.sample_every_steps and preset.journal is None and not pretrained:
        return 0.0
    if opened is None:  # any tokens will do
        tokenizer = train_char(TokenizerSection(), [FrozenPart("", [Document("", "", "a", 0.0)])])
        template, prompts = None, as_prompts([""] * len(options.prompts), None)
    else:
        tokenizer, template = opened.tokenizer, opened.template
        prompts = as_prompts(options.prompts, template)
    device = this_machine().torch_device
    engine = writing_engine(model, tokenizer, device, preset, template, autocast=autocast, processes=ALONE)
    engine.generate(prompts, options, max_new_tokens=2)  # to warm up
    started, tokens = time.perf_counter(), -1

    def enough() -> bool:
        nonlocal tokens
        tokens += 1
        return tokens >= 2 and time.perf_counter() - started > at_most_s

    written = engine.generate(prompts, options, should_stop=enough)
    if all(one.stopped_by != "interrupted" for one in written):
        tokens += 1  # nobody was asked behind the last one
    return (time.perf_counter() - started) / max(tokens, 1)
