from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import datasets.exceptions
import pytest

from lmloop.data import hub
from lmloop.data.hub import HubStream
from lmloop.data.quarantine import Quarantine, TooManyBadRows
from lmloop.data.source import SourceError
from lmloop.preset.sources import HubSource


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "commit_of", lambda dataset, revision: f"commit-of-{revision or 'newest'}")
    monkeypatch.setattr(hub, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class Stream:
    """Stands for an IterableDataset: `faults` maps a row to the errors that reading it raises before it succeeds."""

    def __init__(self, rows: list[Any], faults: dict[int, list[Exception]] | None = None) -> None:
        self.rows = rows
        self.faults = faults or {}
        self.at = 0

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def __iter__(self) -> Iterator[Any]:
        while self.at < len(self.rows):
            if self.faults.get(self.at):
                raise self.faults[self.at].pop(0)
            self.at += 1
            yield self.rows[self.at - 1]


class Hub:
    """Opens sources over a fake `load_dataset`, and keeps what it was asked."""

    def __init__(self, monkeypatch) -> None:
        self.asked: list[tuple[tuple, dict]] = []
        self.notices: list[str] = []
        self.quarantine = Quarantine(None, 0.5)
        self._monkeypatch = monkeypatch

    def serve(self, make: Callable[[], Any]) -> None:
        def load_dataset(*arguments: Any, **named: Any) -> Any:
            self.asked.append((arguments, named))
            return make()

        self._monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def source(self, **options: Any) -> HubStream:
        section = HubSource.model_validate({"dataset": "owner/name", **options})
        return HubStream("owner/name", section, self.quarantine, self.notices.append)


@pytest.fixture
def fake(monkeypatch) -> Hub:
    return Hub(monkeypatch)


ROWS = [{"text": f"täxt {n}", "n": n} for n in range(25)]


def test_documents_and_what_is_asked_of_the_library(fake: Hub, every_resume) -> None:
    fake.serve(lambda: Stream(ROWS))
    source = fake.source(subset="en", split="test")
    documents = list(source.read({}))
    assert [d.text for d, _ in documents] == [row["text"] for row in ROWS]
    assert documents[6][0].id == documents[6][0].parent == "owner/name/en:test#7"
    assert documents[6][0].progress == 0.0
    assert source.parents() is None
    assert fake.asked == [(("owner/name", "en"), {"split": "test", "streaming": True, "revision": "commit-of-newest"})]
    every_resume(source)


def test_the_commit_stays_that_of_the_first_start(fake: Hub, monkeypatch) -> None:
    fake.serve(lambda: Stream(ROWS))
    position = list(fake.source(revision="v1").read({}))[3][1]
    assert position["revision"] == "commit-of-v1"
    monkeypatch.setattr(hub, "commit_of", lambda *_: "a later commit")
    rest = list(fake.source(revision="v1").read(position))
    assert rest[0][0].id == "owner/name:train#5"
    assert fake.asked[-1][1]["revision"] == "commit-of-v1"
    assert rest[0][1]["revision"] == "commit-of-v1"


def test_fields_and_bad_rows(fake: Hub) -> None:
    rows = [{"q": "1", "a": "2"}, {"q": None, "a": "2"}, {"q": " ", "a": " "}, {"q": "3", "a": "\ud83d"}]
    fake.serve(lambda: Stream(rows))
    source = fake.source(fields=["q", "a"], format="{q}{a}")
    assert {d.id: d.text for d, _ in source.read({})} == {"owner/name:train#1": "12", "owner/name:train#4": "3\ufffd"}
    assert fake.quarantine.reasons("owner/name") == {"field 'q' is not text but null": 1}


def test_too_many_bad_rows_is_not_taken_for_the_networks_fault(fake: Hub) -> None:
    fake.serve(lambda: Stream([{"body": "x"}] * 30))
    with pytest.raises(TooManyBadRows, match="no field 'text'; there are: body"):
        list(fake.source().read({}))
    assert len(fake.asked) == 1


@pytest.mark.parametrize("error", [ConnectionError("reset"), TimeoutError("slow"), OSError(104, "Connection reset by peer")])
def test_a_broken_stream_is_opened_again_where_it_was(fake: Hub, error: Exception) -> None:
    faults = {0: [error], 7: [error, error, error], 8: [error], 20: [error] * 3}
    fake.serve(lambda: Stream(ROWS, faults))
    documents = [d for d, _ in fake.source().read({})]
    assert [d.text for d in documents] == [row["text"] for row in ROWS]
    assert [d.id for d in documents] == [f"owner/name:train#{n + 1}" for n in range(25)]
    assert fake.notices == []
    assert len(fake.asked) == 9


def test_retries_are_bounded_and_the_source_then_stays_empty(fake: Hub) -> None:
    fake.serve(lambda: Stream(ROWS, {7: [ConnectionError("reset")] * 99}))
    source = fake.source()
    assert len(list(source.read({}))) == 7
    assert len(fake.asked) == 4
    assert fake.notices == ["source 'owner/name' (owner/name): ConnectionError: reset; training goes on without it"]
    assert list(source.read({}, 1)) == []
    assert len(fake.asked) == 4


def test_pauses_grow(fake: Hub, monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(hub, "RETRY_DELAYS_S", (1.0, 5.0, 15.0))
    monkeypatch.setattr(time, "sleep", pauses.append)
    fake.serve(lambda: Stream(ROWS, {7: [ConnectionError("reset")] * 99}))
    list(fake.source().read({}))
    assert pauses == [1.0, 5.0, 15.0]


def test_damaged_data_is_not_tried_again(fake: Hub) -> None:
    fake.serve(lambda: Stream(ROWS, {7: [ValueError("cannot\ncast")] * 99}))
    assert len(list(fake.source().read({}))) == 7
    assert len(fake.asked) == 1
    assert fake.notices == ["source 'owner/name' (owner/name): ValueError: cannot cast; training goes on without it"]


@pytest.mark.parametrize(
    ("error", "message", "attempts"),
    [
        (datasets.exceptions.DatasetNotFoundError("no"), "no such data set on the hub, or it needs a login", 1),
        (ValueError("BuilderConfig 'x' not found.\nAvailable: ['en']"), "BuilderConfig 'x' not found. Available: ['en']", 1),
        (ConnectionError("down"), "ConnectionError: down", 4),
    ],
)
def test_a_stream_that_never_opens(fake: Hub, error: Exception, message: str, attempts: int) -> None:
    def make() -> Any:
        raise error

    fake.serve(make)
    with pytest.raises(SourceError) as raised:
        next(fake.source().read({}))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(fake.asked) == attempts


def test_no_such_data_set_is_known_before_anything_is_loaded(fake: Hub, monkeypatch) -> None:
    class RepositoryNotFoundError(OSError):
        pass

    def commit_of(*_: object) -> str:
        raise RepositoryNotFoundError("404")

    monkeypatch.setattr(hub, "commit_of", commit_of)
    fake.serve(lambda: Stream(ROWS))
    with pytest.raises(SourceError, match="no such data set on the hub"):
        next(fake.source().read({}))
    assert fake.asked == []


def test_offline_fails_before_anything_is_loaded(fake: Hub, monkeypatch) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda: "no route")
    fake.serve(lambda: Stream(ROWS))
    with pytest.raises(SourceError, match=r"the Hugging Face hub cannot be reached \(no route\)"):
        next(fake.source().read({}))
    assert fake.asked == []


# ---- reachability, against a server of our own ----


@pytest.fixture
def reach(monkeypatch) -> Iterator[Callable[[str], str | None]]:
    from huggingface_hub import constants

    monkeypatch.undo()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "REACH_S", 1.0)

    def ask(endpoint: str) -> str | None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub.unreachable.cache_clear()
        return hub.unreachable()

    yield ask
    hub.unreachable.cache_clear()


def test_a_port_where_nobody_listens(reach) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert "refused" in (reach(f"http://127.0.0.1:{taken.getsockname()[1]}") or "")


def test_a_server_that_never_answers(reach) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.perf_counter()
        assert reach(f"http://127.0.0.1:{silent.getsockname()[1]}") == "no answer within 1 s"
        assert time.perf_counter() - start < 2.0
        assert hub.unreachable() == "no answer within 1 s"  # asked once
        assert time.perf_counter() - start < 2.0
        for thread in threading.enumerate():
            if thread.name == "hub-reach":
                thread.join()


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "503 Service Unavailable"])
def test_any_answer_will_do(reach, status: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        assert reach(f"http://127.0.0.1:{server.getsockname()[1]}") is None
        thread.join()


def test_the_switch_of_the_library_is_honoured(reach, monkeypatch) -> None:
    from huggingface_hub import constants

    hub.unreachable.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"


# ---- the library itself, over local files ----


def write_shards(folder: Path, kind: str, shards: int = 3, rows: int = 30) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    texts = []
    for shard in range(shards):
        records = [{"text": f"shard {shard} row {n}", "n": n} for n in range(rows)]
        texts += [record["text"] for record in records]
        name = f"train-{shard:05}-of-{shards:05}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(records), folder / f"{name}.parquet", row_group_size=7)
        else:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return texts


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_real_library_resumes_exactly_at_every_row(tmp_path: Path, monkeypatch, every_resume, kind: str) -> None:
    texts = write_shards(tmp_path / "set", kind, rows=10)
    notices: list[str] = []
    section = HubSource.model_validate({"dataset": str(tmp_path / "set")})
    source = HubStream("local", section, Quarantine(None, 0.0), notices.append)
    assert [d.text for d, _ in source.read({})] == texts
    position = list(source.read({}))[14][1]
    assert position["revision"] is None
    assert len(json.dumps(position)) < 1000
    every_resume(source, same_positions=False)  # the library has several spellings of one place
    assert notices == []


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_real_library_behind_a_hub_name(tmp_path: Path, monkeypatch, every_resume, kind: str) -> None:
    texts = write_shards(tmp_path / "set", kind, rows=5)
    real = datasets.load_dataset
    files = sorted(str(path) for path in (tmp_path / "set").iterdir())

    def load_dataset(path: str, name: str | None, *, revision: str | None, **named: Any) -> Any:
        assert (path, name, revision) == ("owner/name", None, "commit-of-newest")
        return real("parquet" if kind == "parquet" else "json", data_files={"train": files}, **named)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    section = HubSource.model_validate({"dataset": "owner/name"})
    source = HubStream("owner/name", section, Quarantine(None, 0.0), print)
    assert [d.text for d, _ in source.read({})] == texts
    ids = every_resume(source, same_positions=False)
    assert ids == [f"owner/name:train#{n + 1}" for n in range(15)]


def test_a_split_that_the_real_library_does_not_find(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", "jsonl", 1, 2)
    section = HubSource.model_validate({"dataset": str(tmp_path / "set"), "split": "nope"})
    with pytest.raises(SourceError, match="Bad split: nope"):
        next(HubStream("local", section, Quarantine(None, 0.0), print).read({}))
