from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from lmloop.data import frozen
from lmloop.data.chat_formats import FORMATS
from lmloop.data.document import Document, Message, Pair
from lmloop.data.shape import KindShape
from lmloop.data.split import split
from lmloop.preset.sources import FilesSource, Kind
from tests.data.hub_child import Child
from tests.data.hub_data import packed
from tests.data.hub_server import HubServer

SPOKEN = (Message("user", "q"), Message("assistant", "a"))
RECORDS: list[Any] = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "q", "input": "", "output": "a"},
    {"prompt": "q", "completion": "a"},
    {"question": "q", "answer": "a"},
    {"chat_messages": [{"sender": "human", "text": "q"}, {"sender": "assistant", "text": "a"}]},
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
]
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2.5}


def test_there_is_a_reader_for_every_kind() -> None:
    assert {"chat", "pairs", *FORMATS} == set(get_args(Kind))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.log"])
def test_conversations_of_any_format_in_one_file(tmp_path: Path, opened, every_resume, name: str) -> None:
    lines = [json.dumps(record) for record in RECORDS]
    array = "[" + ",\n".join(lines) + "]"
    (tmp_path / name).write_text(array if name == "a.json" else "\n".join(lines))
    it = opened(tmp_path / name, data_type="chat")
    documents = it.documents()
    assert it.bad == []
    assert [document.id for document in documents] == [f"{name}#{n + 1}" for n in range(len(RECORDS))]
    assert all(document.messages == SPOKEN and document.pair is None for document in documents)
    assert {document.text for document in documents} == {"User: q\n\nAssistant: a"}
    every_resume(it.source)


def test_parquet_of_conversations(tmp_path: Path, opened, every_resume) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{**RECORDS[0], "embedding": [0.5] * 4, "system": None}, {"messages": [], "embedding": [], "system": "s"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows * 3), tmp_path / "a.parquet", row_group_size=4)
    it = opened(tmp_path, data_type="chat")
    assert [document.messages for document in it.documents()] == [SPOKEN] * 3
    assert [(line, reason) for _, line, reason in it.bad] == [
        (n, "no assistant turn that answers a user: there is nothing to train") for n in (2, 4, 6)
    ]
    every_resume(it.source)
    assert it.source._records[".parquet"].shape.pick(["embedding", "system", "messages"]) == ["system", "messages"]


@pytest.mark.parametrize("data_type", ["chat", "messages"])
def test_a_table_without_conversations_is_one_bad_row(tmp_path: Path, opened, data_type: str) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"] * 50}), tmp_path / "a.parquet")
    it = opened(tmp_path, data_type=data_type)
    assert it.documents() == []
    ((_, line, reason),) = it.bad
    assert line == 0
    assert reason.endswith("there are: text")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_conversations_of_the_hub(hub: HubServer, child: Child, form: str) -> None:
    rows = [RECORDS[0], {"messages": []}, RECORDS[0]]
    hub.add(f"owner/chats-{form}", {f"a.{form}": packed(rows, form)})
    read = child.read(f"owner/chats-{form}", data_type="chat")
    assert read.texts == ["User: q\n\nAssistant: a"] * 2
    assert read.bad == [[f"a.{form}", 2, "no assistant turn that answers a user: there is nothing to train"]]


def test_pairs(tmp_path: Path, opened, every_resume) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(PAIR)}\n" + '{"chosen": "a"}\n')
    it = opened(tmp_path, data_type="pairs")
    (document,) = it.documents()
    assert document.pair == Pair((SPOKEN[0],), (SPOKEN[1],), (Message("assistant", "b"),), 2.5)
    assert (document.messages, document.text) == (None, "User: q\n\nAssistant: a")
    assert it.bad == [("a.jsonl", 2, "no field 'rejected'; there are: chosen")]
    every_resume(it.source)


def test_a_named_format_takes_no_other(tmp_path: Path, opened) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record) for record in RECORDS))
    it = opened(tmp_path, data_type="alpaca")
    assert list(it.texts()) == ["a.jsonl#3"]
    assert it.bad[0] == ("a.jsonl", 1, "no field 'instruction'; there are: messages")
    assert it.bad[-1] == ("a.jsonl", 7, "not an object with fields but a list")


def test_fields_with_other_names(tmp_path: Path, opened) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "q", "reply": "a", "system": "s"}\n{"query": "q"}\n')
    it = opened(tmp_path, data_type="completion", columns={"prompt": "query", "completion": "reply"})
    assert [document.messages for document in it.documents()] == [(Message("system", "s"), *SPOKEN)]
    assert it.bad == [("a.jsonl", 2, "no field 'reply'; there are: query")]
    with pytest.raises(
        ValueError, match=r"^data\.sources: columns: 'promt' is no field of 'completion': there are prompt, "
    ):
        opened(tmp_path, data_type="completion", columns={"promt": "query"})
    assert KindShape("pairs", {"chosen": "good"}).pick(["good", "rejected", "x"]) == ["good", "rejected"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data_type": "chat", "text_field": "body"}, "data_type 'chat' has fields of its own"),
        ({"data_type": "pairs", "fields": ["a"], "format": "{a}"}, "data_type 'pairs' has fields of its own"),
        ({"columns": {"prompt": "query"}}, "columns is for conversations and pairs, and data_type is 'auto'"),
        ({"data_type": "chats"}, "data_type"),
    ],
)
def test_presets_that_contradict_themselves(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FilesSource.model_validate({"path": "x", **options})


def test_an_empty_chat_of_an_export_is_passed_over(tmp_path: Path, opened) -> None:
    empty = {"mapping": {"a": {"message": None, "parent": None, "children": []}}, "current_node": "a"}
    (tmp_path / "conversations.json").write_text(json.dumps([empty, RECORDS[5]]))
    it = opened(tmp_path, data_type="chat")
    assert list(it.texts()) == ["conversations.json#2"]
    assert it.bad == []
    assert it.source.parents() == ["conversations.json#2"]


@pytest.mark.parametrize(("record", "data_type"), [(RECORDS[0], "chat"), (PAIR, "pairs")])
def test_a_single_conversation_is_not_split_by_position(tmp_path: Path, opened, record: Any, data_type: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    parts = split(opened(tmp_path, data_type=data_type).source, 0.3, 0.3)
    assert (parts.validation, parts.test) == (None, None)
    ((document, _),) = parts.train.read({})
    assert document.messages or document.pair


def test_held_out_conversations_and_pairs_are_kept(tmp_path: Path) -> None:
    pair = Pair(SPOKEN[:1], SPOKEN[1:], (Message("assistant", "b\u2028\x85"),), 0.5)
    parts = {
        "s": [Document("1", "1", "t", 0.0, SPOKEN), Document("2", "2", "t", 0.0, None, pair), Document("3", "3", "t", 0.0)]
    }
    frozen.save(tmp_path / "validation.jsonl", parts)
    assert frozen.load(tmp_path / "validation.jsonl") == parts
    damaged = (tmp_path / "validation.jsonl").read_text().replace('"rejected"', '"refused"')
    (tmp_path / "validation.jsonl").write_text(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        frozen.load(tmp_path / "validation.jsonl")


DOCS = Path(__file__).parents[2] / "docs" / "chat-data.md"
EXAMPLES = re.findall(r"^\*\*(\w+)\*\*|^```json\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_documentation_are_read(tmp_path: Path, opened) -> None:
    kind, read = "", []
    for name, example in EXAMPLES:
        kind = name or kind
        if name or not kind:  # before the first format stand sources of a preset
            continue
        (tmp_path / "a.json").write_text(example)
        for data_type in {kind, "pairs" if kind == "pairs" else "chat"}:
            it = opened(tmp_path / "a.json", data_type=data_type)
            (document,) = it.documents()
            assert it.bad == []
            question = {"alpaca": "Add the numbers.\n\n### Input:\n2, 2"}.get(kind, "2 + 2?")
            assert document.text.endswith(f"User: {question}\n\nAssistant: 4"), example
        read.append(kind)
    assert set(read) == {*FORMATS, "pairs"}
