"""The forecast: what a preset will take on this machine, measured on its worst batch before it is trained."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lmloop.durable import atomic_write
from lmloop.forecast import FORWARD_SHARE, Speeds, Work, reflections, save_seconds, time_by_part
from lmloop.hardware import Machine, compiles, forget_memory, memory_in_use_bytes, pick_precision, this_machine, use_machine
from lmloop.models.build import build_model
from lmloop.models.loading import parameter_counts, trainable_and_total
from lmloop.objectives.language import LanguageObjective
from lmloop.optim.build import build_optimizer
from lmloop.plan_data import Opened, open_data
from lmloop.plan_speed import time_reading, time_training, time_writing
from lmloop.preset.reading import LoadedPreset, preset_hash
from lmloop.preset.schema import Preset
from lmloop.room import CHECKPOINTS, require_room
from lmloop.training import figures
from lmloop.training.fitting import most_rows
from lmloop.training.rehearsal import rehearse, too_large, worst_batch
from lmloop.training.schedule import Schedule
from lmloop.training.state import Progress
from lmloop.training.trainee import Trainee

IMPORTED_S = time.process_time()
"""What the program took until this module was there: as long as in a run, which imports hardly more."""
FORMAT = 2
"""Of a plan that is kept: others are measured anew."""
MENU_TOKENS = 2_048
"""Tokens of the batch that the menu measures with: a token takes nearly as long as in the full batch."""
MENU_CHARACTERS = 320
"""Rows of a character vocabulary whose text was not read: 256 bytes and some letters."""
MEASURED_AFTER_S = 60.0
"""Seconds of training after which a session's own speed replaces the probe's."""


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    preset: str
    machine: str
    precision: str
    parameters: int
    parameters_by_part: dict[str, int]
    trainable_parameters: int
    memory_bytes: int
    memory_by_part: dict[str, int]
    disk_bytes: int
    tokens_per_s: float
    """Trained tokens; waiting for data and the optimizer are included, and where rows change their length it is the mean."""
    read_tokens_per_s: float
    """In an evaluation."""
    written_tokens_per_s: float
    """Of one sample."""
    steps: int
    tokens: int
    """Trained tokens of the run."""
    seconds: float
    """Of the whole run, from the start of the program to its end."""
    time_by_part: dict[str, float]
    """What they are made of; see `forecast.time_by_part`."""
    notices: list[str] = field(default_factory=list)
    """What could not be looked at, a line each."""

    def as_dict(self) -> dict[str, Any]:
        """As `plan --json` prints it."""
        return asdict(self)


def this_plan(loaded: LoadedPreset) -> Plan:
    """Measure the preset on this machine: some seconds of its own data, with a model that is thrown away."""
    preset = loaded.preset
    use_machine(this_machine(), preset.train.threads)
    opened = open_data(preset, _schedule(preset))
    if isinstance(opened, str):
        plan = _measure(preset, preset.tokenizer.vocab_size, at_least_s=4.0, notices=[opened])
    else:
        try:
            vocab_size, notices = opened.tokenizer.vocab_size, opened.notices
            plan = _measure(preset, vocab_size, opened=opened, at_least_s=4.0, notices=notices)
        finally:
            opened.feed.close()
    _write_cache(preset, plan.as_dict())
    return plan


def menu_forecasts(presets: list[LoadedPreset], console: Console) -> dict[Path, str]:
    """A line for each preset, by its file: this machine's cached plan, or a short measurement made now and kept."""
    machine, lines, measured = this_machine(), dict[Path, str](), False
    cache = _read_cache()
    for loaded in presets:
        preset = loaded.preset
        known = cache.get(_cache_key(preset, machine))
        if known is None and preset.model.pretrained is not None:  # it may have to be fetched, and be large
            lines[loaded.path] = f"fine-tunes {preset.model.pretrained}; `lmloop plan` says how long"
            continue
        if known is None:
            measured = True
            with console.status(f"measuring this machine (once): {preset.name} ..."):
                try:
                    vocab_size = MENU_CHARACTERS if preset.tokenizer.type == "char" else preset.tokenizer.vocab_size
                    rows = max(MENU_TOKENS // preset.model.seq_length, 1)
                    plan = _measure(preset, vocab_size, at_least_s=0.3, at_most_rows=rows)
                except (RuntimeError, ValueError) as error:  # out of memory, a length that does not fit
                    lines[loaded.path] = str(error).splitlines()[0][:80]
                    continue
            known = plan.as_dict()
            _write_cache(preset, known)
        lines[loaded.path] = forecast_line(known["tokens"], known["seconds"])
    if measured:
        forget_memory(machine.torch_device)  # of the run that follows the peak is shown and kept
    return lines


def forecast_line(tokens: int, seconds: float) -> str:
    """'100 M tokens, about 1 h 20 min'."""
    return f"{figures.count(tokens)} tokens, about {figures.duration(seconds)}" if tokens else "as long as its data is"


def print_plan(plan: Plan) -> None:
    """The forecast as a table."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    parts = ", ".join(
        f"{name} {figures.count(count)}" for name, count in plan.parameters_by_part.items() if name != "total" and count
    )
    memory = ", ".join(f"{name} {figures.size(size)}" for name, size in plan.memory_by_part.items())
    table.add_row("preset", plan.preset)
    table.add_row("machine", f"{plan.machine}, {plan.precision}")
    table.add_row("parameters", f"{plan.parameters:,} ({parts})")
    if plan.trainable_parameters != plan.parameters:
        share = plan.trainable_parameters / plan.parameters
        table.add_row("trained", f"{plan.trainable_parameters:,} of them ({share:.2%})")
    table.add_row("memory", f"{figures.size(plan.memory_bytes)} ({memory})")
    table.add_row("disk", f"{figures.size(plan.disk_bytes)} of checkpoints")
    reads, writes = plan.read_tokens_per_s, plan.written_tokens_per_s
    written = f", written {writes:,.0f}" if writes else ""
    table.add_row("speed", f"{plan.tokens_per_s:,.0f} tokens/s (evaluated {reads:,.0f}{written})")
    table.add_row("the run", forecast_line(plan.tokens, plan.seconds))
    if plan.tokens:
        shown = [f"{name} {figures.duration(part)}" for name, part in plan.time_by_part.items() if part >= 0.05]
        table.add_row("", ", ".join(shown))
    for notice in plan.notices:
        table.add_row("", notice)
    Console().print(table)


def _measure(
    preset: Preset,
    vocab_size: int,
    *,
    at_least_s: float,
    opened: Opened | None = None,
    notices: list[str] | None = None,
    at_most_rows: int | None = None,
) -> Plan:
    """Build and train the model for a moment: on the data where it is `opened`, else on the worst batch.

    at_most_rows: of one forward pass, where it need not be exact.
    """
    machine, train, length = this_machine(), preset.train, preset.model.seq_length
    start_s = _imports_s() + (opened.seconds if opened else 0.0)
    use_machine(machine, train.threads)
    precision = pick_precision(train.precision, machine)
    require_room(preset, vocab_size, machine)
    started = time.perf_counter()
    model = build_model(
        preset.model,
        vocab_size,
        seed=train.seed,
        adapter=preset.adapter,
        bf16=precision == "bf16",
        device=machine.torch_device,
    ).to(machine.torch_device)
    model.activation_checkpointing = train.activation_checkpointing
    optimizer = build_optimizer(model, train)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay as they are, so that what is written is text as at the beginning
    objective = LanguageObjective()
    trainee: nn.Module = Trainee(model, objective)
    autocast, schedule, packed = precision == "bf16", _schedule(preset), opened is None or opened.packed
    rows = min(train.rows_at_once(auto=train.rows_per_step()), train.rows_per_step())
    try:
        batch = partial(worst_batch, vocab_size=vocab_size, packed=packed)
        if train.per_gpu_batch_size == "auto" and at_most_rows is None:
            rows = most_rows(rows, trainee, objective, partial(batch, length=length), machine, autocast=autocast)
        passes = -(-train.rows_per_step() // rows)
        rows = min(rows, at_most_rows or rows)
        rehearsal = rehearse(trainee, objective, batch(rows, length), machine.torch_device, autocast=autocast)
        start_s += time.perf_counter() - started
        if compiles(train.compile, machine):
            trainee = cast(nn.Module, torch.compile(trainee))
        pace = time_training(
            preset,
            schedule,
            trainee,
            optimizer,
            opened,
            batch,
            rows=rows,
            passes=passes,
            autocast=autocast,
            at_least_s=at_least_s,
        )
        read_per_s, evaluated = time_reading(preset, model, opened, vocab_size, autocast=autocast, at_least_s=at_least_s / 4)
        write_s = time_writing(preset, model, opened, autocast=autocast, at_most_s=at_least_s / 4)
    except RuntimeError as error:
        raise too_large(error, rows, length) from None
    memory_bytes = max(rehearsal.memory_bytes, memory_in_use_bytes(machine.torch_device))
    counts = parameter_counts(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    moments = _tensor_bytes(optimizer.state_dict())
    known = {"weights": weights, "gradients": trained, "optimizer": moments}
    steps, tokens = _amount(schedule, opened, pace.tokens)
    parts = time_by_part(
        preset,
        Work(
            steps=steps,
            evaluated_positions=evaluated,
            questions=opened.questions if opened else preset.generation.questions,
            reflections=reflections(preset, schedule, tokens),
        ),
        Speeds(
            start_s=start_s,
            compile_s=pace.extra_s if compiles(train.compile, machine) else 0.0,
            update_s=pace.seconds,
            read_per_s=read_per_s,
            write_s=write_s,
            save_s=save_seconds(trained + moments),
        ),
    )
    return Plan(
        preset=preset.name,
        machine=machine.describe(),
        precision=precision,
        parameters=counts["total"],
        parameters_by_part=counts,
        trainable_parameters=trainable_and_total(model)[0],
        memory_bytes=memory_bytes,
        memory_by_part={**known, "activations and program": max(memory_bytes - sum(known.values()), 0)},
        disk_bytes=CHECKPOINTS * (trained + moments),
        tokens_per_s=round(pace.tokens / pace.seconds, 1),
        read_tokens_per_s=round(read_per_s, 1),
        written_tokens_per_s=round(1 / write_s, 1) if write_s else 0.0,
        steps=steps,
        tokens=tokens,
        seconds=round(sum(parts.values()), 3) if tokens else 0.0,
        time_by_part=parts,
        notices=notices or [],
    )


@cache
def _imports_s() -> float:
    """What a run takes until everything is imported; the first optimizer of a process imports PyTorch's compiler."""
    started = time.perf_counter()
    importlib.import_module("torch._dynamo")
    return IMPORTED_S + time.perf_counter() - started


def _schedule(preset: Preset) -> Schedule:
    length = preset.model.seq_length
    return Schedule(preset.train, seq_length=length, tokens_per_step=preset.train.rows_per_step() * length)


def _amount(schedule: Schedule, opened: Opened | None, update_tokens: float) -> tuple[int, int]:
    """Updates and trained tokens of the run; 0 where that depends on data that was not opened."""
    if schedule.unit == "tokens":
        return math.ceil(schedule.amount / update_tokens), schedule.amount
    if schedule.unit == "steps":
        return schedule.amount, round(schedule.amount * update_tokens)
    return (schedule.amount * opened.steps, schedule.amount * opened.tokens) if opened else (0, 0)


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_tensor_bytes(item) for item in value)
    return 0


def remaining_line(
    preset: Preset, schedule: Schedule, progress: Progress, fraction: float, tokens_per_s: float, *, answers: bool
) -> str:
    """What is left of a run, for its first lines: by the plan of this preset where this machine has one, else by the speed
    that was just measured; '' where the budget counts epochs and nothing is known.

    answers: only these are trained of a row, and without a plan nobody knows how many tokens that makes.
    """
    known = _read_cache().get(_cache_key(preset, this_machine()))
    if known is not None and known["tokens"]:
        left = 1.0 - fraction
        return forecast_line(round(left * known["tokens"]), left * (known["seconds"] - known["time_by_part"]["start"]))
    tokens = schedule.tokens_left(progress)
    if not tokens:
        return ""
    tokens_per_step = schedule.tokens_per_step
    steps = math.ceil(tokens / tokens_per_step)
    parts = time_by_part(
        preset,
        Work(steps, progress.run_steps, preset.train.eval_tokens, reflections=reflections(preset, schedule, tokens)),
        Speeds(
            start_s=0.0,
            compile_s=0.0,
            update_s=tokens_per_step / tokens_per_s,
            read_per_s=tokens_per_s / FORWARD_SHARE,
            write_s=0.0,
            save_s=save_seconds(0),
        ),
    )
    seconds = sum(parts.values())
    return f"about {figures.duration(seconds)}" if answers else forecast_line(tokens, seconds)


def remember_speed(preset: Preset, session: dict[str, Any], run_dir: Path) -> None:
    """After a session of some minutes: what the run really made is a better forecast than any probe."""
    trained_s = session["phases"]["train"] + session["phases"]["data"]
    machine = this_machine()
    known = _read_cache().get(_cache_key(preset, machine))
    if known is None or trained_s < MEASURED_AFTER_S:
        return
    with contextlib.suppress(OSError, LookupError, ValueError, TypeError, RecursionError):  # it is not worth an error
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        speeds = sorted(
            line["tokens_per_s"] for line in lines if line["step"] > session["from_step"] and line["tokens_per_s"]
        )
        if speeds:
            speed = speeds[len(speeds) // 2]
            parts = {**known["time_by_part"], "train": round(known["tokens"] / speed, 3)}
            seconds = round(sum(parts.values()), 3)
            _write_cache(preset, {**known, "tokens_per_s": speed, "time_by_part": parts, "seconds": seconds})


def _cache_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmloop" / "plans.json"


def _cache_key(preset: Preset, machine: Machine) -> str:
    return f"{FORMAT}-{machine.fingerprint}-{torch.__version__}-{preset_hash(preset)[:16]}"


def _read_cache() -> dict[str, dict[str, Any]]:
    try:
        cache = json.loads(_cache_path().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    plans = cache if isinstance(cache, dict) else {}
    return {key: plan for key, plan in plans.items() if isinstance(plan, dict) and _says_how_long(plan)}


def _says_how_long(plan: dict[str, Any]) -> bool:
    parts = plan.get("time_by_part")
    if not isinstance(parts, dict) or not {"start", "train"} <= set(parts):
        return False
    numbers = [plan.get("tokens"), plan.get("seconds"), *parts.values()]
    return all(type(number) in (int, float) and 0 <= number < 1e18 for number in numbers)


def _write_cache(preset: Preset, entry: dict[str, Any]) -> None:
    """Keep a plan for the menu; a cache that cannot be written is only slower."""
    try:
        _cache_path().parent.mkdir(parents=True, exist_ok=True)
        atomic_write(_cache_path(), json.dumps({**_read_cache(), _cache_key(preset, this_machine()): entry}))
    except OSError:
        return
