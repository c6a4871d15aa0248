"""What the model is fed: rows of tokens with what is trained in them.

Shape legend, used throughout the project: B rows, T positions, D width of the residual stream, V vocabulary, H query
heads, K key/value heads, E width of one head, F width of the feed-forward layer, N positions of several rows in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRIMMED_TO, TRIMMED_SHAPES = 8, 16
"""Rows are trimmed to a multiple of so many positions, and to no more than so many lengths."""


@dataclass(frozen=True)
class Row:
    """One row before it is put into a batch; arrays of T elements.

    `segments_T` numbers the documents of the row from 0 on: tokens of different segments do not see each other, and
    positions restart with each. `documents` names them in that order, for the record.
    """

    tokens_T: np.ndarray
    targets_T: np.ndarray
    weights_T: np.ndarray
    segments_T: np.ndarray
    source: int
    documents: tuple[str, ...]

    @property
    def trained_tokens(self) -> int:
        """Targets with a weight: what budgets and throughput count."""
        return int(np.count_nonzero(self.weights_T))


@dataclass(frozen=True)
class RowBlock:
    """Rows of equal length as they come from packing: what a step is cut from, without an object for each row.

    tokens_BT and targets_BT are int64, weights_BT is fp32, segments_BT int32, source_B int64; see Row.
    """

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    weights_BT: np.ndarray
    segments_BT: np.ndarray
    source_B: np.ndarray
    documents_B: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.documents_B)

    def row(self, index: int) -> Row:
        """One of the rows."""
        return Row(
            tokens_T=self.tokens_BT[index],
            targets_T=self.targets_BT[index],
            weights_T=self.weights_BT[index],
            segments_T=self.segments_BT[index],
            source=int(self.source_B[index]),
            documents=self.documents_B[index],
        )

    def pick(self, rows: np.ndarray) -> RowBlock:
        """Some of the rows, by index; the block itself where these are all."""
        if len(rows) == len(self):
            return self
        return RowBlock(
            tokens_BT=self.tokens_BT[rows],
            targets_BT=self.targets_BT[rows],
            weights_BT=self.weights_BT[rows],
            segments_BT=self.segments_BT[rows],
            source_B=self.source_B[rows],
            documents_B=[self.documents_B[index] for index in rows.tolist()],
        )

    @staticmethod
    def merge(parts: Sequence[tuple[np.ndarray, RowBlock]]) -> RowBlock | None:
        """The rows of several blocks in the order of the places that come with them; None where there are none."""
        if len(parts) <= 1:
            return parts[0][1] if parts else None
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        target = np.empty_like(order)
        target[order] = np.arange(len(order))
        bounds = np.cumsum([0, *(len(places) for places, _ in parts)]).tolist()

        def put(arrays: list[np.ndarray]) -> np.ndarray:
            merged = np.empty((len(target), *arrays[0].shape[1:]), arrays[0].dtype)
            for start, stop, array in zip(bounds, bounds[1:], arrays, strict=False):
                merged[target[start:stop]] = array
            return merged

        documents = [names for _, block in parts for names in block.documents_B]
        return RowBlock(
            tokens_BT=put([block.tokens_BT for _, block in parts]),
            targets_BT=put([block.targets_BT for _, block in parts]),
            weights_BT=put([block.weights_BT for _, block in parts]),
            segments_BT=put([block.segments_BT for _, block in parts]),
            source_B=put([block.source_B for _, block in parts]),
            documents_B=[documents[index] for index in order.tolist()],
        )


@dataclass(frozen=True)
class Batch:
    """Rows of equal length.

    tokens_BT and targets_BT are int64; weights_BT is fp32, 0 where nothing is trained; segments_BT is int32, or None
    when every row is one segment (then plain causal attention is exact, and faster); source_B is int64.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    segments_BT: Tensor | None
    source_B: Tensor
    documents_B: tuple[tuple[str, ...], ...]

    @staticmethod
    def from_rows(rows: Sequence[Row]) -> Batch:
        """Stack rows of equal length."""
        assert len({len(row.tokens_T) for row in rows}) == 1, [len(row.tokens_T) for row in rows]
        segments_BT = np.stack([row.segments_T for row in rows])
        single = bool((segments_BT == segments_BT[:, :1]).all())
        return Batch(
            tokens_BT=torch.from_numpy(np.stack([row.tokens_T for row in rows]).astype(np.int64)),
            targets_BT=torch.from_numpy(np.stack([row.targets_T for row in rows]).astype(np.int64)),
            weights_BT=torch.from_numpy(np.stack([row.weights_T for row in rows]).astype(np.float32)),
            segments_BT=None if single else torch.from_numpy(segments_BT.astype(np.int32)),
            source_B=torch.tensor([row.source for row in rows]),
            documents_B=tuple(row.documents for row in rows),
        )

    @staticmethod
    def from_block(block: RowBlock, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of a block, sharing its memory."""
        segments_BT = block.segments_BT[start:stop]
        return Batch(
            tokens_BT=torch.from_numpy(block.tokens_BT[start:stop]),
            targets_BT=torch.from_numpy(block.targets_BT[start:stop]),
            weights_BT=torch.from_numpy(block.weights_BT[start:stop]),
            # A row starts with segment 0, so it is one segment if there is no other number in it.
            segments_BT=torch.from_numpy(segments_BT) if segments_BT.any() else None,
            source_B=torch.from_numpy(block.source_B[start:stop]),
            documents_B=tuple(block.documents_B[start:stop]),
        )

    def trimmed(self) -> Batch:
        """Without the columns at the end that are padding in every row, but for a few: then there are few shapes."""
        used = self.weights_BT.any(dim=0).nonzero()
        length = self.weights_BT.shape[1]
        multiple = max(length // TRIMMED_SHAPES, TRIMMED_TO)
        kept = min(-(-(int(used[-1]) + 1) // multiple) * multiple, length) if len(used) else min(multiple, length)
        if kept == length:
            return self
        segments_BT = None if self.segments_BT is None else self.segments_BT[:, :kept].contiguous()
        return Batch(
            tokens_BT=self.tokens_BT[:, :kept].contiguous(),
            targets_BT=self.targets_BT[:, :kept].contiguous(),
            weights_BT=self.weights_BT[:, :kept].contiguous(),
            segments_BT=segments_BT if segments_BT is not None and bool(segments_BT.any()) else None,
            source_B=self.source_B,
            documents_B=self.documents_B,
        )

    def split(self, rows: int) -> list[Batch]:
        """The same rows in batches of at most so many, sharing memory."""
        if rows >= len(self.documents_B):
            return [self]
        starts = range(0, len(self.documents_B), rows)
        segments = [None] * len(starts) if self.segments_BT is None else self.segments_BT.split(rows)
        parts = (part.split(rows) for part in (self.tokens_BT, self.targets_BT, self.weights_BT, self.source_B))
        return [
            Batch(tokens_BT, targets_BT, weights_BT, segments_BT, source_B, self.documents_B[start : start + rows])
            for tokens_BT, targets_BT, weights_BT, source_B, segments_BT, start in zip(*parts, segments, starts, strict=True)
        ]

    @staticmethod
    def without_weight(length: int, pad_id: int) -> Batch:
        """One row of padding, of which nothing is trained: for a rank that has no row where others have."""
        return Batch(
            tokens_BT=torch.full((1, length), pad_id),
            targets_BT=torch.full((1, length), pad_id),
            weights_BT=torch.zeros(1, length),
            segments_BT=None,
            source_B=torch.zeros(1, dtype=torch.int64),
            documents_B=((),),
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        if self.tokens_BT.device == device:
            return self
        return Batch(
            tokens_BT=self.tokens_BT.to(device, non_blocking=True),
            targets_BT=self.targets_BT.to(device, non_blocking=True),
            weights_BT=self.weights_BT.to(device, non_blocking=True),
            segments_BT=None if self.segments_BT is None else self.segments_BT.to(device, non_blocking=True),
            source_B=self.source_B.to(device, non_blocking=True),
            documents_B=self.documents_B,
        )

    @property
    def trained_tokens(self) -> int:
        """Targets with a weight."""
        return int(self.weights_BT.count_nonzero())


def positions_in_segments(segments_BT: Tensor) -> Tensor:
    """Position of each token counted from the start of its segment, int64 [B, T].

    A segment is a run of equal numbers within a row.
    """
    index_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    start_index_BT = torch.where(starts_BT, index_T, index_T.new_zeros(())).cummax(dim=1).values
    return index_T - start_index_BT
