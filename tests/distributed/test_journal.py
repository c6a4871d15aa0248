"""The journal of several processes: written once, read by all alike, and as one process would."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from lmloop.training.journal_file import parse
from tests.distributed.harness import differences, run, saved_step, start, write
from tests.distributed.test_equal import FP32, assert_same_run
from tests.torture.harness import prepare, tiny_preset

WRITTEN = "# Mine\n\n" + "\n\n".join(f"Thought number {number}, about words and what they lead to." for number in range(9))


def changes(parallel: str) -> dict[str, Any]:
    return {
        "train": {
            "epochs": 2,
            "max_steps": None,
            "parallel": parallel,
            "sequence_schedule": [4, 32],
            "eval_every_steps": 10,
            "save_every_steps": 3,
        },
        "data": {
            "sources": [{"type": "files", "path": "corpus", "file_pattern": "0[0-3].txt"}],
            "replay": {"sources": [{"type": "files", "path": "corpus", "file_pattern": "0[45].txt"}], "share": 0.25},
        },
        "journal": {"reflection_tokens": 20, "rollback": True, "max_share": 0.3},
    }


def with_journal(folder: Path, parallel: str) -> Path:
    prepare(folder, tiny_preset(), lines=12)
    write(folder, lines=12, **changes(parallel))
    (folder / "run").mkdir()
    (folder / "run" / "journal.md").write_text(WRITTEN)
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_it_is_that_of_one_process(parallel: str, tmp_path: Path) -> None:
    one, several = with_journal(tmp_path / "one", parallel), with_journal(tmp_path / "several", parallel)
    run(one, world=1)
    run(several, world=2)
    assert_same_run(one, several, FP32)
    first, second = (parse((folder / "run" / "journal.md").read_text()) for folder in (one, several))
    assert [(s.kind, s.id) for s in first] == [(s.kind, s.id) for s in second]
    assert [s.id for s in second if s.id] == ["tiny#1", "tiny#2"]
    assert second[0].text == WRITTEN


def test_killed_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    reference, killed = with_journal(tmp_path / "reference", "ddp"), with_journal(tmp_path / "killed", "ddp")
    run(reference)
    for more in (2, 5):
        going = start(killed)
        before = saved_step(killed)
        going.until(lambda before=before, more=more: saved_step(killed) > before + more)
        going.signal(signal.SIGKILL)
        assert going.wait().statuses in ([-9, -9], [0, 0])
    run(killed)
    assert differences(reference, killed) == []
    assert (reference / "run" / "journal.md").read_text() == (killed / "run" / "journal.md").read_text()
