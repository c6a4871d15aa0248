"""Whether a model fits this machine at all: what is known of its size before anything of it is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmloop.hardware import Machine, pick_precision
from lmloop.models.build import build_model
from lmloop.models.loading import parameter_counts, trainable_and_total
from lmloop.models.pretrained import Pretrained
from lmloop.preset.schema import Preset
from lmloop.training import figures

CHECKPOINTS = 5
"""On the disk at the most: the current one, two before it, the best, and the one being written."""


def require_room(preset: Preset, vocab_size: int, machine: Machine, *, parts: int = 1) -> None:
    """Refuse what exceeds the machine's memory by weights, gradients, moments and what enters each block alone.

    parts: in how many the first three are held, each by another process.

    Nothing of it is allocated for that. On a CPU no allocation fails:
    the kernel would end the process, and others with it, once the memory is touched.

    Raises:
        ValueError: it does not fit.
    """
    size = _size(preset, vocab_size, bf16=pick_precision(preset.train.precision, machine) == "bf16")
    needed = (size.held + 4 * size.trained) // parts  # gradients are fp32
    has = figures.size(machine.memory_bytes)
    if needed > machine.memory_bytes:
        smaller = "lower model.hidden_size or model.num_layers"
        if preset.model.pretrained is not None:
            packs = machine.device != "mps" and not (preset.adapter and preset.adapter.quantize)
            smaller = "set adapter.quantize 'nf4'" if packs else "take a smaller base"
        raise ValueError(
            f"model: {figures.count(size.parameters)} parameters need {figures.size(needed)} for weights, gradients and "
            f"moments, this machine has {has}: {smaller}"
        )
    rows, length = preset.train.rows_at_once(auto=1), preset.model.seq_length
    stored = 1 if preset.train.activation_checkpointing else size.layers
    activations = rows * length * size.width * 4 * stored
    if needed + activations > machine.memory_bytes:
        raise ValueError(
            f"train.per_gpu_batch_size {rows}: a batch of rows of {length} tokens does not fit in memory ({has}): "
            "halve it and double train.accumulation_steps"
        )


def checkpoint_bytes(preset: Preset, vocab_size: int) -> int:
    """About what a run's folder takes, without building the model."""
    return CHECKPOINTS * _size(preset, vocab_size).stored


@dataclass(frozen=True)
class _Size:
    """How large a preset's model is: parameters, those that are trained, bytes of a checkpoint, bytes of weights and moments
    in memory, width of the residual stream and number of blocks."""

    parameters: int
    trained: int
    stored: int
    held: int
    width: int
    layers: int


def _size(preset: Preset, vocab_size: int, *, bf16: bool = False) -> _Size:
    """Without building the model. A base in 4 bits takes half a byte for a number, and as much for its constants as to
    make that 0.56 (arXiv 2305.14314 has 0.52 with double quantization); its embedding and head stay as they are."""
    section, adapter = preset.model, preset.adapter
    with torch.device("meta"):
        model = build_model(section, vocab_size, seed=0, adapter=adapter, bf16=bf16)
    trained, parameters = trainable_and_total(model)
    moments = {"adamw": 2, "muon": 1, "sgd": 1}[preset.train.optimizer]
    stored = (1 + moments) * 4 * trained
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    if adapter is not None and adapter.quantize is not None:
        blocks = parameter_counts(model)["blocks"] - trained
        frozen += round(blocks * (0.56 - (frozen / max(parameters - trained, 1))))
    width, layers = section.hidden_size, section.num_layers
    if isinstance(model, Pretrained):
        width, layers = model.head_weight().shape[1], max(len(list(model.blocks())), 1)
    return _Size(parameters, trained, stored, stored + frozen, width, layers)
