"""What a run must survive, at small size; `make torture` does the same many times over.

The scenarios have processes of their own: their runs are forks of them, and a process that has computed with PyTorch, as
the one that runs these tests has, cannot fork one that computes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[1]
MEMORY = Path("/dev/shm")
"""Where syncing costs nothing: that the operations come in the right order is shown by killing between them."""


GROUPS = (
    ("kills",),
    ("every_operation", "disk_full", "disk_stays_full"),
    ("signals", "second_signal"),
    ("resumes",),
    ("two_trainers", "bad_numbers"),
    ("several_processes",),
    ("finetuning",),
    ("journals",),
)
"""What shares a process: PyTorch is imported once in each."""


@pytest.mark.parametrize("names", GROUPS, ids="-".join)
def test_a_run_survives(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--only", *names, "--small"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_no_scenario_is_forgotten() -> None:
    assert sorted(name for names in GROUPS for name in names) == sorted(SCENARIOS)
