"""A save that is killed, or that the disk refuses, at each of its operations."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
from pathlib import Path

import pytest

from lmloop import durable
from lmloop.training.checkpoint import BEST, CURRENT, MIRROR, CheckpointStore, CheckpointWriteError
from tests.faults import clone, failing_at, killed_at, operations_of, stopped_dead_at
from tests.training.checkpoints import PRESET, is_tidy, kept_steps, loads, make_state, save

NEW, LATER = 50, 60


@pytest.fixture(autouse=True)
def several_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small buffer, so that even a tiny checkpoint is written in several operations; no waiting for a real disk."""
    monkeypatch.setattr(durable, "BUFFER_BYTES", 1024)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)


def older(folder: Path, number: int) -> list[int]:
    """Save `number` checkpoints, the first of them the best; their steps from new to old."""
    folder.mkdir()
    steps = [10 * (index + 1) for index in range(number)]
    for step in steps:
        save(folder, step, best=step == 10)
    return steps[::-1]


CASES = [("links", number, best) for number in range(4) for best in (False, True)] + [("copies", 3, True)]


@pytest.fixture
def template(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[int], bool]:
    """A folder with checkpoints, their steps from new to old, and whether the next save is of the best one."""
    file_system, number, best = request.param
    if file_system == "copies":
        forbid_links(monkeypatch)
    return tmp_path / "template", older(tmp_path / "template", number), best


every_case = pytest.mark.parametrize("template", CASES, indirect=True, ids=str)


def fingerprint(folder: Path) -> tuple[tuple[str, str], ...]:
    """Names and content: kills that leave the same need the same checks only once."""
    return tuple((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir()))


def number_of_operations(template: Path, tmp_path: Path, best: bool) -> int:
    folder = clone(template, tmp_path / "count")
    return len(operations_of(lambda: save(folder, NEW, best=best)))


def survives(folder: Path, steps: list[int]) -> None:
    """After an interrupted save of NEW over `steps`, everything that was good is good, and saving goes on."""
    current = loads(folder, {NEW, *steps[:1]}) if (folder / CURRENT).exists() else None
    assert current is not None or not steps, "the only checkpoint vanished"
    kept = kept_steps(folder)
    assert kept == sorted(kept, reverse=True)
    best = CheckpointStore(folder).load("best")
    if best is not None and (folder / BEST).exists():
        assert best.path.name == BEST
        assert best.manifest.step in {10, NEW}
        assert best.notices == []
    save(folder, LATER)
    is_tidy(folder)
    survivors = [LATER, *([NEW] if current == NEW else []), *steps][:3]
    assert kept_steps(folder) == survivors
    assert loads(folder, {LATER}) == LATER
    assert (folder / MIRROR).read_bytes() == (folder / CURRENT).read_bytes()


@every_case
def test_kill_at_every_operation(template: tuple[Path, list[int], bool], tmp_path: Path) -> None:
    source, steps, best = template
    total = number_of_operations(source, tmp_path, best)
    assert total > 15
    outcomes, seen = set(), set()
    for index in range(total + 1):
        folder = clone(source, tmp_path / f"case{index}")
        assert killed_at(index, lambda folder=folder: save(folder, NEW, best=best)) == (index < total)
        outcomes.add(loads(folder, {NEW, *steps[:1]}) if (folder / CURRENT).exists() else None)
        if (content := fingerprint(folder)) in seen:
            continue
        seen.add(content)
        unclean = clone(folder, tmp_path / f"case{index}, not cleaned")
        save(unclean, LATER)
        CheckpointStore(folder).clean()
        is_tidy(folder)
        survives(folder, steps)
        assert kept_steps(unclean) == kept_steps(folder)
    assert outcomes == {NEW, steps[0] if steps else None}
    assert len(seen) > 8


def test_kill_in_a_save_and_again_in_the_cleaning(tmp_path: Path) -> None:
    steps = older(tmp_path / "template", 3)
    seen, second_kills = set(), 0
    for index in range(number_of_operations(tmp_path / "template", tmp_path, True)):
        killed = clone(tmp_path / "template", tmp_path / f"case{index}")
        assert stopped_dead_at(index, lambda killed=killed: save(killed, NEW, best=True))
        if (content := fingerprint(killed)) in seen:
            continue
        seen.add(content)
        again = 0
        while True:
            folder = clone(killed, tmp_path / f"case{index}-{again}")
            if not stopped_dead_at(again, CheckpointStore(folder).clean):
                break
            again += 1
            if (content := fingerprint(folder)) not in seen:
                seen.add(content)
                CheckpointStore(folder).clean()
                is_tidy(folder)
                survives(folder, steps)
        second_kills += again
    assert second_kills > 50


@every_case
def test_error_at_every_operation(template: tuple[Path, list[int], bool], tmp_path: Path) -> None:
    source, steps, best = template
    for index in range(number_of_operations(source, tmp_path, best)):
        folder = clone(source, tmp_path / f"case{index}")
        number = (errno.ENOSPC, errno.EIO)[index % 2]
        with failing_at(index, number), pytest.raises(CheckpointWriteError) as caught:
            save(folder, NEW, best=best)
        assert caught.value.errno == number
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        assert os.strerror(number) in str(caught.value)
        is_tidy(folder)
        survives(folder, steps)


@pytest.mark.parametrize("template", [("links", 0, True), ("links", 3, True)], indirect=True, ids=str)
def test_disk_that_stays_full(template: tuple[Path, list[int], bool], tmp_path: Path) -> None:
    source, steps, best = template
    for index in range(number_of_operations(source, tmp_path, best)):
        folder = clone(source, tmp_path / f"case{index}")
        with failing_at(index, and_after=True):
            for _ in range(3):
                with pytest.raises(CheckpointWriteError):
                    save(folder, NEW, best=best)
                assert list(folder.glob(".*.tmp")) == []
                kept_steps(folder)
        survives(folder, steps)


def test_retries_in_one_process_lose_nothing(tmp_path: Path) -> None:
    """The same store goes on after errors: what it remembers of files must stay true."""
    steps = older(tmp_path / "template", 3)
    for index in range(number_of_operations(tmp_path / "template", tmp_path, True)):
        folder = clone(tmp_path / "template", tmp_path / f"case{index}")
        store = CheckpointStore(folder)
        for attempt in range(3):
            # A second attempt has less to do: it may come to its end before the operation that fails.
            with failing_at(index + attempt), contextlib.suppress(CheckpointWriteError):
                store.save(make_state(NEW), step=NEW, tokens=0, preset_hash=PRESET, best=True)
        store.save(make_state(NEW), step=NEW, tokens=0, preset_hash=PRESET, best=True)
        assert kept_steps(folder) == [NEW, *steps[:2]]
        is_tidy(folder)
        survives(folder, steps)


def test_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    """No hook: the kernel itself refuses to let the file grow beyond 2,000 bytes."""
    older(tmp_path / "run", 2)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
            save(tmp_path / "run", NEW)
        except CheckpointWriteError as error:
            code = 0 if error.errno == errno.EFBIG else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    is_tidy(tmp_path / "run")
    assert loads(tmp_path / "run", {20}) == 20


def test_too_little_room_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older(tmp_path / "run", 1)
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 12)
    with pytest.raises(
        CheckpointWriteError, match=r"step 50 was not saved: No space left.*needs about \d\d\d bytes, 12 bytes free"
    ):
        save(tmp_path / "run", NEW)
    is_tidy(tmp_path / "run")
    assert loads(tmp_path / "run", {10}) == 10


def test_a_kill_at_every_operation_of_pinning(tmp_path: Path) -> None:
    """What was pinned before is there, or what is pinned now; and the checkpoints are as they were."""
    template = tmp_path / "template"
    steps = older(template, 2)
    CheckpointStore(template).pin()
    save(template, NEW)
    total = len(operations_of(CheckpointStore(clone(template, tmp_path / "count")).pin))
    assert total >= 6
    outcomes = set()
    for index in range(total + 1):
        folder = clone(template, tmp_path / f"case{index}")
        assert killed_at(index, CheckpointStore(folder).pin) == (index < total)
        CheckpointStore(folder).clean()
        store = CheckpointStore(folder)
        found = [step for step in (steps[0], NEW) if store.load_pinned(step) is not None]
        assert len(found) == 1
        outcomes.add(found[0])
        assert kept_steps(folder)[0] == NEW
        store.pin()
        save(folder, LATER)
        assert store.load_pinned(NEW) is not None
        assert loads(folder, {LATER}) == LATER
    assert outcomes == {steps[0], NEW}
    assert CheckpointStore(tmp_path).load_pinned(NEW) is None
