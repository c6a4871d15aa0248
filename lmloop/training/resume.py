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
    global_batch_size: int = 0
    """Rows of `seq_length` tokens in one update, of all processes together."""
    notices: list[str] = field(default_factory=list)


def carry_over(state: dict[str, Any] | None, preset: Preset, *, device: str, world: int = 1) -> Carried:
    """Compare the checkpoint's preset with the one that is to be trained, here by `world` processes.

    Raises:
        ValueError: the tokenizer is another one, so that the weights would mean nothing.
    """
    if state is None:
        return Carried(global_batch_size=preset.train.rows_per_step(world))
    progress = Progress.from_state_dict(state["progress"])
    differing = [change for change in changes(state["preset"], resolved(preset)) if change.effect != NOTHING]
    for change in differing:
        if change.key.startswith("tokenizer") and not _comes_with_base(change.key, preset):
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
    resized = {change.key for change in differing} & {f"train.{key}" for key in _BATCH_KEYS}
    if resized:
        progress.tokens_at_a_time = 0  # it belonged to the batch that was
    global_batch_size = preset.train.global_batch_size or (
        preset.train.rows_per_step(world) if resized else state.get("global_batch_size", preset.train.rows_per_step(1))
    )
    now = {"torch": str(torch.__version__), "device": device, "threads": torch.get_num_threads()}
    if world > 1:
        now["parallel"] = preset.train.parallel
    processes_before = state["environment"].get("processes", 1)
    if effects and processes_before != world and not resized:
        notices.append(f"processes was {processes_before}, now {world}: an update stays {global_batch_size:,} rows")
    if not effects:
        notices += _inexact(state["environment"], {"processes": world, **now}, global_batch_size)
    return Carried(
        progress=progress,
        exact=not effects,
        optimizer=same_optimizer,
        feed=same_feed,
        precision=state["precision"] if preset.train.precision == "auto" else None,
        metrics_offset=state["files"]["metrics"],
        samples_offset=state["files"]["samples"],
        global_batch_size=global_batch_size,
        notices=notices,
    )


def _comes_with_base(key: str, preset: Preset) -> bool:
    """A base that lies elsewhere by now has its tokenizer there, which is that of the checkpoint if the base is the same."""
    of_place = key in ("tokenizer.path", "tokenizer.revision")
    return of_place and preset.model.pretrained is not None and preset.tokenizer.path == preset.model.pretrained


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


_BATCH_KEYS = ("per_gpu_batch_size", "accumulation_steps", "global_batch_size")


def _inexact(before: dict[str, Any], now: dict[str, Any], global_batch_size: int) -> list[str]:
    """Why a resume is exact in data and state, but its arithmetic may round differently."""
    before = {"processes": 1, "parallel": now.get("parallel"), **before}
    reasons = [f"{name} was {before[name]}, now {value}" for name, value in now.items() if before[name] != value]
    if before["processes"] != now["processes"]:
        reasons[0] += f", an update stays {global_batch_size:,} rows"
    if now["device"] != "cpu":
        reasons.append(f"kernels of {now['device']} are fast, not deterministic")
    return [f"resumed exactly in data and state; arithmetic may round differently ({'; '.join(reasons)})"] if reasons else []
