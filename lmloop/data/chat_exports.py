"""Conversations as ChatGPT and Claude export them (`conversations.json` in the archive that they send).

What a person saw is read: the branch that was shown last, without what tools wrote and what stayed hidden. A turn to which
somebody added a picture or a file ends the conversation before it: an answer to what cannot be read would teach the model
to make things up. The formats have no official description; these are the fields that exports have in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmloop.data.conversation import Turn, conversation, merged, role_of, text_of
from lmloop.data.document import Message
from lmloop.data.records import BadRecordError, kind_of
from lmloop.data.source import one_line

_SPOKEN = ("text", "multimodal_text")
"""ChatGPT's kinds of content that a person sees as a message; the others are code, searches, thoughts, settings."""


def read_chatgpt(record: dict[str, Any]) -> tuple[Message, ...]:
    """`{"mapping": {id: {"message": ..., "parent": id, "children": [id]}}, "current_node": id}`."""
    mapping = record.get("mapping")
    if not isinstance(mapping, dict):
        raise BadRecordError(f"field 'mapping' is not an object but {kind_of(mapping)}")
    found = []
    for name, node in _thread(mapping, record.get("current_node") or _newest(mapping)):
        message = node.get("message")
        if message is None:
            continue
        where = f"mapping.{one_line(name, 60)}.message"
        if not _dict(message, where).get("author") or not message.get("content"):
            raise BadRecordError(f"{where} has no author or no content")
        if _is_hidden(message, where):
            continue
        role = role_of(_dict(message["author"], f"{where}.author").get("role"), f"{where}.author.role")
        text = _parts_text(message["content"], f"{where}.content")
        if role == "user" and text is None:
            return _exported(found, where)
        if role in ("user", "assistant") and text and text.strip():
            found.append(Turn(where, role, text))
    return _exported(found)


def _thread(mapping: dict[str, Any], leaf: Any) -> list[tuple[str, dict[str, Any]]]:
    """Nodes from the root to `leaf`."""
    path: list[tuple[str, dict[str, Any]]] = []
    seen: set[str] = set()
    while leaf is not None:
        if not isinstance(leaf, str) or leaf not in mapping or leaf in seen:
            raise BadRecordError("mapping: its nodes do not lead back to a first one")
        seen.add(leaf)
        path.append((leaf, _dict(mapping[leaf], f"mapping.{one_line(leaf, 60)}")))
        leaf = path[-1][1].get("parent")
    return path[::-1]


def _newest(mapping: dict[str, Any]) -> str | None:
    """Where an older export does not say which branch was shown: the last node that nothing follows."""
    ends = [name for name, node in mapping.items() if isinstance(node, dict) and not node.get("children")]
    return ends[-1] if ends else None


def _is_hidden(message: dict[str, Any], where: str) -> bool:
    """Whether a message is no part of what a person saw: a tool's, a call of a tool, an aside of the model."""
    metadata = _dict(message.get("metadata") or {}, f"{where}.metadata")
    return (
        str(message.get("weight", 1)) in ("0", "0.0")
        or metadata.get("is_visually_hidden_from_conversation") is True
        or message.get("recipient") not in (None, "all")
        or message.get("channel") not in (None, "final")
        or _dict(message["content"], f"{where}.content").get("content_type", "text") not in _SPOKEN
    )


def _parts_text(content: dict[str, Any], where: str) -> str | None:
    """The text of a message; None where a picture belongs to it."""
    parts = content.get("parts") or []
    if not isinstance(parts, list):
        raise BadRecordError(f"{where}.parts is not a list but {kind_of(parts)}")
    texts = []
    for index, part in enumerate(parts):
        if isinstance(part, dict) and part.get("content_type") == "audio_transcription":
            part = part.get("text")
        elif isinstance(part, dict) and "audio" in str(part.get("content_type")):
            continue  # what was said stands beside it as text
        elif isinstance(part, dict):
            return None
        texts.append(text_of(part, f"{where}.parts[{index}]"))
    return "\n\n".join(text for text in texts if text.strip())


def read_claude(record: dict[str, Any]) -> tuple[Message, ...]:
    """`{"chat_messages": [{"sender": "human", "text": ..., "content": [...], "attachments": [...]}, ...]}`."""
    messages = record.get("chat_messages")
    if not isinstance(messages, list):
        raise BadRecordError(f"field 'chat_messages' is not a list but {kind_of(messages)}")
    entries = {index: _dict(entry, f"chat_messages[{index}]") for index, entry in enumerate(messages)}
    found = []
    for index in _shown(entries, record.get("current_leaf_message_uuid")):
        entry, where = entries[index], f"chat_messages[{index}]"
        role = role_of(entry.get("sender"), f"{where}.sender")
        if role == "user" and (entry.get("files") or entry.get("files_v2")):
            return _exported(found, where)
        texts = [_claude_text(entry, where), *_attached(entry, where)]
        text = "\n\n".join(part for part in texts if part.strip())
        if text:
            found.append(Turn(where, role, text))
    return _exported(found)


def _shown(entries: dict[int, dict[str, Any]], leaf: Any) -> list[int]:
    """Which entries are the branch that ends in `leaf`; all of them where the export does not say."""
    by_id = {entry.get("uuid"): index for index, entry in entries.items() if isinstance(entry.get("uuid"), str)}
    if not isinstance(leaf, str) or leaf not in by_id or not all("parent_message_uuid" in e for e in entries.values()):
        return list(entries)
    path: list[int] = []
    while isinstance(leaf, str) and leaf in by_id:
        if by_id[leaf] in path[-1:] or len(path) > len(entries):
            raise BadRecordError("chat_messages: they do not lead back to a first one")
        path.append(by_id[leaf])
        leaf = entries[by_id[leaf]]["parent_message_uuid"]
    return path[::-1]


def _claude_text(entry: dict[str, Any], where: str) -> str:
    parts = entry.get("content")
    if isinstance(parts, list):
        spoken = [part for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        texts = [text_of(part.get("text"), f"{where}.content[{index}].text") for index, part in enumerate(spoken)]
        if texts:
            return "\n\n".join(text for text in texts if text.strip())
    return "" if entry.get("text") is None else text_of(entry["text"], f"{where}.text")


def _attached(entry: dict[str, Any], where: str) -> Iterator[str]:
    """The text of documents that were attached to a message: the answer is about them."""
    attachments = entry.get("attachments") or []
    for index, attachment in enumerate(attachments if isinstance(attachments, list) else []):
        content = attachment.get("extracted_content") if isinstance(attachment, dict) else None
        if content is not None:
            yield text_of(content, f"{where}.attachments[{index}].extracted_content")


def _exported(found: list[Turn], unread: str = "") -> tuple[Message, ...]:
    """The conversation; `()` where nobody said anything. `unread`: a turn with a picture or file, before which it ends."""
    if not found and not unread:
        return ()
    try:
        return conversation(merged(found))
    except BadRecordError:
        if unread:
            raise BadRecordError(f"{unread} has a picture or file, and no answer comes before it") from None
        raise


def _dict(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRecordError(f"{where} is not an object but {kind_of(value)}")
    return value
