import random

import pytest

from lmloop.generation.stopping import StopStrings


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Oracle: read letter by letter, look at all stop strings that end here."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.parametrize("stops", [["ab"], ["aab", "b"], ["abab", "ba"], ["aaa"], ["abc", "b"], ["c", "bc", "abc"], []])
def test_same_as_reading_letter_by_letter_however_it_is_cut(stops: list[str]) -> None:
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choice("abc") for _ in range(generator.randrange(12)))
        checker, shown, at = StopStrings(stops), "", 0
        expected, stop = first_stop(text, stops)
        while at < len(text):
            size = generator.randrange(1, 5)
            shown += checker.feed(text[at : at + size])
            at += size
            assert expected.startswith(shown), "something of a stop string was shown"
        shown += checker.flush()
        assert (shown, checker.found) == (expected, stop)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    checker = StopStrings(["\nUser:"])
    assert checker.feed("Hello") == "Hello"
    assert checker.feed(" you\n") == " you"
    assert checker.feed("Us") == ""
    assert checker.feed("ual") == "\nUsual"
    assert checker.feed("\nUse") == ""
    assert checker.flush() == "\nUse"


def test_nothing_is_shown_after_a_stop_string() -> None:
    checker = StopStrings(["."])
    assert checker.feed("a.b") == "a"
    assert checker.feed("c") == ""
    assert checker.flush() == ""
