"""What a preset may say: every key, its default, its bounds and its meaning.

A default lives where its key is described and nowhere else: here, or in the file of its section, all of whose names are to
be had from here. `docs/presets.md` and `docs/preset.schema.json` are generated from the descriptions, so a key that is not
described cannot be used and a key that is described cannot go undocumented.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmloop.preset.data import DataSection, SplitSection, TokenizerSection
from lmloop.preset.fields import Count, CountOrZero, Fraction, Name, Positive, PositiveOrZero, Section, Text
from lmloop.preset.journal import JournalSection
from lmloop.preset.model import AdapterSection, ModelSection, NgramTable
from lmloop.preset.train import TOKENS_PER_RUN, Ramp, Stage, TrainSection

__all__ = [
    "TOKENS_PER_RUN",
    "AdapterSection",
    "AuxiliarySection",
    "DataSection",
    "ExportSection",
    "GenerationSection",
    "ModelSection",
    "NgramTable",
    "Preset",
    "Ramp",
    "SplitSection",
    "Stage",
    "TokenizerSection",
    "TrackingSection",
    "TrainSection",
]


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
