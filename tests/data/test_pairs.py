from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.data.document import Message
from lmloop.data.pairs import PAIR_FIELDS, read_pair
from lmloop.data.records import BadRecordError, Number


def m(letter: str, content: str) -> dict[str, str]:
    return {"role": {"s": "system", "u": "user", "a": "assistant", "t": "tool"}[letter], "content": content}


def brief(messages: tuple[Message, ...]) -> str:
    return " ".join(f"{message.role[0]}:{message.content}" for message in messages)


Q, GOOD, BAD = m("u", "q"), m("a", "good"), m("a", "bad")


@pytest.mark.parametrize(
    ("record", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "u:q", "a:good", "a:bad"),
        ({"question": "q", "chosen": "good", "rejected": Number("4"), "system": "s"}, "s:s u:q", "a:good", "a:4"),
        ({"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}, "u:q", "a:good", "a:bad"),
        ({"prompt": [m("s", "s"), Q], "chosen": GOOD, "rejected": BAD}, "s:s u:q", "a:good", "a:bad"),
        ({"prompt": [Q], "chosen": "good", "rejected": "bad"}, "u:q", "a:good", "a:bad"),
        ({"chosen": [Q, GOOD], "rejected": [Q, BAD]}, "u:q", "a:good", "a:bad"),
        ({"prompt": "q", "chosen": [Q, GOOD], "rejected": [Q, BAD]}, "u:q", "a:good", "a:bad"),  # says it twice
        ({"chosen": [m("s", ""), Q, GOOD], "rejected": [m("s", ""), Q, BAD]}, "u:q", "a:good", "a:bad"),
        (
            {"chosen": [Q, m("a", "x"), m("u", "y"), GOOD], "rejected": [Q, m("a", "x"), m("u", "y"), BAD]},
            "u:q a:x u:y",
            "a:good",
            "a:bad",
        ),
        ({"chosen": [Q, GOOD, m("u", "y"), m("a", "z")], "rejected": [Q, GOOD]}, "u:q", "a:good u:y a:z", "a:good"),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            "u:q",
            "a:good",
            "a:bad",
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad\n\nmore"},
            "u:q",
            "a:good",
            "a:bad\n\nmore",
        ),
        (
            {"prompt": "\n\nHuman: q\n\nAssistant: x\n\nHuman: y\n\nAssistant:", "chosen": " good", "rejected": " bad"},
            "u:q a:x u:y",
            "a: good",
            "a: bad",
        ),
        ({"prompt": "Human: is a word", "chosen": "good", "rejected": "bad"}, "u:Human: is a word", "a:good", "a:bad"),
    ],
)
def test_reading(record: dict[str, Any], prompt: str, chosen: str, rejected: str) -> None:
    pair = read_pair(record)
    assert (brief(pair.prompt), brief(pair.chosen), brief(pair.rejected)) == (prompt, chosen, rejected)
    assert pair.margin is None


@pytest.mark.parametrize(
    ("more", "margin"),
    [
        ({"margin": Number("1.5")}, 1.5),
        ({"margin": 0}, 0.0),
        ({"margin": None}, None),
        ({"score_chosen": Number("8.5"), "score_rejected": Number("6")}, 2.5),
        ({"score_chosen": Number("8.5")}, None),
    ],
)
def test_margin(more: dict[str, Any], margin: float | None) -> None:
    assert read_pair({"prompt": "q", "chosen": "good", "rejected": "bad", **more}).margin == margin


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no field 'chosen'; there are: none"),
        ({"chosen": "a", "prompt": "q"}, "no field 'rejected'; there are: chosen, prompt"),
        ({"chosen": "a", "rejected": "b"}, "no field 'prompt'; there are: chosen, rejected"),
        ({"chosen": [GOOD], "rejected": [BAD], "prompt": [m("s", "s")]}, "the prompt has no message of a user"),
        ({"prompt": "q", "chosen": "a", "rejected": " a\n"}, "chosen and rejected are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected (assistant) is empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt (user) is empty"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "field 'chosen' is empty"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "no field 'chosen'; there are: prompt, chosen, rejected"),
        ({"prompt": {"x": 1}, "chosen": "a", "rejected": "b"}, "field 'prompt' is not text but an object"),
        ({"prompt": "q", "chosen": {"text": "a"}, "rejected": "b"}, "chosen[0] has no 'role'; there are: text"),
        (
            {"prompt": [Q], "chosen": [GOOD, m("u", "thanks")], "rejected": [BAD]},
            "'chosen' ends with chosen[1] (user): it must be an assistant's message",
        ),
        (
            {"chosen": [Q, GOOD], "rejected": [m("u", "other"), BAD]},
            "chosen and rejected do not begin with the same messages of a user",
        ),
        (
            {"prompt": "other", "chosen": [Q, GOOD], "rejected": [Q, BAD]},
            "prompt is not what chosen and rejected begin with",
        ),
        (
            {"prompt": [Q, Q], "chosen": "a", "rejected": "b"},
            "prompt[1] (user) follows prompt[0] (user): user and assistant take turns",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"}, "field 'margin' is not a number but much"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": Number("1e999")},
         "field 'margin' is not a number but 1e999"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 3},
            "the margin is -2: the chosen answer would be the worse one",
        ),
    ],
)  # fmt: skip
def test_bad_records(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecordError) as error:
        read_pair(record)
    assert str(error.value) == reason


letters = st.lists(st.tuples(st.sampled_from("suat"), st.sampled_from(["x", "y", ""])).map(lambda p: m(*p)), max_size=5)
anything = letters | st.sampled_from(["", "x", "\n\nHuman: x\n\nAssistant: y", None, Number("1"), m("a", "x"), {}])


@given(st.dictionaries(st.sampled_from(PAIR_FIELDS), anything))
def test_a_record_is_a_right_pair_or_a_bad_record(record: dict[str, Any]) -> None:
    try:
        pair = read_pair(record)
    except BadRecordError:
        return
    assert pair.prompt[-1].role in ("user", "tool")
    for side in (pair.chosen, pair.rejected):
        assert side[0].role == side[-1].role == "assistant"
        assert all(message.content.strip() for message in side)
    assert pair.chosen != pair.rejected
