"""From the text that stands on the pages of a PDF to running text in chunks: without what only printing needs.

A PDF knows where letters stand, but neither words nor paragraphs. Its lines end where the paper ended, words are torn by
hyphens, each page repeats a title and a number. The rules that undo it leave a line alone when in doubt.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

HYPHEN = "\x02"
"""A line's end that tears a word; PDFium writes it in the place of the hyphen and the line break."""

REPEATED_SHARE = 0.4
"""A first or last line that so many pages have is a title or a page number. Left and right pages have one each."""

MARGIN_LINES = 3
"""How many lines at the top and at the bottom of a page can be such."""

FULL_SHARE = 0.85
"""A line goes on in the next only if the next one's first word would have made it longer than this share of the page's usual
width: else it had room, and was ended on purpose. (Letters differ in width, so characters say that only nearly.)"""

_MIN_PAGES = 4  # of which a title can be said to be repeated
_MIN_LINES = 2 * MARGIN_LINES + 3  # of a page that can be asked for titles: others hold little but their text
_MIN_WIDTH = 20  # characters; the lines of narrower pages are those of tables and slides
_LONG_WORD = 20  # what is longer is an address, which is broken anywhere

_SPACES = re.compile("[ \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_BREAKS = re.compile("[\r\n\x0b\x0c\x85\u2028\u2029]+")
_INVISIBLE = re.compile("[\xad\u200b\u2060\ufeff]")
_BULLETS = re.compile("[\uf0a7\uf0b7]")  # as the fonts Symbol and Wingdings number them
_FORMS = re.compile("[\ufb00-\ufdff\ufe70-\ufefc]+")  # ligatures, and the shapes that letters take within a word
_UNREADABLE = re.compile(
    "[\0-\x01\x03-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufff0-\uffff\U000f0000-\U0010ffff]"
)

_NUMBERS = re.compile(r"\d+")
_LETTER = r"[^\W\d_]"
_TORN = re.compile(f"(\\w{{1,40}}){HYPHEN}(\\w{{1,40}})")  # bounded: a line of a million letters must not take hours
_COMPOUND = re.compile(f"{_LETTER}{{1,40}}-{_LETTER}{{1,40}}")
_WORD = re.compile(f"{_LETTER}+")
_OPEN_END = re.compile(f"{_LETTER}|[,;–—)”’\"'-]")  # the last character of a line that goes on
_LEADERS = re.compile(r"(\. ?){3,}|…|_{3,}")  # tables of contents
_LIST_ITEM = re.compile(r"[•‣◦▪*–—-]|\(?\w{1,3}[.)] ")
_IDEOGRAPHIC = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]|[\U00020000-\U0003ffff]")
_SENTENCE_END = re.compile("[.!?…][\"'”’»)\\]]*\\s|[。！？][”’」』）]*")


def unreadable_share(pages: Sequence[str]) -> float:
    """Share of characters that stand for no letter: fonts that do not say what they show. 0 for no text."""
    total = sum(map(len, pages))
    unreadable = sum(len(_UNREADABLE.findall(_BULLETS.sub("", page))) for page in pages)
    return unreadable / total if total else 0.0


def running_text(pages: Sequence[str]) -> str:
    """The text of all pages, a paragraph or a line that stands by itself to a line; "" where there is none."""
    lines = without_margins([_lines(page) for page in pages])
    return _mend(_joined(lines))


def chunks(text: str, size: int) -> Iterator[str]:
    """`text` in pieces of at most `size` characters, which together are `text`; 0: in one.

    A piece ends with a paragraph, else with a sentence, else with a word, and has at least three fifths of `size`. A text
    of less than twice that but more than `size` is cut near its middle.
    """
    at = 0
    while at < len(text):
        end = _cut(text, at, size) if size else len(text)
        yield text[at:end]
        at = end


def _cut(text: str, at: int, size: int) -> int:
    """Where the piece that begins at `at` ends."""
    rest = len(text) - at
    if rest <= size:
        return len(text)
    most = min(size, max(rest - size * 3 // 5, rest // 2))
    start = at + min(size * 3 // 5, most * 4 // 5)
    window = text[start : at + most]
    ends = [window.rfind("\n") + 1, max((found.end() for found in _SENTENCE_END.finditer(window)), default=0)]
    ends += [window.rfind(" ") + 1]
    return start + next((end for end in ends if end), len(window))


def _lines(page: str) -> list[str]:
    """Lines of a page that hold something, spelled in plain characters."""
    page = page.replace("\ufffe", HYPHEN).replace(HYPHEN, HYPHEN + "\n")
    page = _INVISIBLE.sub("", _BULLETS.sub("•", page))
    page = _FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), page)
    page = _UNREADABLE.sub("", unicodedata.normalize("NFC", page))
    lines = (_SPACES.sub(" ", line).strip(" ") for line in _BREAKS.split(page))
    return [line for line in lines if line.strip(HYPHEN)]


def without_margins(pages: list[list[str]]) -> list[list[str]]:
    """Pages without the titles and numbers that most of them repeat; numbers in them may differ from page to page."""
    seen = Counter(key for lines in pages if len(lines) >= _MIN_LINES for key in _edges(lines))
    needed = max(_MIN_PAGES, REPEATED_SHARE * len(pages))
    repeated = {key for key, count in seen.items() if count >= needed}
    return [_without(lines, repeated) for lines in pages]


def _edges(lines: list[str]) -> set[tuple[bool, str]]:
    """What may be a title or a number: (whether at the top, what is the same on each page)."""
    top, bottom = lines[:MARGIN_LINES], lines[-MARGIN_LINES:]
    return {(True, _key(line)) for line in top} | {(False, _key(line)) for line in bottom}


def _without(lines: list[str], repeated: set[tuple[bool, str]]) -> list[str]:
    first, end = 0, len(lines)
    while first < min(MARGIN_LINES, end) and (True, _key(lines[first])) in repeated:
        first += 1
    while end > max(first, len(lines) - MARGIN_LINES) and (False, _key(lines[end - 1])) in repeated:
        end -= 1
    return lines[first:end]


def _key(line: str) -> str:
    """What is the same on each page. A row of several numbers is a row of a table, and stays what it is."""
    if len(_NUMBERS.findall(line)) > 1 and not _WORD.search(line):
        return line
    return _NUMBERS.sub("#", line)


class _Line(NamedTuple):
    text: str
    page_width: int
    in_verse: bool
    """On a page where most lines begin with a capital: verse, or a list of names."""


def _joined(pages: list[list[str]]) -> str:
    """Lines put together where a paragraph goes on, also over the end of a page."""
    lines: list[_Line] = []
    for page in pages:
        lengths = sorted(map(len, page))
        width = max(lengths[len(lengths) * 9 // 10], _MIN_WIDTH) if page else 0
        in_verse = sum(line[0].isupper() for line in page) > 0.6 * len(page)
        lines += [_Line(line, width, in_verse) for line in page]
    parts: list[str] = []
    for line, following in pairwise(lines):
        parts += _with_separator(line, following.text)
    return "".join(parts) + (lines[-1].text if lines else "")


def _goes_on(line: _Line, following: str) -> bool:
    """Whether the two are of one paragraph."""
    next_word = 1 if _IDEOGRAPHIC.match(following) else min(len(following.partition(" ")[0]), _LONG_WORD)
    had_room = len(line.text) + 1 + next_word < FULL_SHARE * line.page_width
    if had_room or line.text[-1] in ".!?:。！？：" or _LEADERS.search(line.text) or _LIST_ITEM.match(following):
        return False
    return following[0].islower() or (not line.in_verse and _OPEN_END.fullmatch(line.text[-1]) is not None)


def _with_separator(line: _Line, following: str) -> tuple[str, str]:
    """A line's text, and what stands between it and the following."""
    text = line.text
    if text.endswith(HYPHEN):
        return text, ""
    if not _goes_on(line, following):
        return text, "\n"
    if text[-1] == "-" and text[-2:-1].isalnum() and following[0].isalnum():
        return (text[:-1] + HYPHEN if following[0].islower() else text), ""  # at a page's end PDFium leaves the hyphen
    return text, "" if _IDEOGRAPHIC.match(text[-1]) and _IDEOGRAPHIC.match(following[0]) else " "


def _mend(text: str) -> str:
    """Torn words made whole. The hyphen stays where the text has it elsewhere too, and before a capital or a digit."""
    if HYPHEN not in text:
        return text
    words = {word.lower() for word in _WORD.findall(text)}
    compounds = {word.lower() for word in _COMPOUND.findall(text)}

    def mended(torn: re.Match[str]) -> str:
        first, second = torn.groups()
        compound = f"{first}-{second}"
        is_one_word = second[0].islower() and ((first + second).lower() in words or compound.lower() not in compounds)
        return first + second if is_one_word else compound

    return _TORN.sub(mended, text).replace(HYPHEN, "-")
