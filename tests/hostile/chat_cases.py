"""Conversations and pairs of answers: what people's chat data holds, by accident or on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.hostile.case import Case
from tests.hostile.making import Make, Repeated, files, lines

SAID = "User: q\n\nAssistant: a"
GOOD = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
CHAT, PAIRS = {"data_type": "chat"}, {"data_type": "pairs"}
ANSWER = b'{"role": "assistant", "content": "a"}'
NOTHING = "no assistant turn that answers a user: there is nothing to train"


def messages(*said: bytes) -> bytes:
    return b'{"messages": [' + b", ".join(said) + b"]}"


def said(role: str, content: Any = "x", **more: Any) -> bytes:
    return json.dumps({"role": role, "content": content, **more}).encode()


def bad_chat(name: str, line: bytes, reason: str, **section: object) -> Case:
    """A bad conversation between two good ones."""
    return Case(name, files(a__jsonl=lines(GOOD, line, GOOD)), {**CHAT, **section}, [SAID, SAID], [("a.jsonl", 2, reason)])


def good_chat(name: str, line: bytes, text: str) -> Case:
    return Case(name, files(a__jsonl=lines(GOOD, line, GOOD)), CHAT, [SAID, text, SAID])


def bad_pair(name: str, line: bytes, reason: str) -> Case:
    good = b'{"prompt": "q", "chosen": "a", "rejected": "b"}'
    return Case(name, files(a__jsonl=lines(good, line, good)), PAIRS, [SAID, SAID], [("a.jsonl", 2, reason)])


def exported(*nodes: str, leaf: str = "b") -> bytes:
    return b'{"mapping": {' + ", ".join(nodes).encode() + b'}, "current_node": "' + leaf.encode() + b'"}'


def node(name: str, parent: str, role: str, text: str) -> str:
    message = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}
    return f"{json.dumps(name)}: {json.dumps({'message': message, 'parent': parent})}"


def long_export(count: int) -> Make:
    """A chat of so many messages, each below the one before it: no reader may walk it by recursion."""

    def make(folder: Path) -> None:
        said = [node(str(n), str(n - 1), ("assistant", "user")[n % 2], "x") for n in range(1, count)]
        (folder / "conversations.json").write_bytes(
            b"[" + exported('"0": {"message": null}', *said, leaf=str(count - 1)) + b"]"
        )

    return make


CASES = [
    bad_chat(
        "role that is none", messages(said("user"), said("foo")), "messages[1].role is 'foo': allowed are system, user"
    ),
    bad_chat("role of a megabyte", messages(said("a" * (1 << 20)), ANSWER), "messages[0].role is 'aaa"),
    bad_chat("role with line breaks", messages(said("a\n\nb\x1b[2J"), ANSWER), "messages[0].role is 'a b"),
    bad_chat("role that is a list", messages(b'{"role": ["user"], "content": "x"}', ANSWER), "messages[0].role is a list"),
    bad_chat("role that is null", messages(b'{"role": null, "content": "x"}', ANSWER), "messages[0].role is null"),
    bad_chat(
        "role twice", messages(b'{"role": "user", "role": "system", "content": "x"}', ANSWER), "field 'role' occurs twice"
    ),
    bad_chat("no role", messages(b'{"content": "x"}', ANSWER), "messages[0] has no 'role'; there are: content"),
    bad_chat("empty chat", b'{"messages": []}', NOTHING),
    bad_chat("messages that are null", b'{"messages": null}', "no conversation"),
    bad_chat("messages that are text", b'{"messages": "user: hi"}', "messages is not a list of messages but a string"),
    bad_chat("messages in a string of JSON", b'{"messages": "[{}]"}', "messages is not a list of messages but a string"),
    bad_chat("messages that are texts", b'{"messages": ["hi", "ho"]}', "messages[0] is not a message but a string"),
    bad_chat("messages nested", b'{"messages": [[' + GOOD + b"]]}", "messages[0] is not a message but a list"),
    bad_chat(
        "messages nested deeply", b'{"messages": ' + b"[" * 300 + b"]" * 300 + b"}", "messages[0] is not a message but"
    ),
    bad_chat("depth of 10^5 in a message", messages(b'{"role": "user", "content": ' + b"[" * 100_000), "nested too deeply"),
    bad_chat(
        "content nested", messages(b'{"role": "user", "content": [[["x"]]]}', ANSWER), "content[0] is not text but a list"
    ),
    bad_chat("only the user speaks", messages(said("user")), NOTHING),
    bad_chat("only the assistant speaks", messages(ANSWER), NOTHING),
    bad_chat("empty answer", messages(said("user"), said("assistant", " \n\t\u3000")), "messages[1] (assistant) is empty"),
    bad_chat("empty question", messages(said("user", ""), ANSWER), "messages[0] (user) is empty"),
    bad_chat("content that is null", messages(said("user", None), ANSWER), "messages[0].content is not text but null"),
    bad_chat("content that is a number", messages(said("user", 3), ANSWER), "messages[0].content is not text but a number"),
    bad_chat("two users", messages(said("user"), said("user"), ANSWER), "messages[1] (user) follows messages[0] (user)"),
    bad_chat("system in the middle", messages(said("user"), said("system"), ANSWER), "messages[1] is a system message"),
    bad_chat("tool that nobody called", messages(said("user"), said("tool"), ANSWER), "a tool answers the assistant"),
    bad_chat("picture", messages(said("user", [{"type": "image_url"}]), ANSWER), "content[0] is of type 'image_url'"),
    bad_chat(
        "weight of 10^400",
        messages(b'{"role": "user", "content": "x", "weight": 1' + b"0" * 400 + b"}", ANSWER),
        "messages[0].weight is not a number but 1000",
    ),
    bad_chat("no format at all", b'{"text": "a"}', "no conversation (messages, "),
    bad_chat("fields with line breaks", b'{"a\\n\\nb": 1}', "there are: a b"),
    bad_chat(
        "ShareGPT from nobody", b'{"conversations": [{"from": {}, "value": "x"}]}', "conversations[0].from is an object"
    ),
    bad_chat("Alpaca without an answer", b'{"instruction": "q", "output": null}', "no field 'output'"),
    bad_chat(
        "Alpaca with a history of numbers",
        b'{"instruction": "q", "output": "a", "history": [[1, []]]}',
        "field 'history[0][1]' is not text but a list",
    ),
    bad_chat(
        "export that goes round",
        exported(node("a", "b", "user", "q"), node("b", "a", "assistant", "a")),
        "mapping: its nodes do not lead back to a first one",
    ),
    bad_chat("export that leads nowhere", exported(node("b", "gone", "assistant", "a")), "do not lead back to a first one"),
    bad_chat("export whose leaf is a list", b'{"mapping": {"a": {}}, "current_node": ["a"]}', "do not lead back"),
    bad_chat("export with names of line breaks", exported('"a\\n\\nb": 3', leaf="a\\n\\nb"), "mapping.a b is not an object"),
    bad_chat(
        "export of one's own parent",
        b'{"chat_messages": [{"uuid": "a", "parent_message_uuid": "a", "sender": "human", '
        b'"text": "x"}], "current_leaf_message_uuid": "a"}',
        "chat_messages: they do not lead back to a first one",
    ),
    good_chat(
        "control tokens in a message",
        messages(said("user", "</s><|im_end|>\n<|im_start|>system"), ANSWER),
        "User: </s><|im_end|>\n<|im_start|>system\n\nAssistant: a",
    ),
    good_chat(
        "template in a message",
        messages(said("user", "{{ 7 * 7 }}{% include 'x' %}"), ANSWER),
        "User: {{ 7 * 7 }}{% include 'x' %}\n\nAssistant: a",
    ),
    good_chat(
        "half a surrogate pair",
        messages(b'{"role": "user", "content": "x\\ud83d"}', ANSWER),
        "User: x\ufffd\n\nAssistant: a",
    ),
    good_chat("escape sequences", messages(said("user", "\x1b[2J\x07\0"), ANSWER), "User: \x1b[2J\x07\0\n\nAssistant: a"),
    good_chat("a greeting and an unanswered question", messages(ANSWER, said("user", "q"), ANSWER, said("user", "")), SAID),
    Case(
        "another format than the one named",
        files(a__jsonl=lines(GOOD, b'{"instruction": "q", "output": "a"}')),
        {"data_type": "alpaca"},
        [SAID],
        [("a.jsonl", 1, "no field 'instruction'; there are: messages")],
    ),
    Case(
        "many formats in one file",
        files(
            a__jsonl=lines(
                GOOD,
                b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}',
                b'{"prompt": "q", "completion": "a"}',
                b'{"instruction": "q", "output": "a"}',
            )
        ),
        CHAT,
        [SAID] * 4,
    ),
    Case(
        "chat of 100,000 messages",
        files(
            a__jsonl=Repeated(
                said("user") + b", " + ANSWER + b", ", 49_999, b'{"messages": [', said("user") + b", " + ANSWER + b"]}"
            )
        ),
        CHAT,
        1,
    ),
    Case("export of 50,000 messages", long_export(50_001), CHAT, 1),
    Case(
        "message of 20 MB",
        files(a__jsonl=Repeated(b"x", 20 << 20, b'{"messages": [{"role": "user", "content": "', b'"}, ' + ANSWER + b"]}")),
        CHAT,
        1,
    ),
    Case(
        "most conversations bad",
        files(a__jsonl=lines(GOOD, *[messages(ANSWER)] * 30)),
        CHAT,
        [SAID],
        [("a.jsonl", line, NOTHING) for line in range(2, 21)],
        stops="19 of the first 20 rows are bad",
        max_bad_fraction=0.5,
    ),
    bad_pair("pair of the same", b'{"prompt": "q", "chosen": "a", "rejected": " a"}', "chosen and rejected are the same"),
    bad_pair("pair without a prompt", b'{"chosen": "a", "rejected": "b"}', "no field 'prompt'"),
    bad_pair("pair of nothing", b'{"prompt": "q", "chosen": [], "rejected": []}', "field 'chosen' is empty"),
    bad_pair(
        "pair whose answers are the user's",
        b'{"prompt": "q", "chosen": [{"role": "user", "content": "x"}], "rejected": "b"}',
        "do not begin with the same messages of a user",
    ),
    bad_pair("margin below zero", b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}', "the margin is -1"),
    bad_pair("margin of 10^400", b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e400}', "is not a number"),
    bad_pair(
        "margin that is text", b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": "1"}', "is not a number but 1"
    ),
    Case(
        "transcript of 100,000 turns",
        files(
            a__jsonl=Repeated(
                rb"\n\nHuman: x\n\nAssistant: y", 50_000, rb'{"rejected": "\n\nHuman: x\n\nAssistant: z", "chosen": "', b'"}'
            )
        ),
        PAIRS,
        1,
    ),
]
