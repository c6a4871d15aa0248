"""Two presets side by side: which keys differ, and what of a run carries over when they change.

One table says for every key what a change does. What changes nothing that is trained is also left out of the preset's
hash, so that a run whose hash is the same resumes exactly, and the two can never disagree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmloop.preset.schema import Preset

Effect = Literal[
    "nothing that is trained",
    "everything carries over; the new value applies from here",
    "weights and optimizer carry over, the feed starts anew",
    "optimizer starts anew",
    "model: must fit",
]

NOTHING: Effect = "nothing that is trained"
APPLIES: Effect = "everything carries over; the new value applies from here"
FEED: Effect = "weights and optimizer carry over, the feed starts anew"
OPTIMIZER: Effect = "optimizer starts anew"
MODEL: Effect = "model: must fit"

EFFECTS: dict[str, Effect] = {
    "name": NOTHING,
    "description": NOTHING,
    "output_dir": NOTHING,
    "model": MODEL,
    "model.dropout": APPLIES,
    "model.pretrained": APPLIES,  # another place of the same base: what is another base is refused
    "model.revision": APPLIES,
    "model.trust_remote_code": APPLIES,
    "adapter": MODEL,
    "adapter.dropout": APPLIES,
    "tokenizer": MODEL,
    "data": FEED,
    "data.sources[].description": NOTHING,
    "data.validation[].description": NOTHING,
    "data.replay.sources[].description": NOTHING,
    "data.workers": NOTHING,
    "data.max_bad_fraction": APPLIES,
    "train": APPLIES,
    "train.optimizer": OPTIMIZER,
    "train.seed": FEED,  # it decides the split and the shuffled order
    "train.parallel": NOTHING,
    "train.rank_timeout_s": NOTHING,
    "train.log_every_steps": NOTHING,
    "train.sample_every_steps": NOTHING,
    "train.save_every_steps": NOTHING,
    "train.save_every_minutes": NOTHING,
    "generation": NOTHING,  # sampling has a random generator of its own
    "journal": APPLIES,
    "auxiliary": APPLIES,
    "auxiliary.enable_policy": MODEL,
    "auxiliary.enable_value": MODEL,
    "auxiliary.enable_dynamics": MODEL,
    "auxiliary.enable_span_contrastive": MODEL,
    "tracking": NOTHING,
    "export": NOTHING,
}
"""Key or section → what a change of it does; the longest entry that a key begins with holds. `[]` is any entry of a list."""


@dataclass(frozen=True)
class Change:
    """A key with another value than before; None on a side that does not have it."""

    key: str
    old: Any
    new: Any
    effect: Effect


def resolved(preset: Preset) -> dict[str, Any]:
    """Every key of `preset` with its value, as JSON has it; `num_tokens` as a number."""
    values = preset.model_dump(mode="json")
    values["train"]["num_tokens"] = preset.train.total_tokens
    return values


def preset_hash(preset: Preset) -> str:
    """SHA-256, in hexadecimal, of what decides what is trained: canonical JSON of the keys that EFFECTS does not excuse."""
    kept = _trained(resolved(preset), "")
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def effect_of(key: str) -> Effect:
    """What a change of the dotted `key` does."""
    parts = re.sub(r"\[\d+\]", "[]", key)
    while parts not in EFFECTS:
        shorter = parts[: max(parts.rfind("."), parts.rfind("["))] if re.search(r"[.\[]", parts) else ""
        assert shorter, f"no effect is known for {key!r}"
        parts = shorter
    return EFFECTS[parts]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What differs between two resolved presets, in the order of the newer one's keys.

    Lists of equal length that hold objects are compared entry by entry, other lists as a whole. A key that one side lacks
    (written by another version) counts as changed unless its value on the other side is null.
    """
    return [Change(key, before, after, effect_of(key)) for key, before, after in _differences(old, new, "")]


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping) and path not in _MAPS:
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and path in _LISTS_OF_OBJECTS:
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            same_kind = (
                isinstance(before, Mapping) and isinstance(after, Mapping) and before.get("type") == after.get("type")
            )
            if same_kind:
                yield from _differences(before, after, f"{path}[{index}]")
            elif before != after:
                yield f"{path}[{index}]", before, after
    elif old != new:
        yield path, old, new


_MAPS = ("train.epochs_per_length", "train.sequence_schedule", "data.source_weights")
_LISTS_OF_OBJECTS = ("data.sources", "data.validation", "data.replay.sources", "model.ngram_tables")


def _trained(value: Any, path: str) -> Any:
    """`value` without the keys whose change does nothing that is trained."""
    if isinstance(value, list) and path in _LISTS_OF_OBJECTS:
        return [_trained(part, f"{path}[]") for part in value]
    if not isinstance(value, dict) or path in _MAPS:
        return value
    kept: dict[str, Any] = {}
    for key, part in value.items():
        inner = f"{path}.{key}" if path else key
        is_section = isinstance(part, dict) and inner not in _MAPS
        if is_section or effect_of(inner) != NOTHING:
            kept[key] = _trained(part, inner)
    return kept
