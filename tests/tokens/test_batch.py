from __future__ import annotations

import numpy as np
import torch

from lmloop.tokens.batch import Batch, Row, RowBlock, positions_in_segments


def block(source: int, rows: int, segments: list[int]) -> RowBlock:
    length = len(segments)
    tokens_BT = np.arange(rows * length).reshape(rows, length) + 100 * source
    return RowBlock(
        tokens_BT=tokens_BT,
        targets_BT=tokens_BT + 1,
        weights_BT=np.ones((rows, length), np.float32),
        segments_BT=np.tile(np.array(segments, np.int32), (rows, 1)),
        source_B=np.full(rows, source),
        documents_B=[(f"{source}:{row}",) for row in range(rows)],
    )


def test_merge_puts_rows_in_their_places() -> None:
    merged = RowBlock.merge([(np.array([0, 3]), block(0, 2, [0, 0])), (np.array([1, 2]), block(1, 2, [0, 1]))])
    assert merged is not None
    assert merged.source_B.tolist() == [0, 1, 1, 0]
    assert merged.tokens_BT[:, 0].tolist() == [0, 100, 102, 2]
    assert merged.targets_BT[:, 1].tolist() == [2, 102, 104, 4]
    assert merged.segments_BT[:, 1].tolist() == [0, 1, 1, 0]
    assert merged.documents_B == [("0:0",), ("1:0",), ("1:1",), ("0:1",)]


def test_picked_rows_of_several_blocks_keep_the_order_of_their_places() -> None:
    parts = [(np.array([1, 4, 9]), block(0, 3, [0, 0])), (np.array([2, 7]), block(1, 2, [0, 0]))]
    picked = [(places[1:], rows.pick(np.arange(1, len(rows)))) for places, rows in parts]
    merged = RowBlock.merge(picked)
    assert merged is not None
    assert merged.documents_B == [("0:1",), ("1:1",), ("0:2",)]
    assert merged.tokens_BT[:, 0].tolist() == [2, 102, 4]
    assert RowBlock.merge([]) is None


def test_a_row_without_weight_trains_nothing() -> None:
    batch = Batch.without_weight(4, 7)
    assert batch.tokens_BT.tolist() == batch.targets_BT.tolist() == [[7] * 4]
    assert (batch.trained_tokens, batch.documents_B) == (0, ((),))
    assert (batch.tokens_BT.dtype, batch.source_B.dtype) == (torch.int64, torch.int64)


def test_from_block_equals_from_rows() -> None:
    rows = block(2, 5, [0, 0, 1])
    one, two = Batch.from_block(rows, 1, 4), Batch.from_rows([rows.row(i) for i in (1, 2, 3)])
    for name in ("tokens_BT", "targets_BT", "weights_BT", "segments_BT", "source_B"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name
    assert one.documents_B == two.documents_B
    assert (one.tokens_BT.dtype, one.weights_BT.dtype) == (torch.int64, torch.float32)
    assert one.segments_BT is not None
    assert one.segments_BT.dtype == torch.int32


def test_rows_of_one_segment_need_no_mask() -> None:
    assert Batch.from_block(block(0, 2, [0, 0, 0]), 0, 2).segments_BT is None
    assert Batch.from_rows([block(0, 2, [0, 0, 0]).row(0)]).segments_BT is None


def test_trained_tokens_are_those_with_a_weight() -> None:
    rows = block(0, 2, [0, 0, 1])
    rows.weights_BT[1, 2] = 0
    assert Batch.from_block(rows, 0, 2).trained_tokens == 5
    row: Row = rows.row(1)
    assert row.trained_tokens == 2


def test_positions_restart_with_each_segment() -> None:
    segments_BT = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    assert positions_in_segments(segments_BT).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
