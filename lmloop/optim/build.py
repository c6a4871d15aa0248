"""From a preset's train section to an optimizer: which parameters decay, and which are Muon's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from lmloop.models.base import LanguageModel
from lmloop.models.gpt2 import Conv1D
from lmloop.optim.combined import Combined
from lmloop.optim.muon import Muon
from lmloop.optim.sgd import DecoupledSGD
from lmloop.preset.schema import TrainSection
from lmloop.processes import ALONE, Processes


def build_optimizer(model: LanguageModel, section: TrainSection, processes: Processes = ALONE) -> Optimizer:
    """An optimizer for the model's trainable parameters; `processes` share its work where it can be shared.

    Every group carries `peak_lr`, what a schedule multiplies; `lr` starts there. Matrices (embeddings too) decay; norms
    and biases do not. Groups with nothing in them are left out.
    """
    return OPTIMIZERS[section.optimizer](model, section, processes)


def _groups(parameters: Sequence[nn.Parameter], lr: float, decay: float, key: str = "weight_decay") -> list[dict[str, Any]]:
    """Matrices with decay, the rest without."""
    matrices = [p for p in parameters if p.dim() >= 2]
    others = [p for p in parameters if p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": lr, "peak_lr": lr, key: decay},
        {"params": others, "lr": lr, "peak_lr": lr, key: 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw_for(parameters: Sequence[nn.Parameter], section: TrainSection) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        _groups(parameters, section.learning_rate, section.weight_decay),
        betas=(section.beta1, section.beta2),
        eps=section.adam_eps,
        fused=True,
    )


def adamw(model: LanguageModel, section: TrainSection, processes: Processes) -> Optimizer:
    """AdamW (arXiv 1711.05101) in PyTorch's fused form."""
    return _adamw_for([p for p in model.parameters() if p.requires_grad], section)


def muon(model: LanguageModel, section: TrainSection, processes: Processes) -> Optimizer:
    """Muon for the matrices of the blocks; AdamW for embeddings, head, norms and biases."""
    head = model.head_weight()
    matrices: dict[bool, list[nn.Parameter]] = {False: [], True: []}  # by whether they are stored input by output
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and module.weight is not head and module.weight.requires_grad:
            matrices[isinstance(module, Conv1D)].append(cast(nn.Parameter, module.weight))
    lr = section.muon_learning_rate
    groups = [{"params": ps, "lr": lr, "peak_lr": lr, "transposed": flag} for flag, ps in matrices.items() if ps]
    taken = {id(p) for ps in matrices.values() for p in ps}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    parts: list[Optimizer] = []
    if groups:
        parts.append(Muon(groups, lr=lr, momentum=section.momentum, weight_decay=section.weight_decay, processes=processes))
    if rest:
        parts.append(_adamw_for(rest, section))
    return Combined(parts)


def sgd(model: LanguageModel, section: TrainSection, processes: Processes) -> Optimizer:
    """Momentum SGD."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = _groups(parameters, section.learning_rate, section.weight_decay, key="decay")
    return DecoupledSGD(groups, lr=section.learning_rate, momentum=section.momentum)


Make = Callable[[LanguageModel, TrainSection, Processes], Optimizer]

OPTIMIZERS: dict[str, Make] = {"adamw": adamw, "muon": muon, "sgd": sgd}
"""What `train.optimizer` can name."""
