"""Figures of held-out text against transformers' model run on one document after the other."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lmloop.data.corpus import open_corpus
from lmloop.data.quarantine import Quarantine
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.preset.schema import DataSection, ModelSection
from lmloop.processes import Place, Processes
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.evaluate import Evaluation, HeldOut, evaluate, held_out
from tests.generation.fakes import tokenizer_of
from tests.tokens.sources import MemorySource, texts

CPU = torch.device("cpu")
ALPHABET = "abcde \n"


def tiny(tokenizer: Tokenizer, length: int = 64) -> LanguageModel:
    section = ModelSection(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, seq_length=length, dropout=0.2)
    model = build_model(section, tokenizer.vocab_size, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():  # fresh ones predict all tokens alike, whatever the order of things
            parameter.mul_(4.0)
    return model


def measured(model: LanguageModel, data: HeldOut) -> Evaluation:
    result = evaluate(model, data, CPU, autocast=False)
    assert result is not None
    return result


def lines(tokenizer: Tokenizer, source: MemorySource) -> list[torch.Tensor]:
    """Each document with the token that it starts with and the one that ends it."""
    return [torch.tensor([tokenizer.start_id, *tokenizer.encode(text).tolist(), tokenizer.eos_id]) for text in source.texts]


def test_equals_transformers_document_by_document() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tokenizer_of(ALPHABET)
    source = MemorySource("memory", [*texts(12, seed=1), "äöü€"])  # the last one is written in bytes
    everything = sum(len(line) - 1 for line in lines(tokenizer, source))
    model = tiny(tokenizer, length=everything)
    reference = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=tokenizer.vocab_size,
            hidden_size=16,
            intermediate_size=ModelSection(hidden_size=16, num_heads=2).resolved_intermediate_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=everything,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
        )
    ).eval()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = sum(
            float(F.cross_entropy(reference(line[None, :-1]).logits[0], line[1:], reduction="sum"))
            for line in lines(tokenizer, source)
        )
    # One row holds all documents, so that none is cut.
    result = measured(model, held_out([source], tokenizer, length=everything, rows=1, max_tokens=None))
    assert result.tokens == everything
    assert result.bytes == sum(len(text.encode()) for text in source.texts)
    assert result.cross_entropy == pytest.approx(expected / everything, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(expected / everything), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(expected / math.log(2) / result.bytes, rel=1e-5)
    assert result.perplexity > 1.5 * tokenizer.vocab_size  # weights that are wrong in their own way, not just flat


@pytest.mark.parametrize("rows", [2, 7, 100])
def test_figures_do_not_depend_on_the_batching(rows: int) -> None:
    tokenizer = tokenizer_of(ALPHABET)
    sources = [MemorySource("one", texts(9, seed=2)), MemorySource("two", texts(5, seed=3, longest=200))]
    model = tiny(tokenizer)
    single = measured(model, held_out(sources, tokenizer, length=64, rows=1, max_tokens=None))
    batched = measured(model, held_out(sources, tokenizer, length=64, rows=rows, max_tokens=None))
    assert (batched.tokens, batched.bytes) == (single.tokens, single.bytes)
    assert batched.bits_per_byte == pytest.approx(single.bits_per_byte, rel=1e-6)
    assert batched.cross_entropy == pytest.approx(single.cross_entropy, rel=1e-6)


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize("limit", [2, 50, 333])
def test_no_more_tokens_are_read_than_asked(kind: str, limit: int) -> None:
    tokenizer = tokenizer_of("the quick brown fox " * 20, kind)
    source = MemorySource("memory", ["the quick brown fox jumps over the dog zzz " * 4] * 30)
    data = held_out([source], tokenizer, length=16, rows=4, max_tokens=limit)
    tokens = sum(batch.trained_tokens for batch in data.batches)
    assert 0.5 * limit <= tokens <= limit
    result = measured(tiny(tokenizer), data)
    assert result.tokens == tokens
    # The text that was kept is a beginning of what was there: its bytes are those of whole documents and a cut one.
    per_document = len(source.texts[0])
    encoded = len(tokenizer.encode(source.texts[0])) + 1
    assert result.bytes == pytest.approx(tokens * per_document / encoded, abs=per_document / 2)


@pytest.mark.parametrize("limit", [2, 3, 17, 100])
def test_a_document_that_begins_densely_is_cut_short_enough(limit: int) -> None:
    tokenizer = tokenizer_of("abc" * 20)
    source = MemorySource("memory", ["€ö" * 30 + "abc" * 500, "abc"])
    data = held_out([source], tokenizer, length=16, rows=4, max_tokens=limit)
    assert 1 <= sum(batch.trained_tokens for batch in data.batches) <= limit
    assert {names[0] for batch in data.batches for names in batch.documents_B} == {"memory:0"}


def test_the_budget_is_dealt_equally_among_sources() -> None:
    tokenizer = tokenizer_of(ALPHABET)
    sources = [MemorySource(name, ["abcde " * 20] * 20) for name in ("one", "two", "three")]
    data = held_out(sources, tokenizer, length=32, rows=2, max_tokens=600)
    counts = dict.fromkeys(("one", "two", "three"), 0)
    for batch in data.batches:
        for names, weights_T in zip(batch.documents_B, batch.weights_BT, strict=True):
            counts[names[0].split(":")[0]] += int(weights_T.sum())
    assert all(190 <= count <= 200 for count in counts.values()), counts


def test_a_stop_leaves_at_once_and_the_model_is_as_it_was() -> None:
    tokenizer = tokenizer_of(ALPHABET)
    model = tiny(tokenizer)
    data = held_out([MemorySource("memory", texts(40, seed=4))], tokenizer, length=32, rows=2, max_tokens=None)
    assert len(data.batches) > 3
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    model.train()
    assert evaluate(model, data, CPU, autocast=False, should_stop=stop) is None
    assert asked == 3
    assert model.training
    # Dropout is off in an evaluation, wherever it is made.
    assert measured(model, data) == measured(model, data) == measured(model.eval(), data)


class _Rank(Processes):
    """One of several processes, here threads."""

    def __init__(self, rank: int, said: list[Any], everybody: threading.Barrier) -> None:
        super().__init__(Place(rank, len(said), rank, len(said)))
        self.said, self.everybody = said, everybody

    def gather(self, value: Any) -> list[Any]:
        self.said[self.rank] = value
        self.everybody.wait(30)
        return list(self.said)


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_ranks_deal_the_batches_and_have_them_in_order(world: int) -> None:
    tokenizer = tokenizer_of(ALPHABET)
    sources = [MemorySource(name, texts(9, seed)) for name, seed in (("a", 1), ("b", 2))]
    data = held_out(sources, tokenizer, length=32, rows=2, max_tokens=None)
    models = [tiny(tokenizer) for _ in range(world)]
    said: list[Any] = [None] * world
    everybody = threading.Barrier(world)

    def of_rank(rank: int) -> Evaluation | None:
        return evaluate(models[rank], data, CPU, autocast=False, processes=_Rank(rank, said, everybody))

    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(of_rank, range(world)))
    assert found == [measured(models[0], data)] * world  # to the bit


def test_nothing_to_evaluate_is_no_evaluation() -> None:
    tokenizer = tokenizer_of(ALPHABET)
    data = held_out([], tokenizer, length=32, rows=2, max_tokens=100)
    assert evaluate(tiny(tokenizer), data, CPU, autocast=False) is None


@pytest.mark.parametrize("chunk_size", [None, 700])
def test_a_whole_file_is_evaluated_to_its_last_byte(tmp_path: Path, chunk_size: int | None) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i}: naïve café €{i}\n" for i in range(400)), encoding="utf-8")
    source = {"type": "files", "path": str(path)} | ({"chunk_size": chunk_size} if chunk_size else {})
    section = DataSection.model_validate({"sources": [source], "validation": [source]})
    corpus = open_corpus(section, seed=0, eval_tokens=100, run_dir=None, quarantine=Quarantine(None, 0.2))
    tokenizer = tokenizer_of("line 0123456789: naïve café €\n")
    data = held_out(corpus.validation, tokenizer, length=64, rows=8, max_tokens=None)
    documents = [document for document, _ in corpus.validation[0].read({})]
    assert "".join(document.text for document in documents) == path.read_text(encoding="utf-8")
    assert data.bytes == path.stat().st_size
    assert sum(batch.trained_tokens for batch in data.batches) == len(path.read_text(encoding="utf-8")) + len(documents)
