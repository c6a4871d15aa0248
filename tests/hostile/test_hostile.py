"""Every hostile input of the table: no crash, no hang, 10 s and 1 GB at most, good rows kept, bad ones on record."""

from __future__ import annotations

import importlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.case import Case

ROOT = Path(__file__).parents[2]
MODULES = ["text", "jsonl", "json", "parquet", "folder", "big", "pdf", "chat", "template"]
TABLE = [
    pytest.param(f"tests.hostile.{module}_cases", case, id=f"{module}-{case.name}")
    for module in MODULES
    for case in importlib.import_module(f"tests.hostile.{module}_cases").CASES
]

HANG_S = 90.0
"""Of real time: a case may take 10 s of processor time, on a machine that does other things as well."""


class Worker:
    """The measuring process; a new one takes the place of one that hung or died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, task: dict[str, str]) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-m", "tests.hostile.worker"]
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], HANG_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            fate = "hung" if ready == [] else f"died ({self.process.wait()})"
            self.close()
            pytest.fail(f"the process {fate}")
        return json.loads(line)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.close()


@pytest.mark.parametrize(("module", "case"), TABLE)
def test_hostile(module: str, case: Case, tmp_path: Path, worker: Worker) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    try:
        case.make(folder)
        answer = worker.ask({"module": module, "name": case.name, "folder": str(folder)})
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # some are large
    assert answer["wrong"] == []
    assert answer["seconds"] <= case.seconds, answer
    assert answer["peak_bytes"] <= case.memory_bytes, answer


def test_the_table_is_large_enough_and_its_names_are_unique() -> None:
    names = [parameters.id for parameters in TABLE]
    assert len(set(names)) == len(names)
    assert len(names) >= 80
