"""Sources in memory, and the pairs that they should be trained as, written out the slow way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from lmloop.data.document import Document, Position
from lmloop.tokens.batch import Batch, Row
from lmloop.tokens.tokenizer import Tokenizer

Pair = tuple[int, int]


class MemorySource:
    """Texts as documents `name:0`, `name:1`, …; `fail_at` raises in place of that document."""

    def __init__(self, name: str, texts: Sequence[str], fail_at: int | None = None) -> None:
        self.name = name
        self.texts = list(texts)
        self.fail_at = fail_at
        self.opened = 0

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        self.opened += 1
        for index in range(position.get("next", 0), len(self.texts)):
            if index == self.fail_at:
                raise OSError(f"{self.name} breaks at {index}")
            name = f"{self.name}:{index}"
            yield Document(name, name, self.texts[index], (index + 1) / len(self.texts)), {"next": index + 1}

    def parents(self) -> list[str] | None:
        return [f"{self.name}:{index}" for index in range(len(self.texts))]


def texts(count: int, seed: int, longest: int = 60) -> list[str]:
    """Random short texts, an empty one among them now and then."""
    rng = random.Random(seed)
    return ["".join(rng.choice("abcde \n") for _ in range(rng.randrange(longest))) for _ in range(count)]


def expected_pairs(tokenizer: Tokenizer, source: MemorySource) -> list[tuple[str, Pair]]:
    """What one pass over a source trains, in order: document and (input, target)."""
    result = []
    for index, text in enumerate(source.texts):
        line = [tokenizer.start_id, *tokenizer.encode(text).tolist(), tokenizer.eos_id]
        result += [(f"{source.name}:{index}", pair) for pair in itertools.pairwise(line)]
    return result


def row_pairs(row: Row) -> list[tuple[str, Pair]]:
    """What a row trains."""
    return [
        (row.documents[segment], (token, target))
        for token, target, weight, segment in zip(
            row.tokens_T.tolist(), row.targets_T.tolist(), row.weights_T.tolist(), row.segments_T.tolist(), strict=True
        )
        if weight
    ]


def batch_rows(batch: Batch) -> list[Row]:
    """The rows of a batch."""
    return [
        Row(
            batch.tokens_BT[i].numpy(),
            batch.targets_BT[i].numpy(),
            batch.weights_BT[i].numpy(),
            batch.tokens_BT[i].numpy() * 0 if batch.segments_BT is None else batch.segments_BT[i].numpy(),
            int(batch.source_B[i]),
            batch.documents_B[i],
        )
        for i in range(len(batch.documents_B))
    ]


def step_pairs(batches: list[Batch]) -> list[tuple[str, Pair]]:
    """What a step trains, in order."""
    return [pair for batch in batches for row in batch_rows(batch) for pair in row_pairs(row)]
