"""What a hub and the way to it can do wrong: a stream is the same after it, or breaks off and can go on later."""

from __future__ import annotations

import functools
import io
import re
import threading
import time
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.data.hub_child import Child
from tests.data.hub_data import corpus
from tests.data.hub_server import HubServer

STALL_S = 0.25

FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "stall in a body": ("stall", {}, f"no answer for {STALL_S} s"),
    "no answer at all": ("silent", {}, f"no answer for {STALL_S} s"),
    "reset in a body": ("reset", {}, "Connection reset by peer"),
    "body cut off": ("truncate", {}, "without sending complete message body"),
    "body short, and so is its length": ("short", {}, "bytes came in place of"),
    "another range": ("shifted", {}, "sent another part of a file than was asked for"),
    "ranges ignored": ("whole", {}, "it does not know ranges"),
    "redirects in a circle": ("loop", {}, "redirects in a circle"),
    "name not found": ("nowhere", {}, "ame"),  # the system's words
    "web page with status 200": ("html", {}, "sent a web page in place of data"),
    "500": ("status", {"status": 500}, "answers 500 Internal Server Error"),
    "502": ("status", {"status": 502}, "answers 502 Bad Gateway"),
    "503 with Retry-After": ("status", {"status": 503, "headers": {"Retry-After": "0"}}, "answers 503"),
    "429": ("status", {"status": 429}, "answers 429 Too Many Requests"),
    "429 with Retry-After": ("status", {"status": 429, "headers": {"Retry-After": "0"}}, "answers 429"),
}
"""Kind and options of a fault, and what is said of it in the end."""

OF_FILES = ("stall", "reset", "truncate", "short", "shifted", "whole")

each_fault = pytest.mark.parametrize("name", FAULTS)
each_form = pytest.mark.parametrize("form", ["parquet", "jsonl.gz"])


@pytest.fixture(autouse=True)
def _small_blocks(hub: HubServer, child: Child):
    """So that a file takes several requests, and little is read ahead."""
    child.set("lmloop.data.hub_files", BLOCK_BYTES=9000, BUFFER_BYTES=1000)
    child.set("lmloop.data.hub", AHEAD_CHARACTERS=5000)
    yield
    child.set("lmloop.data.hub_files", BLOCK_BYTES=4 << 20, BUFFER_BYTES=256 << 10)


made = functools.cache(lambda form: corpus(form, rows=20, words=1000, group=4))


def add(hub: HubServer, name: str, form: str) -> tuple[str, list[str]]:
    """A data set under a name of its own, for the libraries remember what they asked; its name and its texts."""
    dataset = "faults/" + re.sub("[^a-zA-Z0-9]+", "-", f"{name} {form}").strip("-")
    files, texts = made(form)
    hub.add(dataset, files)
    return dataset, texts


def prepared(child: Child, name: str) -> tuple[str, dict[str, Any], str]:
    """A fault; where time tells it, the child has little patience."""
    if FAULTS[name][0] in ("stall", "silent"):
        child.set("lmloop.data.hub_client", STALL_S=STALL_S)
    return FAULTS[name]


@each_fault
@each_form
def test_a_fault_that_passes_changes_nothing(hub: HubServer, child: Child, name: str, form: str) -> None:
    dataset, texts = add(hub, f"passing {name}", form)
    kind, options, _ = prepared(child, name)
    times = 1 if kind in ("stall", "silent") else 2  # with so little patience a busy machine may seem to stall as well
    faults = [hub.fail(kind, f"/storage/{dataset}/", skip=skip, times=times, **options) for skip in (2, 7)]
    read = child.read(dataset)
    assert read.texts == texts
    assert len(set(read.ids)) == len(texts)
    assert read.notices == []
    assert not read.broken
    assert all(fault.served >= fault.skip + times for fault in faults), faults


@each_fault
@each_form
def test_a_fault_that_stays_breaks_the_stream_off(hub: HubServer, child: Child, name: str, form: str) -> None:
    dataset, texts = add(hub, f"staying {name}", form)
    kind, options, words = prepared(child, name)
    fault = hub.fail(kind, f"/storage/{dataset}/", skip=7, **options)
    read = child.read(dataset)
    assert 0 < len(read.texts) < len(texts)
    assert read.texts == texts[: len(read.texts)]
    assert read.broken
    assert read.error is None
    assert read.why.startswith("source 'corpus': ")
    assert words in read.why
    assert "\n" not in read.why
    if kind != "loop":
        assert fault.served == 7 + 4  # three more attempts
    hub.mend()
    rest = child.read(dataset, read.positions[-1])
    assert read.texts + rest.texts == texts
    assert len({*read.ids, *rest.ids}) == len(texts)


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name][0] not in OF_FILES])
@pytest.mark.parametrize("where", ["/api/datasets/", "/tree/"])
def test_faults_before_the_first_document(hub: HubServer, child: Child, name: str, where: str) -> None:
    kind, options, words = prepared(child, name)
    dataset, texts = add(hub, f"early {name} {where}", "jsonl")
    hub.fail(kind, where, times=1, **options)
    assert child.read(dataset).texts == texts
    hub.mend()
    dataset, texts = add(hub, f"never {name} {where}", "jsonl")
    hub.fail(kind, where, **options)
    read = child.read(dataset)
    assert read.texts == []
    assert words in (read.error or "")
    assert read.notices == []
    assert not read.broken


@each_form
def test_a_server_that_dies_and_comes_back(hub: HubServer, child: Child, form: str) -> None:
    child.set("lmloop.data.hub_client", PAUSES_S=[0.2, 0.4, 0.8])
    dataset, texts = add(hub, "dies", form)
    hub.fail("die", f"/storage/{dataset}/", skip=4, times=1)
    reading = child.open(dataset)
    reading.take(1)
    back = threading.Timer(0.3, hub.repair)
    back.start()
    rest = reading.take()
    back.join()
    assert rest.texts == texts[1:]
    assert rest.notices == []


def test_a_server_that_is_gone_for_good(hub: HubServer, child: Child) -> None:
    dataset, texts = add(hub, "gone", "parquet")
    reading = child.open(dataset)
    assert reading.take(3).texts == texts[:3]
    hub.stop()
    rest = reading.take()
    assert rest.texts == texts[3 : 3 + len(rest.texts)]
    assert rest.broken
    assert "Connection refused" in rest.why
    again = child.read(dataset)
    assert "Connection refused" in (again.error or "")


def test_garbage_in_place_of_a_file_is_asked_for_again(hub: HubServer, child: Child) -> None:
    for form in ("parquet", "jsonl.gz"):
        dataset, texts = add(hub, "garbled", form)
        hub.fail("garbage", f"/storage/{dataset}/", skip=3, times=1)
        read = child.read(dataset)
        assert read.texts == texts, form
        assert read.bad == []


@each_form
def test_garbage_that_stays_is_set_aside_and_the_next_file_is_read(hub: HubServer, child: Child, form: str) -> None:
    dataset, texts = add(hub, "garbage", form)
    hub.fail("garbage", "train-00001")
    read = child.read(dataset)
    assert read.texts == texts[:20] + texts[40:]
    assert not read.broken
    [[file, line, reason]] = read.bad
    assert (file, line) == (f"data/train-00001-of-00003.{form}", 0)
    assert ("not a Parquet file" if form == "parquet" else "damaged, nothing after it is read") in reason


def test_a_damaged_row_group_and_a_torn_archive_cost_what_is_in_them(hub: HubServer, child: Child) -> None:
    files, texts = corpus("parquet", files=1, rows=20, group=4)
    [(name, data)] = files.items()
    page = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(2).column(0).data_page_offset
    torn = bytearray(data)
    torn[page : page + 20] = b"\xff" * 20
    hub.add("faults/group", {name: bytes(torn)})
    read = child.read("faults/group")
    assert read.texts == texts[:8] + texts[12:]
    [[file, line, reason]] = read.bad
    assert (file, line) == (name, 12)
    assert "row group of 4 rows cannot be decoded" in reason


@pytest.mark.parametrize(("form", "at_least"), [("jsonl.gz", 280), ("jsonl.xz", 280), ("jsonl.zst", 200), ("jsonl.bz2", 0)])
def test_of_an_archive_that_breaks_off_the_beginning_is_kept(hub: HubServer, child: Child, form: str, at_least: int) -> None:
    files, texts = corpus(form, files=2, rows=600, words=100)
    first = next(iter(files))
    hub.add(f"faults/broken-{form}", {**files, first: files[first][: len(files[first]) // 2]})
    read = child.read(f"faults/broken-{form}")
    kept = len(read.texts) - 600
    assert read.texts == texts[:kept] + texts[600:]
    assert at_least <= kept < 320  # bz2 unpacks 900 kB at once or not at all
    assert [(row[0], row[1]) for row in read.bad][-1] == (first, 0)
    assert "damaged, nothing after it is read" in read.bad[-1][2]


# ---- pauses ----


def waited(hub: HubServer, child: Child, **headers: str) -> float:
    dataset, texts = add(hub, f"after {headers}", "jsonl")
    hub.fail("status", f"/storage/{dataset}/", status=429, times=1, headers=headers)
    start = time.perf_counter()
    assert child.read(dataset).texts == texts
    return time.perf_counter() - start


def test_retry_after_is_honoured_within_bounds(hub: HubServer, child: Child) -> None:
    child.set("lmloop.data.hub_client", PAUSES_S=[0.0, 0.0, 0.0], MAX_RETRY_AFTER_S=1.2)
    assert 1.0 <= waited(hub, child, **{"Retry-After": "1"}) < 30.0
    assert 1.0 <= waited(hub, child, RateLimit='"resolvers";r=0;t=1') < 30.0
    assert 1.2 <= waited(hub, child, **{"Retry-After": "3600"}) < 30.0


def test_pauses_add_up(hub: HubServer, child: Child) -> None:
    child.set("lmloop.data.hub_client", PAUSES_S=[0.1, 0.2, 0.4])
    dataset, _ = add(hub, "pauses", "jsonl")
    hub.fail("status", f"/storage/{dataset}/", status=500)
    assert child.read(dataset).took_s >= 0.35


# ---- somebody wants to stop ----


@pytest.mark.parametrize("kind", ["silent", "status"])
def test_a_stop_does_not_wait_for_the_network(hub: HubServer, child: Child, kind: str) -> None:
    child.set("lmloop.data.hub_client", PAUSES_S=[20.0], STALL_S=20.0)
    dataset, texts = add(hub, f"stop {kind}", "jsonl")
    hub.fail(kind, f"/storage/{dataset}/", skip=3)
    reading = child.open(dataset)
    read = reading.take(stop_after_s=0.3)
    assert read.error == "stopped"
    assert 0.3 <= read.took_s < 5.0
    assert read.texts == texts[: len(read.texts)]
    hub.mend()
    rest = child.read(dataset, read.positions[-1] if read.positions else {})
    assert read.texts + rest.texts == texts
