"""What the curves of a run say in words: plain rules, each named with the numbers that it was judged by.

The rules compare the training loss with the validation loss of the same model. They need neither a reference model nor
a threshold that depends on the task:

- *over-fitting*: after the best evaluation validation rises by more than 1 % while the training loss goes on falling;
- *gap*: the training loss is more than 10 % below the validation loss at the end;
- *still improving*: over the last fifth of the tokens validation falls by more than 1 %;
- *levelled off*: it does not, and there is no gap either: the model, not the amount of training, is the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lmloop.training import figures
from lmloop.training.run_files import Metrics

RISE = 0.01
GAP = 0.10
STILL_FALLING = 0.01
TAIL = 0.2
MIN_EVALUATIONS = 4


@dataclass(frozen=True)
class Rule:
    """One rule, whether it holds for the run, and the numbers."""

    name: str
    holds: bool
    numbers: str


@dataclass(frozen=True)
class Fit:
    """How the model fits its data: the conclusion in words, and the rules behind it."""

    label: str  # a word or two: over-fits, still improving, …
    words: str  # one or two sentences
    rules: list[Rule]


def judge(metrics: Metrics) -> Fit:
    """Judge a run by its curves; the label is "" where there is too little to judge by."""
    tokens, validation = metrics.points("val_loss")
    if len(validation) < MIN_EVALUATIONS:
        held = "no evaluation" if not len(validation) else f"{len(validation)} evaluation" + "s" * (len(validation) > 1)
        return Fit("", f"With {held} there is too little to tell over-fitting from under-fitting.", [])
    best = int(np.argmin(validation))
    rules = [_overfits(metrics, tokens, validation, best), _gap(metrics, validation), _improves(tokens, validation)]
    overfits, gap, improves = (rule.holds for rule in rules)
    rules.append(Rule("Levelled off", not (overfits or gap or improves), "none of the rules above holds"))
    since = f"{figures.count(float(tokens[best]))} tokens".replace(" ", "\N{NO-BREAK SPACE}")
    if overfits:
        return Fit(
            "over-fits",
            f"It over-fits: validation was at its best at {since} and has risen since, while the training loss went on "
            "falling. More data, more dropout or weight decay, or a shorter run would help; the best model is kept.",
            rules,
        )
    if gap and not improves:
        return Fit(
            "begins to over-fit",
            "It begins to over-fit: validation no longer improves, and the training loss is well below it. "
            "More data would help; more passes over the same data will not.",
            rules,
        )
    if improves:
        return Fit(
            "still improving",
            "It under-fits: validation was still falling at the end. More training would help."
            + (" The training loss runs ahead of it, so watch for over-fitting." if gap else ""),
            rules,
        )
    return Fit(
        "levelled off",
        "It has levelled off with training and validation loss close together: this model has taken what it can at this "
        "learning rate. A larger model or a longer context would help more than further training.",
        rules,
    )


def train_loss_around(metrics: Metrics, tokens: float) -> float | None:
    """Mean training loss of the lines around `tokens` (5 % of the run), at the row length of the newest line.

    Losses at other row lengths are not comparable: a short row gives the model less context.
    """
    length = metrics.last("seq_len")
    usable = np.isfinite(metrics["loss"])
    if length is not None:
        usable &= metrics["seq_len"] == length
    if not usable.any():
        return None
    where, losses = metrics["tokens"][usable], metrics["loss"][usable]
    width = 0.025 * (float(metrics["tokens"][-1]) or 1.0)
    near = np.abs(where - tokens) <= width
    if not near.any():
        nearest = int(np.argmin(np.abs(where - tokens)))
        return float(losses[nearest]) if abs(float(where[nearest]) - tokens) <= 4 * width else None
    return float(losses[near].mean())


def perplexity(loss: float) -> float:
    """exp of a cross-entropy in nats; infinite where fp64 ends."""
    return math.exp(loss) if loss < 700 else math.inf


def _overfits(metrics: Metrics, tokens: np.ndarray, validation: np.ndarray, best: int) -> Rule:
    rise = float(validation[-1] / validation[best] - 1) if validation[best] > 0 else 0.0
    at_best = train_loss_around(metrics, float(tokens[best]))
    at_end = train_loss_around(metrics, float(tokens[-1]))
    falls = at_best is not None and at_end is not None and at_end < at_best
    numbers = f"validation {_signed(rise)} since its best (limit +{RISE:.0%})"
    if at_best is not None and at_end is not None:
        numbers += f"; training loss {at_best:.3f} then, {at_end:.3f} at the end"
    return Rule("Over-fitting", rise > RISE and falls, numbers)


def _gap(metrics: Metrics, validation: np.ndarray) -> Rule:
    train = train_loss_around(metrics, float(metrics["tokens"][-1]))
    if train is None or validation[-1] <= 0:
        return Rule("Gap", False, "no training loss to compare with")
    gap = float(1 - train / validation[-1])
    place = f"{figures.percent(abs(gap))} {'below' if gap >= 0 else 'above'} validation"
    return Rule("Gap", gap > GAP, f"training loss is {place} at the end (limit {GAP:.0%} below)")


def _improves(tokens: np.ndarray, validation: np.ndarray) -> Rule:
    start = float(tokens[-1]) * (1 - TAIL)
    before = validation[max(0, int(np.searchsorted(tokens, start, side="right")) - 1)]
    fall = float(1 - validation[-1] / before) if before > 0 else 0.0
    return Rule(
        "Still improving",
        fall > STILL_FALLING,
        f"validation {_signed(-fall)} over the last {TAIL:.0%} of the tokens (limit −{STILL_FALLING:.0%})",
    )


def _signed(share: float) -> str:
    return f"{'+' if share > 0 else '−' if share < 0 else ''}{figures.percent(abs(share))}"
