"""Signals, several stops in a row, and losses that are no numbers: a run saves, goes on exactly, or says why it ends."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmloop.training.trainee import Trainee
from tests.strikes import Install, at_operation, in_evaluation, in_sampling, in_step, waiting_for_data, with_data, wrap
from tests.torture.harness import differences, in_child, prepare, run_to_end, tiny_preset
from tests.torture.workshop import Result, Workshop, documents, record_documents


def signals(folder: Path, *, repeats: int = 1) -> Result:
    """SIGINT and SIGTERM in a step, an evaluation, a save, a sample, and waiting for data: saved, exit 0, resume exact."""
    shop, result = Workshop(folder), Result()
    places = {
        "in a step": in_step,
        "in evaluation": in_evaluation,
        "in a save": at_operation,
        "while sampling": in_sampling,
        "waiting for data": waiting_for_data,
    }
    for repeat in range(repeats):
        for number in (signal.SIGINT, signal.SIGTERM):
            for place, strike in places.items():
                at = {"in a step": 17, "in evaluation": 2, "while sampling": 1}.get(place, 9) + repeat
                what = f"{number.name} {place}"
                case = shop.case(what.replace(" ", "-"))
                ended = run_to_end(case, strike(at, lambda number=number: os.kill(os.getpid(), number)))
                if ended.status != 0:
                    result.failures.append(f"{what}: exit {ended.status}: {ended.output[-500:]}")
                if json.loads((case / "run" / "run.json").read_text())["status"] != "stopped":
                    result.failures.append(f"{what}: run.json does not say that the run was stopped")
                shop.finish(case, result, what)
    return result


def resumes_keep_the_order(folder: Path, *, workers: tuple[int, ...] = (0, 2)) -> Result:
    """Stopped three times in a row, mid-epoch and at an epoch's end: the documents come exactly as in one run."""
    result = Result()
    sources = [{"type": "files", "path": "corpus", "file_pattern": pattern} for pattern in ("0[0-2].txt", "0[3-5].txt")]
    for mix in ("round_robin", "sequential"):
        orders: list[list[Any]] = []
        for count in workers:
            shop = Workshop(
                folder / f"{mix}-{count}",
                lines=16,
                data={"workers": count, "mix_strategy": mix, "sources": sources},
                train={"epochs": 3, "max_steps": None},
            )
            trained = documents(shop.reference)
            epoch = len(trained) // 3
            case = shop.case("stopped")
            # In the middle of an epoch, before its end has shown, and after: the call that shows it trains nothing.
            for steps, calls in ((epoch // 2, epoch // 2), (epoch, epoch - epoch // 2), (epoch, 1)):
                term = with_data(calls, lambda: os.kill(os.getpid(), signal.SIGTERM))

                def both(term: Callable[[], None] = term, case: Path = case) -> None:
                    term()
                    record_documents(case)()

                ended = run_to_end(case, both)
                result.cases += 1
                if ended.status != 0 or len(documents(case)) != steps:
                    result.failures.append(f"{mix}, {count} workers: {len(documents(case))} steps: {ended.output[-300:]}")
            run_to_end(case, record_documents(case))
            if documents(case) != trained:
                result.failures.append(f"{mix}, {count} workers: another order after three resumes")
            result.failures += [f"{mix}, {count} workers: {line}" for line in differences(shop.reference, case)[:3]]
            orders.append(trained)
        if any(order != orders[0] for order in orders):
            result.failures.append(f"{mix}: the order depends on the number of workers")
    return result


def second_signal(folder: Path) -> Result:
    """A second signal ends the process at once, whatever it is doing."""
    result = Result(cases=1)
    case = folder / "impatient"
    prepare(case, tiny_preset(train={"max_steps": 100_000}))

    def stall() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30.0)

    started = time.perf_counter()
    ended = run_to_end(case, in_step(9, stall))
    if ended.status != 130 or time.perf_counter() - started > 15.0:
        result.failures.append(f"exit {ended.status}: {ended.output[-300:]}")
    return result


def bad_numbers(folder: Path) -> Result:
    """Non-finite losses: one is skipped; several in a row roll back at half the rate; endless ones end the run."""
    result = Result()

    def poison(first: int, last: int, value: float) -> Install:
        def made(inner: Callable[..., Any]) -> Callable[..., Any]:
            calls = 0

            def forward(self: Any, batch: Any) -> Any:
                nonlocal calls
                calls += 1
                terms = inner(self, batch)
                if first <= calls <= last and self.training:
                    return {name: replace(term, sum=term.sum * value) for name, term in terms.items()}
                return terms

            return forward

        return wrap(Trainee, "forward", made)

    # Two micro-batches an update, and two passes of the rehearsal before the first one.
    cases = {
        "one NaN": (poison(13, 13, math.nan), 0, 1, 0),
        "one infinity": (poison(13, 13, math.inf), 0, 1, 0),
        "three in a row": (poison(13, 18, math.nan), 0, 3, 1),
        "without end": (poison(13, 10**9, math.nan), 1, 9, 2),
    }
    for name, (before, status, skipped, rollbacks) in cases.items():
        result.cases += 1
        case = folder / name.replace(" ", "-")
        prepare(case, tiny_preset())
        ended = run_to_end(case, before)
        if ended.status != status:
            result.failures.append(f"{name}: exit {ended.status}: {ended.output[-500:]}")
            continue
        state = in_child(lambda case=case: _finite_and_progress(case / "run" / "lm_current.pth"))
        if not state["finite"]:
            result.failures.append(f"{name}: a non-finite model was saved")
        if status == 0 and (state["skipped"], state["rollbacks"], state["rate_scale"]) != (
            skipped,
            rollbacks,
            0.5**rollbacks,
        ):
            result.failures.append(f"{name}: {state}")
        if "not finite" not in ended.output:
            result.failures.append(f"{name}: nothing was said")
    return result


def _finite_and_progress(path: Path) -> dict[str, Any]:
    import torch

    state = torch.load(path, weights_only=True)
    finite = all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    return {"finite": finite, **{key: state["progress"][key] for key in ("skipped", "rollbacks", "rate_scale")}}
