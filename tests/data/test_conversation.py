from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.data.conversation import ROLE_NAMES, Turn, conversation, merged, plain_text, turns
from lmloop.data.document import ROLES, Message
from lmloop.data.records import BadRecordError, Number

LETTERS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def chat(roles: str) -> list[Turn]:
    """`sua` as turns that say s0, u1, a2; an upper-case letter says nothing but white space."""
    return [
        Turn(f"messages[{index}]", LETTERS[letter.lower()], f"{letter}{index}" if letter.islower() else " \n")
        for index, letter in enumerate(roles)
    ]


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        ("ua", "u0 a1"),
        ("sua", "s0 u1 a2"),
        ("uaua", "u0 a1 u2 a3"),
        ("uata", "u0 a1 t2 a3"),
        ("uattaua", "u0 a1 t2 t3 a4 u5 a6"),
        ("Sua", "u1 a2"),  # an empty system message says nothing
        ("auaua", "u1 a2 u3 a4"),  # a greeting answers nobody
        ("saua", "s0 u2 a3"),
        ("uau", "u0 a1"),  # nothing is learned from what nobody answered
        ("uaU", "u0 a1"),
        ("uat", "u0 a1"),
    ],
)
def test_what_is_kept(roles: str, kept: str) -> None:
    assert " ".join(message.content for message in conversation(chat(roles))) == kept


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("", "no assistant turn that answers a user: there is nothing to train"),
        ("u", "no assistant turn that answers a user: there is nothing to train"),
        ("su", "no assistant turn that answers a user: there is nothing to train"),
        ("sa", "no assistant turn that answers a user: there is nothing to train"),
        ("au", "no assistant turn that answers a user: there is nothing to train"),
        ("uas", "messages[2] is a system message: only the first message can be one"),
        ("ssua", "messages[1] is a system message: only the first message can be one"),
        ("uSa", "messages[1] is a system message: only the first message can be one"),
        ("uua", "messages[1] (user) follows messages[0] (user): user and assistant take turns"),
        ("uaa", "messages[2] (assistant) follows messages[1] (assistant): user and assistant take turns"),
        ("uta", "messages[1] (tool) follows messages[0] (user): a tool answers the assistant"),
        ("uatua", "messages[3] (user) follows messages[2] (tool): a tool answers the assistant"),
        ("uA", "messages[1] (assistant) is empty"),
        ("Ua", "messages[0] (user) is empty"),
        ("uaTa", "messages[2] (tool) is empty"),
    ],
)
def test_what_is_refused(roles: str, reason: str) -> None:
    with pytest.raises(BadRecordError) as error:
        conversation(chat(roles))
    assert str(error.value) == reason


@given(st.text("suatSUAT", max_size=12))
def test_what_is_kept_can_be_learned_from(roles: str) -> None:
    """The rules said in another way: the roles of what is kept match one regular expression."""
    import re

    try:
        kept = conversation(chat(roles))
    except BadRecordError:
        return
    letters = "".join(message.role[0] for message in kept)
    assert re.fullmatch("s?(ua(t+a)*)+", letters), letters
    assert all(message.content.strip() for message in kept)
    assert [m.content for m in kept] == [t.content for t in chat(roles) if t.content in {m.content for m in kept}]


def said(role: Any = "user", content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("entry", "role", "content"),
    [
        (said(), "user", "hi"),
        (said("Human"), "user", "hi"),
        (said(" GPT "), "assistant", "hi"),
        (said("developer"), "system", "hi"),
        (said("observation"), "tool", "hi"),
        (said(content="  as it is\n"), "user", "  as it is\n"),
        (said(content="x\ud83d"), "user", "x\ufffd"),
        (said(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "user", "ab"),
        (said(content=["a", {"text": "b"}]), "user", "ab"),
        (said(tool_calls=None, function_call=None, weight=None, name="Ann", extra={"x": 1}), "user", "hi"),
        (said(tool_calls=[], weight=Number("1")), "user", "hi"),
    ],
)
def test_a_message(entry: dict[str, Any], role: str, content: str) -> None:
    assert turns([entry], "messages") == [("messages[0]", role, content)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "messages is not a list of messages but null"),
        ("hi", "messages is not a list of messages but a string"),
        ([said(), "hi"], "messages[1] is not a message but a string"),
        ([{"content": "x"}], "messages[0] has no 'role'; there are: content"),
        ([{}], "messages[0] has no 'role'; there are: none"),
        ([{"role": "user", "text": "x"}], "messages[0] has no 'content'; there are: role, text"),
        ([said(), said(), said("foo")], "messages[2].role is 'foo': allowed are system, user, assistant, tool"),
        ([said(None)], "messages[0].role is null: allowed are system, user, assistant, tool"),
        ([said(Number("3"))], "messages[0].role is '3': allowed are system, user, assistant, tool"),
        ([said(["user"])], "messages[0].role is a list: allowed are system, user, assistant, tool"),
        ([said(content=None)], "messages[0].content is not text but null"),
        ([said(content=Number("3"))], "messages[0].content is not text but a number"),
        ([said(content={"a": 1})], "messages[0].content is not text but an object"),
        ([said(content=[["a"]])], "messages[0].content[0] is not text but a list"),
        ([said(content=[{"type": "text"}])], "messages[0].content[0].text is not text but null"),
        (
            [said(content=["see", {"type": "image_url", "image_url": {}}])],
            "messages[0].content[1] is of type 'image_url': only text can be trained",
        ),
        (
            [said("assistant", None, tool_calls=[{"id": 1}])],
            "messages[0] calls a tool (tool_calls): only text can be trained; write the call into the text",
        ),
        (
            [said("assistant", "x", weight=Number("0"))],
            "messages[0].weight is 0: every turn of the assistant is trained; leave the conversation out",
        ),
        ([said("assistant", "x", weight="no")], "messages[0].weight is not a number but no"),
    ],
)
def test_a_bad_message(value: Any, reason: str) -> None:
    with pytest.raises(BadRecordError) as error:
        turns(value, "messages")
    assert str(error.value) == reason


def test_every_role_has_a_name() -> None:
    assert set(ROLE_NAMES.values()) == set(ROLES)
    assert all(ROLE_NAMES[role] == role for role in ROLES)
    assert all(name == name.lower() for name in ROLE_NAMES)


def test_neighbours_of_one_role_become_one_message() -> None:
    assert [(turn.role[0], turn.content) for turn in merged(chat("uuaau"))] == [
        ("u", "u0\n\nu1"),
        ("a", "a2\n\na3"),
        ("u", "u4"),
    ]


def test_plain_text() -> None:
    messages = [Message("system", "Be brief."), Message("user", "a\nb"), Message("assistant", "c"), Message("tool", "d")]
    assert plain_text(messages) == "Be brief.\n\nUser: a\nb\n\nAssistant: c\n\nTool: d"
    assert plain_text([]) == ""
