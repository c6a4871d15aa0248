"""The feed: where batches come from."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lmloop.data.source import Source
from lmloop.preset.schema import DataSection
from lmloop.tokens.batch import Batch
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.readahead import Interrupted, ReadAhead
from lmloop.tokens.steps import Step, StepBuilder
from lmloop.tokens.tokenizer import Tokenizer

__all__ = ["Feed", "Interrupted", "TextFeed"]

_PATIENCE_S = 2.0
"""How long closing waits for a thread that may hang in the network."""


class Feed(Protocol):
    """What the loop asks of a feed."""

    wait_s: float

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        ...

    @property
    def progress(self) -> float:
        """Share of the current epoch that was returned, 0 to 1; 0 where it cannot be told."""
        ...

    def next_step(self, length: int) -> list[Batch]:
        """The micro-batches of the next update, in rows of `length` tokens; [] when an epoch has ended."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the step after the last one returned begins."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        ...

    def close(self) -> None:
        """Let go of threads and files."""
        ...


class TextFeed:
    """Documents, mixed, packed and batched, in an order that depends on nothing but the sources and the section.

    A step is `accumulation_steps` micro-batches of `micro_batch_tokens // length` rows (at least one), fewer and shorter
    at the end of an epoch. With `section.workers` a thread builds steps ahead and that many threads encode; the order is
    the same. State, `epoch` and `progress` are those of the last step that was returned, whatever was read ahead.

    wait_s: seconds that `next_step` has waited so far. notices: a line for each source that has no documents.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        section: DataSection,
        *,
        micro_batch_tokens: int,
        accumulation_steps: int = 1,
        loop: bool = True,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """`loop`: a source that ends begins again at once (budgets of tokens and steps), except under `sequential`.

        `should_stop` is asked while waiting for data; when it says yes, `next_step` raises Interrupted and no step is lost.
        """
        self.source_names = [source.name for source in sources]
        assert sources, "a feed needs a source"
        assert len(set(self.source_names)) == len(sources), self.source_names
        self.notices: list[str] = []
        self.wait_s = 0.0
        self._sources = list(sources)
        self._section = section
        self._micro_batch_tokens = micro_batch_tokens
        self._accumulation_steps = accumulation_steps
        self._loop = loop
        self._should_stop = should_stop or (lambda: False)
        self._encoder = Encoder(tokenizer, section.workers)
        self._builder: StepBuilder | None = None
        self._ahead: ReadAhead | None = None
        self._ahead_length = 0
        self._last = Step([], {}, 0, 0.0)

    @property
    def epoch(self) -> int:
        """Epochs that are over; with `loop`, passes over the source that is furthest behind."""
        return self._last.epoch

    @property
    def progress(self) -> float:
        """Share of the current epoch that was returned, 0 to 1; 0 where it cannot be told."""
        return self._last.progress

    @property
    def skipped(self) -> dict[str, int]:
        """Documents that `data.min_text_length` left out, by source, counted in every pass."""
        return {name: lane["skipped"] for name, lane in self._last.state.get("lanes", {}).items()}

    def next_step(self, length: int) -> list[Batch]:
        """The micro-batches of the next update, in rows of `length` tokens; [] when an epoch has ended.

        Raises:
            Interrupted: `should_stop` said so while waiting.
            SourceError, TooManyBadRows: from reading, also when that was done in the thread. The state stays that of the
                last step returned, and another call tries again from there.
        """
        started = time.perf_counter()
        try:
            self._last = self._read_ahead(length) if self._section.workers else self._build_now(length)
        except Interrupted:
            raise
        except BaseException:
            self._drop()
            raise
        finally:
            self.wait_s += time.perf_counter() - started
        return self._last.batches

    def _build_now(self, length: int) -> Step:
        def check() -> None:
            if self._should_stop():
                raise Interrupted

        if self._builder is None:
            self._builder = self._new_builder(check)
        try:
            return self._builder.next_step(length)
        except BaseException:  # it may have taken a part of the step
            self._builder = None
            raise

    def _read_ahead(self, length: int) -> Step:
        if self._ahead is not None and self._ahead_length != length:
            self._ahead_length = 0  # of no use any more, also when closing it is interrupted
            self._ahead.close(self._should_stop)
            self._ahead = None
        if self._ahead is None:
            ahead = ReadAhead(lambda: builder.next_step(length))
            builder = self._new_builder(ahead.check)
            self._ahead, self._ahead_length = ahead, length
            ahead.start()
        step = self._ahead.get(self._should_stop)
        if not step.batches:
            self._ahead = None  # its thread ended with the epoch
        return step

    def _new_builder(self, check: Callable[[], None]) -> StepBuilder:
        """A builder that goes on after the last step returned."""
        builder = StepBuilder(
            self._sources,
            self._encoder,
            self._section,
            micro_batch_tokens=self._micro_batch_tokens,
            accumulation_steps=self._accumulation_steps,
            loop=self._loop,
            notices=self.notices,
            check=check,
        )
        builder.load_state_dict(copy.deepcopy(self._last.state))
        return builder

    def _drop(self, patience_s: float | None = None) -> None:
        """Throw away what was read ahead."""
        if self._ahead is not None:
            self._ahead.close(patience_s=patience_s)
        self._ahead = self._builder = None

    def state_dict(self) -> dict[str, Any]:
        """Where the step after the last one returned begins: JSON-able, and the caller's own."""
        place = {"epoch": self._last.epoch, "progress": self._last.progress}
        return copy.deepcopy({**place, "builder": self._last.state})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with the same documents and tokens to the last one."""
        self._drop()
        self._last = Step([], copy.deepcopy(state["builder"]), state["epoch"], state["progress"])

    def close(self) -> None:
        """Let go of the threads. The state can still be asked for; the feed cannot be read on."""
        self._drop(_PATIENCE_S)
        self._encoder.close()
