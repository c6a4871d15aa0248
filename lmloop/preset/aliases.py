"""Other names for the keys of a preset: one table, and what becomes of an object that uses them.

The names are those of the documents that lmloop grew out of, of nanoGPT's configurations, and of Hugging Face's
`TrainingArguments` and model configurations, each only where it means the same as ours. Names whose meaning differs, or
whose feature lmloop does not have, are refused with what to write instead: never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from lmloop.preset.parsing import shown
from lmloop.preset.schema import TOKENS_PER_RUN
from lmloop.preset.shape import properties, root, sections
from lmloop.preset.sources import Kind

ALIASES: dict[str, str] = {
    # model
    "n_layer": "model.num_layers",
    "n_layers": "model.num_layers",
    "num_hidden_layers": "model.num_layers",
    "n_head": "model.num_heads",
    "n_heads": "model.num_heads",
    "num_attention_heads": "model.num_heads",
    "num_key_value_heads": "model.num_kv_heads",
    "n_kv_heads": "model.num_kv_heads",
    "n_embd": "model.hidden_size",
    "d_model": "model.hidden_size",
    "block_size": "model.seq_length",
    "seq_len": "model.seq_length",
    "context_length": "model.seq_length",
    "max_length": "model.seq_length",
    "max_seq_len": "model.seq_length",
    "max_seq_length": "model.seq_length",
    "max_position_embeddings": "model.seq_length",
    "tie_word_embeddings": "model.tie_embeddings",
    "rms_norm_eps": "model.norm_eps",
    "layer_norm_eps": "model.norm_eps",
    "checkpoint_dir": "model.pretrained",
    "model_path": "model.pretrained",
    "model_name": "model.pretrained",
    "model_id": "model.pretrained",
    "model_name_or_path": "model.pretrained",
    "pretrained_model_name_or_path": "model.pretrained",
    "base_model": "model.pretrained",
    "base_model_name": "model.pretrained",
    "base_model_name_or_path": "model.pretrained",
    # adapter
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target_modules": "adapter.target_modules",
    "use_rslora": "adapter.rslora",
    "use_dora": "adapter.dora",
    "load_in_4bit": "adapter.quantize",
    "use_4bit": "adapter.quantize",
    "bnb_4bit_quant_type": "adapter.quantize",
    "bnb_4bit_use_double_quant": "adapter.double_quant",
    # data
    "data_configs": "data.sources",
    "dataset": "data.sources",
    "dataset_name": "data.sources",
    "num_workers": "data.workers",
    "dataloader_num_workers": "data.workers",
    # train
    "batch_size": "train.per_gpu_batch_size",
    "micro_batch_size": "train.per_gpu_batch_size",
    "per_device_train_batch_size": "train.per_gpu_batch_size",
    "gradient_accumulation_steps": "train.accumulation_steps",
    "grad_accum_steps": "train.accumulation_steps",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_iters": "train.max_steps",
    "lr": "train.learning_rate",
    "optim": "train.optimizer",
    "lr_scheduler": "train.lr_schedule",
    "lr_scheduler_type": "train.lr_schedule",
    "warmup_iters": "train.warmup_steps",
    "warmup_ratio": "train.warmup_fraction",
    "adam_beta1": "train.beta1",
    "adam_beta2": "train.beta2",
    "adam_epsilon": "train.adam_eps",
    "grad_clip": "train.max_grad_norm",
    "gradient_clip": "train.max_grad_norm",
    "max_norm": "train.max_grad_norm",
    "dtype": "train.precision",
    "bf16": "train.precision",
    "torch_compile": "train.compile",
    "gradient_checkpointing": "train.activation_checkpointing",
    "log_interval": "train.log_every_steps",
    "logging_steps": "train.log_every_steps",
    "eval_interval": "train.eval_every_steps",
    "eval_steps": "train.eval_every_steps",
    "save_steps": "train.save_every_steps",
    "early_stopping_patience": "train.early_stopping_evals",
    # journal
    "journal_path": "journal.path",
    "reflection_prompts": "journal.prompt",
    # tracking and the run itself
    "wandb_log": "tracking.wandb",
    "out_dir": "output_dir",
    "run_name": "name",
}
"""Other name → canonical key. It is read at the top level and in the key's own section."""

SECTION_ALIASES = {"training": "train", "lora": "adapter", "lora_config": "adapter", "peft": "adapter"}
"""Other name of a section → its name."""

VALUES: dict[str, dict[object, object]] = {
    "train.optimizer": dict.fromkeys(("AdamW", "adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    "train.lr_schedule": {"constant_with_warmup": "constant", "warmup_stable_decay": "wsd"},
    "train.precision": {"bfloat16": "bf16", "float32": "fp32", True: "bf16", False: "fp32"},
    "adapter.quantize": {True: "nf4", False: None},
}
"""Canonical key → other names of its values, read where they were written under one of the aliases or the key itself."""

FIXED = {"train_tokens": f"a run is {TOKENS_PER_RUN // 10**6} M tokens"}
"""Keys that are read, say nothing, and are answered with a note: their meaning is fixed here."""

_FOUR_BITS = "a base is quantized to 4 bits or not at all: write `adapter.quantize`: 'nf4'"
_RETENTION = "lmloop has no retention models: write `model.hidden_size`, `num_layers` and `num_heads`"
_ALIGNMENT = "lmloop has no reward models and no preference training: leave it out"

UNSUPPORTED: dict[str, str] = {
    "init_from": "write `model.pretrained`: a folder or a hub id; leave it out to train from scratch",
    **dict.fromkeys(("qlora", "quantization", "load_in_8bit"), _FOUR_BITS),
    "bnb_4bit_compute_dtype": "products are computed in the run's arithmetic: write `train.precision`",
    "modules_to_save": "an adapter holds LoRA alone: leave it out, or leave `adapter` out to train every weight",
    **dict.fromkeys(("model_size", "use_metal"), _RETENTION),
    **dict.fromkeys(("reward_model", "rlhf", "ppo", "dpo", "grpo"), _ALIGNMENT),
    "min_lr": "a learning rate; here it is a share of the peak: write `train.min_lr_fraction`",
    "eval_iters": "a number of batches; here evaluation is measured in tokens: write `train.eval_tokens`",
    "max_eval_samples": "a number of documents; here evaluation is measured in tokens: write `train.eval_tokens`",
    "lr_decay_iters": "the decay always ends with the run: leave it out",
    "decay_lr": "write `train.lr_schedule`: `cosine` or `constant`",
    "fp16": "lmloop computes in fp32 or bf16: write `train.precision`",
    "report_to": "write `tracking.wandb` or `tracking.tensorboard`",
    "use_wandb": "write `tracking.wandb`",
    "save_total_limit": "the newest three checkpoints are kept, always: leave it out",
    "group_by_length": "rows keep the order of their sources: leave it out, and see `data.mix_strategy`",
    "resume_from_checkpoint": "a run always goes on from its newest checkpoint: leave it out",
}
"""Name → why it is refused and what to write. It is found at the top level and in any section."""

UNSUPPORTED_SOURCES = {
    **dict.fromkeys(get_args(Kind), "write type 'files' or 'hub', and this as its data_type"),
    **dict.fromkeys(("preference", "preferences"), "write type 'files' or 'hub', and data_type 'pairs'"),
}
"""`type` of a source → why it is refused."""

SOURCE_TYPES = {"hf": "hub"}

_VAGUE = {
    "model.revision",
    *(f"adapter.{key}" for key in ("rank", "alpha", "dropout", "bias", "quantize")),
    "tokenizer.type",
    "tokenizer.path",
    "tokenizer.revision",
    "data.validation",
    "data.replay",
    "generation.stop",
    *(f"journal.{key}" for key in ("path", "prompt", "every_tokens", "reflection_tokens", "max_share", "rollback")),
}
"""Keys too vague to be meant when they stand at the top level without their section."""


@dataclass
class Canonical:
    """An object in which every key has its canonical name and place.

    written: dotted canonical key → as it was written, where that differs.
    defaults: dotted key → value for a key that nobody sets, because of what else was written.
    problems: dotted key → what is wrong with it.
    """

    values: dict[str, Any] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def flat_keys() -> dict[str, str]:
    """Keys that may stand at the top level without their section → dotted key."""
    return {
        key: f"{section}.{key}" for section, node in sections().items() for key in properties(node)
        if f"{section}.{key}" not in _VAGUE
    }  # fmt: skip


def canonical(document: Mapping[str, Any]) -> Canonical:
    """`document` with canonical names; keys that nobody knows stay where they are, for `check` to report."""
    result = Canonical()
    known = sections()
    for key, value in document.items():
        section = SECTION_ALIASES.get(key, key)
        if section not in known:
            _place(result, None, key, value, written=key)
        elif isinstance(value, dict):
            result.values.setdefault(section, {})
            for inner, inner_value in value.items():
                _place(result, section, inner, inner_value, written=f"{key}.{inner}")
        else:
            _set(result, section, value, written=key)
    return result


def _place(result: Canonical, section: str | None, key: str, value: Any, *, written: str) -> None:
    own = properties(sections()[section]) if section else properties(root())
    target = f"{section}.{key}" if section else key
    if key in own:
        pass
    elif key in FIXED:
        result.notes.append(f"{written} {shown(value)} is not used: {FIXED[key]}")
        return
    elif key in UNSUPPORTED:
        result.problems.append((written, UNSUPPORTED[key]))
        return
    elif key in ALIASES and (section is None or ALIASES[key].rpartition(".")[0] == section):
        target = ALIASES[key]
        if key == "data_configs":
            result.defaults["data.mix_strategy"] = "sequential"
        if target == "data.sources" and not isinstance(value, list):
            value = [value]
    elif section is None:
        target = flat_keys().get(key, key)
    if target in ("data.sources", "data.validation") and isinstance(value, list):
        value = [_source(entry) for entry in value]
    if isinstance(value, str | bool):
        value = _value(target, value, aliased=target != written)
    _set(result, target, value, written=written)


def _value(target: str, value: str | bool, *, aliased: bool) -> object:
    if isinstance(value, bool) and not aliased:  # `bf16: true` says something, `precision: true` does not
        return value
    return VALUES.get(target, {}).get(value, value)


def _set(result: Canonical, target: str, value: Any, *, written: str) -> None:
    section, _, key = target.rpartition(".")
    place = result.values.setdefault(section, {}) if section else result.values
    if not isinstance(place, dict):  # the section itself is not an object: that is the error to report
        return
    if key in place:
        if isinstance(place[key], bool) != isinstance(value, bool) or place[key] != value:
            first = result.written.get(target, target)
            result.problems.append(
                (written, f"says {shown(value, 30)} and {first} says {shown(place[key], 30)}: both are {target}, keep one")
            )
        return
    place[key] = value
    if written != target:
        result.written[target] = written


def _source(entry: Any) -> Any:
    """A source with its canonical `type`; without one, `path` means files and `dataset` the hub."""
    if not isinstance(entry, dict):
        return entry
    kind = entry.get("type")
    if "type" not in entry and ("path" in entry) != ("dataset" in entry):
        return {"type": "files" if "path" in entry else "hub", **entry}
    if isinstance(kind, str) and kind in SOURCE_TYPES:
        return {**entry, "type": SOURCE_TYPES[kind]}
    return entry
