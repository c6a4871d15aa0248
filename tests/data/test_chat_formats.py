from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.data.chat_formats import FORMATS, recognised
from lmloop.data.records import BadRecordError, Number

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
QA = [("user", "q"), ("assistant", "a")]

GOOD: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("messages", {"messages": [USER, BOT]}, QA),
    ("messages", {"conversation": [USER, BOT], "id": 3}, QA),
    ("messages", {"conversations": [USER, BOT], "system": "s"}, [("system", "s"), *QA]),
    ("messages", {"messages": [{"role": "system", "content": "own"}, USER, BOT], "system": "s"}, [("system", "own"), *QA]),
    ("sharegpt", {"conversations": [HUMAN, GPT], "tools": "[]"}, QA),
    ("sharegpt", {"conversations": [GPT, HUMAN, GPT]}, QA),
    ("sharegpt", {"conversations": [HUMAN, GPT], "system": ""}, QA),
    ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT]}, [("system", "s"), *QA]),
    ("alpaca", {"instruction": "q", "output": "a"}, QA),
    ("alpaca", {"instruction": "q", "input": "", "output": "a", "text": "Below is"}, QA),
    ("alpaca", {"instruction": "q", "input": None, "response": "a"}, QA),
    ("alpaca", {"instruction": "q", "input": "data", "output": "a"},
     [("user", "q\n\n### Input:\ndata"), ("assistant", "a")]),
    ("alpaca", {"instruction": "q", "output": "a", "system": "s", "history": [["x", "y"]]},
     [("system", "s"), ("user", "x"), ("assistant", "y"), *QA]),
    ("alpaca", {"instruction": "q", "output": Number("42")}, [("user", "q"), ("assistant", "42")]),
    ("completion", {"prompt": "q", "completion": "a"}, QA),
    ("completion", {"prompt": "q", "response": "a"}, QA),
    ("completion", {"question": "q", "answer": "a"}, QA),
    ("completion", {"question": "q", "answer": Number("1.50"), "system": "s"},
     [("system", "s"), ("user", "q"), ("assistant", "1.50")]),
    ("completion", {"prompt": [USER], "completion": [BOT]}, QA),
    ("completion", {"prompt": None, "question": "q", "answer": "a"}, QA),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "messages"), GOOD)
def test_reading(name: str, record: dict[str, Any], messages: list[tuple[str, str]]) -> None:
    assert [(message.role, message.content) for message in FORMATS[name].read(record)] == messages
    assert recognised(record) == name


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("messages", {"text": "a"}, "no field 'messages'; there are: text"),
        ("messages", {"messages": None}, "no field 'messages'; there are: messages"),
        ("messages", {"messages": []}, "no assistant turn that answers a user: there is nothing to train"),
        ("messages", {"messages": {"role": "user"}}, "messages is not a list of messages but an object"),
        ("messages", {"messages": [HUMAN, GPT]}, "messages[0] has no 'role'; there are: from, value"),
        ("sharegpt", {"conversations": [USER, BOT]}, "conversations[0] has no 'from'; there are: role, content"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "foo", "value": "x"}]},
         "conversations[1].from is 'foo': allowed are system, user, assistant, tool"),
        ("sharegpt", {"items": []}, "no field 'conversations'; there are: items"),
        ("alpaca", {"instruction": "q"}, "no field 'output'; there are: instruction"),
        ("alpaca", {"output": "a"}, "no field 'instruction'; there are: output"),
        ("alpaca", {"instruction": "", "output": "a"}, "field 'instruction' is empty"),
        ("alpaca", {"instruction": "q", "output": " \n"}, "field 'output' is empty"),
        ("alpaca", {"instruction": "q", "output": {"a": 1}}, "field 'output' is not text but an object"),
        ("alpaca", {"instruction": "q", "input": {"a": 1}, "output": "a"}, "field 'input' is not text but an object"),
        ("alpaca", {"instruction": "q", "output": "a", "history": "x"}, "field 'history' is not a list of pairs of texts"),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["x"]]}, "history[0] is not a pair of texts"),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["x", ""]]}, "history[0][1] (assistant) is empty"),
        ("alpaca", {"instruction": "q", "output": "a", "system": {}}, "field 'system' is not text but an object"),
        ("completion", {"prompt": "q"}, "no field 'completion'; there are: prompt"),
        ("completion", {"completion": "a"}, "no field 'prompt'; there are: completion"),
        ("completion", {"prompt": "", "completion": "a"}, "field 'prompt' is empty"),
        ("completion", {"prompt": [USER], "completion": [USER]},
         "no assistant turn that answers a user: there is nothing to train"),
        ("completion", {"prompt": [USER], "completion": "a"}, "field 'prompt' is not text but a list"),
    ],
)  # fmt: skip
def test_bad_records(name: str, record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecordError) as error:
        FORMATS[name].read(record)
    assert str(error.value) == reason


@pytest.mark.parametrize("record", [{}, {"text": "a"}, {"prompt": "a"}, {"answer": "b"}, {"messages": None}])
def test_what_is_no_conversation(record: dict[str, Any]) -> None:
    with pytest.raises(BadRecordError, match=r"^no conversation \(messages, .*\); there are: "):
        recognised(record)


NAMES = """messages conversations role content from value instruction input output system history prompt completion mapping
message author parts parent children current_node content_type metadata recipient id chat_messages sender text attachments
files uuid parent_message_uuid current_leaf_message_uuid weight"""

anything = st.recursive(
    st.none() | st.booleans() | st.text(max_size=3) | st.sampled_from([Number("0"), Number("1e999")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES.split()),
            inner | st.sampled_from(["user", "assistant", "human", "gpt", "text", "a", "b"]),
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(record=st.dictionaries(st.sampled_from([f for format in FORMATS.values() for f in format.fields]), anything))
def test_whatever_stands_in_a_record_it_is_a_conversation_or_a_bad_record(record: dict[str, Any]) -> None:
    for name, format in FORMATS.items():
        try:
            messages, reason = format.read(record), ""
        except BadRecordError as error:
            messages, reason = (), str(error)
        assert len(reason.splitlines()) <= 1, name
        assert all(message.content.strip() for message in messages), name
