"""The forecast: what a preset will take on this machine, measured on its worst batch before it is trained."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lmloop.data.corpus import CHARACTERS_PER_TOKEN, open_corpus
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import Source
from lmloop.durable import atomic_write
from lmloop.hardware import Machine, compiles, pick_precision, this_machine, use_machine
from lmloop.models.build import build_model
from lmloop.models.loading import parameter_counts, trainable_and_total
from lmloop.models.pretrained import Pretrained
from lmloop.objectives.language import LanguageObjective
from lmloop.optim.build import build_optimizer
from lmloop.preset.reading import LoadedPreset, preset_hash
from lmloop.preset.schema import Preset
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.mixing import replay_of
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training import figures
from lmloop.training.fitting import most_rows
from lmloop.training.rehearsal import rehearse, too_large, worst_batch
from lmloop.training.schedule import Schedule
from lmloop.training.trainee import Trainee

MENU_TOKENS = 2_048
"""Tokens of the batch that the menu measures with: a token takes nearly as long as in the full batch."""
MENU_CHARACTERS = 320
"""Rows of a character vocabulary whose text was not read: 256 bytes and some letters."""
MEASURED_AFTER_S = 60.0
"""Seconds of training after which a session's own speed replaces the probe's."""
SAMPLE_CHARACTERS = 2_000_000
"""How much text is read to estimate the size of an epoch."""
CHECKPOINTS = 5
"""On the disk at the most: the current one, two before it, the best, and the one being written."""


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
    tokens: int
    """Trained tokens of the run."""
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As `plan --json` prints it."""
        return asdict(self)


def this_plan(loaded: LoadedPreset) -> Plan:
    """Measure the preset on this machine: some seconds of its worst batch, with a model that is thrown away."""
    preset = loaded.preset
    sources = _sources(preset)
    tokenizer = _tokenizer(preset, sources)
    vocab_size = tokenizer.vocab_size if tokenizer else preset.tokenizer.vocab_size
    packed = sources is None or len(sources) > 1 or sources[0].parents() is None or len(sources[0].parents() or []) > 1
    plan = _measure(preset, vocab_size, packed=packed, at_least_s=2.0, tokens=_run_tokens(preset, sources, tokenizer))
    _remember(preset, plan)
    return plan


def menu_forecasts(presets: list[LoadedPreset], console: Console) -> dict[Path, str]:
    """A line for each preset, by its file: this machine's cached plan, or a short measurement made now and kept."""
    machine, lines = this_machine(), dict[Path, str]()
    cache = _read_cache()
    for loaded in presets:
        preset = loaded.preset
        known = cache.get(_cache_key(preset, machine))
        if known is None and preset.model.pretrained is not None:  # it may have to be fetched, and be large
            lines[loaded.path] = f"fine-tunes {preset.model.pretrained}; `lmloop plan` says how long"
            continue
        if known is None:
            with console.status(f"measuring this machine (once): {preset.name} ..."):
                try:
                    tokens = _run_tokens(preset, None, None)
                    vocab_size = MENU_CHARACTERS if preset.tokenizer.type == "char" else preset.tokenizer.vocab_size
                    rows = max(MENU_TOKENS // preset.model.seq_length, 1)
                    plan = _measure(preset, vocab_size, packed=True, at_least_s=0.3, tokens=tokens, at_most_rows=rows)
                except (RuntimeError, ValueError) as error:  # out of memory, a length that does not fit
                    lines[loaded.path] = str(error).splitlines()[0][:80]
                    continue
            _remember(preset, plan)
            known = plan.as_dict()
        lines[loaded.path] = forecast_line(known["tokens"], known["seconds"])
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
    table.add_row("speed", f"{plan.tokens_per_s:,.0f} tokens/s")
    table.add_row("the run", forecast_line(plan.tokens, plan.seconds))
    Console().print(table)


def require_room(preset: Preset, vocab_size: int, machine: Machine, *, parts: int = 1) -> None:
    """Refuse what exceeds the machine's memory by weights, gradients, moments and what enters each block alone.

    parts: in how many the first three are held, each by another process.

    Nothing of it is allocated for that. On a CPU no allocation fails:
    the kernel would end the process, and others with it, once the memory is touched.

    Raises:
        ValueError: it does not fit.
    """
    size = _size(preset, vocab_size, bf16=pick_precision(preset.train.precision, machine) == "bf16")
    needed = (size.held + 4 * size.trained) // parts  # gradients are fp32
    has = figures.size(machine.memory_bytes)
    if needed > machine.memory_bytes:
        smaller = "lower model.hidden_size or model.num_layers"
        if preset.model.pretrained is not None:
            packs = machine.device != "mps" and not (preset.adapter and preset.adapter.quantize)
            smaller = "set adapter.quantize 'nf4'" if packs else "take a smaller base"
        raise ValueError(
            f"model: {figures.count(size.parameters)} parameters need {figures.size(needed)} for weights, gradients and "
            f"moments, this machine has {has}: {smaller}"
        )
    rows, length = preset.train.rows_at_once(auto=1), preset.model.seq_length
    stored = 1 if preset.train.activation_checkpointing else size.layers
    activations = rows * length * size.width * 4 * stored
    if needed + activations > machine.memory_bytes:
        raise ValueError(
            f"train.per_gpu_batch_size {rows}: a batch of rows of {length} tokens does not fit in memory ({has}): "
            "halve it and double train.accumulation_steps"
        )


def checkpoint_bytes(preset: Preset, vocab_size: int) -> int:
    """About what a run's folder takes, without building the model."""
    return CHECKPOINTS * _size(preset, vocab_size).stored


@dataclass(frozen=True)
class _Size:
    """How large a preset's model is: parameters, those that are trained, bytes of a checkpoint, bytes of weights and moments
    in memory, width of the residual stream and number of blocks."""

    parameters: int
    trained: int
    stored: int
    held: int
    width: int
    layers: int


def _size(preset: Preset, vocab_size: int, *, bf16: bool = False) -> _Size:
    """Without building the model. A base in 4 bits takes half a byte for a number, and as much for its constants as to
    make that 0.56 (arXiv 2305.14314 has 0.52 with double quantization); its embedding and head stay as they are."""
    section, adapter = preset.model, preset.adapter
    with torch.device("meta"):
        model = build_model(section, vocab_size, seed=0, adapter=adapter, bf16=bf16)
    trained, parameters = trainable_and_total(model)
    moments = {"adamw": 2, "muon": 1, "sgd": 1}[preset.train.optimizer]
    stored = (1 + moments) * 4 * trained
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    if adapter is not None and adapter.quantize is not None:
        blocks = parameter_counts(model)["blocks"] - trained
        frozen += round(blocks * (0.56 - (frozen / max(parameters - trained, 1))))
    width, layers = section.hidden_size, section.num_layers
    if isinstance(model, Pretrained):
        width, layers = model.head_weight().shape[1], max(len(list(model.blocks())), 1)
    return _Size(parameters, trained, stored, stored + frozen, width, layers)


def _measure(
    preset: Preset, vocab_size: int, *, packed: bool, at_least_s: float, tokens: int, at_most_rows: int | None = None
) -> Plan:
    machine, train = this_machine(), preset.train
    use_machine(machine, train.threads)
    precision = pick_precision(train.precision, machine)
    require_room(preset, vocab_size, machine)
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
    objective = LanguageObjective()
    trainee: nn.Module = Trainee(model, objective)
    autocast, length = precision == "bf16", preset.model.seq_length
    rows = min(train.rows_at_once(auto=train.rows_per_step()), train.rows_per_step())
    try:
        if train.per_gpu_batch_size == "auto":
            batch = partial(worst_batch, length=length, vocab_size=vocab_size, packed=packed)
            rows = most_rows(rows, trainee, objective, batch, machine, autocast=autocast)
        if compiles(train.compile, machine):
            trainee = cast(nn.Module, torch.compile(trainee))
        passes = -(-train.rows_per_step() // rows)
        rows = min(rows, at_most_rows or rows)
        measured = rehearse(
            trainee,
            objective,
            worst_batch(rows, length, vocab_size, packed=packed),
            machine.torch_device,
            autocast=autocast,
            optimizer=optimizer,
            accumulation_steps=passes,
            at_least_s=at_least_s,
        )
    except RuntimeError as error:
        raise too_large(error, rows, length) from None
    counts = parameter_counts(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    moments = _tensor_bytes(optimizer.state_dict())
    known = {"weights": weights, "gradients": trained, "optimizer": moments}
    return Plan(
        preset=preset.name,
        machine=machine.describe(),
        precision=precision,
        parameters=counts["total"],
        parameters_by_part=counts,
        trainable_parameters=trainable_and_total(model)[0],
        memory_bytes=measured.memory_bytes,
        memory_by_part={**known, "activations and program": max(measured.memory_bytes - sum(known.values()), 0)},
        disk_bytes=CHECKPOINTS * (trained + moments),
        tokens_per_s=round(measured.tokens_per_s, 1),
        tokens=tokens,
        seconds=round(tokens / measured.tokens_per_s, 3),
    )


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_tensor_bytes(item) for item in value)
    return 0


def _sources(preset: Preset) -> list[Source] | None:
    """The training sources, where the plan depends on them: a vocabulary or a budget that the text decides."""
    if (
        preset.tokenizer.type != "char"
        and Schedule(preset.train, seq_length=preset.model.seq_length, tokens_per_step=1).unit != "epochs"
    ):
        return None
    section = preset.data
    corpus = open_corpus(
        section,
        seed=preset.train.seed,
        eval_tokens=preset.train.eval_tokens,
        run_dir=None,
        quarantine=Quarantine(None, section.max_bad_fraction),
    )
    return corpus.train


def _tokenizer(preset: Preset, sources: list[Source] | None) -> Tokenizer | None:
    if preset.tokenizer.type == "bpe" or (sources is None and preset.tokenizer.type != "pretrained"):
        return None  # its size is what the preset says, and training one takes longer than the plan
    return build_tokenizer(preset.tokenizer, sources or [])


def _run_tokens(preset: Preset, sources: list[Source] | None, tokenizer: Tokenizer | None) -> int:
    """Trained tokens of the run; 0 where that depends on data that was not opened."""
    per_step = preset.train.rows_per_step() * preset.model.seq_length
    schedule = Schedule(preset.train, seq_length=preset.model.seq_length, tokens_per_step=per_step)
    if schedule.unit == "tokens":
        return schedule.amount
    if schedule.unit == "steps":
        return schedule.amount * per_step
    sources = sources or []
    replay = replay_of(preset.data, [source.name for source in sources])
    new = sum(_source_tokens(s, tokenizer) for s, is_old in zip(sources, replay.is_old_S, strict=True) if not is_old)
    return round(schedule.amount * new / (1.0 - replay.share))


def _source_tokens(source: Source, tokenizer: Tokenizer | None) -> int:
    """Tokens of one pass, extrapolated from its beginning."""
    characters = documents = 0
    progress, text = 0.0, ""
    for document, _ in source.read({}):
        characters += len(document.text)
        documents += 1
        progress = document.progress
        text = text or document.text[:50_000]
        if characters >= SAMPLE_CHARACTERS and progress > 0:
            break
    else:
        progress = 1.0
    rate = CHARACTERS_PER_TOKEN if tokenizer is None else max(len(text), 1) / max(len(tokenizer.encode(text)), 1)
    return round((characters / rate + documents) / max(progress, 1e-6))


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
            _write_cache(preset, {**known, "tokens_per_s": speed, "seconds": round(known["tokens"] / speed, 1)})


def _cache_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmloop" / "plans.json"


def _cache_key(preset: Preset, machine: Machine) -> str:
    return f"{machine.fingerprint}-{torch.__version__}-{preset_hash(preset)[:16]}"


def _read_cache() -> dict[str, dict[str, Any]]:
    try:
        cache = json.loads(_cache_path().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    plans = cache if isinstance(cache, dict) else {}
    return {key: plan for key, plan in plans.items() if isinstance(plan, dict) and _says_how_long(plan)}


def _says_how_long(plan: dict[str, Any]) -> bool:
    return all(type(plan.get(key)) in (int, float) and 0 <= plan[key] < 1e18 for key in ("tokens", "seconds"))


def _remember(preset: Preset, plan: Plan) -> None:
    _write_cache(preset, plan.as_dict())


def _write_cache(preset: Preset, entry: dict[str, Any]) -> None:
    """Keep a plan for the menu; a cache that cannot be written is only slower."""
    try:
        _cache_path().parent.mkdir(parents=True, exist_ok=True)
        atomic_write(_cache_path(), json.dumps({**_read_cache(), _cache_key(preset, this_machine()): entry}))
    except OSError:
        return
