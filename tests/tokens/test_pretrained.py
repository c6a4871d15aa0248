from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lmloop.preset.schema import TokenizerSection
from lmloop.tokens import pretrained
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.pretrained import read_folder, read_pretrained
from lmloop.tokens.tokenizer import Tokenizer


def folder(path: Path, specials: list[str], config: dict[str, Any] | None, map_: dict[str, Any] | None = None) -> Path:
    """A tokenizer as somebody else would have saved it."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(["some text"], trainer)
    if specials:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], backend.token_to_id(specials[0]))]
        )
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(path / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", map_)):
        if content is not None:
            (path / name).write_text(json.dumps(content))
    return path


def read(path: Path) -> Tokenizer:
    return build_tokenizer(TokenizerSection(type="pretrained", path=str(path)), [])


def rows(path: Path) -> int:
    return Backend.from_file(str(path / "tokenizer.json")).get_vocab_size()


def test_own_tokens_are_used_and_no_row_is_added(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>", "chat_template": "{{ messages }}"}
    tokenizer = read(folder(tmp_path, ["<s>", "</s>", "<pad>"], config))
    assert (tokenizer.start_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert tokenizer.vocab_size == rows(tmp_path)
    tokenizer.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
    assert read_folder(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_text_is_neither_cut_padded_nor_given_a_start(tmp_path: Path) -> None:
    tokenizer = read(folder(tmp_path, ["<s>", "</s>"], {"bos_token": "<s>", "eos_token": "</s>"}))
    text = "longer than four tokens </s>"
    ids = tokenizer.encode(text).tolist()
    assert not {tokenizer.start_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("specials", "pad", "added"),
    [
        (["<eos>", "<|finetune_right_pad_id|>", "<pad>"], "<|finetune_right_pad_id|>", 0),
        (["<eos>", "<|reserved_special_token_0|>"], "<|reserved_special_token_0|>", 0),
        (["<eos>"], "<|pad|>", 1),
    ],
)
def test_a_spare_token_pads_before_a_row_is_added(tmp_path: Path, specials: list[str], pad: str, added: int) -> None:
    tokenizer = read(folder(tmp_path, specials, {"eos_token": "<eos>", "pad_token": "<eos>"}))
    assert tokenizer.pad_id == tokenizer._backend.token_to_id(pad)
    assert tokenizer.pad_id != tokenizer.eos_id
    assert tokenizer.vocab_size == rows(tmp_path) + added


def test_end_from_special_tokens_map_or_by_its_usual_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert read(folder(tmp_path / "a", ["<x>", "<y>"], None, {"eos_token": "<y>"})).eos_id == 1
    assert read(folder(tmp_path / "b", ["<x>", "</s>"], {})).eos_id == 1


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": "1.0"}'])
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.path .*: .*no tokenizer that can be read") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        read(tmp_path / "missing")


def test_without_the_hub_the_cache_serves_and_else_one_line_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    here = folder(tmp_path, ["<s>", "</s>"], {"eos_token": "</s>"})

    def download(repository: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        assert (revision, local_files_only) == ("abc", True)
        if repository != "owner/cached" or not (here / name).exists():
            raise LocalEntryNotFoundError("not in the cache")
        return str(here / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(pretrained, "unreachable", lambda: "no network")
    assert read_pretrained("owner/cached", "abc").eos_id == 1
    with pytest.raises(ValueError, match=r"owner/other is no folder here .*\(no network\)"):
        read_pretrained("owner/other", "abc")
