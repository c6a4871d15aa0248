"""What is exported: weights by their Hugging Face names, the configuration that goes with them, and the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors
from torch import Tensor

from lmloop.tokens.tokenizer import Tokenizer

Logits = Callable[[Tensor], Tensor]
"""A model as a function: int64 tokens [B, T] to fp32 logits [B, T, V], both on the CPU."""


@dataclass(frozen=True)
class Bundle:
    """A language model as the world outside knows it. Whoever fills this in can export to every format.

    name: letters, digits, `.`, `_`, `-`; part of file names.
    config: the content of config.json without token ids and dtype.
    weights: all of the model's tensors by the names of transformers' class, on the CPU; a tied head is left out.
    sampling: the content of generation_config.json without token ids.
    prefix: tokens that the reader's tokenizer is to put before every text, as every document in training began with them.
    stops: tokens that end a text; the first is the end-of-text token.
    prompts: beginnings that the check lets the exported model continue.
    chat_template: Jinja, as transformers' `apply_chat_template` takes it; None: the model does not chat.
    origin: what the export was made from, for its record.
    logits: the trained model.
    rebuild: the same model with other weights, which shows what rounding has done.
    """

    name: str
    config: dict[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    logits: Logits
    rebuild: Callable[[Mapping[str, Tensor]], Logits]
    prefix: tuple[int, ...]
    stops: tuple[int, ...]
    sampling: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    chat_template: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        """The architecture, in transformers' words."""
        return self.config["model_type"]

    @property
    def context_tokens(self) -> int:
        """The longest text that the model reads."""
        return self.config.get("max_position_embeddings") or self.config["n_positions"]

    @property
    def rows(self) -> int:
        """Rows of the embedding: at least as many as the tokenizer has tokens."""
        return self.config["vocab_size"]

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """The tokenizer for others, as tokenizer.json has it: it puts `prefix` before a text."""
        backend = Backend.from_str(json.dumps(json.loads(self.tokenizer.to_json())["tokenizer"], ensure_ascii=False))
        if backend.encode("").ids != list(self.prefix):
            names = [(backend.id_to_token(token), token) for token in dict.fromkeys(self.prefix)]
            before = [backend.id_to_token(token) for token in self.prefix]
            backend.post_processor = processors.TemplateProcessing(
                single=[*before, "$A:0"], pair=[*before, "$A:0", "$B:1"], special_tokens=names
            )
        return json.loads(backend.to_str())

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        config: dict[str, Any] = dict(json.loads(self.tokenizer.to_json())["config"])
        config.pop("chat_template", None)
        config["model_max_length"] = self.context_tokens
        if self.prefix:
            config["bos_token"] = self.token(self.prefix[0])
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        return config

    def token(self, index: int) -> str:
        """How the vocabulary writes a token."""
        return self._names[index]

    @cached_property
    def _names(self) -> dict[int, str]:
        description = json.loads(self.tokenizer.to_json())["tokenizer"]
        names = {index: token for token, index in description["model"]["vocab"].items()}
        return names | {token["id"]: token["content"] for token in description["added_tokens"]}
