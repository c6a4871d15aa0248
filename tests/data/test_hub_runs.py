"""Whole runs of a tiny model on streams of a hub on loopback, which fails while they train."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.hub_child import child_environment
from tests.data.hub_data import corpus, packed
from tests.data.hub_server import HubServer
from tests.runs import lines, quick_preset

TRAIN = """
import sys
import lmloop.data.hub, lmloop.data.hub_client, lmloop.data.hub_files, lmloop.tokens.packing
lmloop.data.hub_client.PAUSES_S = eval(sys.argv[1])
lmloop.data.hub.AHEAD_CHARACTERS = 2000
lmloop.data.hub_files.BLOCK_BYTES = 1000
lmloop.tokens.packing.PIECE_CHARACTERS = 4000
from lmloop.cli import main
for preset in sys.stdin:
    main(["train", preset.strip(), "--json"])
    sys.stdout.flush()
"""

FILES, TEXTS = corpus("parquet", files=1, rows=100, words=300, group=1)
ALONE = [{"type": "hub", "dataset": "runs/stream"}]
WITH_FILES = [*ALONE, {"type": "files", "path": "text.txt"}]
STEPS = 30
TIMES = ("tokens_per_s", "feed_wait", "elapsed_s", "memory_bytes", "time")


def start(url: str, folder: Path, pauses_s: str = "(0.02, 0.05)") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, pauses_s],
        cwd=folder,
        env=child_environment(url, folder / "home"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("\n".join(TEXTS[:20]))
    return folder


@pytest.fixture(scope="module")
def _module_hub(folder: Path) -> Iterator[tuple[HubServer, subprocess.Popen[str]]]:
    with HubServer() as hub:
        process = start(hub.url, folder)
        yield hub, process
        process.kill()
        process.wait()


@pytest.fixture
def hub(_module_hub: Any) -> Iterator[HubServer]:
    hub, _ = _module_hub
    hub.add("runs/stream", FILES)
    hub.requests.clear()
    yield hub
    hub.mend()
    hub.repair()


@pytest.fixture
def train(_module_hub: Any, folder: Path) -> Callable[..., dict[str, Any]]:
    """Trains in one process after the other run; what it answers."""
    _, process = _module_hub

    def train(name: str, sources: list[Any], **section: Any) -> dict[str, Any]:
        write_preset(folder, name, sources, **section)
        process.stdin.write(f"{name}.json\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    return train


def write_preset(folder: Path, name: str, sources: list[Any], *, workers: int = 0) -> None:
    preset = quick_preset(
        model={"seq_length": 64},
        train={
            "max_steps": STEPS,
            "per_gpu_batch_size": 32,
            "eval_every_steps": 20,
            "save_every_steps": 7,
            "sample_every_steps": 50,
        },
        data={"sources": sources, "workers": workers, "shuffle": False},
    )
    (folder / f"{name}.json").write_text(json.dumps({**preset, "name": name, "output_dir": name}))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines(folder / "metrics.jsonl")]


def warnings(folder: Path) -> list[dict[str, Any]]:
    """What a run said in warning, and at which step."""
    return json.loads((folder / "run.json").read_text())["warnings"]


@contextlib.contextmanager
def failing_after(hub: HubServer, run: Path, steps: int, status: int) -> Iterator[None]:
    """Within it, the storage answers with an error from the moment on at which a run has made so many steps."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_bytes().splitlines()) >= steps:
                hub.fail("status", "/storage/", status=status)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_dies_is_dropped_and_the_run_goes_on(
    hub: HubServer, train: Callable[..., dict[str, Any]], folder: Path, workers: int
) -> None:
    run = folder / f"dropped-{workers}"
    with failing_after(hub, run, 4, 500):
        answer = train(run.name, WITH_FILES, workers=workers)
    assert answer["status"] == "finished", answer
    assert answer["step"] == STEPS
    shares = [line["sources"].get("runs/stream", 0.0) for line in metrics(run) if "sources" in line]
    assert shares[0] == 0.5
    assert shares[-1] == 0.0
    [notice] = [one["message"] for one in warnings(run) if "runs/stream" in one["message"]]
    assert "127.0.0.1: answers 500 Internal Server Error" in notice
    assert "training goes on without" in notice
    assert notice.count("runs/stream") == 1
    [told_at] = [one["step"] for one in warnings(run) if "runs/stream" in one["message"]]
    assert 4 <= told_at < STEPS  # when it happened


def test_when_no_source_is_left_the_run_stops_saved_and_goes_on_later(
    hub: HubServer, train: Callable[..., dict[str, Any]], folder: Path
) -> None:
    repository = hub.add("runs/stream", FILES)
    pinned = repository.refs["main"]
    assert train("alone", ALONE)["status"] == "finished"
    with failing_after(hub, folder / "stopped", 4, 503):
        answer = train("stopped", ALONE)
    assert answer["status"] == "failed"
    assert answer["reason"] == "no source is left: source 'runs/stream': 127.0.0.1: answers 503 Service Unavailable"
    assert 4 <= answer["step"] < STEPS
    assert (folder / "stopped" / "lm_current.pth").exists()
    hub.mend()
    repository.commit({"data/train.jsonl": packed([{"text": "what the hub has now"}] * 99, "jsonl")})
    assert json.loads((folder / "stopped" / "hub_commits.json").read_text()) == {"runs/stream@": pinned}
    answer = train("stopped", ALONE)
    assert answer["status"] == "finished"
    assert metrics(folder / "stopped") == metrics(folder / "alone")  # at the commit of its start, to the last digit


def test_a_stop_while_the_network_hangs_is_quick_saved_and_clean(hub: HubServer, folder: Path) -> None:
    """With and without a thread that reads ahead; and the process ends, though a Parquet file is waited for."""
    process = start(hub.url, folder, "(60.0,)")
    assert process.stdin is not None
    assert process.stdout is not None
    for workers in (0, 1):
        run = folder / f"hanging-{workers}"
        write_preset(folder, run.name, ALONE, workers=workers)
        hub.requests.clear()
        process.stdin.write(f"{run.name}.json\n")
        process.stdin.flush()
        wait_for(lambda run=run: (run / "metrics.jsonl").exists() and len(metrics(run)) >= 4)
        hub.fail("silent", "/storage/")
        wait_for(lambda: any(request.fault for request in hub.requests))
        steps = -1
        while steps != len(metrics(run)):  # until it waits
            steps = len(metrics(run))
            time.sleep(0.5)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        answer = json.loads(process.stdout.readline())
        assert time.monotonic() - asked < 8.0
        assert answer["status"] == "stopped", answer
        assert answer["step"] in (steps, steps + 1)  # whose line may not have been written
        if workers == 0:
            hub.mend()
    process.stdin.close()
    assert process.wait(60) == 0


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
