"""What makes a conversation: whose turn it is, what counts as text, and the order that a model can learn from.

Every format of conversations ends here, so that the rules and the words for breaking them are the same for all:

- a system message may stand first, and nowhere else; an empty one is left out;
- the user begins, user and assistant take turns, a tool speaks after the assistant and before it;
- what precedes the first user's message and what follows the assistant's last one is left out: there is nothing to learn
  in it;
- what is left holds an assistant's message, and no message is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from lmloop.data.document import ROLES, Message
from lmloop.data.records import BadRecordError, Number, as_text, encodable, kind_of
from lmloop.data.source import one_line

ROLE_NAMES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
}
"""Names of the roles in people's data, in lower case."""

_NEXT = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
_CALLS = ("tool_calls", "function_call")


class Turn(NamedTuple):
    """A message as it stands in a record: where (`messages[2]`), its role and its text."""

    where: str
    role: str
    content: str


def turns(value: Any, where: str, role_key: str = "role", content_key: str = "content") -> list[Turn]:
    """A list of messages as it stands in a record. BadRecordError says which message is wrong, and how."""
    if not isinstance(value, list):
        raise BadRecordError(f"{where} is not a list of messages but {kind_of(value)}")
    found = []
    for index, entry in enumerate(value):
        here = f"{where}[{index}]"
        if not isinstance(entry, dict):
            raise BadRecordError(f"{here} is not a message but {kind_of(entry)}")
        for key in (role_key, content_key):
            if key not in entry:
                raise BadRecordError(
                    f"{here} has no '{key}'; there are: {one_line(', '.join(map(str, entry)) or 'none', 80)}"
                )
        for key in _CALLS:
            if entry.get(key):
                raise BadRecordError(f"{here} calls a tool ({key}): only text can be trained; write the call into the text")
        if entry.get("weight") is not None and not float_of(entry["weight"], f"{here}.weight"):
            raise BadRecordError(f"{here}.weight is 0: every turn of the assistant is trained; leave the conversation out")
        role = role_of(entry[role_key], f"{here}.{role_key}")
        found.append(Turn(here, role, text_of(entry[content_key], f"{here}.{content_key}")))
    return found


def system_turn(record: dict[str, Any]) -> list[Turn]:
    """The system message where it is a field of its own."""
    value = record.get("system")
    return [] if value is None else [Turn("system", "system", encodable(as_text("system", value)))]


def role_of(name: Any, where: str) -> str:
    """One of ROLES."""
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        given = f"'{one_line(name, 40)}'" if isinstance(name, str) else kind_of(name)
        raise BadRecordError(f"{where} is {given}: allowed are {', '.join(ROLES)}")
    return role


def text_of(value: Any, where: str) -> str:
    """A text, or the texts of a list of parts (`[{"type": "text", "text": ...}]`) put together."""
    if isinstance(value, list):
        return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))
    if not isinstance(value, str) or isinstance(value, Number):
        raise BadRecordError(f"{where} is not text but {kind_of(value)}")
    return encodable(value)


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict):
        if part.get("type", "text") != "text":
            raise BadRecordError(f"{where} is of type '{one_line(str(part['type']), 40)}': only text can be trained")
        part, where = part.get("text"), f"{where}.text"
    if isinstance(part, list):
        raise BadRecordError(f"{where} is not text but a list")
    return text_of(part, where)


def float_of(value: Any, where: str) -> float:
    """A finite number."""
    try:
        number = float(value) if isinstance(value, Number | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or number - number != 0:
        raise BadRecordError(f"{where} is not a number but {one_line(str(value), 40)}")
    return number


def conversation(found: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages to learn from, in an order that is right. BadRecordError."""
    for turn in found[1:]:
        if turn.role == "system":
            raise BadRecordError(f"{turn.where} is a system message: only the first message can be one")
    roles = [turn.role for turn in found]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        raise BadRecordError("no assistant turn that answers a user: there is nothing to train")
    last = len(roles) - roles[::-1].index("assistant")
    kept = in_turns(found[roles.index("user") : last])
    is_led = roles[0] == "system" and bool(found[0].content.strip())
    return (Message("system", found[0].content), *kept) if is_led else kept


def in_turns(found: Sequence[Turn]) -> tuple[Message, ...]:
    """Messages of which none is empty and each may follow the one before it. BadRecordError."""
    for turn in found:
        if not turn.content.strip():
            raise BadRecordError(f"{turn.where} ({turn.role}) is empty")
    for before, turn in pairwise(found):
        if turn.role not in _NEXT[before.role]:
            rule = "a tool answers the assistant" if "tool" in (before.role, turn.role) else "user and assistant take turns"
            raise BadRecordError(f"{turn.where} ({turn.role}) follows {before.where} ({before.role}): {rule}")
    return tuple(Message(turn.role, turn.content) for turn in found)


def merged(found: Sequence[Turn]) -> list[Turn]:
    """Neighbours of one role as one message each, a blank line between them."""
    result: list[Turn] = []
    for turn in found:
        if result and result[-1].role == turn.role:
            result[-1] = result[-1]._replace(content=f"{result[-1].content}\n\n{turn.content}")
        else:
            result.append(turn)
    return result


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation as text that needs no control tokens: `User: ...`, blank line, `Assistant: ...`."""
    return "\n\n".join(
        message.content if message.role == "system" else f"{message.role.capitalize()}: {message.content}"
        for message in messages
    )
