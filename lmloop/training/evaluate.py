"""Cross-entropy, perplexity and bits per byte on text that is not trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lmloop.data.document import Document, Position
from lmloop.data.source import Source
from lmloop.models.base import LanguageModel
from lmloop.objectives.language import LanguageObjective
from lmloop.processes import ALONE, Processes
from lmloop.tokens.batch import Batch, Row
from lmloop.tokens.chat_packing import ChatLane
from lmloop.tokens.conversations import ChatEncoder
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.lanes import lane_of
from lmloop.tokens.packed import PackedLane
from lmloop.tokens.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured; sums over all documents."""

    nll_sum: float
    """Negative log-likelihood of all targets, in nats."""
    tokens: int
    bytes: int
    """UTF-8 length of the documents; of conversations, of the messages that are trained."""
    by_source: dict[str, float] = field(default_factory=dict)
    """Nats per token on each source, where there are several."""

    @property
    def cross_entropy(self) -> float:
        """Nats per token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(cross-entropy)."""
        return math.exp(min(self.cross_entropy, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Comparable over tokenizers. The end of each document is predicted too, and counted in the bits."""
        return self.nll_sum / math.log(2) / self.bytes

    def as_dict(self) -> dict[str, float | int]:
        """As `evaluate --json` prints it."""
        return {
            "cross_entropy": self.cross_entropy,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "bytes": self.bytes,
        }


class _Counted:
    """A source that counts the bytes it gave and ends after `max_tokens` targets."""

    def __init__(self, source: Source, tokenizer: Tokenizer, max_tokens: int | None, *, whole: bool) -> None:
        """`whole`: documents are not cut, so that the last one may exceed the limit."""
        self.name = source.name
        self.source = source
        self.tokenizer = tokenizer
        self.left = max_tokens
        self.whole = whole
        self.bytes = 0

    def parents(self) -> Sequence[str] | None:
        return self.source.parents()

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        for document, after in self.source.read(position, epoch):
            text = document.text
            if self.whole:  # a conversation, whose bytes are those of what is trained of it
                if self.left is not None and self.left <= 0:
                    return
                self.left = None if self.left is None else self.left - self._targets(text)
                yield document, after
                continue
            if self.left is not None:
                if self.left < 2:
                    return
                targets = self._targets(text)
                fits = targets <= self.left
                while targets > self.left:  # the last document is cut, by characters so that its bytes are known
                    text = text[: int(len(text) * (self.left - 1) / targets)]
                    targets = self._targets(text)
                self.left = self.left - targets if fits else 0
            self.bytes += len(text.encode("utf-8", errors="replace"))
            yield Document(document.id, document.parent, text, document.progress), after

    def _targets(self, text: str) -> int:
        return len(self.tokenizer.encode(text)) + 1


@dataclass(frozen=True)
class HeldOut:
    """Held-out text in rows, ready to be evaluated again and again."""

    batches: list[Batch]
    bytes: int
    sources: list[str] = field(default_factory=list)
    """The source of each batch."""


def _rows(lane: PackedLane[Any, Any], length: int) -> Iterator[Row]:
    while (row := lane.take(length)) is not None:
        yield row


def held_out(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    *,
    length: int,
    rows: int,
    max_tokens: int | None,
    chats: ChatEncoder | None = None,
) -> HeldOut:
    """Read the sources into batches of `rows` rows of `length` tokens, the budget of tokens dealt equally among them.

    chats: encodes those that hold conversations. What is evaluated of these is what would be trained of them.
    """
    encoder = Encoder(tokenizer, cache_bytes=0)
    batches, names, total_bytes = [], [], 0
    share = None if max_tokens is None else max(max_tokens // max(len(sources), 1), 2)
    for source in sources:
        is_chat = chats is not None and source.name in chats.names
        counted = _Counted(source, tokenizer, share, whole=is_chat)
        lane = lane_of(counted, encoder, chats)
        pending: list[Row] = []
        source_batches: list[Batch] = []
        for row in _rows(lane, length):
            pending.append(row)
            if len(pending) == rows:
                source_batches.append(Batch.from_rows(pending))
                pending = []
        if pending:
            source_batches.append(Batch.from_rows(pending))
        batches += [batch.trimmed() for batch in source_batches] if is_chat else source_batches
        names += [source.name] * (len(batches) - len(names))
        total_bytes += lane.trained_bytes if isinstance(lane, ChatLane) else counted.bytes
    return HeldOut(batches, total_bytes, names)


@torch.no_grad()
def each_batch(
    model: LanguageModel,
    data: HeldOut,
    device: torch.device,
    keep: Callable[[Batch, Tensor], T],
    *,
    autocast: bool,
    should_stop: Callable[[], bool],
    processes: Processes,
) -> list[T] | None:
    """What `keep` makes of each batch and its tokens' losses in nats [B, T], both on `device`, in the order of the batches.

    None when `should_stop` asked to leave it. Several processes have the same data and deal its batches among them; all get
    the same list, and they ask `should_stop` together, which answers all of them alike.
    """
    objective = LanguageObjective()
    was_training = model.training
    model.eval()
    kept: list[T] = []
    try:
        for first in range(0, len(data.batches), processes.world):
            if should_stop():
                return None
            own = first + processes.rank
            # A rank without a batch takes the last one too: of a model in parts every rank must run each block.
            batch = data.batches[min(own, len(data.batches) - 1)].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                nll_BT = objective.token_losses(model, batch)
            if own < len(data.batches):
                kept.append(keep(batch, nll_BT))
    finally:
        model.train(was_training)
    every = processes.gather(kept)
    return [every[index % processes.world][index // processes.world] for index in range(len(data.batches))]


def evaluate(
    model: LanguageModel,
    data: HeldOut,
    device: torch.device,
    *,
    autocast: bool,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
) -> Evaluation | None:
    """Evaluate at full length; None when `should_stop` asked to leave it, see `each_batch`.

    All processes get the same figures, added up in the order of the batches.
    """
    sums = each_batch(model, data, device, _sum, autocast=autocast, should_stop=should_stop, processes=processes)
    if sums is None:
        return None
    nll_sum, tokens = 0.0, 0
    sums_of: dict[str, tuple[float, int]] = {}
    for index, (nll, count) in enumerate(sums):
        nll_sum, tokens = nll_sum + nll, tokens + count
        if data.sources:
            so_far = sums_of.get(data.sources[index], (0.0, 0))
            sums_of[data.sources[index]] = so_far[0] + nll, so_far[1] + count
    if not tokens:
        return None
    by_source = {name: nll / count for name, (nll, count) in sums_of.items() if count} if len(sums_of) > 1 else {}
    return Evaluation(nll_sum, tokens, data.bytes, by_source)


def _sum(batch: Batch, nll_BT: Tensor) -> tuple[float, int]:
    """Of the trained tokens: the losses' sum, and how many they are."""
    trained_BT = batch.weights_BT > 0
    return float(nll_BT[trained_BT].cpu().double().sum()), int(trained_BT.sum())  # MPS has no fp64
