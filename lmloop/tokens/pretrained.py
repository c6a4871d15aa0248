"""Pretrained tokenizers, from a folder or the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lmloop.data.hub import unreachable
from lmloop.data.source import one_line
from lmloop.tokens.tokenizer import END_OF_TEXT, PAD, Tokenizer

_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_SPARE = ("<|finetune_right_pad_id|>", PAD, "<pad>", "[PAD]", "<|padding|>", "<|PAD_TOKEN|>")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEY = "tokenizer.path (model.pretrained where it is not set)"
_KEPT = (*_NAMED, "model_max_length", "chat_template")


def read_pretrained(path: str, revision: str | None) -> Tokenizer:
    """The tokenizer of a folder, or else of the hub's repository `path` at `revision`.

    Raises:
        ValueError: there is none, or it cannot be read. One line.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return read_folder(folder)
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ValueError(f"{_KEY}: {path} is not a folder: name one that holds tokenizer.json, or a hub id")

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    why_not = unreachable()  # asked once, and fast, where the hub's own client would try for half a minute

    def fetch(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(path, name, revision=revision, local_files_only=why_not is not None))
        except LocalEntryNotFoundError:
            if why_not is None or name == "tokenizer.json":
                raise
            return None  # without the hub, what the cache lacks may not exist there either
        except EntryNotFoundError:
            return None

    try:
        return _read(path, fetch, revision)
    except (OSError, ValueError) as error:
        reason = why_not or one_line(error, 200)
        raise ValueError(f"{_KEY}: {path} is no folder here and not to be had from the hub ({reason})") from None


def read_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a folder. ValueError, one line."""

    def fetch(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    try:
        return _read(str(folder), fetch, None)
    except (OSError, ValueError) as error:
        reason = one_line(error, 200)
        if not (folder / "tokenizer.json").is_file():
            reason = "no tokenizer.json, and no vocabulary to make one of: save the tokenizer there too"
        raise ValueError(f"{_KEY}: {folder} holds no tokenizer that can be read ({reason})") from None


def _read(path: str, fetch: Callable[[str], Path | None], revision: str | None) -> Tokenizer:
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # older folders name the tokens in the former
        config |= _json(fetch(name))
    template = fetch("chat_template.jinja")
    if template is not None:
        config["chat_template"] = template.read_text(encoding="utf-8")
    file = fetch("tokenizer.json")
    backend = _backend(file.read_text(encoding="utf-8")) if file else _converted(path, revision)
    kept = {key: config[key] for key in _KEPT if config.get(key) is not None}
    for key in _NAMED:
        if isinstance(kept.get(key), dict):  # older folders write the token with its options
            kept[key] = kept[key]["content"]
    kept["eos_token"] = kept.get("eos_token") or _first_known(backend, _ENDS) or END_OF_TEXT
    _make_control(backend, kept["eos_token"])
    if kept.get("pad_token") in (None, kept["eos_token"]):
        kept["pad_token"] = _spare(backend) or PAD
    for key in ("pad_token", "bos_token"):
        if key in kept:
            _make_control(backend, kept[key])
    return Tokenizer(backend, kept)


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


def _backend(text: str) -> Backend:
    """The library's tokenizer; one that it could not read again from a checkpoint (two tokens with one id) is refused."""
    try:
        backend = Backend.from_str(text)
        Backend.from_str(backend.to_str())
    except Exception as error:  # the library raises the base class
        raise ValueError(f"tokenizer.json: {error}") from None
    return backend


def _converted(path: str, revision: str | None) -> Backend:
    """The tokenizer of a folder without tokenizer.json (older SentencePiece models), converted by transformers."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its advice is for those who call the library
    try:
        # Without code from the repository, which is what trust_remote_code would run.
        converted = AutoTokenizer.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of many kinds: what damaged files lead to
        raise ValueError(f"there is no tokenizer.json, and the rest cannot be converted: {one_line(error)}") from None
    finally:
        logging.set_verbosity(level)
    if not getattr(converted, "is_fast", False):
        raise ValueError("there is no tokenizer.json, and the rest cannot be converted")
    backend = Backend.from_str(converted.backend_tokenizer.to_str())
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    if added.issuperset(backend.get_vocab(with_added_tokens=True)):
        # Where there are no files of a tokenizer, transformers makes an empty one of the kind that config.json names.
        raise ValueError("there is no tokenizer.json, and nothing that it could be made of")
    return backend


def _first_known(backend: Backend, tokens: tuple[str, ...]) -> str | None:
    return next((token for token in tokens if backend.token_to_id(token) is not None), None)


def _spare(backend: Backend) -> str | None:
    """A control token that the tokenizer has and nothing uses: it pads before a row is added to the embedding."""
    known = _first_known(backend, _SPARE)
    if known is not None:
        return known
    added = sorted((index, token) for index, token in backend.get_added_tokens_decoder().items())
    spare = (t.content for _, t in added if t.special and any(word in t.content for word in ("pad", "reserved", "unused")))
    return next(spare, None)


def _make_control(backend: Backend, token: str) -> None:
    """Mark a token as a control token, which decoding leaves out; a token that is not there gets a new row."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
