"""The real launcher: what a user types, and what it does with signals and with the end of a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.harness import LIMIT_S, metrics, newest, record, saved_step, write

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@contextlib.contextmanager
def launched(folder: Path, *words: str, answer: str = "") -> Iterator[subprocess.Popen[str]]:
    """A launcher in `folder`, killed with all its processes at the end."""
    # Every process of a launch stands in the environment of what it starts: so are they found again.
    mark = f"LMLOOP_TEST={folder}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LMLOOP_TEST": str(folder), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*LAUNCHER, *words], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True
        )
        assert process.stdin is not None
        process.stdin.write(answer)
        process.stdin.close()
        try:
            yield process
        finally:
            for pid in [process.pid, *_marked(mark)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def _marked(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def ranks(folder: Path) -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    for pid in _marked(f"LMLOOP_TEST={folder}"):
        with contextlib.suppress(OSError):
            for entry in (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0"):
                if entry.startswith(b"RANK="):
                    found[int(entry[5:])] = pid
    return found


def until_saved(folder: Path, process: subprocess.Popen[str], step: int) -> None:
    began = time.monotonic()
    while saved_step(folder) < step:
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() - began < LIMIT_S, (folder / "log.txt").read_text()
        time.sleep(0.01)


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text(errors="replace")


def test_the_menu_asks_once_for_all(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "configs").mkdir()
    preset = tmp_path / "preset.json"
    for name in ("alpha", "beta"):
        content = json.loads(preset.read_text()) | {"name": name, "output_dir": f"runs/{name}"}
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(content))
    with launched(tmp_path, str(ROOT / "main.py"), answer="beta\n") as process:
        assert process.wait(LIMIT_S) == 0, log_of(tmp_path)
    log = log_of(tmp_path)
    assert log.count("Which one?") == 1
    assert log.count("Finished: the budget is used up") == 1
    assert "2 processes" in log
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["beta"]
    assert json.loads((tmp_path / "runs" / "beta" / "run.json").read_text())["machine"]["processes"] == 2


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["SIGTERM", "Ctrl-C twice"])
def test_a_signal_to_the_launcher_saves_once(signals: list[signal.Signals], tmp_path: Path) -> None:
    write(tmp_path, train={"max_steps": 100_000, "save_every_steps": 20})
    with launched(tmp_path, "-m", "lmloop.cli", "train", "preset.json") as process:
        until_saved(tmp_path, process, 20)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.05)
        process.wait(LIMIT_S)
    assert log_of(tmp_path).count("Stopped: asked to stop") == 1, log_of(tmp_path)
    assert record(tmp_path)["status"] == "stopped"
    assert newest(tmp_path)["progress"]["step"] == metrics(tmp_path)[-1]["step"]


def test_a_killed_process_ends_the_launch(tmp_path: Path) -> None:
    write(tmp_path, train={"max_steps": 100_000, "save_every_steps": 20})
    with launched(tmp_path, "-m", "lmloop.cli", "train", "preset.json") as process:
        until_saved(tmp_path, process, 20)
        os.kill(ranks(tmp_path)[1], signal.SIGKILL)
        assert process.wait(10.0) != 0
        assert ranks(tmp_path) == {}
    assert "another process of this run has ended" in log_of(tmp_path)
    assert newest(tmp_path)["progress"]["step"] >= 20
