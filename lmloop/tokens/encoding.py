"""Encoding of documents in the order they are read: in a pool of threads, and once for those that come again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from lmloop.tokens.tokenizer import Tokenizer

CACHE_BYTES = 128 << 20
"""Tokens kept for the next pass."""

_ENTRY_BYTES = 300
"""About what a kept piece takes besides its tokens."""

Key = tuple[str, str, int]
"""Source, document and place in it."""

Given = TypeVar("Given", bound=Hashable)
Made = TypeVar("Made")


class Remembering(ABC, Generic[Given, Made]):
    """Encodes what is read, with `workers` threads or, with none, in the calling thread.

    What is kept stays: documents come round in the same order, and a cache that made room for the newest would have
    dropped each one just before it comes again. One thread asks and collects; the pool only encodes.
    """

    def __init__(self, workers: int = 0, cache_bytes: int = CACHE_BYTES) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, "encode") if workers else None
        self._room = cache_bytes
        self._kept: dict[tuple[Key, int], Made] = {}

    @abstractmethod
    def encode_many(self, given: Sequence[Given]) -> list[Made]:
        """Encode, in any thread."""

    @abstractmethod
    def bytes_of(self, made: Made) -> int:
        """What keeping it takes."""

    def start(self, keys: Sequence[Key], given: Sequence[Given]) -> Callable[[], list[Made]]:
        """Begin to encode `given`; the result, when called, waits for what becomes of it."""
        # The content's own hash is part of the key: a document that was changed under its name is encoded anew.
        full = [(key, hash(one)) for key, one in zip(keys, given, strict=True)]
        missing = [index for index, key in enumerate(full) if key not in self._kept]
        wanted = [given[index] for index in missing]
        if self._pool is not None and wanted:
            encode = self._pool.submit(self.encode_many, wanted).result
        else:

            def encode() -> list[Made]:
                return self.encode_many(wanted) if wanted else []

        def collect() -> list[Made]:
            new = dict(zip(missing, encode(), strict=True))
            for index, made in new.items():
                self._keep(full[index], made)
            return [new[index] if index in new else self._kept[full[index]] for index in range(len(full))]

        return collect

    def _keep(self, key: tuple[Key, int], made: Made) -> None:
        size = self.bytes_of(made) + _ENTRY_BYTES
        if size <= self._room and key not in self._kept:
            self._kept[key] = made
            self._room -= size

    def close(self) -> None:
        """Let the threads go; what they have begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


class Encoder(Remembering[str, np.ndarray]):
    """Pieces of texts as token ids, int32 each."""

    def __init__(self, tokenizer: Tokenizer, workers: int = 0, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(workers, cache_bytes)
        self.tokenizer = tokenizer

    def encode_many(self, given: Sequence[str]) -> list[np.ndarray]:
        """Their ids."""
        return self.tokenizer.encode_many(given)

    def bytes_of(self, made: np.ndarray) -> int:
        """Those of the ids."""
        return made.nbytes
