import pytest
import torch

from lmloop.generation.conversation import Conversation
from lmloop.generation.engine import Engine
from lmloop.tokens.tokenizer import Tokenizer
from tests.generation.fakes import GREEDY, Scripted, tokenizer_of

QUESTIONS = "Q: {user}\nA:"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of("Q: what is it?\nA: a cat.")


def talk(
    tokenizer: Tokenizer, *replies: str, chat_format: str = QUESTIONS, context: int = 10_000, limit: int = 50
) -> Conversation:
    scripts = [tokenizer.encode(reply).tolist() for reply in replies]
    model = Scripted(tokenizer.vocab_size, scripts, tokenizer.eos_id, context)
    options = GREEDY.model_copy(update={"chat_format": chat_format, "max_new_tokens": limit})
    return Conversation(Engine(model, tokenizer, torch.device("cpu")), options, seed=0)


def asked(conversation: Conversation) -> list[str]:
    """The prompts that the model has read."""
    model, tokenizer = conversation.engine.model, conversation.engine.tokenizer
    assert isinstance(model, Scripted)
    assert all(ids[0] == tokenizer.start_id for ids in model.asked)
    return [tokenizer.decode(ids) for ids in model.asked]


def test_prompt_is_all_turns_in_the_chat_format(tokenizer: Tokenizer) -> None:
    conversation = talk(tokenizer, " a cat.", " a dog.\n", " it.")
    for message in ("one", "two", "three"):
        list(conversation.reply(message))
    assert asked(conversation) == [
        "Q: one\nA:",
        "Q: one\nA: a cat.\nQ: two\nA:",
        "Q: one\nA: a cat.\nQ: two\nA: a dog.\nQ: three\nA:",
    ]
    assert conversation.turns == [("one", " a cat."), ("two", " a dog.\n"), ("three", " it.")]


def test_braces_in_a_message_are_text(tokenizer: Tokenizer) -> None:
    conversation = talk(tokenizer, "a", chat_format="{user} {other}")
    list(conversation.reply("{user} {x}"))
    assert asked(conversation) == ["{user} {x} {other}"]


def test_the_model_does_not_write_both_parts(tokenizer: Tokenizer) -> None:
    conversation = talk(tokenizer, " a cat.\nQ: what?\nA: a")
    assert "".join(conversation.reply("x")) == " a cat."
    assert conversation.options.stop == [], "the preset's own stop strings are left as they are"


def test_a_format_without_a_mark_has_no_stop_string(tokenizer: Tokenizer) -> None:
    conversation = talk(tokenizer, "a\nQ: it", chat_format="{user}")
    assert "".join(conversation.reply("x")) == "a\nQ: it"


def test_oldest_turns_are_left_out_when_the_context_is_full(tokenizer: Tokenizer) -> None:
    # A turn is 12 tokens ("Q: 1\nA: cat\n"), the newest message 8; 40 − 1 − 10 = 29 tokens of room hold one turn of two.
    conversation = talk(tokenizer, " cat", context=40, limit=10)
    dropped = []
    for number in (1, 2, 3, 4):
        reply = conversation.reply(str(number))
        list(reply)
        dropped.append(reply.dropped_turns)
        assert reply.result is not None
        assert reply.result.dropped_tokens == 0
    assert dropped == [0, 0, 1, 2]
    assert asked(conversation)[-1] == "Q: 3\nA: cat\nQ: 4\nA:"


def test_a_message_longer_than_the_context_is_cut_by_the_engine(tokenizer: Tokenizer) -> None:
    conversation = talk(tokenizer, " cat", context=20, limit=10)
    list(conversation.reply("x"))
    message = "what is it? " * 4
    reply = conversation.reply(message)
    list(reply)
    assert reply.dropped_turns == 1
    assert reply.result is not None
    assert reply.result.dropped_tokens > 0
    assert asked(conversation)[1] == f"Q: {message}\nA:"[-19:]  # 20 with the start token


def test_retry_replaces_the_reply_and_draws_anew(tokenizer: Tokenizer) -> None:
    conversation = talk(tokenizer, "a", "is")
    conversation.options = conversation.options.model_copy(update={"temperature": 50.0, "top_p": 1.0, "max_new_tokens": 8})
    first = "".join(conversation.reply("x"))
    second = "".join(conversation.retry())
    assert first != second
    assert conversation.turns == [("x", second)]
    assert asked(conversation)[0] == asked(conversation)[1]


def test_stop_keeps_what_was_written(tokenizer: Tokenizer) -> None:
    conversation = talk(tokenizer, " a cat.")
    reply = conversation.reply("x")
    shown = [next(reply), next(reply)]
    reply.stop()
    assert list(reply) == []
    assert reply.result is not None
    assert reply.result.stopped_by == "interrupted"
    assert conversation.turns == [("x", "".join(shown))] == [("x", " a")]


def test_a_format_without_a_place_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"chat_format 'Q:': no \{user\} in it") as error:
        talk(tokenizer, "a", chat_format="Q:")
    assert "\n" not in str(error.value)
