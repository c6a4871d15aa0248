"""Writes text with a model: prefill, then one token at a time with a key-value cache.

What a row sees. Every text begins with the tokenizer's start token, as every document does in training; a prompt of tokens
is taken as it is. A prompt that is
longer than the context keeps its newest part behind the start token. When the context is full while writing, the row goes
on from the newest half of it, again behind the start token; its cache is computed anew, once for every half context
written. `window` below is the whole rule, so a row's tokens do not depend on caching, padding, or the rest of its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lmloop.generation.prompts import Prompt
from lmloop.generation.sampling import History, row_generator, sample
from lmloop.generation.stopping import StopStrings
from lmloop.generation.text import TextStream
from lmloop.models.prepared import Prepared, can_prepare, prepare
from lmloop.models.steps import Steps
from lmloop.preset.schema import GenerationSection

if TYPE_CHECKING:
    from lmloop.models.base import LanguageModel
    from lmloop.models.cache import Cache
    from lmloop.tokens.tokenizer import Tokenizer

StoppedBy = Literal["length", "eos", "stop", "interrupted"]

SMALLEST_CACHE_TOKENS = 1024
"""A cache starts with room for this many tokens, or for twice the prompt, where context and limit allow more; it is
doubled when full, so that a limit of a million tokens costs memory only when they are written."""

FEWEST_STEPS_PREPARED = 16
"""Copying the weights into the layout for decoding takes as long as about eight tokens written without it."""


@dataclass(frozen=True)
class Generation:
    """What was written for one prompt.

    `prompt_tokens` and `new_tokens` count text: neither the start token nor the token that ends a text. Of the prompt's
    tokens the oldest `dropped_tokens` did not fit into the context and were not read. `stopped_by` says what ended it:
    the limit of new tokens (`length`), the model (`eos`), a stop string (`stop`), or `should_stop` (`interrupted`).
    `seconds` run from the call to the last token of this row.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    stopped_by: StoppedBy
    seconds: float
    dropped_tokens: int


class Engine:
    """A model and its tokenizer, ready to write. Changes neither weights nor the global random state."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        device: torch.device,
        *,
        autocast: bool = False,
        agree: Callable[[list[int]], list[int]] = lambda tokens: tokens,
        stops: Collection[int] = (),
        prepares: bool = True,
    ) -> None:
        """`model` is on `device` already. `autocast`: matrix products in bf16. `agree`: what several processes that write
        the same text together take for its next tokens, so that none of them ends before the others. `stops`: tokens that
        end a text, besides the tokenizer's own. `prepares`: whether it may decode with a copy of the weights that is laid
        out for it, where there is such a form of the model.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.context_tokens = model.context_length
        self._autocast = autocast
        self._prepares = prepares
        self._prepared: Prepared | None = None
        self._agree = agree
        self.stops = frozenset({tokenizer.eos_id, *stops})
        never = {tokenizer.pad_id, tokenizer.start_id} - self.stops  # no text has them in its middle
        self._never = torch.tensor(sorted(never), dtype=torch.int64, device=device)

    def generate(
        self,
        prompts: Sequence[Prompt],
        options: GenerationSection,
        max_new_tokens: int | None = None,
        seed: int = 0,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """Continue each prompt; all are written as one batch, each as if it were alone.

        Args:
            prompts: beginnings, as text or tokens; an empty text starts a new one.
            options: how to sample, when to stop.
            max_new_tokens: instead of the one in `options`.
            seed: with the index of a prompt and nothing else it decides that row's random numbers.
            should_stop: asked before each token; once true, what has been written so far is returned.

        Raises:
            ValueError: `max_new_tokens` is below 1, or the model's outputs are not finite.
        """
        rows = self._rows(prompts, options, max_new_tokens, seed)
        pieces: list[list[str]] = [[] for _ in rows]
        for row, piece in self._write(rows, options, should_stop):
            pieces[row.index].append(piece)
        return [row.result("".join(text)) for row, text in zip(rows, pieces, strict=True)]

    def stream(
        self,
        prompt: Prompt,
        options: GenerationSection,
        max_new_tokens: int | None = None,
        seed: int = 0,
        should_stop: Callable[[], bool] | None = None,
    ) -> Stream:
        """Continue one prompt and give the text out as it is written; the pieces together are `generate`'s text."""
        (row,) = self._rows([prompt], options, max_new_tokens, seed)
        return Stream(row, self._write([row], options, should_stop))

    def _rows(self, prompts: Sequence[Prompt], options: GenerationSection, limit: int | None, seed: int) -> list[_Row]:
        limit = options.max_new_tokens if limit is None else limit
        if limit < 1:
            raise ValueError(f"max_new_tokens {limit}: must be at least 1")
        return [_Row(index, self, prompt, options, limit, seed) for index, prompt in enumerate(prompts)]

    def _write(
        self, rows: Sequence[_Row], options: GenerationSection, should_stop: Callable[[], bool] | None
    ) -> Iterator[tuple[_Row, str]]:
        """Write until every row has stopped; gives (row, piece of its text) in turn."""
        was_training = self.model.training
        if was_training:  # dropout must not disturb samples taken in the middle of training
            self.model.eval()
        try:
            batch: _CachedBatch | None = None
            writing = list(rows)
            while writing:
                if should_stop is not None and should_stop():
                    for row in writing:
                        yield row, row.finish("interrupted")
                    return
                with torch.no_grad():
                    if batch is None or batch.is_full:
                        batch = _CachedBatch(self, writing)
                    logits_BV = batch.next_logits(writing)
                    logits_BV.index_fill_(1, self._never, -torch.inf)
                    generators, histories = [row.generator for row in writing], [row.history for row in writing]
                    tokens = self._agree(sample(logits_BV, options, generators, histories).tolist())
                for row, token in zip(writing, tokens, strict=True):
                    piece = row.accept(token)
                    if piece:
                        yield row, piece
                writing = [row for row in writing if row.stopped_by is None]
        finally:
            if was_training:
                self.model.train()

    def prepared(self, rows: int, tokens: int) -> Prepared | None:
        """The model laid out for writing up to `tokens` tokens in `rows` rows; None: its own `decode` is to be used.

        It is kept for the next call, and made anew when weights have changed since.
        """
        if not self._prepares or tokens < FEWEST_STEPS_PREPARED or not can_prepare(self.model):
            return None
        dtype = torch.bfloat16 if self._autocast else torch.float32
        if self._prepared is None or not self._prepared.serves(rows, dtype):
            self._prepared = None  # not two copies at a time
            self._prepared = prepare(self.model, rows, dtype)
        return self._prepared

    def in_precision(self) -> torch.autocast:
        """Around what the model computes by itself."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)


class Stream(Iterator[str]):
    """The pieces of a text as it is written, and, once they have run out, the `result`."""

    def __init__(self, row: _Row, pieces: Iterator[tuple[_Row, str]]) -> None:
        self._row = row
        self._pieces = pieces
        self._text = ""

    def __next__(self) -> str:
        while True:
            _, piece = next(self._pieces)
            if piece:
                self._text += piece
                return piece

    @property
    def result(self) -> Generation:
        """What was written; there only when the pieces have run out."""
        return self._row.result(self._text)


def window(tokens: list[int], size: int, start_id: int) -> list[int]:
    """What is kept of too many tokens: the newest, behind the start token; where there is room for one, the newest."""
    if len(tokens) <= size:
        return tokens
    return tokens[-1:] if size == 1 else [start_id, *tokens[len(tokens) - size + 1 :]]


class _Row:
    """One text while it is written."""

    def __init__(
        self, index: int, engine: Engine, prompt: Prompt, options: GenerationSection, limit: int, seed: int
    ) -> None:
        tokenizer = engine.tokenizer
        self.index = index
        self.stopped_by: StoppedBy | None = None
        self.generator = row_generator(seed, index)
        start = [tokenizer.start_id]
        whole = [*start, *tokenizer.encode(prompt).tolist()] if isinstance(prompt, str) else prompt.tolist() or start
        ids = whole[1:] if whole[:1] == start else whole
        self.window = window(whole, engine.context_tokens, tokenizer.start_id)
        kept = self.window[1:] if self.window[0] == tokenizer.start_id else self.window
        self.history = History(options, engine.model.vocab_size, engine.device, kept)
        self._stop_ids = engine.stops
        self._limit = limit
        self._prompt_tokens = len(ids)
        self._dropped_tokens = len(ids) - len(kept)
        self._new_tokens = 0
        self._text = TextStream(tokenizer, kept)
        self._stops = StopStrings(options.stop)
        self._started = time.perf_counter()
        self._seconds = 0.0

    @property
    def remaining(self) -> int:
        """Tokens that may still be written."""
        return self._limit - self._new_tokens

    def accept(self, token: int) -> str:
        """Take the next token; the text that can be shown because of it."""
        if token in self._stop_ids:
            return self.finish("eos")
        self._new_tokens += 1
        self.window.append(token)
        self.history.append(token)
        piece = self._stops.feed(self._text.feed(token))
        if self._stops.found is not None:
            return piece + self.finish("stop")
        if self._new_tokens == self._limit:
            return piece + self.finish("length")
        return piece

    def finish(self, reason: StoppedBy) -> str:
        """The row ends; the text that was held back in case it became a stop string."""
        self.stopped_by = reason
        self._seconds = time.perf_counter() - self._started
        return self._stops.flush()

    def result(self, text: str) -> Generation:
        """The row's outcome, of which this class keeps all but the text."""
        assert self.stopped_by is not None, "still writing"
        return Generation(text, self._prompt_tokens, self._new_tokens, self.stopped_by, self._seconds, self._dropped_tokens)


class _CachedBatch:
    """Rows that share a cache, left-padded so that all end at the same slot of it."""

    def __init__(self, engine: Engine, rows: Sequence[_Row]) -> None:
        self._engine = engine
        self._model = engine.model
        self._device = engine.device
        self._pad_id = engine.tokenizer.pad_id
        self._rows = list(rows)
        context = engine.context_tokens
        for row in self._rows:
            if len(row.window) > context:
                row.window = window(row.window, max(context // 2, 1), engine.tokenizer.start_id)
        longest = max(len(row.window) for row in self._rows)
        wanted = longest + max(row.remaining for row in self._rows) - 1  # the last token is not read again
        self._capacity = min(wanted, max(2 * longest, SMALLEST_CACHE_TOKENS), context)
        self._used = 0
        self._prepared = engine.prepared(len(self._rows), wanted - longest)
        room = self._capacity if self._prepared is None else longest
        self._cache: Cache = self._model.make_cache(len(self._rows), room)
        self._steps: Steps | None = None
        self._longest = longest

    @property
    def is_full(self) -> bool:
        """No token can be added."""
        return self._used == self._capacity

    def next_logits(self, writing: Sequence[_Row]) -> Tensor:
        """Logits after the newest token of each row in `writing`, a part of this batch's rows in order; [B, V]."""
        if self._used == 0:
            return self._prefill()
        tokens = [row.window[-1] if row.stopped_by is None else self._pad_id for row in self._rows]
        tokens_B = torch.tensor(tokens, device=self._device)
        self._used += 1
        if self._steps is not None:
            logits_BV = self._steps.logits(tokens_B)
        else:
            with self._engine.in_precision():
                logits_BV = self._model.head(self._model.decode(tokens_B[:, None], self._cache)[:, -1])
        if len(writing) < len(self._rows):
            alive = [index for index, row in enumerate(self._rows) if row.stopped_by is None]
            logits_BV = logits_BV[torch.tensor(alive, device=self._device)]
        return logits_BV

    def _prefill(self) -> Tensor:
        pads = [self._longest - len(row.window) for row in self._rows]
        padded = [[self._pad_id] * pad + row.window for pad, row in zip(pads, self._rows, strict=True)]
        self._cache.pad_B = torch.tensor(pads, device=self._device)
        with self._engine.in_precision():
            hidden_BTD = self._model.decode(torch.tensor(padded, device=self._device), self._cache)
            logits_BV = self._model.head(hidden_BTD[:, -1])
        self._used = self._longest
        if self._prepared is not None and not self.is_full:
            self._steps = Steps(self._prepared, self._cache, self._capacity)
            del self._cache  # its keys and values are in `_steps`
        if not bool(logits_BV.isfinite().all()):
            raise ValueError(
                "the model's outputs are not finite: take an older checkpoint, or train with a lower learning rate"
            )
        return logits_BV
