"""Timing two or more programs against one another on one machine: in turns, a process each time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Measured:
    """What a side gave in each round; rounds of all sides belong together."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.values.setdefault(name, []).append(float(value))

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])

    def spread(self, name: str) -> tuple[float, float]:
        return min(self.values[name]), max(self.values[name])


def in_turns(
    sides: Mapping[str, Callable[[int], Mapping[str, float]]], rounds: int, progress: Callable[[str], None]
) -> dict[str, Measured]:
    """A B A B …: each side once a round, so that what the machine does besides hits all alike.

    A side is called with the number of the round, from 0, and gives its figures.
    """
    measured = {name: Measured() for name in sides}
    for number in range(rounds):
        order = list(sides.items())
        for name, side in order if number % 2 == 0 else order[::-1]:
            progress(f"round {number + 1} of {rounds}: {name}")
            measured[name].add(side(number))
    return measured


def ratio(ours: Measured, theirs: Measured, name: str) -> str:
    """How many times theirs is ours, round by round: median, least and greatest."""
    ratios = sorted(b / a for a, b in zip(ours.values[name], theirs.values[name], strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
