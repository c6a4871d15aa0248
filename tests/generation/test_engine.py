from __future__ import annotations

import pytest
import torch

from lmloop.generation.engine import FEWEST_STEPS_PREPARED, SMALLEST_CACHE_TOKENS, Engine, window
from lmloop.generation.sampling import History, adjust
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.preset.schema import GenerationSection, ModelSection
from lmloop.tokens.tokenizer import Tokenizer
from tests.generation.fakes import GREEDY, Recurrent, Scripted, tokenizer_of

CPU = torch.device("cpu")
PROMPTS = ["the cat", "", "a much longer beginning of a text", "x"]
MODELS = ["recurrent", "decoder", "gpt2"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of("the cat sat on a much longer mat.")


def model_of(kind: str, tokenizer: Tokenizer, context: int = 64) -> LanguageModel:
    """A model with random weights, large enough that what it writes varies."""
    if kind == "recurrent":
        return Recurrent(tokenizer.vocab_size, context).eval()
    section = ModelSection(
        architecture=kind,  # type: ignore[arg-type]
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2 if kind == "decoder" else None,
        seq_length=context,
        dropout=0.1,
        tie_embeddings=False,  # a tied head with random weights repeats the last token for ever
    )
    model = build_model(section, tokenizer.vocab_size, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return model.eval()


def recomputed(model: LanguageModel, tokenizer: Tokenizer, prompt: str, options: GenerationSection, limit: int) -> list[int]:
    """Oracle: greedy, each token from a full forward pass over what the row sees, without cache, padding or batch."""
    seen = window([tokenizer.start_id, *tokenizer.encode(prompt).tolist()], model.context_length, tokenizer.start_id)
    text = [token for token in seen if token != tokenizer.start_id]
    written: list[int] = []
    while len(written) < limit:
        if len(seen) > model.context_length:
            seen = window(seen, max(model.context_length // 2, 1), tokenizer.start_id)
        with torch.no_grad():
            logits_BV = model.head(model.hidden(torch.tensor([seen]))[:, -1]).clone()
        logits_BV[:, tokenizer.pad_id] = -torch.inf
        history = History(options, tokenizer.vocab_size, CPU, text + written)
        token = int(adjust(logits_BV, options, [history]).argmax())
        if token == tokenizer.eos_id:
            break
        written.append(token)
        seen = [*seen, token]
    return written


class Spelled:
    """The tokenizer with a decoder that spells every token, so that equal text means equal tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size, self.pad_id = tokenizer.vocab_size, tokenizer.pad_id
        self.eos_id, self.start_id = tokenizer.eos_id, tokenizer.start_id
        self.encode = tokenizer.encode

    def decode(self, ids: object) -> str:
        return "".join(f"<{token}>" for token in ids)  # type: ignore[attr-defined]


def spelled(ids: list[int]) -> str:
    return "".join(f"<{token}>" for token in ids)


@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
@pytest.mark.parametrize("context", [64, 9])  # 9: prompts are cut, and the window moves again and again
@pytest.mark.parametrize("kind", MODELS)
def test_greedy_with_cache_is_greedy_without(
    kind: str, context: int, penalties: dict[str, float], tokenizer: Tokenizer
) -> None:
    model = model_of(kind, tokenizer, context)
    options = GREEDY.model_copy(update=penalties)
    engine = Engine(model, Spelled(tokenizer), CPU)  # type: ignore[arg-type]
    expected = [recomputed(model, tokenizer, prompt, options, 24) for prompt in PROMPTS]
    assert [one.text for one in engine.generate(PROMPTS, options, 24)] == [spelled(ids) for ids in expected]
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS), "the cases are all alike"


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("context", [64, 9, 2, 1])
@pytest.mark.parametrize("options", [GREEDY, GenerationSection(temperature=1.5)], ids=["greedy", "sampled"])
def test_a_batch_is_its_rows_alone(kind: str, context: int, options: GenerationSection, tokenizer: Tokenizer) -> None:
    engine = Engine(model_of(kind, tokenizer, context), Spelled(tokenizer), CPU)  # type: ignore[arg-type]
    together = [one.text for one in engine.generate(PROMPTS, options, 30, seed=5)]
    if options.temperature == 0:
        alone = [engine.generate([prompt], options, 30)[0].text for prompt in PROMPTS]
    else:  # a row's random numbers come with its index
        alone = [engine.generate(["on"] * i + [prompt], options, 30, seed=5)[i].text for i, prompt in enumerate(PROMPTS)]
    assert together == alone


@pytest.mark.parametrize("kind", MODELS)
def test_rows_that_end_early_do_not_disturb_the_others(kind: str, tokenizer: Tokenizer) -> None:
    engine = Engine(model_of(kind, tokenizer, 16), tokenizer, CPU)
    free = engine.generate(PROMPTS, GREEDY, 40)
    stop = free[2].text[3:5]
    stopped = engine.generate(PROMPTS, GREEDY.model_copy(update={"stop": [stop]}), 40)
    assert stopped[2].stopped_by == "stop"
    for one, other in zip(free, stopped, strict=True):
        assert other.text == one.text.partition(stop)[0]


def test_a_cache_that_must_grow_changes_nothing(tokenizer: Tokenizer) -> None:
    limit = SMALLEST_CACHE_TOKENS + 40
    model = Recurrent(tokenizer.vocab_size, 4 * SMALLEST_CACHE_TOKENS)
    model.embedding.data[tokenizer.eos_id - 1] = 0.0  # its row of the head: the text does not end before the limit
    text = Engine(model, Spelled(tokenizer), CPU).generate(["the"], GREEDY, limit)[0].text  # type: ignore[arg-type]
    assert len(model.prefills) == 2
    assert model.prefills[1] == (1, SMALLEST_CACHE_TOKENS + 1)
    assert text == spelled(recomputed_fast(model, tokenizer, "the", limit))


def recomputed_fast(model: Recurrent, tokenizer: Tokenizer, prompt: str, limit: int) -> list[int]:
    """The fake's definition written out, in linear time."""
    ids = [tokenizer.start_id, *tokenizer.encode(prompt).tolist()]
    state, written = torch.zeros(16, dtype=torch.float64), []
    for position in range(len(ids) + limit - 1):
        state = 0.8 * state + model.embedding[[*ids, *written][position]] + model.place[position]
        if position >= len(ids) - 1:
            logits_V = (model.embedding.roll(1, 0) @ state).detach()
            logits_V[tokenizer.pad_id] = -torch.inf
            written.append(int(logits_V.argmax()))
    assert tokenizer.eos_id not in written
    return written


def test_memory_and_work_follow_what_is_written_not_the_limit(tokenizer: Tokenizer) -> None:
    model = Scripted(tokenizer.vocab_size, [tokenizer.encode("the cat").tolist()], tokenizer.eos_id)
    sizes = []
    model.make_cache = lambda rows, tokens: sizes.append(tokens) or Scripted.make_cache(model, rows, tokens)  # type: ignore[method-assign]
    assert Engine(model, tokenizer, CPU).generate([""], GREEDY, 10**15)[0].text == "the cat"
    assert sizes == [SMALLEST_CACHE_TOKENS]


@pytest.mark.parametrize("kind", MODELS)
def test_stream_gives_the_text_of_generate(kind: str, tokenizer: Tokenizer) -> None:
    engine = Engine(model_of(kind, tokenizer), tokenizer, CPU)
    options = GenerationSection(temperature=1.0, stop=["t "])
    written = engine.generate(["the"], options, 60, seed=2)[0]
    stream = engine.stream("the", options, 60, seed=2)
    pieces = list(stream)
    assert "".join(pieces) == written.text == stream.result.text
    assert all(pieces)
    assert stream.result.stopped_by == written.stopped_by
    assert stream.result.new_tokens == written.new_tokens


def scripted(tokenizer: Tokenizer, text: str) -> tuple[Engine, Scripted]:
    model = Scripted(tokenizer.vocab_size, [tokenizer.encode(text).tolist()], tokenizer.eos_id)
    return Engine(model, tokenizer, CPU), model


def test_result_of_a_text_that_the_model_ends(tokenizer: Tokenizer) -> None:
    engine, model = scripted(tokenizer, "the cat")
    one = engine.generate(["a mat"], GREEDY)[0]
    assert (one.text, one.stopped_by, one.prompt_tokens, one.new_tokens, one.dropped_tokens) == ("the cat", "eos", 5, 7, 0)
    assert 0 < one.seconds < 60
    assert model.asked == [[tokenizer.start_id, *tokenizer.encode("a mat").tolist()]]


def test_an_empty_prompt_is_the_start_token(tokenizer: Tokenizer) -> None:
    engine, model = scripted(tokenizer, "the")
    assert engine.generate([""], GREEDY)[0].prompt_tokens == 0
    assert model.asked == [[tokenizer.start_id]]


def test_no_prompts_no_texts(tokenizer: Tokenizer) -> None:
    assert scripted(tokenizer, "the")[0].generate([], GREEDY) == []


@pytest.mark.parametrize(("limit", "text", "reason"), [(1, "t", "length"), (3, "the", "length"), (4, "the", "eos")])
def test_limit(limit: int, text: str, reason: str, tokenizer: Tokenizer) -> None:
    one = scripted(tokenizer, "the")[0].generate([""], GREEDY, limit)[0]
    assert (one.text, one.stopped_by, one.new_tokens) == (text, reason, len(text))


def test_limit_is_the_options_own_when_not_given(tokenizer: Tokenizer) -> None:
    one = scripted(tokenizer, "the cat sat")[0].generate([""], GREEDY.model_copy(update={"max_new_tokens": 5}))[0]
    assert one.text == "the c"


def test_limit_below_one_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_new_tokens 0: must be at least 1"):
        scripted(tokenizer, "the")[0].generate([""], GREEDY, 0)


def test_a_stop_string_over_several_tokens_is_not_shown_in_part(tokenizer: Tokenizer) -> None:
    engine, _ = scripted(tokenizer, "a cat sat on the mat")
    stream = engine.stream("", GREEDY.model_copy(update={"stop": ["the", "at o"]}))
    shown = ""
    for piece in stream:
        shown += piece
        assert "a cat s".startswith(shown)
    assert shown == "a cat s"
    assert stream.result.stopped_by == "stop"


def test_what_looked_like_a_stop_string_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    engine, _ = scripted(tokenizer, "a cat")
    assert "".join(engine.stream("", GREEDY.model_copy(update={"stop": ["cats"]}))) == "a cat"


def test_half_a_character_is_not_shown(tokenizer: Tokenizer) -> None:
    engine, _ = scripted(tokenizer, "a你b")  # not in the corpus: three byte tokens
    assert list(engine.stream("", GREEDY)) == ["a", "你", "b"]
    assert engine.generate([""], GREEDY, 3)[0].text == "a"


def test_a_long_prompt_keeps_its_newest_part_and_says_so(tokenizer: Tokenizer) -> None:
    model = Scripted(tokenizer.vocab_size, [[]], tokenizer.eos_id, context=5)
    one = Engine(model, tokenizer, CPU).generate(["the cat sat"], GREEDY)[0]
    assert (one.prompt_tokens, one.dropped_tokens) == (11, 7)
    assert model.asked == [[tokenizer.start_id, *tokenizer.encode(" sat").tolist()]]


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(3, 3, [7, 1, 2]), (4, 3, [7, 2, 3]), (4, 2, [7, 3]), (4, 1, [3]), (1, 1, [7])],
)
def test_window(count: int, size: int, expected: list[int]) -> None:
    assert window([7, 1, 2, 3][:count], size, 7) == expected


def test_a_full_context_goes_on_from_its_newest_half(tokenizer: Tokenizer) -> None:
    model = Recurrent(tokenizer.vocab_size, 10)
    Engine(model, tokenizer, CPU).generate(["the"], GREEDY, 30)
    assert model.prefills == [(1, 4)] + [(1, 5)] * 4  # 4 read + 6 written, then 5 read + 5 written each time


def test_should_stop_is_asked_before_each_token(tokenizer: Tokenizer) -> None:
    engine, _ = scripted(tokenizer, "the cat sat")
    answers = iter([False] * 4 + [True])
    one = engine.generate([""], GREEDY, should_stop=lambda: next(answers))[0]
    assert (one.text, one.new_tokens, one.stopped_by) == ("the ", 4, "interrupted")
    assert engine.generate(["a", ""], GREEDY, should_stop=lambda: True)[1].stopped_by == "interrupted"


def test_global_random_state_is_left_alone_and_does_not_matter(tokenizer: Tokenizer) -> None:
    engine = Engine(model_of("decoder", tokenizer), tokenizer, CPU)
    options = GenerationSection(temperature=1.0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = engine.generate(["the", "the"], options, 20, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert [one.text for one in engine.generate(["the", "the"], options, 20, seed=4)] == [one.text for one in first]
    assert first[0].text != first[1].text, "equal prompts get random numbers of their own"
    assert engine.generate(["the"], options, 20, seed=5)[0].text != first[0].text


def test_a_model_in_training_is_not_disturbed(tokenizer: Tokenizer) -> None:
    """Samples in the middle of training: no dropout in them, and training mode and gradients afterwards."""
    model = model_of("decoder", tokenizer)
    expected = Engine(model, tokenizer, CPU).generate(["the"], GREEDY, 20)[0].text
    model.train()
    assert Engine(model, tokenizer, CPU).generate(["the"], GREEDY, 20)[0].text == expected
    assert all(module.training for module in model.modules())
    model.hidden(torch.tensor([[1, 2, 3]])).sum().backward()


def test_an_abandoned_stream_leaves_the_model_in_training(tokenizer: Tokenizer) -> None:
    model = model_of("decoder", tokenizer).train()
    stream = Engine(model, tokenizer, CPU).stream("the", GREEDY)
    next(stream)
    del stream
    assert model.training


def test_control_tokens_are_not_written(tokenizer: Tokenizer) -> None:
    model = Scripted(tokenizer.vocab_size, [[tokenizer.pad_id] * 20], tokenizer.eos_id)
    options = GenerationSection(temperature=100.0, top_p=1.0)
    for chosen in (options, GREEDY):
        written = Engine(model, Spelled(tokenizer), CPU).generate([""] * 50, chosen, 20)  # type: ignore[arg-type]
        assert f"<{tokenizer.pad_id}>" not in "".join(one.text for one in written)


def test_a_text_may_end_although_the_token_that_ends_it_began_it(tokenizer: Tokenizer) -> None:
    """The start token is the end token here; neither penalty nor blocking may count it as something already written."""
    assert tokenizer.start_id == tokenizer.eos_id
    engine, _ = scripted(tokenizer, "cat")
    options = GREEDY.model_copy(update={"no_repeat_ngram_size": 1, "repetition_penalty": 100.0})
    assert engine.generate([""], options)[0].stopped_by == "eos"


def test_outputs_that_are_not_finite_are_an_error(tokenizer: Tokenizer) -> None:
    model = model_of("decoder", tokenizer)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    with pytest.raises(ValueError, match="the model's outputs are not finite"):
        Engine(model, tokenizer, CPU).generate(["the"], GREEDY)


@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
def test_autocast_writes_nearly_the_same(kind: str, tokenizer: Tokenizer) -> None:
    model = model_of(kind, tokenizer, 24)
    exact = Engine(model, tokenizer, CPU).generate(PROMPTS, GREEDY, 40)
    rounded = Engine(model, tokenizer, CPU, autocast=True).generate(PROMPTS, GREEDY, 40)
    assert any(one.text[:4] == other.text[:4] for one, other in zip(exact, rounded, strict=True))


def test_several_processes_write_what_they_agree_on(tokenizer: Tokenizer) -> None:
    """A rank whose arithmetic rounds otherwise writes the first one's tokens, and ends with it."""
    options = GenerationSection(max_new_tokens=20)
    model = model_of("decoder", tokenizer)
    chosen: list[list[int]] = []

    def note(tokens: list[int]) -> list[int]:
        chosen.append(tokens)
        return tokens

    first = Engine(model, tokenizer, CPU, agree=note).generate(PROMPTS, options, seed=1)
    steps = iter(chosen)
    other = Engine(model_of("recurrent", tokenizer), tokenizer, CPU, agree=lambda tokens: next(steps))
    assert [one.text for one in other.generate(PROMPTS, options, seed=1)] == [one.text for one in first]
    assert next(steps, None) is None


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("context", [64, 24])
@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
def test_prepared_weights_write_what_the_model_itself_writes(
    kind: str, context: int, autocast: bool, tokenizer: Tokenizer
) -> None:
    """Sampled too: to rounding it is one distribution, and the random numbers are the same."""
    model = model_of(kind, tokenizer, context)
    fast = Engine(model, tokenizer, CPU, autocast=autocast)
    plain = Engine(model, tokenizer, CPU, autocast=autocast, prepares=False)
    for options in (GREEDY, GenerationSection(temperature=1.2, stop=["t "])):
        expected = [one.text for one in plain.generate(PROMPTS, options, 40, seed=3)]
        written = [one.text for one in fast.generate(PROMPTS, options, 40, seed=3)]
        if autocast:
            assert any(one[:4] == other[:4] for one, other in zip(written, expected, strict=True))
        else:
            assert written == expected
    assert fast.prepared(len(PROMPTS), 40) is not None
    assert plain.prepared(len(PROMPTS), 40) is None


def test_weights_are_prepared_once_and_again_when_they_change(tokenizer: Tokenizer) -> None:
    model = model_of("decoder", tokenizer)
    engine = Engine(model, tokenizer, CPU)
    engine.generate(["the"], GREEDY, 20)
    first = engine.prepared(1, 20)
    engine.generate(["a"], GREEDY, 20)
    assert engine.prepared(1, 20) is first
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.roll(1, 0))
    written = engine.generate(["the"], GREEDY, 20)[0].text
    assert written == Engine(model, tokenizer, CPU, prepares=False).generate(["the"], GREEDY, 20)[0].text
    assert engine.prepared(1, 20) is not first


def test_for_a_few_tokens_nothing_is_prepared(tokenizer: Tokenizer) -> None:
    engine = Engine(model_of("decoder", tokenizer), tokenizer, CPU)
    assert engine.prepared(1, FEWEST_STEPS_PREPARED - 1) is None
    assert engine.prepared(1, FEWEST_STEPS_PREPARED) is not None
