"""Encoding of documents in the order they are read: in a pool of threads, and once for those that come again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lmloop.tokens.tokenizer import Tokenizer

CACHE_BYTES = 128 << 20
"""Tokens kept for the next pass."""

_ENTRY_BYTES = 300
"""About what a kept piece takes besides its tokens."""

Key = tuple[str, str, int]
"""Source, document and place in it."""


class Encoder:
    """Encodes pieces of documents, with `workers` threads or, with none, in the calling thread.

    What is kept stays: documents come round in the same order, and a cache that made room for the newest would have
    dropped each one just before it comes again. One thread asks and collects; the pool only encodes.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int = 0, cache_bytes: int = CACHE_BYTES) -> None:
        self.tokenizer = tokenizer
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, "encode") if workers else None
        self._room = cache_bytes
        self._kept: dict[tuple[Key, int, int], np.ndarray] = {}

    def start(self, keys: Sequence[Key], texts: Sequence[str]) -> Callable[[], list[np.ndarray]]:
        """Begin to encode `texts`; the result, when called, waits for their token ids, int32 each."""
        # The text's own hash is part of the key: a document that was changed under its name is encoded anew.
        full = [(key, len(text), hash(text)) for key, text in zip(keys, texts, strict=True)]
        missing = [index for index, key in enumerate(full) if key not in self._kept]
        wanted = [texts[index] for index in missing]
        if self._pool is not None and wanted:
            encode = self._pool.submit(self.tokenizer.encode_many, wanted).result
        else:

            def encode() -> list[np.ndarray]:
                return self.tokenizer.encode_many(wanted) if wanted else []

        def collect() -> list[np.ndarray]:
            new = dict(zip(missing, encode(), strict=True))
            for index, ids in new.items():
                self._keep(full[index], ids)
            return [new[index] if index in new else self._kept[full[index]] for index in range(len(full))]

        return collect

    def _keep(self, key: tuple[Key, int, int], ids: np.ndarray) -> None:
        size = ids.nbytes + _ENTRY_BYTES
        if size <= self._room and key not in self._kept:
            self._kept[key] = ids
            self._room -= size

    def close(self) -> None:
        """Let the threads go; what they have begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
