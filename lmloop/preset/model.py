"""What a preset may say of the network: a shape of its own, or a pretrained model, with or without an adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmloop.preset.fields import Length, Name, Positive, Section, Width


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
    feed_forward: Literal["swiglu", "relu2", "gelu"] = Field(
        default="swiglu",
        description="Feed-forward layer of `decoder`: `swiglu` as in Qwen3, or squared ReLU (`relu2`, arXiv 2109.08668); a "
        "model with that cannot be exported. `gpt2` has GELU in its tanh form; with `gelu` in its exact form, as in "
        "nanoGPT: faster on a CPU, and exported to Hugging Face only.",
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
            if self.feed_forward == "relu2" or self.ngram_tables:
                raise ValueError("feed_forward relu2, ngram_tables: GPT-2 has neither; leave them out or use `decoder`")
            if self.position_scaling != "none":
                raise ValueError("position_scaling: GPT-2 learns its positions; a longer seq_length extends the table")
        elif self.feed_forward == "gelu":
            raise ValueError("feed_forward gelu: only `gpt2` has it; leave it out or set architecture: gpt2")
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
