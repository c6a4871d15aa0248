"""What a run takes over from the checkpoint in its folder, and what it says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from lmloop.preset.compare import APPLIES, FEED, MODEL, NOTHING, OPTIMIZER, Change, changes, resolved
from lmloop.preset.schema import Preset
from lmloop.training.state import Progress


@dataclass(frozen=True)
class Carried:
    """What carries over. Without a checkpoint: nothing, and counters at zero."""

    progress: Progress = field(default_factory=Progress)
    exact: bool = False
    """Nothing that is trained has changed since the checkpoint: everything goes on as it was."""
    optimizer: bool = False
    feed: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    """What 'auto' meant when the run began."""
    metrics_offset: int = 0
    samples_offset: int = 0
    notices: list[str] = field(default_factory=list)


def carry_over(state: dict[str, Any] | None, preset: Preset, *, device: str) -> Carried:
    """Compare the checkpoint's preset with the one that is to be trained.

    Raises:
        ValueError: the tokenizer is another one, so that the weights would mean nothing.
    """
    if state is None:
        return Carried()
    progress = Progress.from_state_dict(state["progress"])
    differing = [change for change in changes(state["preset"], resolved(preset)) if change.effect != NOTHING]
    for change in differing:
        if change.key.startswith("tokenizer"):
            raise ValueError(
                f"{change.key}: {change.new!r}, but the model in {preset.run_dir} was trained with {change.old!r}: "
                "put it back, or give this preset another output_dir"
            )
    effects = {change.effect for change in differing}
    same_optimizer = not effects & {OPTIMIZER, MODEL}
    same_feed = FEED not in effects
    notices = [_described(change) for change in differing]
    patience = preset.train.early_stopping_evals  # possibly another one than that which ended the run
    progress.stopped_early = patience is not None and progress.evals_since_best >= patience
    if any(change.key in ("train.learning_rate", "train.muon_learning_rate") for change in differing):
        progress.rollbacks, progress.rate_scale = 0, 1.0  # a rate that was chosen anew is the one that is meant
    if not same_feed:
        progress.start_new_budget()
        progress.best_val_loss = None  # measured on other text
    if not effects:
        notices += _inexact(state["environment"], device)
    return Carried(
        progress=progress,
        exact=not effects,
        optimizer=same_optimizer,
        feed=same_feed,
        precision=state["precision"] if preset.train.precision == "auto" else None,
        metrics_offset=state["files"]["metrics"],
        samples_offset=state["files"]["samples"],
        notices=notices,
    )


def _described(change: Change) -> str:
    effect = {
        APPLIES: "everything carries over",
        FEED: "weights and optimizer carry over, the data starts anew",
        OPTIMIZER: "weights carry over, the optimizer starts anew",
        MODEL: "the weights must fit it, the optimizer starts anew",
    }[change.effect]
    return f"changed preset: {change.key} was {_short(change.old)}, now {_short(change.new)}: {effect}"


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _inexact(environment: dict[str, Any], device: str) -> list[str]:
    """Why a resume is exact in data and state, but its arithmetic may round differently."""
    reasons = []
    for name, now in (("torch", str(torch.__version__)), ("device", device), ("threads", torch.get_num_threads())):
        if environment[name] != now:
            reasons.append(f"{name} was {environment[name]}, now {now}")
    if device != "cpu":
        reasons.append(f"kernels of {device} are fast, not deterministic")
    return [f"resumed exactly in data and state; arithmetic may round differently ({'; '.join(reasons)})"] if reasons else []
