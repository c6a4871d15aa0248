from __future__ import annotations

from typing import Any

import pytest

from lmloop.data.chat_exports import read_chatgpt, read_claude
from lmloop.data.records import BadRecordError, Number


def message(role: str, *parts: Any, content_type: str = "text", **more: Any) -> dict[str, Any]:
    return {"author": {"role": role}, "content": {"content_type": content_type, "parts": list(parts)}, **more}


def export(*messages: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """An exported chat: the messages one after the other, below the empty root that exports begin with."""
    mapping: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None, "children": ["m0"]}}
    for index, each in enumerate(messages):
        parent = f"m{index - 1}" if index else "root"
        mapping[f"m{index}"] = {"id": f"m{index}", "message": each, "parent": parent, "children": [f"m{index + 1}"]}
    last = f"m{len(messages) - 1}" if messages else "root"
    mapping[last]["children"] = []
    return {"title": "t", "mapping": mapping, "current_node": last, **more}


def contents(record: dict[str, Any]) -> list[str]:
    return [f"{message.role[0]}:{message.content}" for message in read_chatgpt(record)]


Q, A = message("user", "q"), message("assistant", "a", end_turn=True, recipient="all", weight=Number("1.0"), channel=None)
HIDDEN = {"is_visually_hidden_from_conversation": True}
PICTURE = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (export(Q, A), ["u:q", "a:a"]),
        (export(message("system", ""), Q, A), ["u:q", "a:a"]),
        (export(Q, A, Q, message("assistant", "")), ["u:q", "a:a"]),  # an answer that never came
        (export(message("user", "a", "", "b"), A), ["u:a\n\nb", "a:a"]),
        (export(message("user", "secret", metadata=HIDDEN), Q, A), ["u:q", "a:a"]),
        (export(message("user", "about me", content_type="user_editable_context"), Q, A), ["u:q", "a:a"]),
        (export(Q, message("assistant", "", weight=Number("0.0")), A), ["u:q", "a:a"]),
        (
            export(
                Q,
                message("assistant", "let me look", channel="commentary"),
                message("assistant", "search()", content_type="code", recipient="web"),
                message("tool", "results", content_type="execution_output"),
                message("assistant", "thinking", content_type="thoughts"),
                A,
            ),
            ["u:q", "a:a"],
        ),
        (export(Q, A, message("assistant", "more")), ["u:q", "a:a\n\nmore"]),
        (export(Q, A, message("user", PICTURE, "what is it?", content_type="multimodal_text"), A), ["u:q", "a:a"]),
        (
            export(
                message(
                    "user",
                    {"content_type": "audio_transcription", "text": "spoken"},
                    {"content_type": "real_time_user_audio_video_asset_pointer"},
                    content_type="multimodal_text",
                ),
                A,
            ),
            ["u:spoken", "a:a"],
        ),
        (export(), []),
        (export(message("system", "")), []),
    ],
)
def test_chatgpt(record: dict[str, Any], expected: list[str]) -> None:
    assert contents(record) == expected


def test_only_the_branch_that_was_shown_last_is_read() -> None:
    record = export(Q, A)
    record["mapping"]["other"] = {"message": message("assistant", "first try"), "parent": "m0", "children": []}
    record["mapping"]["m0"]["children"] = ["other", "m1"]
    assert contents(record) == ["u:q", "a:a"]
    assert contents({**record, "current_node": "other"}) == ["u:q", "a:first try"]
    del record["current_node"]
    assert contents(record) == ["u:q", "a:first try"]  # the last node without children


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"mapping": []}, "field 'mapping' is not an object but a list"),
        ({"mapping": {"a": {}}, "current_node": "b"}, "mapping: its nodes do not lead back to a first one"),
        ({"mapping": {"a": {"parent": "a"}}, "current_node": "a"}, "mapping: its nodes do not lead back to a first one"),
        ({"mapping": {"a": 3}, "current_node": "a"}, "mapping.a is not an object but a number"),
        (export({"author": {"role": "user"}}), "mapping.m0.message has no author or no content"),
        (
            export(message("robot", "x")),
            "mapping.m0.message.author.role is 'robot': allowed are system, user, assistant, tool",
        ),
        (export(message("user", None)), "mapping.m0.message.content.parts[0] is not text but null"),
        (export(Q), "no assistant turn that answers a user: there is nothing to train"),
        (
            export(message("user", PICTURE, content_type="multimodal_text"), A),
            "mapping.m0.message has a picture or file, and no answer comes before it",
        ),
    ],
)
def test_bad_exports_of_chatgpt(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecordError) as error:
        read_chatgpt(record)
    assert str(error.value) == reason


def test_a_long_chain_is_walked_without_recursion() -> None:
    assert len(contents(export(*[Q, A] * 5_000))) == 10_000


def entry(sender: str, text: str, **more: Any) -> dict[str, Any]:
    return {"uuid": f"id-{text}", "sender": sender, "text": text, "content": [{"type": "text", "text": text}], **more}


def claude(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"uuid": "c", "name": "n", "chat_messages": list(entries), **more}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (claude(entry("human", "q"), entry("assistant", "a")), ["u:q", "a:a"]),
        (claude({"sender": "human", "text": "q"}, {"sender": "assistant", "text": "a"}), ["u:q", "a:a"]),
        (claude(entry("human", "q"), entry("assistant", "a"), entry("assistant", "b")), ["u:q", "a:a\n\nb"]),
        (
            claude(
                entry("human", "q", attachments=[{"file_name": "a.txt", "extracted_content": "document"}]),
                entry("assistant", "a"),
            ),
            ["u:q\n\ndocument", "a:a"],
        ),
        (
            claude(
                entry("human", "q"),
                {
                    "sender": "assistant",
                    "text": "all of it",
                    "content": [
                        {"type": "thinking", "thinking": "hm"},
                        {"type": "text", "text": "a"},
                        {"type": "tool_use", "input": {}},
                        {"type": "text", "text": "b"},
                    ],
                },
            ),
            ["u:q", "a:a\n\nb"],
        ),
        (
            claude(entry("human", "q"), entry("assistant", "a"), entry("human", "see", files=[{"file_name": "x.png"}])),
            ["u:q", "a:a"],
        ),
        (claude(entry("human", "")), []),
        (claude(), []),
    ],
)
def test_claude(record: dict[str, Any], expected: list[str]) -> None:
    assert [f"{message.role[0]}:{message.content}" for message in read_claude(record)] == expected


def test_of_claude_too_the_branch_that_was_shown() -> None:
    first, again = entry("assistant", "a", parent_message_uuid="id-q"), entry("assistant", "b", parent_message_uuid="id-q")
    record = claude(entry("human", "q", parent_message_uuid="none"), first, again, current_leaf_message_uuid="id-b")
    assert [message.content for message in read_claude(record)] == ["q", "b"]
    assert [message.content for message in read_claude({**record, "current_leaf_message_uuid": "gone"})] == ["q", "a\n\nb"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (claude() | {"chat_messages": 3}, "field 'chat_messages' is not a list but a number"),
        ({"chat_messages": ["x"]}, "chat_messages[0] is not an object but a string"),
        (claude({"text": "x"}), "chat_messages[0].sender is null: allowed are system, user, assistant, tool"),
        (claude(entry("human", "q")), "no assistant turn that answers a user: there is nothing to train"),
        (
            claude(entry("human", "q", files=[{}]), entry("assistant", "a")),
            "chat_messages[0] has a picture or file, and no answer comes before it",
        ),
        (
            claude(entry("human", "q", parent_message_uuid="id-q"), current_leaf_message_uuid="id-q"),
            "chat_messages: they do not lead back to a first one",
        ),
    ],
)
def test_bad_exports_of_claude(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecordError) as error:
        read_claude(record)
    assert str(error.value) == reason
