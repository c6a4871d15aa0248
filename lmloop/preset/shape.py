"""The schema of a preset as plain data: which keys there are, and in words what each may be.

Everything here is read off the JSON schema that pydantic derives from `schema.py`, so that error messages, the reference
and the completion in editors say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from lmloop.preset.schema import Preset

Node = dict[str, Any]
KeyPath = tuple[str | int, ...]

PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "up to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit",
    r"^[0-9]+(\.[0-9]+)?[KMBT]?$": 'text like "500M" or "10B"',
}
"""What a pattern of the schema means to a person."""


@cache
def _schema() -> Node:
    return Preset.model_json_schema()


def root() -> Node:
    """The node of the whole preset."""
    return _schema()


def resolve(node: Node) -> Node:
    """`node` with a reference replaced by what it refers to; a section that may be left out is that section."""
    parts = node.get("anyOf", [])
    if len(parts) == 2 and "$ref" in parts[0] and parts[1].get("type") == "null":
        node = {"$ref": parts[0]["$ref"], **{key: value for key, value in node.items() if key != "anyOf"}}
    if "$ref" not in node:
        return node
    target = _schema()["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def options(node: Node) -> list[Node]:
    """The alternatives that `node` offers, without null."""
    node = resolve(node)
    parts = node.get("anyOf") or node.get("oneOf")
    if parts is None:
        return [] if node.get("type") == "null" else [node]
    return [option for part in parts for option in options(part)]


def properties(node: Node) -> dict[str, Node]:
    """The keys of a section; empty for anything else."""
    return resolve(node).get("properties", {})


def sections() -> dict[str, Node]:
    """Name and node of each section of a preset."""
    return {key: resolve(node) for key, node in properties(root()).items() if properties(node)}


def kind(option: Node) -> str | None:
    """The `type` that an object must have to be meant by `option`."""
    return properties(option).get("type", {}).get("const")


def fitting(node: Node, value: object) -> Node | None:
    """The alternative of `node` that somebody who wrote `value` meant; None where its kind is not among them."""
    if isinstance(value, dict):
        objects = [option for option in options(node) if option.get("type") == "object"]
        if any(kind(option) for option in objects):
            return next((option for option in objects if kind(option) == value.get("type")), None)
        return objects[0] if objects else None
    if isinstance(value, list):
        lists = [option for option in options(node) if option.get("type") == "array"]
        has_objects = any(isinstance(item, dict) for item in value)
        return next(
            (o for o in lists if has_objects == any(properties(i) for i in options(o["items"]))), next(iter(lists), None)
        )
    return None


def node_at(path: KeyPath, values: Any) -> Node | None:
    """The node that describes the value at `path` of `values`."""
    node: Node | None = root()
    for key in path:
        branch = fitting(node, values)
        if branch is None:
            return None
        if isinstance(key, int):
            node = branch["items"]
            values = values[key]
        else:
            node = branch.get("properties", {}).get(key) or branch.get("additionalProperties") or None
            values = values.get(key)
        if node is None:
            return None
    return node


def leaves(node: Node | None = None, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Dotted key and node of everything in a preset that is not itself a section."""
    for key, child in properties(node if node is not None else root()).items():
        if properties(child):
            yield from leaves(child, f"{prefix}{key}.")
        else:
            yield prefix + key, resolve(child)


def dotted(path: KeyPath) -> str:
    """`("data", "sources", 0, "path")` as `data.sources[0].path`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def allowed(node: Node, quote: str = "'") -> str:
    """What `node` may be, in words."""
    words: list[str] = []
    constants: list[str] = []
    kinds: list[str] = []
    for option in options(node):
        if (given := _constants(option)) is not None:
            constants += [f"{quote}{constant}{quote}" for constant in given]
        elif name := kind(option):
            kinds.append(f"{quote}{name}{quote}")
        elif option.get("type") == "boolean":
            words += [f"{quote}true{quote}", f"{quote}false{quote}"] if quote == "`" else ["true", "false"]
        else:
            words.append(_words(option, quote))
    if kinds:
        words.append(f"an object of type {_either(kinds)}")
    return _either(words + constants)


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _constants(option: Node) -> list[Any] | None:
    return [option["const"]] if "const" in option else option.get("enum")


def _words(option: Node, quote: str) -> str:
    match option.get("type"):
        case "integer":
            return "a whole number" + _bounds(option)
        case "number":
            return "a number" + _bounds(option)
        case "array":
            return f"a list ({allowed(option['items'], quote)})"
        case "object" if len(properties(option)) > 6:
            return "an object with keys of its own"
        case "object" if properties(option):
            return f"an object with {', '.join(quote + key + quote for key in properties(option))}"
        case "object":
            return f"an object whose values are {allowed(option['additionalProperties'], quote)}"
    pattern = option.get("pattern")
    if pattern is not None:
        return PATTERNS[pattern]
    return "text" if not option.get("minLength") else "text (not empty)"


def _bounds(option: Node) -> str:
    low, above = option.get("minimum"), option.get("exclusiveMinimum")
    high, below = option.get("maximum"), option.get("exclusiveMaximum")
    start = f"above {_figure(above)}" if above is not None else f"from {_figure(low)}" if low is not None else ""
    end = f"below {_figure(below)}" if below is not None else f"{_figure(high)}" if high is not None else ""
    if start and end:
        return f" {start}, {end}" if below is not None else f" {start}{',' if above is not None else ''} to {end}"
    return f" {start or end}" if start or end else ""


def _figure(value: float) -> str:
    digits = str(int(value)) if value == int(value) else ""
    if len(digits) > 9 and digits.strip("0") == "1":
        return f"1e{len(digits) - 1}"
    return f"{int(value):,}" if digits else f"{value:g}"
