"""Models that were trained here, as bundles: their architectures in the words of transformers' configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmloop.export.bundle import Bundle, Logits
from lmloop.export.chat_format import chat_template
from lmloop.export.foreign import bundle_of_transformers
from lmloop.models.adapters import merge
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights
from lmloop.models.pretrained import Pretrained
from lmloop.preset.schema import GenerationSection, ModelSection, Preset
from lmloop.tokens.conversations import answering_template
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.trained import Trained


def qwen3_config(section: ModelSection, vocab_size: int) -> dict[str, Any]:
    """The decoder as a Qwen3 model.

    Position scaling stands twice: as transformers 5 writes it and, for transformers 4, vLLM and mlx-lm, at the top level.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    factor = section.seq_length / (section.original_seq_length or section.seq_length)
    if section.position_scaling != "none" and factor > 1.0:
        rope = {"rope_type": section.position_scaling, "factor": factor}
        if section.position_scaling == "yarn":
            rope["original_max_position_embeddings"] = section.original_seq_length
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": section.hidden_size,
        "intermediate_size": section.resolved_intermediate_size,
        "num_hidden_layers": section.num_layers,
        "num_attention_heads": section.num_heads,
        "num_key_value_heads": section.resolved_kv_heads,
        "head_dim": section.resolved_head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": section.seq_length,
        "rms_norm_eps": section.norm_eps,
        "tie_word_embeddings": section.tie_embeddings,
        "use_sliding_window": False,
        "rope_theta": section.rope_theta,
        "rope_scaling": rope if rope["rope_type"] != "default" else None,
        "rope_parameters": {**rope, "rope_theta": section.rope_theta},
    }


def gpt2_config(section: ModelSection, vocab_size: int) -> dict[str, Any]:
    """The GPT-2-shaped model."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": section.seq_length,
        "n_ctx": section.seq_length,
        "n_embd": section.hidden_size,
        "n_inner": section.resolved_intermediate_size,
        "n_layer": section.num_layers,
        "n_head": section.num_heads,
        "activation_function": "gelu" if section.feed_forward == "gelu" else "gelu_new",
        "layer_norm_epsilon": section.norm_eps,
        "embd_pdrop": section.dropout,
        "resid_pdrop": section.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": section.tie_embeddings,
    }


CARRIED = {
    "architecture",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "seq_length",
    "tie_embeddings",
    "dropout",
    "rope_theta",
    "norm_eps",
    "position_scaling",
    "original_seq_length",
}
"""Keys of a preset's `model` that all configurations speak of; any other is exported only at its default."""

CARRIED_BY = {"gpt2": {"feed_forward"}}
"""Architecture → keys that its own configuration speaks of besides."""

CONFIGS: dict[str, Callable[[ModelSection, int], dict[str, Any]]] = {"decoder": qwen3_config, "gpt2": gpt2_config}
"""Architecture → its configuration; what is not here has no counterpart outside."""


def bundle_of_run(trained: Trained) -> Bundle:
    """The model of a run, with all that other programs need to know of it.

    Raises:
        ValueError: no other program has its architecture.
    """
    checkpoint = trained.checkpoint
    origin = {
        "run": str(trained.run_dir),
        "preset": trained.preset.name,
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.manifest.step,
        "sha256": checkpoint.manifest.sha256,
    }
    preset = trained.preset
    if isinstance(trained.model, Pretrained):
        return bundle_of_pretrained(preset, trained.model, trained.tokenizer, origin)
    return bundle(preset.name, preset.model, trained.model, trained.tokenizer, preset.generation, origin)


def bundle_of_pretrained(
    preset: Preset, model: Pretrained, tokenizer: Tokenizer, origin: dict[str, Any] | None = None
) -> Bundle:
    """A model of transformers that was trained on, its adapter merged into the base, which is loaded afresh for that.

    What ends an answer in the template that it is talked to in ends a text.

    Raises:
        ValueError: the base is gone or another one.
    """
    merges = model.adapter is not None and not model.head_weight().is_meta
    template = answering_template(preset, tokenizer)
    try:
        stops = template.stop_ids if template else ()
    finally:
        if template is not None:
            template.close()
    return bundle_of_transformers(
        preset.name,
        merge(model) if merges else model.causal,
        tokenizer,
        prompts=tuple(preset.generation.prompts),
        chat_template=chat_template(tokenizer, preset.generation.chat_format),
        stops=tuple(stops),
        sampling=sampling_config(preset.generation),
        origin=origin,
    )


def bundle(
    name: str,
    section: ModelSection,
    model: LanguageModel,
    tokenizer: Tokenizer,
    generation: GenerationSection,
    origin: dict[str, Any] | None = None,
) -> Bundle:
    """A model of ours. ValueError: no other program has what it is built of."""
    plain, carried = ModelSection(), CARRIED | CARRIED_BY.get(section.architecture, set())
    own = {key: value for key, value in section if key not in carried and value != getattr(plain, key)}
    if section.architecture not in CONFIGS:
        own["architecture"] = section.architecture
    if own:
        key, value = next(iter(own.items()))
        raise ValueError(f"model.{key} is {value!r}, which no other program has: such a model runs in lmloop only")
    weights = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    if section.tie_embeddings:
        del weights["lm_head.weight"]

    def rebuild(other: Mapping[str, Tensor]) -> Logits:
        built = build_model(section, tokenizer.vocab_size, seed=0)
        load_weights(built, other)
        return logits_of(built)

    return Bundle(
        name=name,
        config=CONFIGS[section.architecture](section, tokenizer.vocab_size),
        weights=weights,
        tokenizer=tokenizer,
        logits=logits_of(model),
        rebuild=rebuild,
        prefix=(tokenizer.start_id,),
        stops=(tokenizer.eos_id,),
        sampling=sampling_config(generation),
        prompts=tuple(generation.prompts),
        chat_template=chat_template(tokenizer, generation.chat_format),
        origin=origin or {},
    )


def logits_of(model: LanguageModel) -> Logits:
    """A language model as a function, without dropout and in its weights' precision."""

    def logits(tokens_BT: Tensor) -> Tensor:
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return model.head(model.hidden(tokens_BT.to(model.head_weight().device))).float().cpu()
        finally:
            model.train(was_training)

    return logits


def sampling_config(options: GenerationSection) -> dict[str, Any]:
    """How the preset has the model write, in the words of generation_config.json."""
    sampling: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "do_sample": options.temperature > 0}
    if options.temperature > 0:
        sampling |= {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
        if options.min_p > 0:
            sampling["min_p"] = options.min_p
    if options.repetition_penalty != 1.0:
        sampling["repetition_penalty"] = options.repetition_penalty
    if options.no_repeat_ngram_size:
        sampling["no_repeat_ngram_size"] = options.no_repeat_ngram_size
    return sampling
