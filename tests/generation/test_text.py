from collections.abc import Iterable

import pytest

from lmloop.generation.text import TextStream
from lmloop.tokens.tokenizer import Tokenizer
from tests.generation.fakes import tokenizer_of

TEXTS = ["plain words, and a line\nmore", "你好, 世界!", "naïve café €5", "👩‍👩‍👧 family 🏳️‍🌈 flag", "", "é"]


@pytest.fixture(scope="module", params=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of("plain words, and a line", request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_together_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).tolist()
    stream, shown = TextStream(tokenizer), ""
    for count, token in enumerate(ids, start=1):
        shown += stream.feed(token)
        assert "\ufffd" not in shown
        whole = tokenizer.decode(ids[:count])
        assert text.startswith(shown)
        if "\ufffd" not in whole:
            assert shown == whole, "a finished character was kept back"
    assert shown == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("before", ["", "Once ", "你"])
def test_text_before_is_not_repeated(tokenizer: Tokenizer, before: str, text: str) -> None:
    stream = TextStream(tokenizer, tokenizer.encode(before).tolist())
    assert "".join(map(stream.feed, tokenizer.encode(text).tolist())) == text


def test_half_a_character_at_the_end_is_never_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aé").tolist()
    stream = TextStream(tokenizer)
    assert "".join(map(stream.feed, ids[:-1])) == "a"


def test_bytes_that_are_no_text_are_passed_on_with_bounded_work() -> None:
    tokenizer = tokenizer_of("abc")
    lead = tokenizer.encode("é").tolist()[0]
    longest = 0

    class Counting:
        def decode(self, ids: Iterable[int]) -> str:
            nonlocal longest
            ids = list(ids)
            longest = max(longest, len(ids))
            return tokenizer.decode(ids)

    stream, shown = TextStream(Counting()), ""
    for token in [lead] * 500 + tokenizer.encode("abc").tolist():
        shown += stream.feed(token)
    assert longest <= 64
    assert set(shown[:-3]) == {"\ufffd"}
    assert shown.endswith("abc")


def test_a_space_that_the_decoder_drops_at_the_beginning_is_kept() -> None:
    """SentencePiece's decoder strips the first space of what it is given, so tokens cannot be decoded alone."""

    class Pieces:
        words = ("▁Once", "▁upon", "▁a", "▁time", "ly")

        def decode(self, ids: Iterable[int]) -> str:
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    stream = TextStream(Pieces(), [0])
    assert [stream.feed(i) for i in (1, 2, 3, 4)] == [" upon", " a", " time", "ly"]
