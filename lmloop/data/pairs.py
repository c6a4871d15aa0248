"""Preference pairs: a prompt, the better answer and the worse one, in the spellings that data sets use.

- texts: `{"prompt": ..., "chosen": ..., "rejected": ...}`;
- messages, with the prompt in a field of its own or as what both lists begin with;
- transcripts, `"\\n\\nHuman: ...\\n\\nAssistant: ..."`, which both begin with the prompt.
"""

from __future__ import annotations

import re
from typing import Any

from lmloop.data.conversation import Turn, conversation, float_of, system_turn, turns
from lmloop.data.document import Pair
from lmloop.data.records import BadRecordError, as_text, encodable, missing_field

_PROMPTS = ("prompt", "question", "conversations", "messages")

PAIR_FIELDS = (*_PROMPTS, "chosen", "rejected", "system", "margin", "score_chosen", "score_rejected")
"""What the reader knows of a record."""

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def read_pair(record: dict[str, Any]) -> Pair:
    """The pair of a record. BadRecordError."""
    prompt, (chosen, rejected) = _prompt(record), (_answer(record, name) for name in ("chosen", "rejected"))
    if chosen[0].role != "assistant" or rejected[0].role != "assistant":  # they hold the prompt
        shared = _shared(chosen, rejected)
        if not shared:
            raise BadRecordError("chosen and rejected do not begin with the same messages of a user")
        if prompt and prompt[-1].content.strip() not in [turn.content.strip() for turn in chosen[:shared]]:
            raise BadRecordError(f"{prompt[-1].where} is not what chosen and rejected begin with")
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if "user" not in (turn.role for turn in prompt):
        raise missing_field("prompt", record) if not prompt else BadRecordError("the prompt has no message of a user")
    if [turn.content.strip() for turn in chosen] == [turn.content.strip() for turn in rejected]:
        raise BadRecordError("chosen and rejected are the same")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[-1].role != "assistant":
            raise BadRecordError(f"'{name}' ends with {side[-1].where} ({side[-1].role}): it must be an assistant's message")
    better, worse = conversation([*prompt, *chosen]), conversation([*prompt, *rejected])
    begins = len(better) - len(chosen)
    return Pair(better[:begins], better[begins:], worse[begins:], _margin(record))


def _prompt(record: dict[str, Any]) -> list[Turn]:
    """The prompt where it has a field of its own; else nothing."""
    name = next((name for name in _PROMPTS if record.get(name) is not None), None)
    if name is None:
        return []
    if isinstance(record[name], list):
        return _messages(record[name], name)
    text = encodable(as_text(name, record[name]))
    found = _transcript(text, name)
    if found:
        return found if found[-1].content else found[:-1]  # it may end with "Assistant:"
    return [*system_turn(record), Turn(name, "user", text)]


def _answer(record: dict[str, Any], name: str) -> list[Turn]:
    value = record.get(name)
    if value is None:
        raise missing_field(name, record)
    if isinstance(value, list | dict):
        found = _messages(value if isinstance(value, list) else [value], name)
        if not found:
            raise BadRecordError(f"field '{name}' is empty")
        return found
    text = encodable(as_text(name, value))
    return _transcript(text, name) or [Turn(name, "assistant", text)]


def _messages(value: list[Any], name: str) -> list[Turn]:
    is_sharegpt = bool(value) and isinstance(value[0], dict) and "from" in value[0] and "role" not in value[0]
    return turns(value, name, "from", "value") if is_sharegpt else turns(value, name)


def _transcript(text: str, name: str) -> list[Turn]:
    """The turns of a text that is written as `Human: ...`, blank line, `Assistant: ...`; empty where it is not."""
    before, *parts = _SPEAKER.split(text)
    if before or parts[:1] != ["Human"] or "Assistant" not in parts[::2]:
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return [Turn(f"{name}[{index}]", roles[who], said.strip()) for index, (who, said) in enumerate(spoken)]


def _shared(chosen: list[Turn], rejected: list[Turn]) -> int:
    """How many messages both begin with, of which the last is answered in both by an assistant."""
    length = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one[1:] != other[1:]:
            break
        length += 1
    while length and not (chosen[length].role == rejected[length].role == "assistant"):
        length -= 1
    return length


def _margin(record: dict[str, Any]) -> float | None:
    """By how much the chosen answer is better, where the record says so. BadRecordError when it says that it is worse."""
    if record.get("margin") is not None:
        margin = float_of(record["margin"], "field 'margin'")
    elif record.get("score_chosen") is not None and record.get("score_rejected") is not None:
        margin = float_of(record["score_chosen"], "field 'score_chosen'")
        margin -= float_of(record["score_rejected"], "field 'score_rejected'")
    else:
        return None
    if margin < 0:
        raise BadRecordError(f"the margin is {margin:g}: the chosen answer would be the worse one")
    return margin
