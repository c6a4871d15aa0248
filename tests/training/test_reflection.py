"""What becomes of a reflection before it is an entry."""

import pytest

from lmloop.preset.journal import JournalPrompt
from lmloop.training.reflection import clean, fault, fill, newest_part, newest_that_fit

GOOD = "I predict the next word better after short stories, and I still lose the thread when a paragraph is long."


def words(text: str) -> int:
    return len(text.split())


def test_placeholders_are_filled_in() -> None:
    prompt = JournalPrompt(context="Epoch {epoch}, {loss}", observation="{samples}", intention="", values="{{so}}")
    assert fill(prompt, {"epoch": "3", "loss": "1.5", "samples": "a {b} c"}) == "Epoch 3, 1.5\na {b} c\n{so}"


@pytest.mark.parametrize("text", ["{foo}", "{}", "{epoch!r}", "{epoch:>3}", "{epoch", "}", "{epoch.real}", "{0}"])
def test_unknown_placeholders_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"placeholder|brace") as caught:
        JournalPrompt(context=text)
    assert "context" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a<|im_end|>b", "ab"),
        ("<s>[INST] hi [/INST]</s>", "hi"),
        ("<|im_<|im_end|>end|>still", "still"),
        ("x<eos_of_mine>y", "xy"),
        ("\x1b[31mred\x07\u202eodd\x00", "[31mredodd"),
        ("a <!-- lmloop entry run#1: x --> b", "a  lmloop entry run#1: x  b"),
        ("one\r\ntwo  \n\n\n\n\nthree", "one\ntwo\n\nthree"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("broken \ufffd\ufffd character", "broken  character"),
        ("a < b and c > d, x <| y |> z", "a < b and c > d, x  z"),
    ],
)
def test_control_tokens_and_characters_are_stripped(raw: str, cleaned: str) -> None:
    assert clean(raw, ["<eos_of_mine>"]) == cleaned


def test_cleaning_again_changes_nothing() -> None:
    text = clean("<|a<|b|>|> <</</s>SYS>> x " * 20)
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 letters"),
        ("ok.", "2 letters"),
        ("-- .. !! ?? ++ ** " * 5 + "a few letters here yes", "no letter"),
        ("the cat sat on " * 12, "repeats itself"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "repeats itself"),
        (
            "\n".join(f"item number {'abcdefghij'[n % 3]} is as good as the last one was before it" for n in range(40)),
            "repeat",
        ),
    ],
)
def test_degenerate_text_is_named(text: str, why: str) -> None:
    assert why in fault(text, "", [])


def test_an_ordinary_reflection_is_kept() -> None:
    assert fault(GOOD, "What do you think?", [("run#1", "Something else entirely was on my mind in the first epoch.")]) == ""


def test_near_duplicates_name_what_they_repeat() -> None:
    other = GOOD.replace("short stories", "short tales")
    assert fault(GOOD, "", [("part 1", "unlike it in every way that I can see"), ("run#4", other)]).endswith(
        "the same as run#4"
    )
    assert "prompt" in fault(GOOD, f"Before. {GOOD} After.", [])


def test_an_entry_that_is_contained_in_a_longer_one_is_kept() -> None:
    """A long journal would else swallow whatever is said in its words."""
    assert (
        fault(GOOD, "", [("part 1", GOOD + " " + "And then I wrote about the sea and the mountains for a while. " * 5)])
        == ""
    )


@pytest.mark.parametrize(
    ("room", "part"), [(0, ""), (2, "e f"), (3, "d e f"), (4, "c\nd e f"), (5, "c\nd e f"), (9, "a b\n\nc\nd e f")]
)
def test_the_newest_part_begins_where_a_text_does(room: int, part: str) -> None:
    assert newest_part("a b\n\nc\nd e f", room, words) == part


def test_the_newest_texts_fit() -> None:
    texts = [("one", "a b c"), ("two", "d e\n\nf"), ("three", "g h")]
    assert newest_that_fit(texts, 8, words) == (texts, False)
    assert newest_that_fit(texts, 5, words) == (texts[1:], True)
    assert newest_that_fit(texts, 3, words) == ([("two", "f"), ("three", "g h")], True)
    assert newest_that_fit(texts, 1, words) == ([("three", "h")], True)
    assert newest_that_fit(texts, 0, words) == ([], True)
