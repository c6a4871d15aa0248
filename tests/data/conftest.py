from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmloop.data.document import Document, Position
from lmloop.data.files import Files
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import Source
from lmloop.preset.sources import FilesSource
from tests.data.hub_child import QUICK, Child
from tests.data.hub_server import HubServer


class Opened:
    """A `Files` with what it told: `notices`, and its `quarantine` as (file, line, reason)."""

    def __init__(self, path: Path, max_bad_fraction: float = 1.0, **options: Any) -> None:
        self.notices: list[str] = []
        self.quarantine = Quarantine(None, max_bad_fraction)
        self.bad: list[tuple[str, int, str]] = []
        record = self.quarantine.bad

        def remember(source: str, file: str, line: int, reason: str, excerpt: str = "") -> None:
            self.bad.append((file, line, reason))
            record(source, file, line, reason, excerpt)

        self.quarantine.bad = remember  # type: ignore[method-assign]
        section = FilesSource.model_validate({"path": str(path), **options})
        self.source = Files("corpus", section, self.quarantine, self.notices.append)

    def documents(self, position: Position | None = None) -> list[Document]:
        return [document for document, _ in self.source.read(position or {})]

    def texts(self) -> dict[str, str]:
        return {document.id: document.text for document in self.documents()}


@pytest.fixture
def opened() -> Callable[..., Opened]:
    return Opened


def check_every_resume(source: Source, epoch: int = 0, same_positions: bool = True) -> list[str]:
    """Read from every position there is: each must give exactly the rest. Returns the ids of the whole pass."""
    whole = list(source.read({}, epoch))
    ids = [document.id for document, _ in whole]
    for at, (_, position) in enumerate(whole):
        travelled = json.loads(json.dumps(position))
        rest = list(source.read(travelled, epoch))
        assert [d for d, _ in rest] == [d for d, _ in whole[at + 1 :]], (at, position)
        if same_positions:
            assert [p for _, p in rest] == [p for _, p in whole[at + 1 :]], (at, position)
    assert len(set(ids)) == len(ids), ids
    return ids


@pytest.fixture
def every_resume() -> Callable[..., list[str]]:
    return check_every_resume


# ---- a hub on loopback, and a process that reads from it; see hub_server.py and hub_child.py ----


@pytest.fixture(scope="session")
def _hub_and_child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Child]]:
    with HubServer() as server, Child(server.url, tmp_path_factory.mktemp("hub_home")) as process:
        yield server, process


@pytest.fixture
def hub(_hub_and_child: tuple[HubServer, Child]) -> Iterator[HubServer]:
    """The hub, without faults; it is up again after each test, and knows no requests before it."""
    server, process = _hub_and_child
    server.requests.clear()
    process.set("lmloop.data.hub_client", **QUICK)
    process.set("lmloop.data.hub", AHEAD_CHARACTERS=2 << 20)
    yield server
    server.mend()
    server.repair()


@pytest.fixture
def child(_hub_and_child: tuple[HubServer, Child]) -> Child:
    """A process for which that is the hub, with short times."""
    return _hub_and_child[1]
