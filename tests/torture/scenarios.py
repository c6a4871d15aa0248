"""What a run must survive. Each scenario compares with one that nothing happened to; it returns what went wrong."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lmloop.generation.engine
import lmloop.tokens.feed
import lmloop.training.checkpoint
import lmloop.training.measures
import lmloop.training.trainee
import lmloop.training.writing
from lmloop import durable
from tests.distributed import faults
from tests.distributed import harness as ranks_harness
from tests.finetuning import write_finetuning
from tests.torture.harness import differences, in_child, prepare, run_to_end, start, tiny_preset, wait


@dataclass
class Result:
    """How a scenario went."""

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        """Count an event."""
        self.notes[what] = self.notes.get(what, 0) + 1


class Workshop:
    """A folder of runs of one preset, and the run that nothing happened to."""

    def __init__(self, folder: Path, *, lines: int = 40, **changes: dict[str, Any]) -> None:
        self.folder = folder
        self.preset = tiny_preset(**changes)
        self.reference = folder / "reference"
        prepare(self.reference, self.preset, lines=lines)
        started = time.perf_counter()
        ended = run_to_end(self.reference, record_documents(self.reference))
        self.seconds = time.perf_counter() - started
        assert ended.status == 0, ended.output

    def case(self, name: str) -> Path:
        """A fresh folder with the same corpus and preset."""
        folder = self.folder / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        shutil.copytree(self.reference / "corpus", folder / "corpus")
        prepare(folder, self.preset)
        return folder

    def finish(self, folder: Path, result: Result, what: str) -> None:
        """Run to the end and compare with the reference."""
        result.cases += 1
        ended = run_to_end(folder)
        if ended.status != 0:
            result.failures.append(f"{what}: ended with {ended.status}: {ended.output[-600:]}")
            return
        result.failures += [f"{what}: {line}" for line in differences(self.reference, folder)[:3]]
        journal = Path("run", "journal.md")
        if (self.reference / journal).exists() and not filecmp.cmp(
            self.reference / journal, folder / journal, shallow=False
        ):
            result.failures.append(f"{what}: another journal")
        leftovers = [path.name for path in (folder / "run").glob(".*") if path.name != ".lock"]
        if leftovers:
            result.failures.append(f"{what}: left {leftovers}")
        shutil.rmtree(folder)


# ---- where to strike ----


def _strike(at: int, action: Callable[[], None]) -> Callable[[], None]:
    """A function that acts at its `at`-th call (counted from 1)."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            action()

    return count


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_operation(at: int, action: Callable[[], None], names: tuple[str, ...] = (), *, of: str = "lm_") -> Callable[[], None]:
    """Act before the `at`-th disk operation on a checkpoint or its manifest, or on files with `of` in their name."""
    strike = _strike(at, action)

    def hook(operation: str, path: Path) -> None:
        if (of in path.name or operation == "fsync_dir") and (not names or operation in names):
            strike()

    def install() -> None:
        durable.before_operation = hook

    return install


def in_evaluation(at: int, action: Callable[[], None]) -> Callable[[], None]:
    """Act before the `at`-th batch that is evaluated."""
    strike = _strike(at, action)

    def install() -> None:
        inner = lmloop.training.measures.evaluate

        def evaluate(*args: Any, should_stop: Callable[[], bool], **named: Any) -> Any:
            def asked() -> bool:
                strike()
                return should_stop()

            return inner(*args, should_stop=asked, **named)

        lmloop.training.measures.evaluate = evaluate  # type: ignore[assignment]

    return install


def in_sampling(at: int, action: Callable[[], None]) -> Callable[[], None]:
    """Act when the `at`-th sample begins to be written."""
    strike = _strike(at, action)

    def install() -> None:
        inner = lmloop.generation.engine.Engine.generate

        def generate(*args: Any, **named: Any) -> Any:
            strike()
            return inner(*args, **named)

        lmloop.generation.engine.Engine.generate = generate  # type: ignore[method-assign]

    return install


def in_step(at: int, action: Callable[[], None]) -> Callable[[], None]:
    """Act in the middle of the `at`-th micro-batch."""
    strike = _strike(at, action)

    def install() -> None:
        inner = lmloop.training.trainee.Trainee.forward

        def forward(self: Any, batch: Any) -> Any:
            strike()
            return inner(self, batch)

        lmloop.training.trainee.Trainee.forward = forward  # type: ignore[method-assign]

    return install


def waiting_for_data(at: int, action: Callable[[], None], *, after: bool = False) -> Callable[[], None]:
    """Act when the `at`-th step asks for its batches; or `after` it has got them."""
    strike = _strike(at, action)

    def install() -> None:
        inner = lmloop.tokens.feed.TextFeed.next_step

        def next_step(self: Any, length: int) -> Any:
            if not after:
                strike()
            batches = inner(self, length)
            if after:
                strike()
            return batches

        lmloop.tokens.feed.TextFeed.next_step = next_step  # type: ignore[method-assign]

    return install


# ---- scenarios ----


def kills(folder: Path, *, timed: int, in_saves: int, in_evaluations: int, seed: int = 0) -> Result:
    """SIGKILL at random times, inside saves and inside evaluations; then on to the end."""
    shop, result, chance = Workshop(folder), Result(), random.Random(seed)
    operations = count_operations(shop)
    batches = 3 * 4

    def once(name: str, before: Callable[[], None], delay_s: float | None = None) -> None:
        case = shop.case(name)
        child = start(case, before)
        if delay_s is not None:
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
        ended = wait(child, case)
        result.note("killed" if ended.status == -signal.SIGKILL else "ended before the kill")
        shop.finish(case, result, name)

    for number in range(timed):
        once(f"time-{number}", lambda: None, chance.uniform(0.0, 0.9 * shop.seconds))
    for number in range(in_saves):
        once(f"save-{number}", at_operation(chance.randrange(1, operations + 1), _kill))
    for number in range(in_evaluations):
        once(f"evaluation-{number}", in_evaluation(chance.randrange(1, batches + 1), _kill))
    return result


def count_operations(shop: Workshop, *, of: str = "lm_") -> int:
    """Disk operations on checkpoints, or on files with `of` in their name, in one run."""
    case = shop.case("count")
    counted = case / "operations"

    def install() -> None:
        def hook(operation: str, path: Path) -> None:
            if of in path.name or operation == "fsync_dir":
                with counted.open("a") as file:
                    file.write("x")

        durable.before_operation = hook

    ended = run_to_end(case, install)
    assert ended.status == 0, ended.output
    number = counted.stat().st_size
    shutil.rmtree(case)
    return number


def kill_at_every_operation_of_a_save(folder: Path, *, every: int = 1) -> Result:
    """SIGKILL before each disk operation of one save in the middle of a run."""
    shop, result = Workshop(folder), Result()
    total = count_operations(shop)
    middle = total // 2
    for at in range(middle, min(middle + 45, total) + 1, every):
        case = shop.case(f"operation-{at}")
        ended = wait(start(case, at_operation(at, _kill)), case)
        if ended.status != -signal.SIGKILL:
            result.failures.append(f"operation {at}: not killed but {ended.status}")
        shop.finish(case, result, f"operation {at}")
    return result


def disk_full(folder: Path, *, every: int = 1) -> Result:
    """A full disk or an I/O error at each write of a save: training goes on, and ends as if nothing had happened."""
    shop, result = Workshop(folder), Result()
    names = ("open", "write", "fsync", "close", "replace", "link")
    for number, at in enumerate(range(1, 80, every)):
        code = errno.ENOSPC if number % 2 else errno.EIO

        def fail(code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        case = shop.case(f"full-{at}")
        ended = run_to_end(case, at_operation(at, fail, names))
        what = f"{errno.errorcode[code]} at operation {at}"
        if ended.status != 0:
            result.failures.append(f"{what}: ended with {ended.status}: {ended.output[-500:]}")
        if "attempt 1 of" not in ended.output:
            result.failures.append(f"{what}: nothing was said")
        shop.finish(case, result, what)
    return result


def disk_stays_full(folder: Path) -> Result:
    """A disk that stays full stops the run with a reason, the last good checkpoint whole."""
    shop, result = Workshop(folder), Result(cases=1)
    case = shop.case("stays-full")

    def install() -> None:
        writes = 0

        def hook(operation: str, path: Path) -> None:
            nonlocal writes
            if "lm_" in path.name and operation == "write":
                writes += 1
                if writes > 12:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        durable.before_operation = hook

    ended = run_to_end(case, install)
    if ended.status != 1 or "attempt 3 of 3" not in ended.output:
        result.failures.append(f"ended with {ended.status}: {ended.output[-500:]}")
    shop.finish(case, result, "with room again")
    return result


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
                term = waiting_for_data(calls, lambda: os.kill(os.getpid(), signal.SIGTERM), after=True)

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


def record_documents(folder: Path) -> Callable[[], None]:
    """Write down the documents of each step that is trained."""

    def install() -> None:
        inner = lmloop.training.loop.Trainer._step

        def step(self: Any, intake: Any, *args: Any) -> Any:
            with (folder / "documents.jsonl").open("a") as file:
                file.write(json.dumps([batch.documents_B for batch in intake.batches]) + "\n")
            return inner(self, intake, *args)

        lmloop.training.loop.Trainer._step = step  # type: ignore[method-assign]

    return install


def documents(folder: Path) -> list[Any]:
    """What `record_documents` wrote."""
    path = folder / "documents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def two_trainers(folder: Path) -> Result:
    """The second trainer on a folder stops at once with a message; a lock left by kill -9 blocks nobody."""
    result = Result(cases=2)
    case = folder / "shared"
    prepare(case, tiny_preset(train={"max_steps": 100_000}))
    first = start(case)
    _await(lambda: (case / "run" / "lm_current.pth").exists())
    started = time.perf_counter()
    second = run_to_end(case)
    seconds = time.perf_counter() - started
    if second.status != 2 or str(first) not in second.output or seconds > 2.0:
        result.failures.append(f"second trainer: exit {second.status} after {seconds:.1f} s: {second.output[-300:]}")
    os.kill(first, signal.SIGKILL)
    wait(first, case)
    third = start(case)
    time.sleep(1.0)
    os.kill(third, signal.SIGTERM)
    ended = wait(third, case)
    if ended.status != 0:
        result.failures.append(f"after kill -9 the folder stays locked: {ended.output[-300:]}")
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
    import math

    result = Result()

    def poison(first: int, last: int, value: float) -> Callable[[], None]:
        def install() -> None:
            inner = lmloop.training.trainee.Trainee.forward
            calls = 0

            def forward(self: Any, batch: Any) -> Any:
                nonlocal calls
                calls += 1
                terms = inner(self, batch)
                if first <= calls <= last and self.training:
                    return {name: replace(term, sum=term.sum * value) for name, term in terms.items()}
                return terms

            lmloop.training.trainee.Trainee.forward = forward  # type: ignore[method-assign]

        return install

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


def several_processes(folder: Path, *, timed: int, in_saves: int, seed: int = 0) -> Result:
    """Two processes, whole and in parts: all of them or one killed at random times and inside saves; then on to the end."""
    result, chance = Result(), random.Random(seed)
    for parallel in ("ddp", "fsdp"):
        changes: dict[str, Any] = {
            "model": {"dropout": 0.1},
            "train": {"parallel": parallel, "optimizer": "muon", "max_steps": 30, "save_every_steps": 4},
        }
        reference = ranks_harness.write(folder / f"{parallel}-reference", **changes)
        duration_s = ranks_harness.run(reference).seconds

        def once(name: str, fault: faults.Fault, kill: list[int], delay_s: float, reference: Path = reference) -> None:
            case = folder / name
            shutil.copytree(reference, case, ignore=shutil.ignore_patterns("run"))
            going = ranks_harness.start(case, fault=fault)
            if kill:
                time.sleep(delay_s)
                going.signal(signal.SIGKILL, *kill)
            # The one that is left ends by itself, after a minute if the first one is gone before they have met.
            ended = going.wait(120.0)
            result.cases += 1
            result.note("killed" if -signal.SIGKILL in ended.statuses else "ended before the kill")
            again = ranks_harness.start(case).wait()
            if not again.whole:
                result.failures.append(f"{name}: ended with {again.statuses}: {again.outputs[0][-600:]}")
                return
            result.failures += [f"{name}: {line}" for line in ranks_harness.differences(reference, case)[:3]]
            shutil.rmtree(case)

        for number in range(timed):
            killed = chance.choice([[0, 1], [0], [1]])
            once(f"{parallel}-time-{number}", ranks_harness.no_fault, killed, chance.uniform(0.0, 0.9 * duration_s))
        for number in range(in_saves):
            rank = chance.randrange(2 if parallel == "fsdp" else 1)
            fault = partial(faults.in_save, on=rank, at=chance.randrange(1, 100), what="SIGKILL")
            once(f"{parallel}-save-{number}", fault, [], 0.0)
    return result


def _await(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@dataclass(frozen=True)
class Scenario:
    """A scenario at full size, and small enough for every run of the tests."""

    title: str
    full: Callable[[Path], Result]
    small: Callable[[Path], Result]


class _Finetuned(Workshop):
    """The same of a preset that fine-tunes."""

    def __init__(self, folder: Path, kind: str, **changes: dict[str, Any]) -> None:
        self.folder = folder
        self.reference = folder / "reference"
        in_child(lambda: str(write_finetuning(self.reference, kind, **changes)))  # a base has weights, which PyTorch makes
        started = time.perf_counter()
        ended = run_to_end(self.reference)
        self.seconds = time.perf_counter() - started
        assert ended.status == 0, ended.output

    def case(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.reference / "base", folder / "base")
        for file in ("chats.jsonl", "preset.json"):
            shutil.copyfile(self.reference / file, folder / file)
        return folder


def finetuning(folder: Path, *, timed: int, in_saves: int, seed: int = 0) -> Result:
    """SIGKILL of full fine-tuning, LoRA and QLoRA at random times and inside saves; then on to the end."""
    import bitsandbytes  # noqa: F401 (what a fork would else import itself, as with the next two: some seconds each)
    import peft  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    result, chance = Result(), random.Random(seed)
    for kind in ("full", "lora", "qlora"):
        shop = _Finetuned(folder / kind, kind)
        operations = count_operations(shop)
        strikes = [(f"{kind}-time-{number}", 0) for number in range(timed)]
        strikes += [(f"{kind}-save-{number}", chance.randrange(1, operations + 1)) for number in range(in_saves)]
        for name, at in strikes:
            case = shop.case(name)
            child = start(case, at_operation(at, _kill) if at else lambda: None)
            if not at:
                time.sleep(chance.uniform(0.2 * shop.seconds, shop.seconds))
                os.kill(child, signal.SIGKILL)
            ended = wait(child, case)
            result.note("killed" if ended.status == -signal.SIGKILL else "ended before the kill")
            shop.finish(case, result, name)
    return result


REFLECTIONS = (
    "I lose the thread in long lines, and I will look further back before I write.",
    "Short words come easily by now; the rare ones are what I have to practise next.",
    "My lines end where they should, but I repeat the same openings again and again.",
)


def journals(folder: Path, *, timed: int, in_appends: int, in_saves: int, seed: int = 0) -> Result:
    """SIGKILL of runs that keep a journal, from scratch and with LoRA: at random times, while the journal is written, and
    inside saves; then on to the end. The journal must be the same, byte for byte."""
    import peft  # noqa: F401 (as above)
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    def reflection(self: Any, prompt: str, tokens: int, number: int, stop: Callable[[], bool]) -> str | None:
        return None if stop() else REFLECTIONS[(number - 1) % len(REFLECTIONS)]  # as a larger model would write

    result, chance = Result(), random.Random(seed)
    epochs = {"epochs": 3, "max_steps": None}
    kept, lmloop.training.writing.Writer.reflection = lmloop.training.writing.Writer.reflection, reflection  # type: ignore[method-assign]
    try:
        shops = {
            "scratch": Workshop(folder / "scratch", lines=12, train=epochs, journal={"rollback": True}),
            "lora": _Finetuned(folder / "lora", "lora", train=epochs, journal={"rollback": True}),
        }
        for kind, shop in shops.items():
            whole = (shop.reference / "run" / "journal.md").read_bytes()
            if any(text.encode() not in whole for text in REFLECTIONS):
                result.failures.append(f"{kind}: the journal lacks an entry")
            strikes: list[tuple[str, str, int]] = [(f"{kind}-time-{number}", "", 0) for number in range(timed)]
            for of, count in (("journal", in_appends), ("lm_", in_saves)):
                operations = count_operations(shop, of=of)
                strikes += [(f"{kind}-{of}-{n}", of, chance.randrange(1, operations + 1)) for n in range(count)]
            for name, of, at in strikes:
                case = shop.case(name)
                child = start(case, at_operation(at, _kill, of=of) if at else lambda: None)
                if not at:
                    time.sleep(chance.uniform(0.2 * shop.seconds, shop.seconds))
                    os.kill(child, signal.SIGKILL)
                ended = wait(child, case)
                result.note("killed" if ended.status == -signal.SIGKILL else "ended before the kill")
                shop.finish(case, result, name)
    finally:
        lmloop.training.writing.Writer.reflection = kept  # type: ignore[method-assign]
    return result


SCENARIOS: dict[str, Scenario] = {
    "kills": Scenario(
        "kill -9 at random times, inside saves and inside evaluations",
        partial(kills, timed=150, in_saves=50, in_evaluations=20),
        partial(kills, timed=4, in_saves=6, in_evaluations=3),
    ),
    "every_operation": Scenario(
        "kill -9 before every disk operation of a save",
        kill_at_every_operation_of_a_save,
        partial(kill_at_every_operation_of_a_save, every=9),
    ),
    "disk_full": Scenario("disk full or I/O error at every write of a save", disk_full, partial(disk_full, every=13)),
    "disk_stays_full": Scenario("disk that stays full", disk_stays_full, disk_stays_full),
    "signals": Scenario("SIGINT and SIGTERM wherever a run can be", partial(signals, repeats=3), signals),
    "resumes": Scenario("three resumes in a row, 0 and 2 workers", resumes_keep_the_order, resumes_keep_the_order),
    "finetuning": Scenario(
        "kill -9 of full fine-tuning, LoRA and QLoRA, at random times and inside saves",
        partial(finetuning, timed=20, in_saves=20),
        partial(finetuning, timed=1, in_saves=1),
    ),
    "journals": Scenario(
        "kill -9 of runs that keep a journal, from scratch and with LoRA, also while it is written",
        partial(journals, timed=20, in_appends=40, in_saves=20),
        partial(journals, timed=1, in_appends=3, in_saves=1),
    ),
    "two_trainers": Scenario("two trainers, stale lock", two_trainers, two_trainers),
    "second_signal": Scenario("second signal", second_signal, second_signal),
    "bad_numbers": Scenario("NaN and infinity", bad_numbers, bad_numbers),
    "several_processes": Scenario(
        "kill -9 of one or both of two processes (DDP, FSDP), at random times and inside saves",
        partial(several_processes, timed=30, in_saves=30),
        partial(several_processes, timed=1, in_saves=1),
    ),
}
