"""From the pages of a PDF to running text in chunks."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmloop.data.pdf_text import HYPHEN, chunks, running_text, unreadable_share

TEXT = "the lamp of every harbour was lit before nightfall and nobody asked who had carried oil up all those stairs"
WORDS = TEXT.split()


def prose(seed: int, sentences: int) -> str:
    generator = random.Random(seed)
    lines = [" ".join(generator.choices(WORDS, k=generator.randint(5, 14))) for _ in range(sentences)]
    return " ".join(line.capitalize() + "." for line in lines)


def wrapped(text: str, width: int) -> list[str]:
    """Text in lines, as a printer breaks it."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]


def test_paragraphs_come_back_from_lines() -> None:
    paragraphs = [prose(seed, 1 + seed % 5) for seed in range(60)]
    lines = [line for paragraph in paragraphs for line in wrapped(paragraph, 80)]
    pages = ["\r\n".join(lines[at : at + 40]) for at in range(0, len(lines), 40)]
    found = running_text(pages).split("\n")
    joined = " ".join(found)
    assert joined == " ".join(paragraphs)
    # a sentence that ends where its line ends leaves open whether the paragraph does; no paragraph is put to another
    starts = set(itertools.accumulate((len(p) + 1 for p in paragraphs), initial=0))
    assert starts - {len(joined) + 1} <= set(itertools.accumulate((len(p) + 1 for p in found), initial=0))
    assert len(found) < 1.5 * len(paragraphs)


LONG = "the lamp of every harbour was lit before"
NAMES = [LONG.capitalize(), "Anna Maria Brown carried oil up to all of", LONG, LONG, "us."]


@pytest.mark.parametrize(
    ("lines", "breaks"),
    [
        pytest.param(["Chapter 1", f"{LONG.capitalize()} the", "night."], 1, id="heading"),
        pytest.param(["1 Oil and where it is from . . . . . . . 12", "stairs . . . . . . . . . . . 3"], 1, id="leaders"),
        pytest.param([f"- {LONG}", f"- {LONG}"], 1, id="list"),
        pytest.param([f"2. {LONG}", f"3. {LONG}"], 1, id="numbers"),
        pytest.param([f"{LONG}:", LONG], 1, id="colon"),
        pytest.param(["12.5 33.1 0.44 and 12", "12.6 33.9 0.41 and 5", "13.5 36.1 0.49 or 55"], 2, id="table"),
        pytest.param(["x = 1", "y = 2", "print(x)"], 2, id="code"),
        pytest.param(NAMES, 0, id="name"),
    ],
)
def test_where_lines_stay_lines(lines: list[str], breaks: int) -> None:
    assert running_text(["\r\n".join(lines)]).count("\n") == breaks


def test_verse_stays_verse() -> None:
    verse = ["The lamp of every harbour was lit", "Before nightfall and nobody asked", "Who had carried oil up the stairs"]
    assert running_text(["\n".join(verse)]) == "\n".join(verse)


def test_a_paragraph_goes_on_over_the_page() -> None:
    pages = ["The lamp of every harbour was lit before", "nightfall and nobody asked who had carried"]
    assert running_text(pages) == " ".join(pages)


def test_ideographs_are_joined_without_a_space() -> None:
    line = "我们在海边的灯塔里住了很多年每天晚上都要点灯看着船来船往"
    assert running_text([f"{line}\r\n{line}。"]) == f"{line}{line}。"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (f"a con{HYPHEN}siderable lamp", "a considerable lamp"),
        (f"Berlin{HYPHEN}Brandenburg", "Berlin-Brandenburg"),
        (f"from 1990{HYPHEN}1995", "from 1990-1995"),
        (f"well{HYPHEN}known and well-known", "well-known and well-known"),
        (f"every{HYPHEN}thing, every-thing, everything", "everything, every-thing, everything"),
        ("a con\ufffesiderable lamp", "a considerable lamp"),
        ("soft\xadness", "softness"),
        (f"at the end{HYPHEN}", "at the end-"),
        (f"{HYPHEN}x{HYPHEN}{HYPHEN}y", "xy"),
    ],
)
def test_torn_words(page: str, expected: str) -> None:
    assert running_text([page]) == expected


def test_a_word_torn_by_the_end_of_a_page() -> None:
    pages = ["The lamp of every harbour was lit by con-", "siderable numbers of people."]
    assert running_text(pages) == "The lamp of every harbour was lit by considerable numbers of people."
    before = f"{LONG.capitalize()}\n{LONG}\n{LONG} Berlin-"
    assert running_text([before, "Brandenburg."]).endswith("before Berlin-Brandenburg.")


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("o\ufb03ce \ufb02oor \ufb01nd a\ufb00air", "office floor find affair"),
        ("x² ½ Å ™ ﬁ", "x² ½ Å ™ fi"),
        ("cafe\u0301", "café"),
        ("\ufef3\ufef4", "\u064a\u064a"),
        ("a\xa0b\u2003c\u3000d", "a b c d"),
        ("a\u200bb\ufeffc\u2060d", "abcd"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\uf0b7 item", "• item"),
        ("a\ue123\ufffdb\x07\x00c\ud83d", "abc"),
        ("\U0001f600 \U00020000", "\U0001f600 \U00020000"),
        ("a\x0bb\x0cc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("", ""),
        (" \r\n\t\r\n", ""),
        ("\x00\ue000", ""),
    ],
)
def test_characters(page: str, expected: str) -> None:
    assert running_text([page]) == expected


def numbered_pages(count: int, top: str, bottom: str) -> list[str]:
    pages = []
    for number in range(1, count + 1):
        body = [f"Line {'abcdefghij'[k]} of {prose(100 * number + k, 1)}" for k in range(8)]
        pages.append("\n".join([top.format(number), *body, bottom.format(number)]))
    return pages


@pytest.mark.parametrize(
    ("top", "bottom"),
    [
        ("The Keeper of Lights", "{}"),
        ("Lights 19{}", "Page {} of 12"),
        ("Lights", "- {} -"),
        ("{}\nThe Keeper\nLights", "12"),
    ],
)
def test_titles_and_numbers_of_pages_are_left_out(top: str, bottom: str) -> None:
    pages = numbered_pages(12, top, bottom)
    bare = running_text(["\n".join(page.split("\n")[top.count("\n") + 1 : -1]) for page in pages])
    assert running_text(pages) == bare
    assert "Keeper" not in bare


def test_a_short_page_at_the_end_loses_its_title_too() -> None:
    pages = [*numbered_pages(11, "The Keeper", "{}"), "The Keeper\nThe end.\n12"]
    assert running_text(pages).split("\n")[-1] == "The end."
    assert running_text([*pages, "The Keeper\n13"]).split("\n")[-1] == "The end."


def test_left_and_right_pages_have_titles_of_their_own() -> None:
    pages = [page if k % 2 else page.replace("Lights", "Oil") for k, page in enumerate(numbered_pages(12, "Lights", "{}"))]
    assert not {"Lights", "Oil"} & set(running_text(pages).split("\n"))


@pytest.mark.parametrize(
    "pages",
    [
        pytest.param(numbered_pages(3, "The Keeper", "{}"), id="too few pages"),
        pytest.param([f"Good page {n}" for n in range(20)], id="nothing else on the page"),
        pytest.param([f"Title\n{'abcdefgh'[n]}\nend" for n in range(8)], id="little else on the page"),
    ],
)
def test_what_may_be_the_text_itself_is_kept(pages: list[str]) -> None:
    assert running_text(pages).split("\n") == [line for page in pages for line in page.split("\n")]


def test_tables_keep_their_rows() -> None:
    rows = ["12 14 16", "13 15 17", "1 2 3", "4 5 6", "7 8 9", "10 11 12", "22 23 24", "32 33 34", "1 1 1"]
    pages = ["\n".join(f"{row} {n}" for row in rows) for n in range(10)]
    assert running_text(pages).count("\n") == 89


def test_unreadable_share() -> None:
    assert unreadable_share(["abc", "d\r\n"]) == 0.0
    assert unreadable_share(["\ue000\ue001", "ab"]) == 0.5
    assert unreadable_share(["\uf0b7 a point", f"con{HYPHEN}siderable"]) == 0.0
    assert unreadable_share([]) == unreadable_share([""]) == 0.0


# ---- chunks ----


def test_chunks_end_with_a_paragraph() -> None:
    text = "\n".join(prose(seed, 4) for seed in range(200))
    pieces = list(chunks(text, 5000))
    assert "".join(pieces) == text
    assert all(3000 <= len(piece) <= 5000 for piece in pieces)
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    assert all(len(piece) > 4400 for piece in pieces[:-2])  # as long as paragraphs allow


def test_chunks_of_one_paragraph_end_with_a_sentence() -> None:
    text = prose(1, 600)
    pieces = list(chunks(text, 5000))
    assert "".join(pieces) == text
    assert all(3000 <= len(piece) <= 5000 and piece.endswith(". ") for piece in pieces[:-1])
    quoted = "“" + "”“".join(["One thing was said in the evening.”  He said: “And another!"] * 300)
    assert all(piece[-2:].rstrip()[-1] in "”!.“" for piece in chunks(quoted, 1000))
    chinese = "我们在海边的灯塔里住了很多年。" * 900
    assert all(piece.endswith("。") and 3000 <= len(piece) <= 5000 for piece in chunks(chinese, 5000))


def test_chunks_without_sentences_end_with_a_word_and_without_words_anywhere() -> None:
    text = " ".join(WORDS * 900)
    assert all(piece.endswith(" ") for piece in list(chunks(text, 5000))[:-1])
    assert [len(piece) for piece in chunks("x" * 18_000, 5000)] == [5000, 5000, 5000, 3000]
    assert [len(piece) for piece in chunks("x" * 5001, 5000)] == [2500, 2501]
    assert [len(piece) for piece in chunks("x" * 5000, 5000)] == [5000]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab .\n。”"), max_size=400), st.integers(0, 60))
def test_chunks_are_the_text(text: str, size: int) -> None:
    pieces = list(chunks(text, size))
    assert "".join(pieces) == text
    assert all(pieces)
    if size:
        assert all(len(piece) <= size for piece in pieces)
        assert all(len(piece) >= size * 3 // 5 for piece in pieces[:-2])
        assert all(len(piece) >= min(size * 2 // 5, len(text)) for piece in pieces)
    else:
        assert len(pieces) == (1 if text else 0)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("aB1 -.\r\n\x02\ufffe\xad\ufb01\ue000\ud800中•") | st.characters(), max_size=60), max_size=8
    )
)
def test_any_pages_become_text_that_can_be_stored(pages: list[str]) -> None:
    text = running_text(pages)
    text.encode("utf-8")
    assert text == text.strip(" \n")
    assert "\n\n" not in text
    assert HYPHEN not in text
    assert (
        running_text([text]).replace("\n", " ").replace(" ", "") == text.replace("\n", " ").replace(" ", "") or "-" in text
    )
