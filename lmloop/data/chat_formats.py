"""The formats in which people keep conversations: a small reader each, from a record to its messages.

A reader takes a record that is an object and raises BadRecordError with what is wrong. Fields that it does not know are
left alone. No message at all (an empty chat in an export) is `()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lmloop.data.chat_exports import read_chatgpt, read_claude
from lmloop.data.conversation import Turn, conversation, system_turn, turns
from lmloop.data.document import Message
from lmloop.data.records import BadRecordError, as_text, encodable, missing_field
from lmloop.data.source import one_line

Record = dict[str, Any]
Messages = tuple[Message, ...]

INPUT = "\n\n### Input:\n"
"""What stands between an instruction and its input: as the Alpaca template writes it, whatever template is used later."""

_LISTS = ("messages", "conversations", "conversation")
_ALPACA_ANSWERS = ("output", "response")
_QUESTIONS = {"prompt": ("completion", "response"), "question": ("answer", "response")}


def read_messages(record: Record) -> Messages:
    """`{"messages": [{"role": "user", "content": ...}, ...]}`, also under `conversations` or `conversation`."""
    return _listed(record, "role", "content")


def read_sharegpt(record: Record) -> Messages:
    """`{"conversations": [{"from": "human", "value": ...}, ...]}`, also with a field `system`."""
    return _listed(record, "from", "value")


def _listed(record: Record, role_key: str, content_key: str) -> Messages:
    name = _first(record, _LISTS)
    if name is None:
        raise missing_field(_LISTS[1 if role_key == "from" else 0], record)
    found = turns(record[name], name, role_key, content_key)
    begins = system_turn(record) if not found or found[0].role != "system" else []
    return conversation([*begins, *found])


def read_alpaca(record: Record) -> Messages:
    """`{"instruction": ..., "input": ..., "output": ...}`; `system` and `history` (pairs of texts) if there are any."""
    answer = _first(record, _ALPACA_ANSWERS)
    if record.get("instruction") is None or answer is None:
        raise missing_field("instruction" if record.get("instruction") is None else "output", record)
    instruction = _filled(record, "instruction")
    context = as_text("input", record["input"]) if record.get("input") is not None else ""
    found = [*system_turn(record), *_history(record.get("history"))]
    found.append(Turn("instruction", "user", instruction + (INPUT + encodable(context) if context.strip() else "")))
    found.append(Turn(answer, "assistant", _filled(record, answer)))
    return conversation(found)


def _history(value: Any) -> list[Turn]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRecordError("field 'history' is not a list of pairs of texts")
    found = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecordError(f"history[{index}] is not a pair of texts")
        for side, role in enumerate(("user", "assistant")):
            where = f"history[{index}][{side}]"
            found.append(Turn(where, role, encodable(as_text(where, pair[side]))))
    return found


def read_completion(record: Record) -> Messages:
    """A question and its answer, under one of a few pairs of names; both texts, or both lists of messages."""
    for question, answers in _QUESTIONS.items():
        answer = _first(record, answers)
        if record.get(question) is not None and answer is not None:
            break
    else:
        raise missing_field("prompt" if record.get("prompt") is None else "completion", record)
    if isinstance(record[question], list) and isinstance(record[answer], list):
        return conversation([*turns(record[question], question), *turns(record[answer], answer)])
    asked, answered = _filled(record, question), _filled(record, answer)
    return conversation([*system_turn(record), Turn(question, "user", asked), Turn(answer, "assistant", answered)])


def _first(record: Record, names: tuple[str, ...]) -> str | None:
    """The first of `names` under which there is something."""
    return next((name for name in names if record.get(name) is not None), None)


def _filled(record: Record, name: str) -> str:
    text = encodable(as_text(name, record[name]))
    if not text.strip():
        raise BadRecordError(f"field '{name}' is empty")
    return text


class ChatFormat(NamedTuple):
    """A format: the fields that its reader knows, and the reader."""

    fields: tuple[str, ...]
    read: Callable[[Record], Messages]


FORMATS: dict[str, ChatFormat] = {
    "messages": ChatFormat((*_LISTS, "system"), read_messages),
    "sharegpt": ChatFormat((*_LISTS, "system"), read_sharegpt),
    "alpaca": ChatFormat(("instruction", "input", *_ALPACA_ANSWERS, "system", "history"), read_alpaca),
    "completion": ChatFormat(("prompt", "completion", "question", "answer", "response", "system"), read_completion),
    "chatgpt": ChatFormat(("mapping", "current_node"), read_chatgpt),
    "claude": ChatFormat(("chat_messages", "current_leaf_message_uuid"), read_claude),
}
"""Name of a format, as a preset's `data_type` has it → the format."""


def recognised(record: Record) -> str:
    """The name of the format that a record is in, by its fields. BadRecordError when it is in none."""
    if record.get("mapping") is not None:
        return "chatgpt"
    if record.get("chat_messages") is not None:
        return "claude"
    name = _first(record, _LISTS)
    if name is not None:
        first = next(iter(record[name]), None) if isinstance(record[name], list) else None
        return "sharegpt" if isinstance(first, dict) and "from" in first and "role" not in first else "messages"
    if record.get("instruction") is not None:
        return "alpaca"
    for question, answers in _QUESTIONS.items():
        if record.get(question) is not None and _first(record, answers) is not None:
            return "completion"
    raise unrecognised(record)


def unrecognised(names: Iterable[str]) -> BadRecordError:
    """The reason why a record is no conversation, with the fields that it has."""
    there = one_line(", ".join(map(str, names)) or "none", 120)
    return BadRecordError(
        f"no conversation (messages, conversations, instruction, prompt, question, ...); there are: {there}"
    )
