"""Held-out questions whose answers can be checked, and what texts have that repeat themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmloop.data.document import Document, Message
from lmloop.data.source import Source

SHORT_ANSWER = 40
"""An answer of at most so many characters, on one line, is compared as it stands."""

DOCUMENTS_READ = 1_000
"""Of a source no more documents are looked at for questions."""

_FINAL = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")


@dataclass(frozen=True)
class Question:
    """What is asked, as a conversation or as a text to be continued, and the answer that stands in the data."""

    asked: tuple[Message, ...] | str
    expected: str

    @property
    def shown(self) -> str:
        """For people to read."""
        return self.asked if isinstance(self.asked, str) else self.asked[-1].content


def is_checkable(expected: str) -> bool:
    """Whether an answer can be told to be right: it ends with `#### 42`, as in GSM8K, or is a few words."""
    return _FINAL.search(expected) is not None or (
        0 < len(expected.strip()) <= SHORT_ANSWER and "\n" not in expected.strip()
    )


def is_right(answer: str, expected: str) -> bool:
    """Whether `answer` says what `expected` says: the number after `####` where there is one, else the same words."""
    wanted = _FINAL.search(expected)
    if wanted is None:
        first_line = next(iter(answer.strip().splitlines()), "")
        return _plain(first_line) == _plain(expected)
    given = _FINAL.search(answer)
    return given is not None and _number(given[1]) == _number(wanted[1])


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s.-]", "", text.lower()).split()).rstrip(".")


def find_questions(sources: Iterable[Source], chat_format: str, count: int) -> list[Question]:
    """The first `count` questions of held-out sources: of conversations what comes before the last answer, of texts that are
    written as `chat_format` says what stands up to the answer. Only those that can be checked."""
    after = chat_format.partition("{user}")[2]
    found: list[Question] = []
    for source in sources:
        for number, (document, _) in enumerate(source.read({})):
            if len(found) == count or number == DOCUMENTS_READ:
                break
            question = _question(document, after)
            if question is not None and is_checkable(question.expected):
                found.append(question)
    return found


def _question(document: Document, after: str) -> Question | None:
    if document.messages is not None:
        last = document.messages[-1]
        return Question(document.messages[:-1], last.content) if last.role == "assistant" else None
    at = document.text.find(after) if after.strip() else -1
    return Question(document.text[: at + len(after)], document.text[at + len(after) :]) if at > 0 else None


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different n-grams of words over all, the mean over the texts; None without any."""
    shares = []
    for text in texts:
        words = text.split()
        grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
        if grams:
            shares.append(len(set(grams)) / len(grams))
    return sum(shares) / len(shares) if shares else None
