"""What a preset may say of its data: where text comes from, in which order, and how it becomes tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lmloop.preset.fields import CountOrZero, Fraction, Name, Positive, Section
from lmloop.preset.sources import ReplaySection, Source, hf_is_hub


class TokenizerSection(Section):
    """How text becomes tokens."""

    type: Literal["char", "bpe", "pretrained"] = Field(
        default="bpe",
        description="`char`: a token for each character of the corpus, bytes for the rest; `bpe`: byte-pair encoding "
        "trained on the preset's own sources; `pretrained`: from a folder or a hub id.",
    )
    vocab_size: Annotated[int, Field(ge=256, le=1_000_000, strict=True)] = Field(
        default=8_192, description="Rows of the vocabulary, special tokens included (`bpe`)."
    )
    path: Name | None = Field(default=None, description="Folder or hub id of a `pretrained` tokenizer.")
    revision: Name | None = Field(default=None, description="Commit or tag of a hub id.")
    train_bytes: Annotated[int, Field(ge=1_000, le=10**10, strict=True)] = Field(
        default=10_000_000, description="Bytes of training text that a `char` or `bpe` tokenizer is built from."
    )

    @model_validator(mode="after")
    def _path_where_needed(self) -> TokenizerSection:
        if self.type == "pretrained" and self.path is None:
            raise ValueError("path: a pretrained tokenizer needs a folder or a hub id")
        if self.type != "pretrained" and self.path is not None:
            raise ValueError(f"path: only a pretrained tokenizer is read from a path; type is '{self.type}'")
        return self


class SplitSection(Section):
    """Which share of the documents is held out."""

    validation: Annotated[float, Field(ge=0.0, le=0.5, strict=True, allow_inf_nan=False)] = Field(
        default=0.1, description="Share of documents that validate."
    )
    test: Annotated[float, Field(ge=0.0, le=0.5, strict=True, allow_inf_nan=False)] = Field(
        default=0.0, description="Share of documents that only `evaluate --split test` reads."
    )


class DataSection(Section):
    """Where text comes from and in which order."""

    sources: list[Source | Name] = Field(
        default_factory=list, max_length=1_000, description="Sources in order: a built-in name or an object with a `type`."
    )
    mix_strategy: Literal["round_robin", "sequential", "weighted"] = Field(
        default="round_robin",
        description="Which source the next row comes from: each in turn, one after the other in strict order, or by weight.",
    )
    source_weights: list[Positive] | dict[str, Positive] | None = Field(
        default=None, description="Weights for `weighted`, in the order of `sources` or by name; overrides the sources' own."
    )
    min_text_length: CountOrZero = Field(default=0, description="Documents with fewer characters are left out, and counted.")
    shuffle: bool = Field(
        default=False, description="Read the documents of a finite source in a seeded random order, new each epoch."
    )
    split: SplitSection = Field(default_factory=SplitSection, description="Held-out shares.")
    validation: list[Source | Name] | None = Field(default=None, description="Sources that validate, instead of a split.")
    replay: ReplaySection | None = Field(
        default=None, description="Old data that is read again among the new; default: none."
    )
    template: Literal["auto", "model", "text", "chatml", "llama3", "llama2", "mistral", "alpaca", "plain"] = Field(
        default="auto",
        description="How conversations are written; see docs/chat-data.md. `model`: in the tokenizer's own template; "
        "`text`: as plain text, packed like any other. `auto`: the tokenizer's own; without one, beside a pretrained model, "
        "the first of ours whose control tokens it has, else `plain`; and `text` where a model is trained from scratch.",
    )
    train_on: Literal["assistant", "all"] = Field(
        default="assistant",
        description="Which tokens of a conversation are trained: each answer with the token that ends it, or all.",
    )
    workers: Annotated[int, Field(ge=0, le=64, strict=True)] = Field(
        default=1,
        description="Threads that read and tokenize ahead of training; 0: in turn with it. Never changes the order.",
    )
    max_bad_fraction: Fraction = Field(
        default=0.2, description="Training stops when more than this share of a source's rows is bad."
    )

    @field_validator("sources", "validation", mode="before")
    @classmethod
    def _hf_is_hub(cls, sources: object) -> object:
        return hf_is_hub(sources)

    @model_validator(mode="after")
    def _weights_fit(self) -> DataSection:
        if isinstance(self.source_weights, list) and len(self.source_weights) != len(self.sources):
            raise ValueError(f"source_weights: {len(self.source_weights)} weights for {len(self.sources)} sources")
        if self.mix_strategy == "sequential":
            for source in self.sources:
                if not isinstance(source, str) and source.weight != int(source.weight):
                    raise ValueError(
                        f"sources: weight {source.weight} under 'sequential' is a number of readings: use a whole one"
                    )
        if self.split.validation + self.split.test >= 1.0:
            raise ValueError("split: validation and test leave nothing to train on")
        return self
