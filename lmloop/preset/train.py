"""What a preset may say of training: its budget, the rows of an update, the optimizer, and what is done between updates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lmloop.preset.fields import Count, CountOrZero, Fraction, Length, Positive, PositiveOrZero, Section

TOKENS_PER_RUN = 100_000_000
"""Trained tokens of one run, for a preset that sets no budget of its own."""


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
        lengths = self.sequence_schedule
        stages = [s for s in lengths if isinstance(s, Stage)] if isinstance(lengths, list) else []
        named = [k for k in ("epochs", "max_steps", "num_tokens", "epochs_per_length") if getattr(self, k) is not None]
        if stages:
            named.append("sequence_schedule")
        if len(named) > 1:
            raise ValueError(f"{named[0]} and {named[1]} are both budgets: keep one")
        if self.epochs_per_length is not None and (
            not isinstance(lengths, list) or [str(length) for length in lengths] != list(self.epochs_per_length)
        ):
            raise ValueError("epochs_per_length: needs a sequence_schedule with the same lengths, each once")
        if stages:
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
