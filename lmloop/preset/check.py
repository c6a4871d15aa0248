"""What is wrong with a preset's values, in words: key, value, what is allowed, the nearest valid key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lmloop.preset.aliases import ALIASES, SECTION_ALIASES, UNSUPPORTED_SOURCES
from lmloop.preset.parsing import one_line, shown
from lmloop.preset.schema import Preset
from lmloop.preset.shape import KeyPath, Node, allowed, dotted, fitting, kind, leaves, node_at, options, properties, root

_WRONG_KIND = ("_type", "_attributes_type")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, and what with what to do about it."""

    path: KeyPath
    text: str


def check(values: dict[str, Any]) -> Preset | list[Problem]:
    """The preset that `values` (with canonical names) describe, or everything that is wrong with them."""
    problems = list(_unknown(root(), values, ()))
    try:
        preset = Preset.model_validate(values)
    except ValidationError as error:
        known = {problem.path for problem in problems}
        problems += [p for p in _from_pydantic(error, values) if not any(p.path == k[: len(p.path)] for k in known)]
        return problems
    return problems or preset


def _unknown(node: Node, value: Any, path: KeyPath) -> Iterator[Problem]:
    """Keys that do not exist, and objects of a type that does not."""
    branch = fitting(node, value)
    if isinstance(value, dict):
        kinds = [k for option in options(node) if (k := kind(option))]
        if branch is None and kinds:
            given = value.get("type")
            what = f"{shown(given)}: unknown type" if "type" in value else "missing"
            text = f"{what}; a source's type is {allowed({'enum': kinds})} ('hf' is read as 'hub')"
            if isinstance(given, str) and given in UNSUPPORTED_SOURCES:
                text = f"{shown(given)}: {UNSUPPORTED_SOURCES[given]}"
            yield Problem((*path, "type"), text)
            return
        keys = properties(branch) if branch else {}
        for key, inner in value.items():
            if key in keys:
                yield from _unknown(keys[key], inner, (*path, key))
            elif keys:
                yield Problem((*path, _short(key)), _unknown_key(key, path, list(keys)))
    elif isinstance(value, list) and branch is not None:
        for index, inner in enumerate(value):
            yield from _unknown(branch["items"], inner, (*path, index))


def _short(key: str) -> str:
    """A key fit to stand in a message: one line, and quoted where it would be misread as a path."""
    if not key.replace("-", "_").isidentifier():
        return shown(key)
    return key if len(key) <= 60 else key[:59] + "…"


def _unknown_key(key: str, path: KeyPath, keys: list[str]) -> str:
    from rapidfuzz import fuzz, process

    section = dotted(path)
    if len(key) <= 100:
        elsewhere = {dot.rpartition(".")[2]: dot for dot, _ in reversed(list(leaves()))}  # of several, the first
        if key in elsewhere and not any(isinstance(part, int) for part in path):
            return f"unknown key here; it belongs at {elsewhere[key]}"
        if key in ALIASES and not any(isinstance(part, int) for part in path):
            return f"unknown key here; it is another name of {ALIASES[key]}"
        near = {name: name for name in keys}
        if not path:
            near |= {name: dot for name, dot in elsewhere.items() if name not in near}
            near |= SECTION_ALIASES
        near |= {n: dot for n, dot in ALIASES.items() if n not in near and (not path or dot.rpartition(".")[0] == section)}
        found = process.extractOne(key.lower(), list(near), scorer=fuzz.ratio, score_cutoff=60)
        if found:
            return f"unknown key; nearest is {near[found[0]]}"
    return f"unknown key; allowed: {', '.join(keys)}" if len(keys) <= 16 else "unknown key; docs/presets.md lists them all"


def _from_pydantic(error: ValidationError, values: dict[str, Any]) -> Iterator[Problem]:
    """One problem for each value that is wrong.

    For a union pydantic reports the errors of every branch; of those, the branch counts that fits best: its errors lie
    inside the value rather than being about the value's kind.
    """
    groups: dict[tuple[KeyPath, bool], dict[str, list[tuple[KeyPath, Any]]]] = {}
    for item in error.errors(include_url=False):
        if item["type"] in ("extra_forbidden", "union_tag_invalid", "union_tag_not_found"):
            continue  # `_unknown` says it better
        path, union, branch = _real_path(item, values)
        group = (path, False) if branch is None else (union, True)
        groups.setdefault(group, {}).setdefault(branch or "", []).append((path, item))
    for (union, _), branches in groups.items():
        for path, item in min(branches.values(), key=lambda items, union=union: _misfit(items, union)):
            yield _problem(path, item, values)


def _misfit(items: list[tuple[KeyPath, Any]], union: KeyPath) -> tuple[bool, int]:
    wrong = [path for path, item in items if item["type"].endswith(_WRONG_KIND)]
    return union in wrong, len(wrong)


def _real_path(item: Any, values: dict[str, Any]) -> tuple[KeyPath, KeyPath, str | None]:
    """From pydantic's location: path of the value, path of the outermost union around it, name of that union's branch."""
    location: tuple[int | str, ...] = item["loc"]
    path: KeyPath = ()
    union: KeyPath = ()
    branch: str | None = None
    value: Any = values
    for index, part in enumerate(location):
        exists = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if exists and node_at((*path, part), values) is not None:
            value = value[part]  # type: ignore[index]
            path = (*path, part)
        elif item["type"] == "missing" and index == len(location) - 1:
            path = (*path, part)
        elif branch is None:
            union, branch = path, str(part)
    return path, union, branch


def _problem(path: KeyPath, item: Any, values: dict[str, Any]) -> Problem:
    if item["type"] == "value_error":
        return Problem(path, one_line(str(item["ctx"]["error"])))
    node = node_at(path, values)
    words = allowed(node) if node is not None else one_line(item["msg"])
    if item["type"] == "missing":
        return Problem(path, f"missing; it is {words}")
    value = values
    for part in path:
        value = value[part]  # type: ignore[index]
    return Problem(path, f"{shown(value)} is not allowed; it is {words}{_remedy(value, node)}")


def _remedy(value: Any, node: Node | None) -> str:
    kinds = {option.get("type") for option in options(node)} if node else set()
    if isinstance(value, float) and value.is_integer() and "integer" in kinds and abs(value) < 1e15:
        return f" (write {int(value)})"
    if isinstance(value, str) and kinds & {"integer", "number"}:
        plain = value.replace("_", "").replace(",", "")
        try:
            float(plain)
        except ValueError:
            return ""
        return f" (write {one_line(plain)}, without quotes)" if len(plain) <= 30 else ""
    if isinstance(value, str) and "boolean" in kinds and value.lower() in ("true", "false", "yes", "no", "on", "off"):
        return f" (write {'true' if value.lower() in ('true', 'yes', 'on') else 'false'}, without quotes)"
    if isinstance(value, str) and kinds == {"array"}:
        return f" (write [{shown(value, 30)}])"
    return ""
