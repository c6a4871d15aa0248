from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

import lmloop.tokens.tokenizer as module
from lmloop.preset.schema import TokenizerSection
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.pretrained import read_folder
from lmloop.tokens.tokenizer import END_OF_TEXT, PAD, Tokenizer
from lmloop.tokens.trained import sample
from tests.tokens.sources import MemorySource

PROSE = """The tokenizer learns which pairs of bytes stand side by side most often, and gives each such pair a row of its
own. What is frequent becomes short: words, endings, even whole phrases; what is rare stays spelled out in bytes. So the
same text needs fewer tokens than it has letters, and nothing that people write is ever lost on the way.\n\n"""
CORPUS = MemorySource("corpus", [PROSE * 3, "What's 1234?\n", "Émile aß 中文\n" * 5, "if x:\n    return {'a': 1}\n" * 30])
CONTROL = f"a {END_OF_TEXT} b{PAD}<0x41>{END_OF_TEXT}"


def built(kind: str, vocab_size: int = 320) -> Tokenizer:
    return build_tokenizer(TokenizerSection(type=kind, vocab_size=vocab_size), [CORPUS])  # type: ignore[arg-type]


TOKENIZERS = {"char": built("char"), "bpe": built("bpe"), "bpe256": built("bpe", 256)}
both = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())

any_text = st.text(st.characters(codec="utf-8")) | st.text("the cat\n \r'sS12<|>endof\u00a0\u200b中\U0001f600")


@both
@given(text=any_text)
@settings(max_examples=150, deadline=None)
def test_any_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert not set(ids.tolist()) & {tokenizer.pad_id, tokenizer.eos_id, tokenizer.start_id}
    assert all(0 <= token < tokenizer.vocab_size for token in ids.tolist())


@both
def test_control_tokens_in_text_stay_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(CONTROL).tolist()
    assert tokenizer.eos_id not in ids
    assert tokenizer.pad_id not in ids
    assert tokenizer.decode(ids) == CONTROL
    assert tokenizer.decode([tokenizer.start_id, *ids, tokenizer.eos_id, tokenizer.pad_id]) == CONTROL


@both
def test_lone_surrogates_are_replaced(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_sizes() -> None:
    assert TOKENIZERS["bpe256"].vocab_size == 256
    assert TOKENIZERS["bpe"].vocab_size == 320
    assert TOKENIZERS["char"].vocab_size == len(set("".join(CORPUS.texts))) + 256 + 2
    assert built("bpe", 100_000).vocab_size < 1_000  # the corpus has no more pairs: no row is wasted
    for tokenizer in TOKENIZERS.values():
        assert tokenizer.pad_id != tokenizer.eos_id
        assert tokenizer.start_id == tokenizer.eos_id


def test_char_is_one_token_a_known_character() -> None:
    tokenizer = TOKENIZERS["char"]
    text = "".join(sorted(set("".join(CORPUS.texts))))
    assert len(set(tokenizer.encode(text).tolist())) == len(text)
    assert len(tokenizer.encode("\U0001f600")) == 4  # its bytes


def test_bpe_merges_what_is_frequent() -> None:
    assert len(TOKENIZERS["bpe"].encode("return")) < len(TOKENIZERS["bpe256"].encode("return"))


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_building_is_deterministic_and_json_round_trips(kind: str) -> None:
    one, two = built(kind), built(kind)
    assert one.fingerprint == two.fingerprint
    copy = Tokenizer.from_json(one.to_json())
    assert copy.fingerprint == one.fingerprint
    assert copy.encode(CONTROL).tolist() == one.encode(CONTROL).tolist()
    assert built("bpe", 300).fingerprint != built("bpe", 301).fingerprint


@both
def test_saved_folder_loads_in_transformers_with_equal_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    for text in [*CORPUS.texts, "unseen: żółw \U0001f600\n\n\tok", " a , b . ' s"]:
        ids = tokenizer.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs(CONTROL, split_special_tokens=True)["input_ids"] == tokenizer.encode(CONTROL).tolist()
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert len(theirs) == tokenizer.vocab_size
    assert read_folder(tmp_path).encode(CONTROL).tolist() == tokenizer.encode(CONTROL).tolist()


# ---- long texts in pieces ----

line_text = st.lists(
    st.text("ab1.,'s \t\r\n中é\u00a0\u3000\x1c-", max_size=12) | st.sampled_from(["\n", "x\ny", ".\nA", " \n\n b", "1\n2"])
).map("".join)


@both
@given(text=line_text)
@settings(max_examples=200, deadline=None)
def test_pieces_give_the_ids_of_the_whole(tokenizer: Tokenizer, text: str) -> None:
    whole = tokenizer._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_CHARACTERS", 3)
        assert tokenizer.encode(text).tolist() == whole


def gpt2_like() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def rule(backend: Backend) -> str:
    return module._cut_rule(json.loads(backend.to_str()))


def test_text_is_cut_only_where_the_tokenizer_is_known() -> None:
    assert [TOKENIZERS[name]._cut for name in ("char", "bpe")] == ["anywhere", "line"]
    assert rule(gpt2_like()) == "line"
    prefixed, lower, sentencepiece, added = gpt2_like(), gpt2_like(), gpt2_like(), gpt2_like()
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    lower.normalizer = normalizers.Lowercase()
    sentencepiece.pre_tokenizer = pre_tokenizers.Metaspace()
    added.add_tokens([AddedToken("a\nb", special=False)])
    assert [rule(backend) for backend in (prefixed, lower, sentencepiece, added)] == ["never"] * 4


def test_long_texts_are_cut_and_others_are_not() -> None:
    text = "line of text\n" * 20_000
    end = TOKENIZERS["bpe"].piece_end(text, 0)
    assert module.PIECE_CHARACTERS <= end < module.PIECE_CHARACTERS + 20
    assert TOKENIZERS["bpe"].piece_end("word " * 50_000, 0) == 250_000


# ---- what a tokenizer is built from ----


def test_sample_is_dealt_fairly_among_sources_and_kept_to_the_limit() -> None:
    big, small = MemorySource("big", ["b" * 10_000] * 3), MemorySource("small", ["s" * 10] * 1_000)
    taken = "".join(sample([big, small], 2_000))
    assert len(taken) == 2_000
    assert taken.count("s") == 1_000
    taken = "".join(sample([big, MemorySource("few", ["f"])], 2_000))
    assert (len(taken), taken.count("f")) == (2_000, 1)
    assert len("".join(sample([MemorySource("wide", ["中" * 5_000])], 1_000)).encode()) in range(998, 1_001)


def test_no_text_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"sources \(none here\) have no text"):
        build_tokenizer(TokenizerSection(type="char"), [MemorySource("none here", ["", ""])])
