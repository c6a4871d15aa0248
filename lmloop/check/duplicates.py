"""Documents that occur twice: exactly, or nearly so, within training and from held-out text into it.

Texts are compared as their characters are after lower-casing, with each run of white space as one space. Exact: the same
64-bit hash. Near: of the windows of 8 bytes that either text has, both have at least SIMILAR (Jaccard similarity of their
shingle sets, Broder 1997). That is estimated by 128 minima of hashes: one hash per window, whose upper bits choose the
place where it competes (one permutation hashing, Li, Owen and Zhang 2012); empty places borrow from others (optimal
densification, Shrivastava 2017); 8 bits of each minimum are kept (b-bit minwise hashing, Li and König 2010). Two documents
are compared when one of 16 bands of 8 places is equal. Of pairs with a similarity of 0.8 that finds half, of those with
0.85 nine in ten, of those with 0.9 practically all, below 0.7 none.

A document costs 136 bytes and its id, and a second goes over tens of megabytes. Nothing is left to chance.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from lmloop.data.shuffle import mix

SIMILAR = 0.8
"""Share of equal minima from which two documents are near duplicates."""

COMPARED_CHARACTERS = 4_000_000
"""Of a longer document only so much is compared, from its beginning."""

COMPARED_DOCUMENTS = 2_000_000
"""Documents beyond this number are compared exactly, but no longer for nearness: that bounds the memory."""

_PLACES, _BAND = 128, 8
_WINDOW_BYTES = 8
_MIN_WINDOWS = 24
"""With fewer windows a word more or less decides: such short texts are compared exactly only."""
_BATCH_CHARACTERS = 1 << 18
_BLOCK = 1 << 18
_EMPTY = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class Repeat:
    """A document and an earlier one that it repeats; of held-out text, one that is trained."""

    document: str
    earlier: str
    earlier_origin: int


@dataclass(frozen=True)
class Repeats:
    """How many documents of an origin are repeats, and the first of them."""

    exact: int
    near: int
    first_exact: Repeat | None
    first_near: Repeat | None


class Fingerprints:
    """Takes in documents, and says at the end which of them repeat others."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._origins = array("I")
        self._ids: list[str] = []
        self._signatures: list[np.ndarray] = []
        self._compared: list[np.ndarray] = []
        self._pending: list[bytes] = []
        self._pending_characters = 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, text: str, document: str, origin: int) -> None:
        """A document; `origin` is a number for the source and part it belongs to."""
        text = text[:COMPARED_CHARACTERS].strip().lower()
        self._ids.append(document)
        self._origins.append(origin)
        self._pending.append(text.encode("utf-8", "replace"))
        self._pending_characters += len(text)
        if self._pending_characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        """Hash what is pending: many short documents together cost as little as one long one."""
        if not self._pending:
            return
        bytes_N, lengths_D = _normalised(self._pending)
        view, at = memoryview(bytes_N.tobytes()), 0
        for length in lengths_D.tolist():
            digest = hashlib.blake2b(view[at : at + length], digest_size=8).digest()
            self._hashes.append(int.from_bytes(digest, "little"))
            at += length
        if len(self._ids) <= COMPARED_DOCUMENTS:
            signatures_DP, compared_D = _signatures(bytes_N, lengths_D)
        else:
            signatures_DP, compared_D = np.zeros((0, _PLACES), np.uint8), np.zeros(0, bool)
        self._signatures.append(signatures_DP)
        self._compared.append(compared_D)
        self._pending, self._pending_characters = [], 0

    def repeats(self, held_out: Collection[int]) -> dict[int, Repeats]:
        """By origin. Held-out documents count where they repeat one that is trained, the others where they repeat an
        earlier one that is trained. A near repeat is not an exact one as well.
        """
        self._flush()
        if not self._ids:
            return {}
        origins_D = np.frombuffer(self._origins, np.uint32)
        trained_D = ~np.isin(origins_D, list(held_out))
        first_D = self._first_equal(trained_D)
        found = trained_D[first_D] & (first_D != np.arange(len(first_D)))
        earlier_D = np.where(found, first_D, -1)
        near_D = self._first_similar(trained_D, ~found)
        exact, near = self._by_origin(earlier_D, origins_D), self._by_origin(near_D, origins_D)
        none = (0, None)
        return {
            origin: Repeats(
                exact=exact.get(origin, none)[0],
                near=near.get(origin, none)[0],
                first_exact=exact.get(origin, none)[1],
                first_near=near.get(origin, none)[1],
            )
            for origin in np.unique(origins_D).tolist()
        }

    def _by_origin(self, earlier_D: np.ndarray, origins_D: np.ndarray) -> dict[int, tuple[int, Repeat]]:
        """How many documents of an origin repeat another, and the first of them."""
        repeated = np.flatnonzero(earlier_D >= 0)
        found: dict[int, tuple[int, Repeat]] = {}
        for origin, index, count in zip(
            *(part.tolist() for part in np.unique(origins_D[repeated], return_index=True, return_counts=True)), strict=True
        ):
            document = int(repeated[index])
            earlier = int(earlier_D[document])
            repeat = Repeat(self._ids[document], self._ids[earlier], int(origins_D[earlier]))
            found[origin] = (count, repeat)
        return found

    def _first_equal(self, trained_D: np.ndarray) -> np.ndarray:
        """The first document with the same hash, a trained one if there is any; int64 [documents]."""
        order_D = np.argsort(~trained_D, kind="stable")
        _, first, group_D = np.unique(
            np.frombuffer(self._hashes, np.uint64)[order_D], return_index=True, return_inverse=True
        )
        result_D = np.empty(len(order_D), np.int64)
        result_D[order_D] = order_D[first[group_D]]
        return result_D

    def _first_similar(self, trained_D: np.ndarray, wanted_D: np.ndarray) -> np.ndarray:
        """A trained document, earlier or of the other kind, to which each wanted one is similar; -1 where none is."""
        signatures_DP = np.concatenate(self._signatures)
        compared_D = np.concatenate(self._compared)
        near_D = np.full(len(trained_D), -1, np.int64)
        chosen = np.flatnonzero(wanted_D[: len(compared_D)] & compared_D)
        chosen = chosen[np.argsort(~trained_D[chosen], kind="stable")]  # so that a bucket begins with what is trained
        bands_DB = signatures_DP.view(np.uint64)
        for band in range(bands_DB.shape[1]):
            keys = bands_DB[chosen, band]
            bucketed = chosen[np.argsort(keys, kind="stable")]
            for mine, other in _neighbours(bands_DB[bucketed, band], trained_D[bucketed]):
                open_ = near_D[bucketed[mine]] < 0
                a, b = bucketed[mine[open_]], bucketed[other[open_]]
                for at in range(0, len(a), _BLOCK):
                    part = slice(at, at + _BLOCK)
                    similar = (signatures_DP[a[part]] == signatures_DP[b[part]]).mean(axis=1) >= SIMILAR
                    near_D[a[part][similar]] = b[part][similar]
        return near_D


def _neighbours(keys: np.ndarray, trained: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places to compare in a sorted list: each with the first of its bucket, and with the trained one just before it.

    Comparing all of a bucket would take forever where a thousand documents begin alike.
    """
    here = np.arange(len(keys))
    begins = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(begins, here, 0)) if len(keys) else here
    newest = np.maximum.accumulate(np.where(trained, here, -1)) if len(keys) else here
    before = np.concatenate([[-1], newest[:-1]]) if len(keys) else here
    with_first = np.flatnonzero((first < here) & trained[first])
    with_before = np.flatnonzero((before >= first) & (before != first))
    return [(with_first, first[with_first]), (with_before, before[with_before])]


def _normalised(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Texts in one line, uint8 [N], each run of white space and control characters as one space; and their lengths."""
    lengths_D = np.array([len(text) for text in texts], np.int64)
    bytes_N = np.frombuffer(b"".join(texts), np.uint8)
    ends_D = np.cumsum(lengths_D)
    space_N = bytes_N <= 32
    follows_N = np.zeros(len(bytes_N), bool)
    follows_N[1:] = space_N[:-1]
    follows_N[(ends_D - lengths_D)[lengths_D > 0]] = False
    kept_N = ~(space_N & follows_N)
    kept_before = np.concatenate([[0], np.cumsum(kept_N)])
    bytes_N = np.where(space_N, np.uint8(32), bytes_N)[kept_N]
    return bytes_N, kept_before[ends_D] - kept_before[ends_D - lengths_D]


def _signatures(bytes_N: np.ndarray, lengths_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8 bits of 128 minima of each document, uint8 [D, 128], and which of them are long enough to be compared."""
    windows_D = np.maximum(lengths_D - _WINDOW_BYTES + 1, 0)
    count = len(lengths_D)
    minima = np.full((count + 1) * _PLACES, _EMPTY, np.uint64)  # the last row takes windows over the end of a document
    owners = np.full(2 * count, count, np.int64)
    owners[::2] = np.arange(count)
    edges = np.concatenate([[0], np.cumsum(np.stack([windows_D, lengths_D - windows_D], axis=1).ravel())])
    padded = np.concatenate([bytes_N, np.zeros(_WINDOW_BYTES, np.uint8)])
    for at in range(0, len(bytes_N), _BLOCK):
        beyond = min(at + _BLOCK, len(bytes_N))
        block = np.ascontiguousarray(padded[at : beyond + _WINDOW_BYTES - 1])
        windows_N = np.lib.stride_tricks.as_strided(block.view(np.uint8), (beyond - at, _WINDOW_BYTES), (1, 1))
        hashes_N = mix(np.ascontiguousarray(windows_N).view(np.uint64).ravel())
        owner_N = np.repeat(owners, np.diff(np.clip(edges, at, beyond)))
        np.minimum.at(minima, owner_N * _PLACES + (hashes_N >> np.uint64(57)).astype(np.int64), hashes_N)
    return _densified(minima.reshape(-1, _PLACES)[:count]), windows_D >= _MIN_WINDOWS


def _densified(minima_DP: np.ndarray) -> np.ndarray:
    """The low 8 bits of each minimum; an empty place takes those of the first full one in a fixed order of its own."""
    filled_DP = minima_DP != _EMPTY
    signatures_DP = minima_DP.astype(np.uint8)
    document_E, place_E = np.nonzero(~filled_DP & (filled_DP.sum(axis=1, keepdims=True) > 0))
    attempt = 0
    while len(document_E):
        attempt += 1
        donor_P = (mix(np.arange(_PLACES, dtype=np.uint64) + np.uint64(attempt << 8)) % np.uint64(_PLACES)).astype(np.int64)
        donor_E = donor_P[place_E]
        found_E = filled_DP[document_E, donor_E]
        document, place = document_E[found_E], place_E[found_E]
        signatures_DP[document, place] = minima_DP[document, donor_E[found_E]].astype(np.uint8)
        document_E, place_E = document_E[~found_E], place_E[~found_E]
    return signatures_DP
