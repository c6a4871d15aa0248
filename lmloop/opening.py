"""A run's data, opened on every rank alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmloop.data.corpus import Corpus, open_corpus
from lmloop.data.pins import FILE as PINS
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import Source, SourceError
from lmloop.models.opening_pretrained import require_base
from lmloop.preset.schema import Preset
from lmloop.processes import Processes
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.conversations import ChatEncoder, open_chats, with_template
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.preface import PrefaceFeed
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.evaluate import HeldOut, held_out

_HELD_OUT = ("validation.jsonl", "test.jsonl", PINS)
"""What is held out of streams, and at which commits they are, in the run's folder."""

ROWS_OF_EVALUATION = 8
"""In one forward pass, where the preset says no number of rows."""


def open_together(preset: Preset, run_dir: Path, quarantine: Quarantine, processes: Processes) -> Corpus:
    """Open the data on each rank: the first one's folder decides what is held out, and a source that one rank cannot read is
    left out on all.

    Raises:
        ValueError, OSError: as from `open_corpus` on the rank that fails; on the others an OSError that names it.
    """

    def opened(folder: Path) -> Corpus:
        seed, eval_tokens = preset.train.seed, preset.train.eval_tokens
        return open_corpus(preset.data, seed=seed, eval_tokens=eval_tokens, run_dir=folder, quarantine=quarantine)

    def opened_elsewhere(kept: dict[str, bytes]) -> Corpus:
        # Other machines need not have the folder: what is held out is read from a copy, and nothing else is written there.
        with tempfile.TemporaryDirectory() as copy:
            for name, content in kept.items():
                (Path(copy) / name).write_bytes(content)
            return opened(Path(copy))

    first = processes.together(lambda: opened(run_dir) if processes.first else None)
    paths = [run_dir / name for name in _HELD_OUT]
    kept = processes.on_first(lambda: {path.name: path.read_bytes() for path in paths if path.exists()})
    return _common(processes.together(lambda: first or opened_elsewhere(kept)), processes)


def _common(corpus: Corpus, processes: Processes) -> Corpus:
    """Without the sources that some rank could not open."""
    open_on = [set(names) for names in processes.gather([source.name for source in corpus.train])]
    everywhere = set.intersection(*open_on)
    if not everywhere:
        raise SourceError("data.sources: there is no source that every process can read")
    for source in corpus.train if processes.first else ():
        if source.name not in everywhere:
            rank = next(rank for rank, names in enumerate(open_on) if source.name not in names)
            corpus.notices.append(f"left out: source '{source.name}' cannot be read by rank {rank}")
    return replace(corpus, train=[source for source in corpus.train if source.name in everywhere])


def base_together(preset: Preset, state: Mapping[str, Any] | None, processes: Processes) -> None:
    """Look at the pretrained model that the preset names, if it does, on each rank; `state`: of the run's checkpoint.

    Raises:
        ValueError: it is not there, not whole, or another one than the run was begun on. One line.
    """
    if preset.model.pretrained is None:
        return
    saved = None if state is None else state.get("base")
    if state is not None and saved is None:
        raise ValueError(
            f"model.pretrained: the model in {preset.run_dir} was trained from scratch: leave it out, or give this preset "
            "another output_dir"
        )
    processes.together(lambda: require_base(preset.model, preset.adapter, saved))


def tokenizer_together(saved: str | None, preset: Preset, corpus: Corpus, processes: Processes) -> tuple[Tokenizer, str]:
    """The tokenizer of the run, as a checkpoint has `saved` it, or new: then the first rank builds it for all. It carries
    the template in which conversations are written; and what there is to say about that."""
    if saved is None:
        saved = processes.on_first(lambda: build_tokenizer(preset.tokenizer, corpus.train).to_json())
    return with_template(preset.data, Tokenizer.from_json(saved), pretrained=preset.model.pretrained is not None)


def open_feed(
    preset: Preset,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    chats: ChatEncoder | None,
    *,
    journal: str | None,
    rows_per_step: int,
    loop: bool,
    should_stop: Callable[[], bool],
    processes: Processes,
) -> TextFeed | PrefaceFeed:
    """What feeds this rank: the sources, behind the journal of that name where the run keeps one. An update has
    `rows_per_step` rows; with `loop` the sources begin again."""
    seq_length = preset.model.seq_length
    shared: dict[str, Any] = {
        "micro_batch_tokens": preset.train.rows_at_once(rows_per_step) * seq_length,
        "tokens_per_step": rows_per_step * seq_length,
        "should_stop": should_stop,
        "rank": processes.rank,
        "world": processes.world,
    }
    feed = TextFeed(sources, tokenizer, preset.data, loop=loop, chats=chats, **shared)
    return feed if journal is None else PrefaceFeed(feed, journal, tokenizer, preset.data, **shared)


def held_out_together(
    preset: Preset, corpus: Corpus, tokenizer: Tokenizer, quarantine: Quarantine, processes: Processes
) -> HeldOut:
    """What is evaluated, as the first rank has read it."""

    def read() -> HeldOut:
        chats = open_chats(
            preset.data, tokenizer, seq_length=preset.model.seq_length, quarantine=quarantine, workers=0, cache_bytes=0
        )
        try:
            return held_out(
                corpus.validation,
                tokenizer,
                length=preset.model.seq_length,
                rows=preset.train.rows_at_once(auto=ROWS_OF_EVALUATION),
                max_tokens=preset.train.eval_tokens,
                chats=chats,
            )
        finally:
            if chats is not None:
                chats.close()

    return processes.on_first(read)
