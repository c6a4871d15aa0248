"""What a forecast wants to know of a preset's data: opened as the run will open it, and read as far as that takes."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmloop.data.catalog import built_in
from lmloop.data.corpus import Corpus, trained_sources
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import Source, one_line
from lmloop.opening import base_together, held_out_together, open_feed, open_together, tokenizer_together
from lmloop.preset.schema import Preset
from lmloop.preset.sources import HubSource
from lmloop.processes import ALONE
from lmloop.tokens.conversations import ChatEncoder, open_chats
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.lanes import lane_of
from lmloop.tokens.mixing import lane_weights, replay_of
from lmloop.tokens.preface import PrefaceFeed
from lmloop.tokens.template import ChatTemplate
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.evaluate import HeldOut
from lmloop.training.questions import find_questions
from lmloop.training.schedule import Schedule

SAMPLE_POSITIONS = 1 << 19
"""Of a source as much is packed, to estimate the size of an epoch."""
_POSITIONS_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class Opened:
    """A preset's data. seconds: what opening it took, which the run does too. steps: updates of an epoch, and tokens: its
    trained tokens, both 0 where the budget counts no epochs. packed: rows may hold several documents. questions: that are
    asked before and after. Close the feed."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    feed: TextFeed | PrefaceFeed
    held_out: HeldOut
    packed: bool
    questions: int
    seconds: float
    steps: int
    tokens: int
    notices: list[str]


def open_data(preset: Preset, schedule: Schedule) -> Opened | str:
    """The data, or why it was not opened: it would have to be fetched, or is not there, and nothing but the time of starting
    up depends on it.

    Raises:
        ValueError, OSError: it cannot be read, and the vocabulary or the budget depend on it. One line.
    """
    needed = preset.tokenizer.type == "char" or schedule.counts_epochs
    sources = [*trained_sources(preset.data), *(preset.data.validation or [])]
    named = [built_in(source) if isinstance(source, str) else source for source in sources]
    if not needed and any(isinstance(source, HubSource) for source in named):
        return "the data was not opened, since it is on the hub: opening it takes longer than that"
    try:
        return _open(preset, schedule)
    except (ValueError, OSError) as error:
        if needed:
            raise
        return f"the data was not opened ({one_line(error)}): starting up takes longer"


def _open(preset: Preset, schedule: Schedule) -> Opened:
    started = time.perf_counter()
    section, length = preset.data, preset.model.seq_length
    quarantine = Quarantine(None, section.max_bad_fraction)
    base_together(preset, None, ALONE)
    with tempfile.TemporaryDirectory(prefix="lmloop-plan-") as folder:  # what is held out of streams is kept in the run's
        corpus = open_together(preset, Path(folder), quarantine, ALONE)
    tokenizer, _ = tokenizer_together(None, preset, corpus, ALONE)
    held_out = held_out_together(preset, corpus, tokenizer, quarantine, ALONE)
    chats = open_chats(section, tokenizer, seq_length=length, quarantine=quarantine)
    rows_per_step = preset.train.rows_per_step()
    feed = open_feed(
        preset,
        corpus.train,
        tokenizer,
        chats,
        journal=None,
        rows_per_step=rows_per_step,
        loop=not schedule.counts_epochs,
        should_stop=lambda: False,
        processes=ALONE,
    )
    seconds = time.perf_counter() - started
    questions = 0
    if preset.model.pretrained is not None:
        options = preset.generation
        questions = len(find_questions(corpus.validation, options.chat_format, options.questions))
    rows, tokens = _epoch(preset, corpus, tokenizer, chats) if schedule.counts_epochs else (0, 0)
    return Opened(
        tokenizer=tokenizer,
        template=chats and chats.template,
        feed=feed,
        held_out=held_out,
        packed=not corpus.is_one_document,
        questions=questions,
        seconds=seconds,
        steps=math.ceil(rows / rows_per_step),
        tokens=tokens,
        notices=corpus.notices,
    )


def _epoch(preset: Preset, corpus: Corpus, tokenizer: Tokenizer, chats: ChatEncoder | None) -> tuple[int, int]:
    """Rows and trained tokens of one epoch, extrapolated where a source is long."""
    section, names = preset.data, [source.name for source in corpus.train]
    replay, weights = replay_of(section, names), lane_weights(section, names)
    rows = tokens = 0.0
    for source, weight, is_old in zip(corpus.train, weights, replay.is_old_S, strict=True):
        if is_old:  # it comes on top
            continue
        readings = weight if section.mix_strategy == "sequential" else 1.0
        own_rows, own_tokens = count_pass(source, preset, tokenizer, chats)
        rows, tokens = rows + readings * own_rows, tokens + readings * own_tokens
    new = 1.0 - replay.share
    return math.ceil(rows / new), round(tokens / new)


def count_pass(source: Source, preset: Preset, tokenizer: Tokenizer, chats: ChatEncoder | None) -> tuple[float, float]:
    """Rows and trained tokens of one pass over a source, as training packs them; extrapolated from its beginning."""
    length = preset.model.seq_length
    lane = lane_of(source, Encoder(tokenizer, cache_bytes=0), chats, min_text_length=preset.data.min_text_length)
    rows = tokens = 0
    while (block := lane.take_rows(length, max(_POSITIONS_AT_A_TIME // length, 1))) is not None:
        rows += len(block)
        tokens += int(np.count_nonzero(block.weights_BT))
        if rows * length >= SAMPLE_POSITIONS and lane.progress > 0:
            return rows / lane.progress, tokens / lane.progress
    return rows, tokens
