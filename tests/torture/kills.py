"""SIGKILL, wherever a run can be; then on to the end, which must be that of a run that nothing happened to."""

from __future__ import annotations

import importlib
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lmloop.training.writing import Writer
from tests.strikes import at_operation, in_evaluation, kill
from tests.torture.harness import start, wait
from tests.torture.workshop import FinetuningWorkshop, Result, Workshop


def kills(folder: Path, *, timed: int, in_saves: int, in_evaluations: int, seed: int = 0) -> Result:
    """SIGKILL at random times, inside saves and inside evaluations; then on to the end."""
    shop, result, chance = Workshop(folder), Result(), random.Random(seed)
    operations = shop.count_operations()
    batches = 3 * 4
    for number in range(timed):
        shop.killed(f"time-{number}", result, after_s=chance.uniform(0.0, 0.9 * shop.seconds))
    for number in range(in_saves):
        shop.killed(f"save-{number}", result, at_operation(chance.randrange(1, operations + 1), kill))
    for number in range(in_evaluations):
        shop.killed(f"evaluation-{number}", result, in_evaluation(chance.randrange(1, batches + 1), kill))
    return result


def kill_at_every_operation_of_a_save(folder: Path, *, every: int = 1) -> Result:
    """SIGKILL before each disk operation of one save in the middle of a run."""
    shop, result = Workshop(folder), Result()
    total = shop.count_operations()
    middle = total // 2
    for at in range(middle, min(middle + 45, total) + 1, every):
        case = shop.case(f"operation-{at}")
        ended = wait(start(case, at_operation(at, kill)), case)
        if ended.status != -signal.SIGKILL:
            result.failures.append(f"operation {at}: not killed but {ended.status}")
        shop.finish(case, result, f"operation {at}")
    return result


def _import_now(*names: str) -> None:
    """What each fork would else import itself, some seconds each."""
    for name in names:
        importlib.import_module(name)


def finetuning(folder: Path, *, timed: int, in_saves: int, seed: int = 0) -> Result:
    """SIGKILL of full fine-tuning, LoRA and QLoRA at random times and inside saves; then on to the end."""
    _import_now("bitsandbytes", "peft", "transformers.models.qwen3.modeling_qwen3")
    result, chance = Result(), random.Random(seed)
    for kind in ("full", "lora", "qlora"):
        _kill_at_random(FinetuningWorkshop(folder / kind, kind), kind, result, chance, timed, {"lm_": in_saves})
    return result


REFLECTIONS = (
    "I lose the thread in long lines, and I will look further back before I write.",
    "Short words come easily by now; the rare ones are what I have to practise next.",
    "My lines end where they should, but I repeat the same openings again and again.",
)


def journals(folder: Path, *, timed: int, in_appends: int, in_saves: int, seed: int = 0) -> Result:
    """SIGKILL of runs that keep a journal, from scratch and with LoRA: at random times, while the journal is written, and
    inside saves; then on to the end. The journal must be the same, byte for byte."""
    _import_now("peft", "transformers.models.qwen3.modeling_qwen3")

    def reflection(self: Any, prompt: str, tokens: int, number: int, stop: Callable[[], bool]) -> str | None:
        return None if stop() else REFLECTIONS[(number - 1) % len(REFLECTIONS)]  # as a larger model would write

    result, chance = Result(), random.Random(seed)
    changes: dict[str, Any] = {"train": {"epochs": 3, "max_steps": None}, "journal": {"rollback": True}}
    with patch.object(Writer, "reflection", reflection):
        shops = {
            "scratch": Workshop(folder / "scratch", lines=12, **changes),
            "lora": FinetuningWorkshop(folder / "lora", "lora", **changes),
        }
        for kind, shop in shops.items():
            whole = (shop.reference / "run" / "journal.md").read_bytes()
            if any(text.encode() not in whole for text in REFLECTIONS):
                result.failures.append(f"{kind}: the journal lacks an entry")
            _kill_at_random(shop, kind, result, chance, timed, {"journal": in_appends, "lm_": in_saves})
    return result


def _kill_at_random(
    shop: Workshop, kind: str, result: Result, chance: random.Random, timed: int, operations: dict[str, int]
) -> None:
    """At so many random times, and so often in operations on files with a word in their name."""
    strikes: list[tuple[str, int, int]] = []
    for of, count in operations.items():
        total = shop.count_operations(of=of)
        strikes += [(of, number, chance.randrange(1, total + 1)) for number in range(count)]
    for number in range(timed):
        shop.killed(f"{kind}-time-{number}", result, after_s=chance.uniform(0.2 * shop.seconds, shop.seconds))
    for of, number, at in strikes:
        shop.killed(f"{kind}-{of}-{number}", result, at_operation(at, kill, of=of))
