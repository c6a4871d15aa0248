"""Reads from a hub in a process of its own, for the hub's libraries read HF_ENDPOINT when they are imported.

Commands come as JSON on standard input, one a line, and are answered likewise: see `Child`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

QUICK = {
    "PAUSES_S": [0.01, 0.02, 0.05],
    "STALL_S": 10.0,
    "MAX_RETRY_AFTER_S": 0.6,
}
"""Times of `hub_client` with which a test takes no time."""


def child_environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """What a process needs to take `url` for the hub, with a cache of its own and no token of the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    return {**kept, "HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


class Child:
    """A process that reads streams, and keeps them open between commands."""

    def __init__(self, url: str, home: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.data.hub_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=child_environment(url, home, **environment),
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the child died with {self._process.wait(10)}"
        answer = json.loads(line)
        assert "bug" not in answer, answer["bug"]
        return answer

    def set(self, module: str, **values: Any) -> None:
        """Set constants of a module."""
        self.ask("set", module=module, values=values)

    def open(
        self, dataset: str, position: dict[str, Any] | None = None, part: tuple[int, int] | None = None, **section: Any
    ):
        """A stream, read from `position`; `part` is (index, count) of a shard."""
        answer = self.ask("open", section={"dataset": dataset, **section}, position=position or {}, part=part)
        return Reading(self, answer["stream"])

    def token(self, token: str | None) -> None:
        """Whose token the process has."""
        self.ask("token", token=token)

    def read(self, dataset: str, position: dict[str, Any] | None = None, **section: Any) -> Read:
        """A stream's whole pass."""
        return self.open(dataset, position, **section).take()


class Read:
    """What one reading gave."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.ids: list[str] = [document[0] for document in answer["documents"]]
        self.texts: list[str] = [document[1] for document in answer["documents"]]
        self.positions: list[dict[str, Any]] = answer["positions"]
        self.error: str | None = answer["error"]
        """Of a SourceError or TooManyBadRows, or that of the check while waiting."""
        self.notices: list[str] = answer["notices"]
        self.bad: list[list[Any]] = answer["bad"]
        self.broken: bool = answer["broken"]
        self.why: str = answer["why"]
        self.ended: bool = answer["ended"]
        self.took_s: float = answer["took_s"]


class Reading:
    def __init__(self, child: Child, stream: int) -> None:
        self._child = child
        self._stream = stream

    def take(self, count: int | None = None, *, stop_after_s: float | None = None) -> Read:
        """The next documents; `stop_after_s` is when somebody asks to stop."""
        return Read(self._child.ask("take", stream=self._stream, count=count, stop_after_s=stop_after_s))

    def shard_count(self, limit: int) -> int:
        return self._child.ask("shard_count", stream=self._stream, limit=limit)["count"]

    def parts(self, count: int) -> list[Reading]:
        """The parts of this stream, each read from its start."""
        streams = self._child.ask("parts", stream=self._stream, count=count)["streams"]
        return [Reading(self._child, stream) for stream in streams]


# ---- in the child ----


class Stopped(Exception):  # noqa: N818
    pass


class _Served:
    def __init__(self) -> None:
        self.streams: list[Any] = []
        self.readers: list[Any] = []
        self.notices: list[list[str]] = []
        self.bad: list[list[list[Any]]] = []

    def set(self, module: str, values: dict[str, Any]) -> dict[str, Any]:
        for name, value in values.items():
            target = importlib.import_module(module)
            assert hasattr(target, name), name
            setattr(target, name, value)
        return {}

    def token(self, token: str | None) -> dict[str, Any]:
        os.environ.pop("HF_TOKEN", None)
        if token is not None:
            os.environ["HF_TOKEN"] = token
        return {}

    def keep(self, dataset: str) -> dict[str, Any]:
        import datasets

        return {"rows": list(datasets.load_dataset(dataset)["train"])}

    def open(self, section: dict[str, Any], position: dict[str, Any], part: list[int] | None) -> dict[str, Any]:
        from lmloop.data.hub import HubStream
        from lmloop.data.quarantine import Quarantine
        from lmloop.preset.sources import HubSource

        notices: list[str] = []
        bad: list[list[Any]] = []
        quarantine = Quarantine(None, 0.5)
        quarantine.bad = lambda source, file, line, reason, excerpt="": bad.append([file, line, reason])
        stream = HubStream("corpus", HubSource.model_validate(section), quarantine, notices.append)
        return {"stream": self._add(stream if part is None else stream.shard(*part), position, notices, bad)}

    def _add(self, stream: Any, position: dict[str, Any], notices: list[str], bad: list[list[Any]]) -> int:
        self.streams.append(stream)
        self.readers.append(stream.read(position))
        self.notices.append(notices)
        self.bad.append(bad)
        return len(self.streams) - 1

    def take(self, stream: int, count: int | None, stop_after_s: float | None) -> dict[str, Any]:
        from lmloop.data.waiting import while_waiting

        start = time.monotonic()

        def check() -> None:
            if stop_after_s is not None and time.monotonic() - start > stop_after_s:
                raise Stopped("stopped")

        documents, positions, error, ended = [], [], None, False
        with while_waiting(check):
            try:
                while count is None or len(documents) < count:
                    item = next(self.readers[stream], None)
                    if item is None:
                        ended = True
                        break
                    documents.append((item[0].id, item[0].text))
                    positions.append(item[1])
            except (ValueError, Stopped) as raised:
                error = str(raised)
        return {
            "documents": documents,
            "positions": positions,
            "error": error,
            "ended": ended,
            "notices": self.notices[stream],
            "bad": self.bad[stream],
            "broken": self.streams[stream].broken,
            "why": self.streams[stream].why,
            "took_s": time.monotonic() - start,
        }

    def shard_count(self, stream: int, limit: int) -> dict[str, Any]:
        return {"count": self.streams[stream].shard_count(limit)}

    def parts(self, stream: int, count: int) -> dict[str, Any]:
        whole = self.streams[stream]
        parts = [whole.shard(index, count) for index in range(count)]
        return {"streams": [self._add(part, {}, self.notices[stream], self.bad[stream]) for part in parts]}

    def threads(self) -> dict[str, Any]:
        return {"names": [thread.name for thread in threading.enumerate()]}


def main() -> None:
    served = _Served()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(served, command.pop("do"))(**command)
        except Exception as error:
            answer = {"bug": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
