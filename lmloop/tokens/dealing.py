"""Which rank works what: one rule for the parts that are read and for the rows of a step.

Picture a line that is cut into equal stretches, once for the parts and once for the ranks. A rank works the parts that its
stretch touches: with 8 parts, two ranks have 4 parts each, three ranks share two of them, and sixteen ranks are two to a
part. Part p does not lie at place p but at p with its bits reversed (van der Corput 1935). Then parts that follow each other
lie far apart, so that the rows of any step, taken from parts in turn, fall evenly on the ranks. And part p of 4 lies where
parts p and p + 4 of 8 lie, so that a source of few parts is worked by those ranks that have use for its rows.
"""

from __future__ import annotations

import numpy as np


def stretch(part: int, parts: int) -> int:
    """Where a part lies on the line, of `parts` places; `parts` is a power of two."""
    assert parts & (parts - 1) == 0, parts
    assert 0 <= part < parts, (part, parts)
    bits = parts.bit_length() - 1
    return int(format(part, f"0{bits}b")[::-1], 2) if bits else 0


def workers(part: int, parts: int, world: int) -> range:
    """The ranks, of `world`, that work a part."""
    at = stretch(part, parts)
    return range(at * world // parts, -(-(at + 1) * world // parts))


def deal(part_N: np.ndarray, parts: int, world: int) -> np.ndarray:
    """The rank that trains each of the N rows of a step, one of the workers of the row's part; int64 [N].

    The rows are laid along the line in the order of their parts and cut evenly.
    """
    if world == 1:
        return np.zeros(len(part_N), np.int64)
    place_P = np.array([stretch(part, parts) for part in range(parts)])
    first_P = np.array([workers(part, parts, world).start for part in range(parts)])
    last_P = np.array([workers(part, parts, world).stop - 1 for part in range(parts)])
    order_N = np.argsort(place_P[part_N], kind="stable")
    along_N = np.empty(len(part_N), np.int64)
    along_N[order_N] = np.arange(len(part_N))
    return np.clip(along_N * world // max(len(part_N), 1), first_P[part_N], last_P[part_N])
