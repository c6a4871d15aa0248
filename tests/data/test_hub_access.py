"""Data sets that are gated, private, gone or nothing that can be read: one line says what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.hub_child import Child
from tests.data.hub_data import corpus, packed
from tests.data.hub_server import HubServer

LOGIN = "`hf auth login`, or the variable HF_TOKEN"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return corpus("jsonl", files=1, rows=3)[0]


def error_of(child: Child, dataset: str, **section: str) -> str:
    read = child.read(dataset, **section)
    assert read.texts == []
    assert read.error is not None
    assert read.error.startswith("source 'corpus': ")
    assert "\n" not in read.error
    return read.error.removeprefix("source 'corpus': ")


def test_without_a_token(hub: HubServer, child: Child, files: dict[str, bytes]) -> None:
    hub.add("owner/gated", files, gated=True)
    hub.add("owner/private", files, private=True)
    assert error_of(child, "owner/gated") == (
        f"the data set owner/gated is gated: accept its conditions at {hub.url}/datasets/owner/gated, then log in there "
        f"with {LOGIN}"
    )
    for name in ("owner/private", "owner/nothing"):
        assert error_of(child, name) == (
            f"there is no data set {name} on the hub, or it is private: correct its name, or log in with {LOGIN}"
        )
    assert not [request for request in hub.requests if request.fault]
    assert len(hub.requests) < 15  # nothing is asked again that will not change


@pytest.fixture
def token(child: Child) -> Iterator[Callable[[str], None]]:
    """Gives the child a token."""
    yield child.token
    child.token(None)


def test_with_a_token_that_may_not(hub: HubServer, child: Child, files: dict[str, bytes], token: Any) -> None:
    hub.add("owner/gated-1", files, gated=True)
    hub.add("owner/private-1", files, private=True)
    token("hf_stranger")
    said = error_of(child, "owner/gated-1")
    assert "the account of your token has no access yet: accept its conditions at" in said
    assert f"{hub.url}/datasets/owner/gated-1" in said
    assert "no data set owner/private-1 on the hub, or it is private" in error_of(child, "owner/private-1")


def test_with_a_token_that_may(hub: HubServer, child: Child, files: dict[str, bytes], token: Any) -> None:
    hub.add("owner/gated-2", files, gated=True)
    token("hf_good")
    assert len(child.read("owner/gated-2").texts) == 3


def test_a_token_stays_with_the_hub(hub: HubServer, child: Child, files: dict[str, bytes], token: Any) -> None:
    hub.add("owner/private-2", files, private=True)
    token("hf_good")
    assert len(child.read("owner/private-2").texts) == 3
    by_storage = {request.on_storage: request.token for request in hub.requests}
    assert by_storage == {False: "hf_good", True: None}


def test_with_a_token_that_is_no_more(hub: HubServer, child: Child, files: dict[str, bytes], token: Any) -> None:
    hub.add("owner/open-1", files)
    token("hf_old")
    assert error_of(child, "owner/open-1") == (
        f"the hub does not accept your token: renew it at {hub.url}/settings/tokens ({LOGIN})"
    )


def test_access_that_ends_in_the_middle(hub: HubServer, child: Child) -> None:
    files, texts = corpus("parquet", files=3, rows=5)
    repository = hub.add("owner/closing", files)
    child.set("lmloop.data.hub", AHEAD_CHARACTERS=1)
    reading = child.open("owner/closing")
    assert reading.take(2).texts == texts[:2]
    repository.gated = True
    rest = reading.take()
    assert rest.broken
    assert "the data set owner/closing is gated" in rest.why


def test_revisions_that_are_not_there(hub: HubServer, child: Child, files: dict[str, bytes]) -> None:
    repository = hub.add("owner/revised", files)
    assert error_of(child, "owner/revised", revision="v9") == (
        "the data set owner/revised has no revision 'v9': correct it or leave it out"
    )
    read = child.read("owner/revised")
    commit = repository.refs["main"]
    repository.commit({"b.jsonl": packed([{"text": "new"}], "jsonl")})
    del repository.commits[commit]
    again = child.read("owner/revised", read.positions[0])
    assert again.error == (
        f"source 'corpus': the data set owner/revised no longer has the commit {commit[:12]} that this run is pinned to: "
        "set `revision` to another one, or choose another output_dir to start anew"
    )


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"nothing.bin": b"x"}, "has no files that can be read as data"),
        ({}, "has no files that can be read as data"),
        ({"programme.py": b"print('run me')"}, "is made by a program of its own, and nothing is run from data"),
    ],
)
def test_what_is_no_data_set(hub: HubServer, child: Child, contents: dict[str, bytes], words: str) -> None:
    hub.add("owner/programme", contents)
    assert words in error_of(child, "owner/programme")


def test_a_name_that_is_none(hub: HubServer, child: Child) -> None:
    assert "there is no data set a--b/c on the hub" in error_of(child, "a--b/c")


def test_an_older_copy_in_the_cache_is_no_substitute(hub: HubServer, child: Child) -> None:
    hub.add("owner/cached", {"train.jsonl": packed([{"text": "of the hub"}], "jsonl")})
    assert child.ask("keep", dataset="owner/cached")["rows"] == [{"text": "of the hub"}]
    child.set("lmloop.data.hub_client", PAUSES_S=[])
    hub.fail("status", "owner/cached", status=500, method="HEAD")
    assert error_of(child, "owner/cached") == "owner/cached cannot be had from the hub"
    hub.mend()
    assert child.read("owner/cached").texts == ["of the hub"]


def test_offline_by_the_librarys_own_switch(hub: HubServer, tmp_path: Path) -> None:
    hub.add("owner/open", {"a.jsonl": b""})
    with Child(hub.url, tmp_path, HF_HUB_OFFLINE="1") as offline:
        assert error_of(offline, "owner/open") == (
            "the Hugging Face hub cannot be reached (HF_HUB_OFFLINE is set): check the network"
        )
    assert hub.requests == []
