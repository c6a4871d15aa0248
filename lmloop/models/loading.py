"""Weights from a state dict into a model: all of them, or a refusal that names the differences; and what is in a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmloop.models.base import LanguageModel
from lmloop.models.norm import RMSNorm

NAMED_DIFFERENCES = 4
"""Differences that an error spells out; the rest is counted."""


@dataclass(frozen=True)
class LoadReport:
    """Names of parameters: taken over as they were, taken over and made longer, and fresh because they are new."""

    loaded: tuple[str, ...]
    grown: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{len(self.loaded)} tensors loaded"
        if self.grown:
            line += f"; grown, new rows fresh: {', '.join(self.grown)}"
        if self.new:
            line += f"; new and fresh: {', '.join(self.new)}"
        return line


def load_weights(model: LanguageModel, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copy `state_dict` into `model`, which may only have grown: longer learned positions, modules beside the old ones.

    A module is new when the state dict has nothing under its first name (`value_head` of `value_head.weight`). Where
    anything else differs, ValueError names it in one line and the model is left as it was. A tied head may be left out.
    """
    tensors = model.trainable_state_dict()
    first_name_by_id: dict[int, str] = {}
    for name, tensor in tensors.items():
        first_name_by_id.setdefault(id(tensor), name)
    twins = {name: first for name, t in tensors.items() if (first := first_name_by_id[id(t)]) != name}
    known_modules = {name.partition(".")[0] for name in state_dict}
    head_names = {name for name, tensor in tensors.items() if tensor is model.head_weight()}

    loaded, grown, new, differences = [], [], [], []
    sources: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in twins:
            twin = state_dict.get(twins[name])
            if name in state_dict and twin is not None and not torch.equal(state_dict[name], twin):
                differences.append(f"{name} and {twins[name]} are tied in the model and differ in the weights")
            continue
        # The twin of a tied head stands in for it: whichever of the names the weights use.
        names = [name, *(other for other, first in twins.items() if first == name)]
        given = next((n for n in names if n in state_dict), None)
        if given is None:
            if name.partition(".")[0] in known_modules or name in head_names:
                differences.append(f"{name} is missing from the weights")
            else:
                new.append(name)
            continue
        shape, wanted = tuple(state_dict[given].shape), tuple(tensor.shape)
        if shape == wanted:
            loaded.append(name)
        elif name in model.growable and shape[1:] == wanted[1:] and shape[0] < wanted[0]:
            grown.append(name)
        else:
            differences.append(f"{name} is {_shape(shape)} in the weights and {_shape(wanted)} in the model")
        sources[name] = state_dict[given]
    differences += [f"{name} is not in the model" for name in state_dict if name not in tensors]
    if not loaded and not differences:
        differences.append("they have none of the model's tensors")
    if differences:
        raise ValueError(_refusal(differences))

    with torch.no_grad():
        for name, source in sources.items():
            tensors[name][: len(source)].copy_(source)
    return LoadReport(tuple(loaded), tuple(grown), tuple(new))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _refusal(differences: list[str]) -> str:
    named = "; ".join(differences[:NAMED_DIFFERENCES])
    rest = f"; and {len(differences) - NAMED_DIFFERENCES} more" if len(differences) > NAMED_DIFFERENCES else ""
    return (
        f"the weights do not fit the model: {named}{rest}: keep the preset's `model` (and `adapter`) section, or use "
        "another output_dir"
    )


def parameter_counts(model: LanguageModel) -> dict[str, int]:
    """Parameters by part: `embedding` (tokens and positions), `blocks` (without norms), `head`, `norms`, and their `total`.

    Nothing is counted twice: a tied head counts as embedding, and `head` is 0.
    """
    counts = {"total": 0, "embedding": 0, "blocks": 0, "head": 0, "norms": 0}
    head_id = id(model.head_weight())
    seen: set[int] = set()
    for wanted in ("embedding", "norms", "blocks"):
        for module in model.modules():
            part = "embedding" if isinstance(module, nn.Embedding) else "norms" if _is_norm(module) else "blocks"
            for parameter in module.parameters(recurse=False):
                if part == wanted and id(parameter) not in seen:
                    seen.add(id(parameter))
                    count = numbers_in(parameter)
                    counts["head" if part == "blocks" and id(parameter) == head_id else part] += count
                    counts["total"] += count
    return counts


def trainable_and_total(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all of them."""
    parameters = list(model.parameters())
    return sum(numbers_in(p) for p in parameters if p.requires_grad), sum(map(numbers_in, parameters))


def numbers_in(parameter: Tensor) -> int:
    """Its elements; of one that is kept in 4 bits, those that it stands for."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def _is_norm(module: nn.Module) -> bool:
    """transformers has a class of its own for each model's norm."""
    return isinstance(module, RMSNorm | nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
