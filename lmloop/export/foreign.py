"""Models of transformers, as bundles: a base model, or one into which an adapter was merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor

from lmloop.export.bundle import Bundle, Logits
from lmloop.tokens.tokenizer import Tokenizer

_OF_THE_FILE = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "quantization_config")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def bundle_of_transformers(
    name: str,
    model: Any,
    tokenizer: Tokenizer,
    *,
    prompts: tuple[str, ...] = (),
    chat_template: str | None = None,
    stops: tuple[int, ...] = (),
    sampling: dict[str, Any] | None = None,
    origin: dict[str, Any] | None = None,
) -> Bundle:
    """A causal language model of transformers (`PreTrainedModel`) with its tokenizer.

    The tokenizer goes on putting before a text what it put there so far. A text is ended by what the model's
    generation_config says, and by the tokenizer's end-of-text token where that says nothing; by `stops`, too. `sampling`:
    how it writes, instead of as generation_config says.

    Raises:
        ValueError: the tokenizer has more tokens than the embedding has rows.
    """
    config = _config(model)
    if tokenizer.vocab_size > config["vocab_size"]:
        raise ValueError(
            f"{name}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model's embedding {config['vocab_size']:,} rows"
        )
    tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    weights = {key: tensor if tensor.is_meta else tensor.cpu() for key, tensor in tensors.items()}
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)

    def rebuild(other: Mapping[str, Tensor]) -> Logits:
        built = type(model)._from_config(model.config, dtype=model.dtype)
        built.load_state_dict(dict(other), strict=False)
        built.tie_weights()
        return _logits_of(built)

    backend = Backend.from_str(json.dumps(json.loads(tokenizer.to_json())["tokenizer"], ensure_ascii=False))
    known = getattr(model.generation_config, "eos_token_id", None)
    known = known if isinstance(known, list) else [tokenizer.eos_id if known is None else known]
    # The tokenizer's own first, the rest as they were.
    ends = sorted(dict.fromkeys([*known, *stops]), key=lambda stop: stop != tokenizer.eos_id)
    written = model.generation_config.to_diff_dict() if sampling is None else sampling
    return Bundle(
        name=name,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        logits=_logits_of(model),
        rebuild=rebuild,
        prefix=tuple(backend.encode("").ids),
        stops=tuple(ends),
        sampling={key: value for key, value in written.items() if key not in (*_OF_THE_FILE, *_TOKENS)},
        prompts=prompts,
        chat_template=chat_template,
        origin=origin or {},
    )


def _config(model: Any) -> dict[str, Any]:
    """config.json that transformers 4 understands too: position base and scaling stand at the top level as well."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in (*_OF_THE_FILE, *_TOKENS)}
    config["architectures"] = [type(model).__name__]
    positions = config.get("rope_parameters")
    if positions and "rope_theta" in positions:
        config["rope_theta"] = positions["rope_theta"]
        scaling = {key: value for key, value in positions.items() if key != "rope_theta"}
        config["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return config


def _logits_of(model: Any) -> Logits:
    def logits(tokens_BT: Tensor) -> Tensor:
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return model(input_ids=tokens_BT.to(model.device)).logits.float().cpu()
        finally:
            model.train(was_training)

    return logits
