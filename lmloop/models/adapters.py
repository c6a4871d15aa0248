"""LoRA on a pretrained model, through peft: made, saved in peft's own format, merged; and its base in 4 bits.

An adapter is surgery on the model: peft puts its layers into the place of the linear ones. The loop sees nothing of it but
fewer parameters that are trained.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lmloop.data.source import one_line
from lmloop.durable import atomic_write
from lmloop.models.base_folder import Base
from lmloop.models.from_transformers import open_model, quiet
from lmloop.preset.schema import AdapterSection
from lmloop.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmloop.models.pretrained import Pretrained

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

ADAPTER = "default"
"""What peft calls the only adapter there is."""


def attach(network: Any, section: AdapterSection, base: Base) -> Any:
    """peft's model around `network`, whose own weights are trained no more; A is drawn from PyTorch's global generator.

    Raises:
        ValueError: the model has no layers of these names, or peft cannot adapt them so. One line.
    """
    with quiet():
        from peft import get_peft_model

        from lmloop.models.lora_layers import use_short_passes

        try:
            adapted = get_peft_model(network, lora_config(section, base))
        except (ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise ValueError(f"adapter.target_modules: {_why_not(error, network, section)}") from None
    use_short_passes(adapted)
    return adapted


def lora_config(section: AdapterSection, base: Base) -> Any:
    """The section in peft's words."""
    from peft import LoraConfig

    whole = float(section.alpha).is_integer()
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.name,
        revision=base.revision,
        r=section.rank,
        lora_alpha=int(section.alpha) if whole else section.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        bias=section.bias,
        use_rslora=section.rslora,
        use_dora=section.dora,
    )


def _why_not(error: BaseException, network: Any, section: AdapterSection) -> str:
    names = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    head = network.get_output_embeddings()
    names -= {name.rpartition(".")[2] for name, module in network.named_modules() if module is head}
    return (
        f"{section.target_modules!r} does not suit {type(network).__name__} ({one_line(error, 120)}): its linear layers are "
        f"{', '.join(sorted(names)) or 'none'}"
    )


# ---- the folder of a finished run ----


def adapter_weights(model: Pretrained) -> dict[str, Tensor]:
    """The adapter's tensors by the names that peft saves them under, on the CPU."""
    from peft import get_peft_model_state_dict

    with quiet():
        # Without looking on the hub whether the embedding has grown: rows for padding are not the adapter's.
        weights = get_peft_model_state_dict(model.network, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def save_adapter(model: Pretrained, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write the adapter as `peft.PeftModel.from_pretrained` loads it, with the tokenizer beside it. OSError."""
    from safetensors.torch import save

    network: Any = model.network
    config = network.peft_config[ADAPTER].to_dict() | {"inference_mode": True}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / WEIGHTS_FILE, save(adapter_weights(model), metadata={"format": "pt"}))
    atomic_write(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True, default=sorted) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)


# ---- merging ----


def merge(model: Pretrained, *, dtype: torch.dtype = torch.float32) -> Any:
    """The base with the adapter added to its weights, as transformers' `PreTrainedModel` on the CPU.

    The base is loaded afresh in full precision, whatever the adapter was trained on: weights in 4 bits would be rounded
    again, and on some CPUs they are repacked while they are used, after which merging into them gives garbage.

    Raises:
        ValueError: the base's files are gone or not what they were. One line.
    """
    assert model.adapter is not None, "nothing to merge: every weight was trained"
    from peft import set_peft_model_state_dict

    network = open_model(model.base, dtype=dtype)
    add_rows(network, model.vocab_size)
    merged = attach(network, model.adapter, model.base)
    with quiet():
        set_peft_model_state_dict(merged, adapter_weights(model))
        return merged.merge_and_unload(safe_merge=True)


@torch.no_grad()
def add_rows(network: Any, rows: int) -> int:
    """Give embedding and head at least `rows` rows, new ones the mean of the others; how many there were."""
    known = network.get_input_embeddings().weight.shape[0]
    if rows <= known:
        return known
    with quiet():
        network.resize_token_embeddings(rows, mean_resizing=False)
    tables: Mapping[int, Tensor] = {
        id(t): t for t in (m.weight for m in (network.get_input_embeddings(), network.get_output_embeddings()))
    }
    for table in tables.values():
        if not table.is_meta:
            table[known:] = table[:known].float().mean(dim=0).to(table.dtype)
    return known


# ---- the base in 4 bits ----


def quantization(section: AdapterSection, device: torch.device, compute: torch.dtype) -> Any:
    """transformers' configuration of a base in 4 bits.

    Raises:
        ValueError: the device or this installation cannot do it. One line with the way round.
    """
    if device.type not in ("cuda", "cpu"):
        raise ValueError(
            f"adapter.quantize: 'nf4' is for CUDA and CPUs, and this machine trains on '{device.type}': leave it out (LoRA "
            "beside the base as it is), and take a smaller base where memory is short"
        )
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"adapter.quantize: 'nf4' needs {missing[0]}: install it with `pip install 'lmloop[qlora]'`")
    from transformers import BitsAndBytesConfig

    with quiet():
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=section.double_quant,
            bnb_4bit_compute_dtype=compute,
        )


def keep_as_packed(network: nn.Module) -> None:
    """Keep evaluation from repacking weights in 4 bits, which bitsandbytes does on CPUs with bf16 instructions.

    Products of repacked weights round otherwise, so that a run would not train on as one that was resumed does.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False
