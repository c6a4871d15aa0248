"""Streams of a hub on loopback, read by the hub's own libraries over HTTP, with nothing mocked."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmloop.data.hub import HubStream, contiguous
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import ShardedSource, SourceError
from lmloop.preset.sources import HubSource
from tests.data.hub_child import Child
from tests.data.hub_data import FORMATS, card, corpus, packed
from tests.data.hub_server import HubServer


@pytest.mark.parametrize("form", FORMATS)
def test_a_stream_gives_every_document_once_and_resumes_at_each(hub: HubServer, child: Child, form: str) -> None:
    files, texts = corpus(form, rows=7, group=3)
    commit = hub.add(f"owner/{form}", files).refs["main"]
    whole = child.read(f"owner/{form}")
    assert whole.texts == texts
    assert whole.ids == [f"data/train-{n // 7:05}-of-00003.{form}#{n % 7 + 1}" for n in range(21)]
    assert whole.ended
    assert not whole.broken
    assert whole.notices == []
    for at, position in enumerate(whole.positions):
        assert position["revision"] == commit
        assert len(json.dumps(position)) < 250
        rest = child.read(f"owner/{form}", position)
        assert rest.ids == whole.ids[at + 1 :], position
        assert rest.texts == texts[at + 1 :]
        assert rest.positions == whole.positions[at + 1 :]


def test_splits_and_subsets(hub: HubServer, child: Child) -> None:
    files = {
        f"{subset}/{split}-0.jsonl": packed([{"text": f"{subset} {split}"}], "jsonl")
        for subset in ("en", "de")
        for split in ("train", "test")
    }
    configs = [
        {"config_name": subset, "data_files": [{"split": s, "path": f"{subset}/{s}-*"} for s in ("train", "test")]}
        for subset in ("en", "de")
    ]
    hub.add("owner/subsets", {**files, "README.md": card(configs=configs)})
    for subset in ("en", "de"):
        for split in ("train", "test"):
            read = child.read("owner/subsets", subset=subset, split=split)
            assert read.texts == [f"{subset} {split}"]
            assert read.ids == [f"{subset}/{split}-0.jsonl#1"]
    assert child.read("owner/subsets", subset="en", split="train+test").texts == ["en train", "en test"]
    assert "Available splits: ['train', 'test']" in (child.read("owner/subsets", subset="en", split="dev").error or "")
    assert "'fr' not found. Available: ['en', 'de']" in (child.read("owner/subsets", subset="fr").error or "")
    assert "Config name is missing" in (child.read("owner/subsets").error or "")


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_fields_and_bad_rows(hub: HubServer, child: Child, form: str) -> None:
    rows = [{"q": "1", "a": "2"}, {"q": None, "a": "2"}, {"q": " ", "a": " "}, {"q": "3", "a": "4"}]
    hub.add(f"owner/qa-{form}", {f"a.{form}": packed(rows, form)})
    read = child.read(f"owner/qa-{form}", fields=["q", "a"], format="Q {q} A {a}")
    assert dict(zip(read.ids, read.texts, strict=True)) == {
        f"a.{form}#1": "Q 1 A 2",
        f"a.{form}#3": "Q   A  ",
        f"a.{form}#4": "Q 3 A 4",
    }
    assert read.bad == [[f"a.{form}", 2, "field 'q' is not text but null"]]


def test_a_bad_line_is_one_bad_row(hub: HubServer, child: Child) -> None:
    hub.add("owner/line", {"a.jsonl": b'{"text": "one"}\n{"text": "tw\n{"text": 3}\n{"text": "four"}\n', "b.jsonl": b""})
    read = child.read("owner/line")
    assert read.texts == ["one", "four"]
    assert [[file, line] for file, line, _ in read.bad] == [["a.jsonl", 2], ["a.jsonl", 3]]
    assert not read.broken


def test_a_field_that_is_not_there(hub: HubServer, child: Child) -> None:
    hub.add("owner/field", {"a.parquet": packed([{"body": "x"}] * 30, "parquet")})
    read = child.read("owner/field")
    assert read.texts == []
    assert [row[:2] for row in read.bad] == [["a.parquet", 0]]
    assert "'text'; there are: body" in read.bad[0][2]


def test_too_many_bad_rows_is_not_taken_for_the_networks_fault(hub: HubServer, child: Child) -> None:
    hub.add("owner/bad", {"a.jsonl": packed([{"body": "x"}] * 30, "jsonl")})
    read = child.read("owner/bad")
    assert "20 of the first 20 rows are bad" in (read.error or "")
    assert not read.broken


def test_conversations(hub: HubServer, child: Child) -> None:
    messages = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    hub.add("owner/chat", {"a.parquet": packed([{"messages": messages}], "parquet")})
    read = child.read("owner/chat", data_type="chat")
    assert "How?" in read.texts[0]
    assert read.bad == []


@pytest.mark.parametrize(
    ("ending", "contents"), [("csv", b'text,n\n"one, two",1\nthree,2\n'), ("txt", b"one, two\nthree\n")]
)
def test_other_formats_are_streamed_by_the_library(hub: HubServer, child: Child, ending: str, contents: bytes) -> None:
    hub.add(f"owner/{ending}", {f"train-0.{ending}": contents, f"train-1.{ending}": contents})
    whole = child.read(f"owner/{ending}")
    assert whole.texts == ["one, two", "three"] * 2
    assert whole.ids == ["train/0#1", "train/0#2", "train/1#1", "train/1#2"]
    for at, position in enumerate(whole.positions):
        assert child.read(f"owner/{ending}", position).ids == whole.ids[at + 1 :]


def test_options_of_a_card_are_left_to_the_library(hub: HubServer, child: Child) -> None:
    configs = [{"config_name": "default", "data_files": "a.json", "field": "rows"}]
    hub.add("owner/inner", {"a.json": b'{"rows": [{"text": "one"}, {"text": "two"}]}', "README.md": card(configs=configs)})
    assert child.read("owner/inner").texts == ["one", "two"]


def test_a_file_without_rows(hub: HubServer, child: Child) -> None:
    hub.add("owner/empty", {"a.parquet": no_rows(), "b.parquet": packed([{"text": "x"}], "parquet")})
    assert child.read("owner/empty").ids == ["b.parquet#1"]


def no_rows() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), sink)
    return sink.getvalue()


# ---- what is pinned ----


def test_a_run_stays_at_its_commit_when_the_hub_moves_on(hub: HubServer, child: Child) -> None:
    files, texts = corpus("parquet", rows=4)
    repository = hub.add("owner/moving", files)
    first = repository.refs["main"]
    position = child.read("owner/moving").positions[5]
    later = repository.commit({"data/train-0.jsonl": packed([{"text": "new"}], "jsonl")})
    assert later != first
    rest = child.read("owner/moving", position)
    assert rest.texts == texts[6:]
    assert {position["revision"] for position in rest.positions} == {first}
    anew = child.read("owner/moving")
    assert anew.texts == ["new"]
    assert anew.positions[0]["revision"] == later


def test_a_tag_is_pinned_to_its_commit(hub: HubServer, child: Child) -> None:
    files, texts = corpus("jsonl", files=1, rows=3)
    repository = hub.add("owner/tagged", files)
    repository.refs["v1"] = repository.refs["main"]
    repository.commit({"a.jsonl": b""})
    read = child.read("owner/tagged", revision="v1")
    assert read.texts == texts
    assert read.positions[0]["revision"] == repository.refs["v1"]


def test_a_commit_is_not_asked_for(hub: HubServer, child: Child) -> None:
    files, texts = corpus("jsonl", files=1, rows=3)
    commit = hub.add("owner/commit", files).refs["main"]
    assert child.read("owner/commit", revision=commit).texts == texts
    assert not [request for request in hub.requests if request.path == "/api/datasets/owner/commit"]


def test_another_revision_in_the_preset_begins_anew(hub: HubServer, child: Child) -> None:
    files, texts = corpus("jsonl", files=1, rows=3)
    repository = hub.add("owner/changed", files)
    first = repository.refs["main"]
    second = repository.commit({"a.jsonl": packed([{"text": "new"}] * 5, "jsonl")})
    position = child.read("owner/changed", revision=first).positions[1]
    assert child.read("owner/changed", position, revision=first).texts == texts[2:]
    read = child.read("owner/changed", position, revision=second)
    assert read.texts == ["new"] * 5
    assert read.notices == [
        "source 'corpus': the preset names another revision than was read; it is read from the beginning"
    ]


# ---- what is downloaded ----


def test_resuming_does_not_ask_again_for_what_was_read(hub: HubServer, child: Child) -> None:
    child.set("lmloop.data.hub_files", BLOCK_BYTES=10_000, BUFFER_BYTES=10_000)
    for form, at_most in (("parquet", 0.25), ("jsonl", 0.25), ("jsonl.gz", 1.1)):
        files, texts = corpus(form, files=1, rows=3000, words=20, group=100)
        hub.add(f"owner/large-{form}", files)
        size = len(next(iter(files.values())))
        hub.requests.clear()
        whole = child.read(f"owner/large-{form}")
        assert whole.texts == texts
        assert size * 0.5 < hub.sent_bytes("/storage/") < size * 1.2
        hub.requests.clear()
        rest = child.read(f"owner/large-{form}", whole.positions[2699])
        assert rest.texts == texts[2700:]
        assert hub.sent_bytes("/storage/") < size * at_most, form  # a compressed file has no places to go to
    child.set("lmloop.data.hub_files", BLOCK_BYTES=4 << 20, BUFFER_BYTES=256 << 10)


def test_only_the_wanted_columns_are_downloaded(hub: HubServer, child: Child) -> None:
    generator = random.Random(0)
    rows = [{"vector": generator.randbytes(5000), "text": f"row {n}"} for n in range(400)]
    hub.add("owner/columns", {"a.parquet": packed(rows, "parquet", group=200)})
    child.set("lmloop.data.hub_files", BLOCK_BYTES=10_000)
    assert len(child.read("owner/columns").texts) == 400
    assert hub.sent_bytes("/storage/") < 200_000 < len(hub.repositories["owner/columns"].commits.popitem()[1]["a.parquet"])
    child.set("lmloop.data.hub_files", BLOCK_BYTES=4 << 20)


# ---- parts ----


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz"])
def test_parts_are_the_whole(hub: HubServer, child: Child, form: str) -> None:
    files, texts = corpus(form, files=7, rows=4)
    hub.add(f"owner/parts-{form}", files)
    stream = child.open(f"owner/parts-{form}")
    assert [stream.shard_count(limit) for limit in (1, 5, 7, 8, 100)] == [1, 5, 7, 7, 7]
    whole = stream.take()
    for count in (1, 2, 3, 7):
        reads = [part.take() for part in stream.parts(count)]
        assert [text for read in reads for text in read.texts] == texts
        assert [name for read in reads for name in read.ids] == whole.ids
    second = reads[1]
    for at, position in enumerate(second.positions):
        rest = child.open(f"owner/parts-{form}", position, part=(1, 7)).take()
        assert rest.ids == second.ids[at + 1 :]


def test_parts_are_opened_when_they_are_read(hub: HubServer, child: Child) -> None:
    files, _ = corpus("parquet", files=4)
    hub.add("owner/lazy", files)
    stream = child.open("owner/lazy")
    stream.take()
    parts = stream.parts(4)
    hub.requests.clear()
    parts[2].take()
    assert {request.path.rsplit("/", 1)[-1] for request in hub.requests} == {"train-00002-of-00004.parquet"}


@pytest.mark.parametrize("total", range(1, 12))
def test_parts_are_those_of_the_library(total: int) -> None:
    files = [f"{index}" for index in range(total)]

    def rows(files: list[str]) -> Any:
        for file in files:
            yield {"file": int(file)}

    stream = datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": files})
    for count in range(1, total + 1):
        theirs = [[row["file"] for row in stream.shard(count, index)] for index in range(count)]
        assert theirs == [list(contiguous(total, index, count)) for index in range(count)]


# ---- a folder that is laid out like a data set ----


@pytest.mark.parametrize("form", FORMATS)
def test_a_local_folder(tmp_path: Path, every_resume, form: str) -> None:
    files, texts = corpus(form, rows=5, group=2)
    for name, contents in files.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    notices: list[str] = []
    section = HubSource.model_validate({"dataset": str(tmp_path / "set")})
    source = HubStream("local", section, Quarantine(None, 0.0), notices.append)
    assert isinstance(source, ShardedSource)
    assert [d.text for d, _ in source.read({})] == texts
    ids = every_resume(source)
    assert ids[7] == f"data/train-00001-of-00003.{form}#3"
    assert source.shard_count(2) == 2
    assert [d.id for part in range(3) for d, _ in source.shard(part, 3).read({})] == ids
    assert [d.progress for d, _ in source.read({})][-1] <= 1.0
    assert next(source.read({}))[1]["revision"] is None
    assert notices == []


def test_a_local_folder_without_the_split(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_bytes(packed([{"text": "x"}], "jsonl"))
    section = HubSource.model_validate({"dataset": str(tmp_path), "split": "nope"})
    with pytest.raises(SourceError, match=r"Bad split: nope. Available splits: \['train'\]"):
        next(HubStream("local", section, Quarantine(None, 0.0), print).read({}))
