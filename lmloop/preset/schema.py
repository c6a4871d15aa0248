"""What a preset may say: every key, its default, its bounds and its meaning.

This is the only place where a default lives. `docs/presets.md` and `docs/preset.schema.json` are generated from the
descriptions below, so a key that is not described here cannot be used and a key described here cannot go undocumented.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lmloop.preset.fields import (
    Count,
    CountOrZero,
    Fraction,
    Length,
    Name,
    Positive,
    PositiveOrZero,
    Section,
    Text,
    Width,
)
from lmloop.preset.journal import JournalSection
from lmloop.preset.sources import ReplaySection, Source, hf_is_hub

TOKENS_PER_RUN = 100_000_000
"""Trained tokens of one run, for a preset that sets no budget of its own."""


class NgramTable(Section):
    """Learned vectors for the last tokens together, beside the token embedding."""

    n: Annotated[int, Field(ge=2, le=8, strict=True)] = Field(description="Tokens of an n-gram.")
    rows: Annotated[int, Field(ge=1, le=100_000_000, strict=True)] = Field(
        description="Rows of the table; with fewer than there are n-grams, several share a row by their hash."
    )
    width: Width = Field(description="Width of a row; the rest of the residual stream is left alone.")


class ModelSection(Section):
    """The network: trained from scratch in the shape that is given here, or a pretrained one that brings its own."""

    pretrained: Name | None = Field(
        default=None,
        description="Start from this model: a folder that transformers has saved (safetensors), or a hub id. It brings its "
        "shape along; beside it only `revision`, `trust_remote_code` and `seq_length` are set.",
    )
    revision: Name | None = Field(default=None, description="Commit, tag or branch of a `pretrained` hub id.")
    trust_remote_code: Name | None = Field(
        default=None,
        description="The name of the `pretrained` model once more, where it is run by code of its own and you trust that.",
    )
    architecture: Literal["decoder", "gpt2"] = Field(
        default="decoder",
        description="`decoder` is shaped like Qwen3 (RMSNorm, rotary positions, per-head QK-norm, SwiGLU); `gpt2` like "
        "GPT-2 (LayerNorm, GELU, learned positions).",
    )
    hidden_size: Width = Field(default=256, description="Width of the residual stream.")
    num_layers: Annotated[int, Field(ge=1, le=1_024, strict=True)] = Field(default=4, description="Number of blocks.")
    num_heads: Annotated[int, Field(ge=1, le=1_024, strict=True)] = Field(default=4, description="Query heads.")
    num_kv_heads: Annotated[int, Field(ge=1, le=1_024, strict=True)] | None = Field(
        default=None, description="Key and value heads (grouped-query attention); default: as many as query heads."
    )
    head_dim: Annotated[int, Field(ge=2, le=1_024, strict=True)] | None = Field(
        default=None, description="Width of one head; default: hidden_size / num_heads."
    )
    intermediate_size: Annotated[int, Field(ge=1, le=1_048_576, strict=True)] | None = Field(
        default=None,
        description="Width of the feed-forward layer; default: 8/3 of hidden_size rounded up to a multiple of 64 "
        "(`swiglu`), 4 times hidden_size (`relu2`, `gpt2`).",
    )
    feed_forward: Literal["swiglu", "relu2"] = Field(
        default="swiglu",
        description="Feed-forward layer of `decoder`: `swiglu` as in Qwen3, or squared ReLU (arXiv 2109.08668); a "
        "model with that cannot be exported.",
    )
    ngram_tables: list[NgramTable] = Field(
        default_factory=list,
        max_length=8,
        description="Embeddings of the last tokens together (`decoder`): parameters that cost no arithmetic. A model with "
        "them cannot be exported.",
    )
    seq_length: Length = Field(default=512, description="Context in tokens: the longest row that is trained and evaluated.")
    tie_embeddings: bool = Field(default=True, description="The output head shares the embedding's matrix.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.0, description="Dropout on embeddings and on what each block adds, while training."
    )
    rope_theta: Positive = Field(default=10_000.0, description="Base of the rotary position frequencies (`decoder`).")
    norm_eps: Positive = Field(default=1e-6, description="Epsilon of the normalisation layers.")
    position_scaling: Literal["none", "linear", "yarn"] = Field(
        default="none",
        description="How rotary positions are stretched when `seq_length` exceeds `original_seq_length`: position "
        "interpolation (`linear`, arXiv 2306.15595) or `yarn` (arXiv 2309.00071).",
    )
    original_seq_length: Length | None = Field(
        default=None, description="The context the weights were first trained at; needed by `position_scaling`."
    )

    @model_validator(mode="after")
    def _shape_of_its_own(self) -> ModelSection:
        if self.pretrained is None:
            if self.revision is not None or self.trust_remote_code is not None:
                raise ValueError("revision, trust_remote_code: they belong to a pretrained model; leave them out")
            return self
        fields = type(self).model_fields
        own = [
            name
            for name in fields
            if name not in _OF_PRETRAINED and getattr(self, name) != fields[name].get_default(call_default_factory=True)
        ]
        if own:
            raise ValueError(f"{own[0]}: a pretrained model brings its own; leave it out")
        return self

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelSection:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}: change one, or set head_dim"
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.architecture == "decoder" and self.resolved_head_dim % 2:
            raise ValueError(f"head width {self.resolved_head_dim} is odd: rotary positions need an even one")
        if self.architecture == "gpt2":
            if self.num_kv_heads not in (None, self.num_heads):
                raise ValueError("num_kv_heads: GPT-2 has no grouped-query attention; leave it out or use `decoder`")
            if self.head_dim is not None and self.head_dim * self.num_heads != self.hidden_size:
                raise ValueError("head_dim: in GPT-2 it is hidden_size / num_heads; leave it out or use `decoder`")
            if self.feed_forward != "swiglu" or self.ngram_tables:
                raise ValueError("feed_forward, ngram_tables: GPT-2 has neither; leave them out or use `decoder`")
            if self.position_scaling != "none":
                raise ValueError("position_scaling: GPT-2 learns its positions; a longer seq_length extends the table")
        if self.position_scaling != "none" and self.original_seq_length is None:
            raise ValueError(f"position_scaling '{self.position_scaling}' needs original_seq_length")
        return self

    @property
    def resolved_head_dim(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def resolved_kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def resolved_intermediate_size(self) -> int:
        """Width of the feed-forward layer."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.architecture == "gpt2" or self.feed_forward == "relu2":
            return 4 * self.hidden_size
        return -(-self.hidden_size * 8 // 3 // 64) * 64


_OF_PRETRAINED = ("pretrained", "revision", "trust_remote_code", "seq_length")


class AdapterSection(Section):
    """LoRA: small matrices beside a pretrained model's own, which stay as they are (arXiv 2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=65_536, strict=True)] = Field(
        default=16, description="Inner width of each pair of matrices."
    )
    alpha: Positive = Field(
        default=32, description="What they compute counts alpha / rank times as much (`rslora`: alpha / √rank)."
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.0, description="Dropout on what enters them, while training."
    )
    target_modules: list[Name] | Name | None = Field(
        default="all-linear",
        description="Layers that get them, by the ends of their names, or `all-linear`; none: what peft takes for it.",
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none", description="Biases of the model that are trained too: none, all, or those of the targets."
    )
    rslora: bool = Field(default=False, description="Rank-stabilised scaling (arXiv 2312.03732).")
    dora: bool = Field(default=False, description="Weight-decomposed adaptation (arXiv 2402.09353): slower, often better.")
    quantize: Literal["nf4"] | None = Field(
        default=None,
        description="Keep the pretrained model's matrices in 4 bits while the adapter is trained (QLoRA, arXiv 2305.14314); "
        "on CUDA and CPUs.",
    )
    double_quant: bool = Field(default=True, description="Quantize the constants of the quantization too (`nf4`).")


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


class Stage(Section):
    """A part of the run at one row length."""

    length: Length = Field(description="Tokens of a row.")
    epochs: Count | None = Field(default=None, description="Epochs at this length.")
    tokens: Count | None = Field(default=None, description="Trained tokens at this length.")


class Ramp(Section):
    """Row length that grows linearly with the share of the run that is done."""

    start: Length = Field(description="Length at the beginning.")
    end: Length = Field(description="Length from `until` on.")
    until: Annotated[float, Field(gt=0.0, le=1.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.5, description="Share of the run after which `end` is reached."
    )
    multiple_of: Length = Field(
        default=8, description="Lengths are rounded down to a multiple of this (but never below `start`)."
    )


class TrainSection(Section):
    """How the model is trained."""

    per_gpu_batch_size: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | Literal["auto"] = Field(
        default=32,
        description="Rows of `seq_length` tokens in one forward pass on one device. Shorter rows come in greater number. "
        "`auto`: as many of the update's rows (`global_batch_size`) as fit in memory, found when the run begins.",
    )
    accumulation_steps: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = Field(
        default=1, description="Forward and backward passes for one update, of each process."
    )
    global_batch_size: Count | None = Field(
        default=None,
        description="Rows of `seq_length` tokens in one update, of all processes together; default: as many as "
        "`per_gpu_batch_size`, `accumulation_steps` and the processes make when the run begins. With another number of "
        "processes it stays, and the forward passes for one update change.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="With several processes (`torchrun`): the model whole on each of them, or cut into as many parts as "
        "there are processes (`fsdp`), which needs a folder that all of them share.",
    )
    rank_timeout_s: Positive = Field(
        default=300.0,
        description="With several processes: how long one of them may give no sign of life before the others end.",
    )
    epochs: Count | None = Field(default=None, description="Budget: passes over the data.")
    max_steps: Count | None = Field(default=None, description="Budget: updates.")
    num_tokens: Count | Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[KMBT]?$")] | None = Field(
        default=None,
        description='Total trained tokens over all runs, for example "10B"; training goes on until it is reached.',
    )
    sequence_schedule: list[Length] | list[Stage] | Ramp | None = Field(
        default=None,
        description="Row lengths over the run: a list of lengths, of stages, or a ramp; default: `seq_length` throughout.",
    )
    epochs_per_length: dict[str, Count] | None = Field(
        default=None, description="Epochs for each length of `sequence_schedule`."
    )

    optimizer: Literal["adamw", "muon", "sgd"] = Field(
        default="adamw",
        description="`muon` (orthogonalised momentum) is for the blocks' matrices; everything else stays with AdamW.",
    )
    learning_rate: Positive = Field(default=1e-3, description="Peak learning rate.")
    muon_learning_rate: Positive = Field(default=0.02, description="Peak learning rate of the matrices under `muon`.")
    lr_schedule: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine", description="After warm-up: cosine, stable then linear decay (`wsd`), or constant."
    )
    warmup_steps: CountOrZero | None = Field(
        default=None, description="Updates of linear warm-up; overrides `warmup_fraction`."
    )
    warmup_fraction: Fraction = Field(default=0.02, description="Share of the run that warms up.")
    decay_fraction: Fraction = Field(default=0.2, description="Share of the run that decays, at its end (`wsd`).")
    min_lr_fraction: Fraction = Field(
        default=0.1, description="Final learning rate as a share of the peak (`cosine`, `wsd`)."
    )
    weight_decay: PositiveOrZero = Field(default=0.1, description="Decoupled weight decay, on matrices only.")
    beta1: Annotated[float, Field(ge=0.0, lt=1.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.9, description="Adam's beta 1."
    )
    beta2: Annotated[float, Field(ge=0.0, lt=1.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.95, description="Adam's beta 2."
    )
    adam_eps: Positive = Field(default=1e-8, description="Adam's epsilon.")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.95, description="Momentum of `muon` and `sgd`."
    )
    max_grad_norm: PositiveOrZero = Field(
        default=1.0, description="Gradient norm above which gradients are scaled down; 0: never."
    )

    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Arithmetic of the matrix products; weights stay in fp32. `auto`: bf16 where it is the faster.",
    )
    compile: bool | Literal["auto"] = Field(default="auto", description="`torch.compile`; `auto`: on CUDA only.")
    activation_checkpointing: bool = Field(
        default=False, description="Recompute blocks in the backward pass: less memory, more time."
    )
    threads: Annotated[int, Field(ge=1, le=4_096, strict=True)] | None = Field(
        default=None, description="CPU threads of the arithmetic; default: the machine's cores."
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)] = Field(
        default=0, description="Seed of everything that is random."
    )

    log_every_steps: Count = Field(default=10, description="Updates between lines of `metrics.jsonl`.")
    eval_every_steps: Count = Field(default=250, description="Updates between evaluations.")
    eval_tokens: Count = Field(default=200_000, description="Tokens of held-out text that an evaluation reads, at the most.")
    sample_every_steps: CountOrZero = Field(default=250, description="Updates between sample texts; 0: none.")
    save_every_steps: Count | None = Field(
        default=None, description="Updates between checkpoints, besides `save_every_minutes`."
    )
    save_every_minutes: Positive = Field(default=5.0, description="Minutes between checkpoints.")
    early_stopping_evals: Count | None = Field(
        default=None, description="Stop after this many evaluations in a row without a better validation loss."
    )
    max_bad_steps: Count = Field(
        default=3, description="Non-finite updates in a row that are skipped before rolling back to a checkpoint."
    )
    max_rollbacks: CountOrZero = Field(
        default=2, description="Rollbacks, each at half the learning rate, before training stops."
    )

    @model_validator(mode="before")
    @classmethod
    def _lengths_in_order(cls, values: object) -> object:
        """Keys of `epochs_per_length` as text (YAML has numbers, JSON text), in the order of `sequence_schedule`."""
        if not isinstance(values, dict) or not isinstance(values.get("epochs_per_length"), dict):
            return values
        epochs = {str(length): count for length, count in values["epochs_per_length"].items()}
        lengths = values.get("sequence_schedule")
        order = [str(length) for length in lengths] if isinstance(lengths, list) else []
        ordered = {length: epochs[length] for length in order if length in epochs}
        return {**values, "epochs_per_length": {**ordered, **epochs}}

    @field_validator("num_tokens")
    @classmethod
    def _some_tokens(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and (len(value) > 30 or not 1 <= _tokens(value) <= 10**15):
            raise ValueError(f"'{value[:30]}' is not allowed; it is from 1 to 1000T tokens")
        return value

    @model_validator(mode="after")
    def _fitted_rows(self) -> TrainSection:
        if self.per_gpu_batch_size == "auto":
            if self.global_batch_size is None or self.accumulation_steps != 1:
                raise ValueError(
                    "per_gpu_batch_size 'auto': say in global_batch_size how many rows an update has, and nothing else"
                )
            if self.parallel == "fsdp":
                raise ValueError("per_gpu_batch_size 'auto': with parallel 'fsdp' all processes take alike; give a number")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> TrainSection:
        if self.sequence_schedule == []:
            raise ValueError("sequence_schedule: empty; give at least one length, or leave it out")
        staged = isinstance(self.sequence_schedule, list) and any(isinstance(s, Stage) for s in self.sequence_schedule)
        named = [k for k in ("epochs", "max_steps", "num_tokens", "epochs_per_length") if getattr(self, k) is not None]
        if staged:
            named.append("sequence_schedule")
        if len(named) > 1:
            raise ValueError(f"{named[0]} and {named[1]} are both budgets: keep one")
        if self.epochs_per_length is not None:
            lengths = self.sequence_schedule
            if not isinstance(lengths, list) or [str(length) for length in lengths] != list(self.epochs_per_length):
                raise ValueError("epochs_per_length: needs a sequence_schedule with the same lengths, each once")
        if staged:
            stages = [s for s in self.sequence_schedule if isinstance(s, Stage)]  # type: ignore[union-attr]
            kinds = {"epochs" if s.epochs is not None else "tokens" for s in stages}
            if len(kinds) > 1 or any((s.epochs is None) == (s.tokens is None) for s in stages):
                raise ValueError("sequence_schedule: give every stage `epochs`, or every stage `tokens`")
        return self

    def rows_per_step(self, processes: int = 1) -> int:
        """Rows of `seq_length` tokens in one update of a run that so many processes begin."""
        if self.global_batch_size is not None:
            return self.global_batch_size
        assert self.per_gpu_batch_size != "auto", "checked on reading"
        return self.per_gpu_batch_size * self.accumulation_steps * processes

    def rows_at_once(self, auto: int) -> int:
        """`per_gpu_batch_size`; `auto` where the preset leaves it open."""
        return auto if self.per_gpu_batch_size == "auto" else self.per_gpu_batch_size

    @property
    def total_tokens(self) -> int | None:
        """`num_tokens` as a number."""
        return _tokens(self.num_tokens) if isinstance(self.num_tokens, str) else self.num_tokens


def _tokens(text: str) -> int:
    """`"10B"` as a number."""
    scale = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}.get(text[-1], 1)
    return round(float(text.rstrip("KMBT")) * scale)


class GenerationSection(Section):
    """How the model writes: samples while training, `generate`, `chat`."""

    temperature: Annotated[float, Field(ge=0.0, le=100.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.8, description="0: always the likeliest token."
    )
    top_k: CountOrZero = Field(default=0, description="Keep the k likeliest tokens; 0: all.")
    top_p: Annotated[float, Field(gt=0.0, le=1.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.95, description="Keep the likeliest tokens that together have this probability."
    )
    min_p: Fraction = Field(
        default=0.0, description="Drop tokens less likely than this share of the likeliest one's probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0.0, le=100.0, strict=True, allow_inf_nan=False)] = Field(
        default=1.0, description="Divides the logits of tokens already seen (arXiv 1909.05858); 1: off."
    )
    no_repeat_ngram_size: CountOrZero = Field(default=0, description="No n-gram of this size is written twice; 0: off.")
    max_new_tokens: Count = Field(default=200, description="Longest continuation.")
    stop: list[Name] = Field(default_factory=list, description="Texts at which writing ends; they are left out.")
    prompts: list[Text] = Field(
        default_factory=lambda: [""], description="Beginnings of the samples written while training."
    )
    questions: Annotated[int, Field(ge=0, le=10_000, strict=True)] = Field(
        default=8,
        description="Held-out questions with an answer that can be checked (`#### 42`, or a few words), which a model that "
        "is trained on is asked before the first and after the last update, for the report; 0: none.",
    )
    chat_format: Text = Field(
        default="{user}", description="How a turn of `chat` becomes a prompt, for example `Q: {user}\\nA:`."
    )


class AuxiliarySection(Section):
    """The model's own reasoning modules; all off by default."""

    enable_policy: bool = Field(default=False, description="Policy head.")
    enable_value: bool = Field(default=False, description="Value head.")
    enable_dynamics: bool = Field(default=False, description="Latent dynamics.")
    enable_span_contrastive: bool = Field(default=False, description="Span contrastive loss.")
    enable_adaptive_sources: bool = Field(default=False, description="Source weights that follow learning progress.")
    policy_kl_weight: PositiveOrZero = Field(default=0.05, description="Coefficient of the policy head's loss.")
    value_weight: PositiveOrZero = Field(default=0.05, description="Coefficient of the value head's loss.")
    dynamics_weight: PositiveOrZero = Field(default=0.05, description="Coefficient of the dynamics' loss.")
    span_contrastive_weight: PositiveOrZero = Field(default=0.05, description="Coefficient of the contrastive loss.")
    span_mask_fraction: Fraction = Field(default=0.15, description="Share of a row that a span covers.")
    span_contrastive_temperature: Positive = Field(default=0.07, description="Temperature of InfoNCE.")
    span_l2_normalize: bool = Field(default=True, description="Compare spans by cosine.")
    adaptive_interval_tokens: Count = Field(default=5_000_000, description="Tokens between updates of the source weights.")
    adaptive_min_weight: Positive = Field(default=0.5, description="Lowest source weight.")
    adaptive_max_weight: Positive = Field(default=3.0, description="Highest source weight.")
    adaptive_smoothing: Fraction = Field(default=0.9, description="Share of the old weight that an update keeps.")

    @property
    def enabled(self) -> list[str]:
        """Names of the modules that are switched on."""
        return [name for name, value in self if name.startswith("enable_") and value]


class TrackingSection(Section):
    """Where metrics go besides `metrics.jsonl` and the report."""

    tensorboard: bool = Field(default=False, description="Write TensorBoard event files under the run's folder.")
    wandb: bool = Field(default=False, description="Log to Weights & Biases; works offline too (WANDB_MODE=offline).")
    wandb_project: Name = Field(default="lmloop", description="Project of Weights & Biases.")


class ExportSection(Section):
    """The finished model for another program."""

    format: Literal["hf", "gguf", "mlx"] = Field(
        description="`hf`: a folder for transformers and vLLM; `gguf`: a file for llama.cpp and Ollama; `mlx`: a folder for "
        "mlx-lm."
    )
    out: Name | None = Field(
        default=None,
        description="The export's folder, relative to the working directory; default: `export/<format>-<quantize>` in the "
        "run's folder.",
    )
    quantize: Name | None = Field(
        default=None, description="Type of the numbers (`f16`, `q8_0`, ...); default: the model's own."
    )


class Preset(Section):
    """One training run: what is trained, on what, how."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="Name of the preset: letters, digits, `.`, `_`, `-`."
    )
    description: Text = Field(default="", description="The line in the menu.")
    output_dir: Name | None = Field(
        default=None, description="The run's folder, relative to the working directory; default: `checkpoints/<name>`."
    )
    model: ModelSection = Field(default_factory=ModelSection, description="The network.")
    adapter: AdapterSection | None = Field(
        default=None, description="Train an adapter of a pretrained model; default: every weight is trained."
    )
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection, description="Text to tokens.")
    data: DataSection = Field(default_factory=DataSection, description="Sources and their order.")
    train: TrainSection = Field(default_factory=TrainSection, description="Budget, optimizer, evaluation.")
    generation: GenerationSection = Field(default_factory=GenerationSection, description="How the model writes.")
    journal: JournalSection | None = Field(
        default=None, description="A journal that the model keeps of its training and learns from; default: none."
    )
    auxiliary: AuxiliarySection = Field(default_factory=AuxiliarySection, description="Reasoning modules.")
    tracking: TrackingSection = Field(default_factory=TrackingSection, description="Where metrics go.")
    export: list[ExportSection] = Field(
        default_factory=list, max_length=20, description="What is made of the best model when the run has finished."
    )

    @model_validator(mode="after")
    def _what_belongs_to_a_pretrained_model(self) -> Preset:
        if self.model.pretrained is None:
            if self.adapter is not None:
                raise ValueError(
                    "adapter: it needs a pretrained model to stand beside: set model.pretrained, or leave it out"
                )
        elif self.tokenizer.type != "pretrained":
            raise ValueError(f"tokenizer.type: '{self.tokenizer.type}', but model.pretrained has its own: leave it out")
        return self

    @model_validator(mode="after")
    def _rows_fit_the_context(self) -> Preset:
        schedule = self.train.sequence_schedule
        if isinstance(schedule, Ramp):
            lengths = [schedule.start, schedule.end]
        else:
            lengths = [stage.length if isinstance(stage, Stage) else stage for stage in schedule or []]
        if max(lengths, default=0) > self.model.seq_length:
            raise ValueError(
                f"train.sequence_schedule: length {max(lengths)} is longer than model.seq_length {self.model.seq_length}: "
                "raise that or shorten the rows"
            )
        return self

    @model_validator(mode="after")
    def _when_the_journal_is_written(self) -> Preset:
        train = self.train
        stages = train.sequence_schedule if isinstance(train.sequence_schedule, list) else []
        staged = any(isinstance(stage, Stage) and stage.epochs is not None for stage in stages)
        counts_epochs = train.epochs is not None or train.epochs_per_length is not None or staged
        if self.journal is not None and self.journal.every_tokens is None and not counts_epochs:
            raise ValueError(
                "journal.every_tokens: it is needed where the budget counts no epochs: say after how many tokens the model "
                "reflects"
            )
        return self

    @property
    def run_dir(self) -> str:
        """The run's folder, relative to the working directory."""
        return self.output_dir or f"checkpoints/{self.name}"
