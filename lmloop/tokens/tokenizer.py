"""The tokenizer: one class around the Rust library, whatever way it was built.

Text of users never becomes a control token: `<|endoftext|>` typed in a document is thirteen characters of text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer as Backend

from lmloop.durable import atomic_write

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"

PIECE_CHARACTERS = 1 << 16
"""Longer text is encoded in pieces of about this size, where cutting cannot change the ids."""

LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where text is split before pairs of bytes are merged: the expression of GPT-4 as Llama 3 uses it, which llama.cpp knows
as `llama-bpe`."""

_QWEN_PATTERN = LLAMA_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_LINE_CUT = re.compile(r"[!-~]\n(?=[!-~])")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Text to token ids and back.

    vocab_size: rows of the embedding. pad_id and eos_id differ; start_id is what every document begins with: the
    beginning-of-text token where there is one, else the end-of-text token. `config` is what is saved as
    tokenizer_config.json and names these tokens.
    """

    def __init__(self, backend: Backend, config: dict[str, Any]) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # in the library's words: special tokens in the text are encoded as text
        self._backend = backend
        self._config = {**config, "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
        self.pad_id = self._id_of("pad_token")
        self.eos_id = self._id_of("eos_token")
        self.start_id = self._id_of("bos_token") if config.get("bos_token") else self.eos_id
        if self.pad_id == self.eos_id:
            raise ValueError(
                f"tokenizer: pad_token and eos_token are both {config['eos_token']!r}, so the end of a text would not be "
                "trained: name another pad_token in tokenizer_config.json"
            )
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        description = json.loads(backend.to_str())
        self._cut = _cut_rule(description)
        self._spelled = self._spellings(description["model"])

    def _id_of(self, key: str) -> int:
        token = self._backend.token_to_id(self._config[key])
        if token is None:
            raise ValueError(
                f"tokenizer: {key} {self._config[key]!r} is not in the vocabulary: correct it in tokenizer_config.json"
            )
        return token

    # ---- text to tokens ----

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int32 [n], without start or end. A lone surrogate becomes U+FFFD."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32 [n]. The interpreter is free for other threads meanwhile."""
        pieces: list[str] = []
        counts: list[int] = []
        for text in texts:
            start, before = 0, len(pieces)
            while start < len(text):
                end = self.piece_end(text, start)
                pieces.append(text if end - start == len(text) else text[start:end])
                start = end
            counts.append(len(pieces) - before)
        # The batch call, also for one text: only it releases the interpreter's lock, and it skips the offsets.
        encodings = self._backend.encode_batch_fast([_encodable(piece) for piece in pieces], add_special_tokens=False)
        ids = [self._without_control(np.array(encoding.ids, dtype=np.int32)) for encoding in encodings]
        result, at = [], 0
        for count in counts:
            parts, at = ids[at : at + count], at + count
            result.append(parts[0] if count == 1 else np.concatenate([np.zeros(0, np.int32), *parts]))
        return result

    def _without_control(self, ids: np.ndarray) -> np.ndarray:
        """The ids with the characters' own in place of those of control tokens that the model made of text."""
        found = np.flatnonzero(np.isin(ids, list(self._spelled))) if self._spelled else ()
        if len(found) == 0:
            return ids
        parts, at = [], 0
        for index in found:
            parts += [ids[at:index], self._spelled[int(ids[index])]]
            at = index + 1
        return np.concatenate([*parts, ids[at:]])

    def _spellings(self, model: dict[str, Any]) -> dict[int, np.ndarray]:
        """For models that know whole words, `</s>` among them: the ids of each control token's characters, one by one.

        Merges of byte pairs do not lead to control tokens. The token for what is not known stays what it is.
        """
        if model["type"] == "BPE":
            return {}
        unknown = model.get("unk_id") if model["type"] == "Unigram" else self._backend.token_to_id(model["unk_token"])
        own = {index: token for index, token in self.control_tokens.items() if index != unknown}
        spelled = {}
        for index, token in own.items():
            letters = [self._backend.token_to_id(letter) for letter in token]
            known = [unknown if letter is None or letter in own else letter for letter in letters]
            spelled[index] = np.array([letter for letter in known if letter is not None], dtype=np.int32)
        return spelled

    def piece_end(self, text: str, start: int) -> int:
        """Where the piece of `text` that begins at `start` ends.

        The ids of the pieces put together are the ids of the whole: a cut is made only where the tokenizer is known to
        see nothing across it.
        """
        end = start + PIECE_CHARACTERS
        if end >= len(text) or self._cut == "never":
            return len(text)
        if self._cut == "anywhere":
            return end
        found = _LINE_CUT.search(text, end)
        return found.end() if found else len(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; control tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=True)

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """The tokens that no text becomes and `decode` leaves out, by id, with the name each goes by."""
        return {index: token.content for index, token in self._backend.get_added_tokens_decoder().items() if token.special}

    @property
    def backend(self) -> Backend:
        """The library's tokenizer, for what needs more than ids. It is shared: not to be changed."""
        return self._backend

    @property
    def named_tokens(self) -> dict[str, str]:
        """The control tokens that have a part to play: `bos_token`, `eos_token` and so on, each with its text."""
        return {key: text for key, text in self._config.items() if key.endswith("_token") and isinstance(text, str)}

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template, in Jinja: where it has several, the one for ordinary conversations."""
        template = self._config.get("chat_template")
        if isinstance(template, list):  # as older folders write several
            template = {entry["name"]: entry["template"] for entry in template if {"name", "template"} <= set(entry)}
        if isinstance(template, dict):
            template = template.get("default")
        return template if isinstance(template, str) else None

    def with_chat_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        content = json.loads(self.to_json())
        return Tokenizer.from_json(json.dumps({**content, "config": {**content["config"], "chat_template": source}}))

    # ---- keeping ----

    def to_json(self) -> str:
        """All there is to know of the tokenizer, as one JSON text; the same tokenizer gives the same text."""
        return json.dumps({"config": self._config, "tokenizer": json.loads(self._backend.to_str())}, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Tokenizer:
        """The tokenizer that `to_json` described."""
        content = json.loads(text)
        return Tokenizer(Backend.from_str(json.dumps(content["tokenizer"], ensure_ascii=False)), content["config"])

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which load as transformers.PreTrainedTokenizerFast. OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "tokenizer.json", self._backend.to_str(pretty=True) + "\n")
        atomic_write(folder / "tokenizer_config.json", json.dumps(self._config, ensure_ascii=False, indent=2) + "\n")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `to_json()`: equal for equal tokenizers."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _encodable(text: str) -> str:
    """The text with U+FFFD for what UTF-8 cannot say."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _cut_rule(description: dict[str, Any]) -> Literal["anywhere", "line", "never"]:
    """Where text may be cut without changing its ids, read from the library's own description of a tokenizer.

    `anywhere`: each character is encoded alone. `line`: after a line break between two visible ASCII characters. The
    known split expressions always end a match there (what goes before never reaches over a line break, and the white
    space is that one character, so their look-ahead decides nothing), and merges stay within a match.
    """
    own = [token for token in description["added_tokens"] if not token["special"]]
    if any("\n" in token["content"] or token["lstrip"] or token["rstrip"] for token in own):
        return "never"
    normalizer, splitter, model = description["normalizer"], description["pre_tokenizer"], description["model"]
    if model["type"] != "BPE" or normalizer not in (None, {"type": "NFC"}):
        return "never"
    if splitter is None:
        return "never" if model["merges"] or own or normalizer else "anywhere"
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    last = steps[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return "never"
    if len(steps) == 1:
        return "line" if last["use_regex"] else "never"
    split = steps[0]
    known = split["type"] == "Split" and split["pattern"].get("Regex") in (LLAMA_PATTERN, _QWEN_PATTERN)
    return "line" if known and len(steps) == 2 and split["behavior"] == "Isolated" and not split["invert"] else "never"
