"""What becomes of a reflection: its prompt filled in, its text cleaned, and whether it is worth keeping."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from lmloop.preset.journal import JournalPrompt

SHORTEST_LETTERS = 16
"""An entry with fewer says nothing."""

MOST_REPEATED = 0.5
"""Share of 4-grams that stood before in the same entry, from which on it repeats itself."""

MOST_COMPRESSED = 0.2
"""zlib's ratio on text is 0.4 to 0.6; below this one an entry goes round in circles longer than 4-grams see."""

NEARLY_THE_SAME = 0.8
"""Jaccard index of the 5-grams of characters (Broder 1997), from which on one of two entries is left out."""

_CONTROL = re.compile(
    r"<\|[^|<>\n]{1,60}\|>|\[/?(?:INST|SYS|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]|<</?SYS>>|</?s>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask)>|<!--|-->"
)
_JOINERS = "\u200c\u200d"  # invisible, and part of ordinary words in some scripts


def fill(prompt: JournalPrompt, facts: Mapping[str, str]) -> str:
    """The prompt with its placeholders filled in."""
    return str(prompt).format_map(facts)


def clean(text: str, control_tokens: Iterable[str] = ()) -> str:
    """A text without control tokens of any model, control characters, or what the journal's own marks are made of."""
    names = sorted((token for token in control_tokens if token), key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, names), _CONTROL.pattern]))
    text = text.replace("\r\n", "\n").replace("\ufffd", "")  # what was no character
    text = "".join(c for c in text if c in "\n\t" + _JOINERS or unicodedata.category(c)[0] != "C")
    while (shorter := pattern.sub("", text)) != text:  # what is left of two that stood in one another may be a third
        text = shorter
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


def fault(text: str, prompt: str, entries: Sequence[tuple[str, str]]) -> str:
    """Why a cleaned text is no entry: it is degenerate, or says what the prompt or one of `entries` (name, text) says.
    '' where it is one."""
    letters = sum(c.isalnum() for c in text)
    if letters < SHORTEST_LETTERS:
        return f"it has {letters} letters, fewer than {SHORTEST_LETTERS}"
    if letters < len(text.replace(" ", "").replace("\n", "")) / 2:
        return "most of it is no letter"
    words = text.split()
    units: Sequence[str] = words if len(words) >= len(text) / 20 else text  # scripts without spaces: by characters
    grams = [tuple(units[at : at + 4]) for at in range(len(units) - 3)]
    repeated = 1 - len(set(grams)) / len(grams) if len(grams) >= 8 else 0.0
    if repeated > MOST_REPEATED:
        return f"it repeats itself: {repeated:.0%} of its 4-grams stood before"
    raw = text.encode()
    if len(raw) >= 200 and len(zlib.compress(raw, 9)) < MOST_COMPRESSED * len(raw):
        return "it repeats itself: it can be compressed to less than a fifth"
    own = _shingles(text)
    if len(own & _shingles(prompt)) >= NEARLY_THE_SAME * len(own):
        return "it repeats its prompt"
    for name, entry in entries:
        other = _shingles(entry)
        if len(own & other) >= NEARLY_THE_SAME * len(own | other):
            return f"it is nearly the same as {name}"
    return ""


def _shingles(text: str) -> set[str]:
    plain = " ".join(text.lower().split())
    return {plain[at : at + 5] for at in range(max(len(plain) - 4, 1))}


def newest_part(text: str, room: int, count: Callable[[str], int]) -> str:
    """The end of a text that `count` finds to be at most `room` tokens: from a paragraph on, else a line, else a word."""
    if room <= 0:
        return ""
    if count(text) <= room:
        return text
    for boundary in ("\n\n", "\n", " "):
        starts = [found.end() for found in re.finditer(re.escape(boundary), text)]
        low, high = 0, len(starts)  # the first start from which the rest fits: fewer tokens the later it is
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if count(text[starts[middle] :]) <= room else (middle + 1, high)
        if low < len(starts) and text[starts[low] :].strip():
            return text[starts[low] :].strip()
    return ""


def newest_that_fit(
    texts: Sequence[tuple[str, str]], room: int, count: Callable[[str], int]
) -> tuple[list[tuple[str, str]], bool]:
    """The newest (last) of the texts (name, text) that `count` finds to be `room` tokens together, in their order; of the
    oldest of them its newest part. And whether something was left out."""
    kept: list[tuple[str, str]] = []
    for name, text in reversed(texts):
        size = count(text)
        if size > room:
            part = newest_part(text, room, count)
            return [*([(name, part)] if part else []), *reversed(kept)], True
        kept.append((name, text))
        room -= size
    return kept[::-1], False
