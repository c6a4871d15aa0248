"""Text full of control tokens is text: whatever the tokenizer, no id of a control token comes out of a document."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lmloop.data.files import Files
from lmloop.data.quarantine import Quarantine
from lmloop.preset.schema import TokenizerSection
from lmloop.preset.sources import FilesSource
from lmloop.tokens import tokenizer as tokenizer_module
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.pretrained import read_folder
from lmloop.tokens.tokenizer import END_OF_TEXT, PAD, Tokenizer
from tests.tokens.chats import SPECIAL, byte_level, control, sp, tokenizer
from tests.tokens.sources import MemorySource

TYPED = (END_OF_TEXT, PAD, "<unk>", "[UNK]", *SPECIAL)
LETTERS = sorted(set("".join(TYPED) + "abcdefghij \n"))
"""What a tokenizer without bytes can spell."""


def texts() -> list[str]:
    chance = random.Random(3)
    around = ["", " ", "\n", "a", " a b", "<", ">", "|", "<|", "|>", "[", "]", "</", "\n\n"]
    mixed = ["".join(chance.choice([*TYPED, *around]) for _ in range(chance.randrange(1, 30))) for _ in range(200)]
    return [*TYPED, "".join(TYPED), " ".join(TYPED), *(f"a{one}b" for one in TYPED), *(one * 50 for one in TYPED), *mixed]


def unigram() -> Backend:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), *((f"{letter}", -5.0) for letter in LETTERS)]
    backend = Backend(models.Unigram([*pieces, ("▁", -5.0)], 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([control(token) for token in ("<unk>", "<s>", "</s>", "<pad>")])
    return backend


def word_level() -> Backend:
    words = ["<unk>", "<s>", "</s>", "<pad>", "a", "b", *LETTERS]
    backend = Backend(models.WordLevel({word: index for index, word in enumerate(dict.fromkeys(words))}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([control(token) for token in ("<unk>", "<s>", "</s>", "<pad>")])
    return backend


def word_piece() -> Backend:
    words = ["[UNK]", "[SEP]", "[PAD]", "<s>", "</s>", "<pad>", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    backend = Backend(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([control(token) for token in ("[UNK]", "[SEP]", "[PAD]", "<s>", "</s>", "<pad>")])
    return backend


def with_tokens_that_are_not_special() -> Backend:
    """Added to the vocabulary without being called special: text that is not decoded away."""
    backend = byte_level(("<s>", "</s>", "<pad>"))
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<|im_start|>", "[INST]")])
    return backend


def trained(kind: Literal["char", "bpe"], corpus: list[str]) -> Tokenizer:
    return build_tokenizer(TokenizerSection(type=kind, vocab_size=600), [MemorySource("corpus", corpus)])


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "characters": lambda: trained("char", texts()),
    "characters that knew none of it": lambda: trained("char", ["abc"]),
    "pairs of bytes": lambda: trained("bpe", texts() * 5),
    "Llama 3": lambda: tokenizer(byte_level()),
    "Llama 2": lambda: tokenizer(sp(legacy=True)),
    "Mistral": lambda: tokenizer(sp(legacy=False)),
    "no special ones": lambda: tokenizer(with_tokens_that_are_not_special()),
    "Unigram": lambda: tokenizer(unigram()),
    "WordLevel": lambda: tokenizer(word_level()),
    "WordPiece": lambda: tokenizer(word_piece(), eos_token="[SEP]", pad_token="[PAD]", bos_token=None),
}
LOSSLESS = {"characters", "characters that knew none of it", "pairs of bytes", "Llama 3", "no special ones"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saved", [False, True])
def test_no_control_token_comes_out_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, saved: bool) -> None:
    it = KINDS[kind]()
    if saved:  # and as it is read from a folder
        it.save(tmp_path / "tokenizer")
        it = read_folder(tmp_path / "tokenizer")
    unknown = {index for index, token in it.control_tokens.items() if token in ("<unk>", "[UNK]")}  # a letter it lacks
    forbidden = set(it.control_tokens) - unknown
    assert {it.eos_id, it.pad_id, it.start_id} <= forbidden
    for piece in (1 << 16, 5):
        monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", piece)
        for text, ids in zip(texts(), it.encode_many(texts()), strict=True):
            assert not forbidden & set(ids.tolist()), (text, ids)
            if kind in LOSSLESS:
                assert it.decode(ids) == text


def test_from_a_file_to_ids(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TYPED))
    it = tokenizer()
    source = Files("corpus", FilesSource(path=str(tmp_path)), Quarantine(None, 1.0), print)
    ((document, _),) = source.read({})
    ids = it.encode(document.text)
    assert not set(it.control_tokens) & set(ids.tolist())
    assert it.decode(ids) == document.text
