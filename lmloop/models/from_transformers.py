"""Models of transformers: built from a configuration, or loaded, with a refusal for whatever does not fit."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from lmloop.data.source import one_line
from lmloop.models import segment_attention
from lmloop.models.base_folder import Base

_NAMED = 3
"""Differences that an error spells out; the rest is counted."""


def open_model(
    base: Base,
    *,
    dtype: torch.dtype,
    weights: bool = True,
    quantization: Any = None,
    device: torch.device | None = None,
) -> Any:
    """The base as transformers' `PreTrainedModel`; without `weights`, of the right shapes with random numbers.

    Args:
        base: where it comes from.
        dtype: of the weights.
        weights: load them.
        quantization: a configuration of transformers, for a base that is quantized while it is loaded.
        device: where it is loaded to; default: the CPU, or PyTorch's meta device where that is set.

    Raises:
        ValueError: transformers does not know it, or the files' tensors are not those that it needs. One line.
    """
    from transformers import AutoModelForCausalLM

    segment_attention.register()
    what = f"model.pretrained: {base.name}"
    with quiet(), _in_one_line(what):
        config = _config(base, what)
        options = {"dtype": dtype, "trust_remote_code": base.trusted}
        if not weights:
            with torch.random.fork_rng(devices=[]):
                return AutoModelForCausalLM.from_config(config, **options)
        opened: Any = AutoModelForCausalLM.from_pretrained(
            base.folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, in words
            output_loading_info=True,
            quantization_config=quantization,
            device_map=None if device is None else {"": device},
            **options,
        )
    model, report = opened
    differences = [
        *(
            f"{name} is {_shape(own)} in the files and {_shape(wanted)} in the model"
            for name, own, wanted in _sorted(report["mismatched_keys"])
        ),
        *(f"{name} is missing from the files" for name in _sorted(report["missing_keys"])),
        *(f"{name} is not in the model" for name in _sorted(report["unexpected_keys"])),
    ]
    if differences:
        more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        raise ValueError(
            f"{what}: its weights do not fit its config.json ({'; '.join(differences[:_NAMED])}{more}): fetch both again"
        )
    return model


def _config(base: Base, what: str) -> Any:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    kind = base.config["model_type"]
    if base.trusted and "auto_map" in base.config:
        return AutoConfig.from_pretrained(base.folder, trust_remote_code=True, local_files_only=True)
    if kind not in CONFIG_MAPPING:
        if "auto_map" in base.config:
            raise ValueError(
                f"{what} is run by code of its own, which could do anything: if you trust it, write "
                f"model.trust_remote_code '{base.name}'"
            )
        raise ValueError(f"{what}: transformers does not know the model_type '{kind[:60]}': update transformers")
    config = CONFIG_MAPPING[kind].from_dict(base.config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{what} is a '{kind}', which is no language model that continues text: name one that is")
    return config


@contextlib.contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Whatever transformers raises over a configuration or files that it cannot make sense of, as a ValueError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a dozen kinds: validation of dataclasses, missing keys, shapes that are no shapes
        said = str(error)
        raise ValueError(
            said if said.startswith(what) else f"{what}: transformers cannot load it ({one_line(error, 200)})"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, and without the libraries' advice to those who call them."""
    from transformers.utils import logging as of_transformers

    level, bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    quantizer = logging.getLogger("bitsandbytes")
    level_of_quantizer = quantizer.level
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    quantizer.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        quantizer.setLevel(level_of_quantizer)
        of_transformers.set_verbosity(level)
        if bars:
            of_transformers.enable_progress_bar()


def _sorted(keys: Iterable[Any]) -> list[Any]:
    return sorted(keys, key=str)


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
