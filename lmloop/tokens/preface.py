"""A feed with something before it: texts that are read once, ahead of the data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from lmloop.data.document import Document, Position
from lmloop.preset.schema import DataSection
from lmloop.tokens.batch import Batch
from lmloop.tokens.feed import TextFeed
from lmloop.tokens.tokenizer import Tokenizer


class Texts:
    """Texts in memory as a source: (name, text) each."""

    def __init__(self, name: str, texts: Sequence[tuple[str, str]]) -> None:
        self.name = name
        self._texts = texts

    def parents(self) -> list[str]:
        """The names."""
        return [name for name, _ in self._texts]

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass from `position` to the end."""
        for at in range(position.get("next", 0), len(self._texts)):
            name, text = self._texts[at]
            yield Document(f"{self.name}/{name}", name, text, (at + 1) / len(self._texts)), {"next": at + 1}


class PrefaceFeed:
    """`feed` with a preface: `begin` says what is read next, before the feed goes on. A `Feed` itself.

    The preface is packed and dealt like any text, in strict order. Its last rows, which may not fill an update, come
    together with the feed's next ones: so each of its tokens counts as much as any other. It is the last of `source_names`.
    The state holds the texts, so that it goes on with them whatever became of where they came from.

    texts: what was given to `begin`, (name, text). went_on: a state was loaded.
    """

    def __init__(
        self,
        feed: TextFeed,
        name: str,
        tokenizer: Tokenizer,
        section: DataSection,
        *,
        micro_batch_tokens: int,
        tokens_per_step: int,
        should_stop: Callable[[], bool] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """All but `name` (of the preface as a source) as for `feed`."""
        self.feed = feed
        self._name = name if name not in feed.source_names else f"{name} (preface)"
        self.source_names = [*feed.source_names, self._name]
        changes = {"workers": 0, "mix_strategy": "sequential", "min_text_length": 0, "source_weights": None, "replay": None}
        self._section = section.model_copy(update=changes)
        self._tokenizer = tokenizer
        self._named: dict[str, Any] = {
            "micro_batch_tokens": micro_batch_tokens,
            "tokens_per_step": tokens_per_step,
            "should_stop": should_stop,
            "rank": rank,
            "world": world,
        }
        self.texts: list[tuple[str, str]] = []
        self.went_on = False
        self._share = 0.0
        self._preface: TextFeed | None = None
        self._given: list[TextFeed] = []

    def begin(self, texts: Sequence[tuple[str, str]], share: float = 0.0) -> None:
        """Read `texts` (name, text) before anything else. share: what part of the epoch they are, for `progress`; 0 where
        an epoch does not begin with them."""
        self.texts, self._share = [(name, text) for name, text in texts], share
        self._open(None)

    def _open(self, state: dict[str, Any] | None) -> None:
        self._given = []
        self._preface = None
        if self.texts:
            source = Texts(self._name, self.texts)
            self._preface = TextFeed([source], self._tokenizer, self._section, loop=False, **self._named)
            if state is not None:
                self._preface.load_state_dict(state)

    # ---- the feed ----

    @property
    def wait_s(self) -> float:
        """Seconds that `next_step` has waited so far."""
        return self.feed.wait_s

    @property
    def notices(self) -> list[str]:
        """A line for each source that gives no documents."""
        return self.feed.notices

    @property
    def skipped(self) -> dict[str, int]:
        """Documents left out, by source; of the preface none."""
        return self.feed.skipped

    @property
    def too_long(self) -> dict[str, int]:
        """Conversations left out, by source."""
        return self.feed.too_long

    @property
    def cut(self) -> dict[str, int]:
        """Conversations whose last turns were left out, by source."""
        return self.feed.cut

    @property
    def epoch(self) -> int:
        """Epochs of the feed that are over."""
        return self.feed.epoch

    @property
    def progress(self) -> float:
        """Share of the current epoch that was returned, the preface with it."""
        read = 1.0 if self._preface is None else self._preface.progress
        return self._share * read + (1.0 - self._share) * self.feed.progress

    def next_step(self, length: int) -> list[Batch]:
        """The micro-batches of the next update: of the preface as long as there is any, then of the feed; [] when an epoch
        of the feed has ended. Raises what the feed raises."""
        self._given = []
        batches: list[Batch] = []
        if self._preface is not None:
            batches = [self._named_rows(batch) for batch in self._preface.next_step(length)]
            if batches:
                self._given = [self._preface]
            else:
                self._preface = None
        if self._preface is not None and self._preface.progress < 1.0:
            return batches
        try:
            rest = self.feed.next_step(length)
        except BaseException:
            self.rewind()
            raise
        if batches and not rest:  # the end of an epoch of the feed, which is not to be lost: it comes again
            self.feed.rewind()
            return batches
        self._given.append(self.feed)
        return batches + rest

    def _named_rows(self, batch: Batch) -> Batch:
        return replace(batch, source_B=batch.source_B + len(self.feed.source_names))

    def _went_on(self) -> bool:
        """The last step has rows of the feed."""
        return self.feed in self._given

    def ballot(self) -> list[int]:
        """What the feed found out in the last step."""
        return self.feed.ballot() if self._went_on() else []

    def settle(self, ballot: list[int]) -> None:
        """See `Feed`. SourceError: then also the preface stands before the last step."""
        if not self._went_on():
            return
        try:
            self.feed.settle(ballot)
        except BaseException:
            for given in self._given[:-1]:
                given.rewind()
            raise

    def rewind(self) -> None:
        """Stand before the last step returned, which was not trained: it comes again."""
        for given in self._given:
            given.rewind()
        self._given = []

    def fingerprint(self) -> int:
        """31 bits that are equal on all ranks, unless they were fed from different data."""
        result = 0
        for given in self._given:
            result ^= given.fingerprint()
        return result

    def state_dict(self) -> dict[str, Any]:
        """That of the feed, and what is read before it."""
        feed = None if self._preface is None else self._preface.state_dict()
        preface = {"texts": [list(pair) for pair in self.texts], "feed": feed}
        return {**self.feed.state_dict(), "preface": preface, "preface_share": self._share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, by this feed or by one without a preface."""
        self.feed.load_state_dict({key: state[key] for key in ("epoch", "progress", "builder")})
        self.went_on = True
        preface = copy.deepcopy(state.get("preface"))
        self._share = state.get("preface_share", 0.0)
        self.texts = [(name, text) for name, text in preface["texts"]] if preface else []
        self._given, self._preface = [], None
        if preface and preface["feed"] is not None:
            self._open(preface["feed"])

    def close(self) -> None:
        """Let go of threads and files."""
        if self._preface is not None:
            self._preface.close()
        self.feed.close()
