"""Which answers are right, which questions can be checked, and how much of a text repeats itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmloop.data.document import Document, Message, Position
from lmloop.training.questions import distinct, find_questions, is_checkable, is_right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("She has 3 + 4 = 7.\n#### 7", "some way\n#### 7", True),
        ("#### 1,200", "#### 1200", True),
        ("#### $12.50 and more", "#### 12.5", True),
        ("#### -3", "#### 3", False),
        ("it is 7", "#### 7", False),
        ("#### 70", "#### 7", False),
        ("Paris.\nAnd more", "paris", True),
        ("Paris, France", "Paris", False),
        ("", "Paris", False),
        ("  New   York ", "new york.", True),
    ],
)
def test_right_and_wrong(answer: str, expected: str, right: bool) -> None:
    assert is_right(answer, expected) is right


def test_what_can_be_checked() -> None:
    assert is_checkable("long words and so on, many of them indeed, more than forty characters\n#### 12")
    assert is_checkable("Paris")
    assert not is_checkable("A long answer in free words that nobody could compare with another one.")
    assert not is_checkable("two\nlines")
    assert not is_checkable("  ")


class Held:
    name = "held"

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def parents(self) -> None:
        return None

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        for document in self.documents:
            yield document, {}


def test_questions_of_texts_and_conversations() -> None:
    said = (Message("user", "2 + 2?"), Message("assistant", "4"))
    documents = [
        Document("1", "1", "Q: capital of France?\nA: Paris", 0.0),
        Document("2", "2", "no question at all", 0.0),
        Document("3", "3", "plain", 0.0, messages=said),
        Document("4", "4", "Q: why?\nA: " + "because of many things " * 9, 0.0),
        Document("5", "5", "Q: sum?\nA: words\n#### 5", 0.0),
    ]
    found = find_questions([Held(documents)], "Q: {user}\nA:", 8)
    assert [(q.shown, q.expected) for q in found] == [
        ("Q: capital of France?\nA:", " Paris"),
        ("2 + 2?", "4"),
        ("Q: sum?\nA:", " words\n#### 5"),
    ]
    assert len(find_questions([Held(documents)], "Q: {user}\nA:", 2)) == 2
    assert [q.shown for q in find_questions([Held(documents)], "{user}", 8)] == ["2 + 2?"]


def test_distinct_counts_n_grams() -> None:
    assert distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["a b c", "a a a"], 1) == pytest.approx((1 + 1 / 3) / 2)
    assert distinct(["a", ""], 2) is None
