"""A preset's file as plain values: strict JSON, and the part of YAML 1.2 that says the same.

Both give the same kinds of value: objects with text keys, lists, text, whole numbers, finite numbers, true, false and null.
Whatever could mean two things (a key written twice, NaN, an anchor, a date) is an error rather than a guess.
"""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_YAML_BYTES = 250_000  # PyYAML reads 50 kB/s of the worst: a few seconds at the most
MAX_DEPTH = 32
MAX_DIGITS = 30
ENDINGS = (".json", ".yaml", ".yml")

_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAG = "tag:yaml.org,2002:"


def one_line(text: str) -> str:
    """`text` without anything that a terminal would not show within one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: object, length: int = 60) -> str:
    """`value` as it would stand in JSON, shortened to `length` characters."""
    text = one_line(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= length else text[: length - 1] + "…"


def read_file(path: Path) -> dict[str, Any]:
    """The object that the file at `path` holds; `ValueError` (without the file's name) where it holds anything else."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"a preset's file name ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    return parse(data, "json" if path.suffix.lower() == ".json" else "yaml")


def parse(data: bytes, kind: str) -> dict[str, Any]:
    """The object that `data` (UTF-8) writes down, `kind` being `json` or `yaml`."""
    limit = MAX_BYTES if kind == "json" else MAX_YAML_BYTES
    if len(data) > limit:
        raise ValueError(f"larger than {limit:,} bytes: this is not a preset")
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError("starts with a byte order mark: save it as UTF-8 without BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}: save it as UTF-8") from None
    if not text.strip():
        raise ValueError('empty: a preset is an object, at the least { "data": { "sources": […] } }')
    try:
        value = _json(text) if kind == "json" else _yaml(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"{_kind(value)} where a preset's object is expected")
    _check_tree(value)
    return value


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _check_tree(value: object) -> None:
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(item, dict):
            stack += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            stack += [(part, depth + 1) for part in item]
        elif isinstance(item, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in item):
            raise ValueError(f"{shown(item)}: a text with a NUL or with half of a surrogate pair")


def _whole(text: str, base: int = 10) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}…: a number of {len(text)} digits")
    return int(text, base)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)}: not a finite number")
    return value


def _json(text: str) -> Any:
    def constant(name: str) -> Any:
        raise ValueError(f"{name}: not a finite number")

    def closed_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"{shown(key)}: this key stands twice in one object")
            result[key] = value
        return result

    try:
        return json.loads(
            text, parse_constant=constant, parse_float=_number, parse_int=_whole, object_pairs_hook=closed_object
        )
    except json.JSONDecodeError as error:
        hint = "JSON has no comments, no trailing commas and double quotes only"
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg} ({hint})") from None


class _Nodes(yaml.SafeLoader):
    """PyYAML up to its tree of nodes; what a plain scalar means is decided here, by YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (read from the class, but typed as of an instance)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1
            raise ValueError(f"line {line}: anchors and aliases are not read: write the value out, or use `extends`")
        return super().compose_node(parent, index)


def _yaml(text: str) -> Any:
    try:
        node = _Nodes(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(one_line(f"{place}{error.problem or error.context} (not YAML)")) from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(f"{str(error).splitlines()[0]} (not YAML)")) from None
    except (ArithmeticError, LookupError, TypeError, AttributeError) as error:  # e.g. the escape "\UFFFFFFFF"
        raise ValueError(one_line(f"not YAML: {error}")) from None
    return _value(node)


def _value(node: Any) -> Any:
    if node is None:
        return None
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        if node.tag != _TAG + "map":
            raise ValueError(f"line {line}: the tag {shown(node.tag)} is not read")
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _key(key_node)
            if key in result:
                raise ValueError(f"line {key_node.start_mark.line + 1}: {shown(key)}: this key stands twice in one object")
            result[key] = _value(value_node)
        return result
    if isinstance(node, yaml.SequenceNode):
        if node.tag != _TAG + "seq":
            raise ValueError(f"line {line}: the tag {shown(node.tag)} is not read")
        return [_value(item) for item in node.value]
    return _scalar(node)


def _key(node: Any) -> str:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"line {line}: a key is a text, not a list or an object")
    value = _scalar(node)
    if node.value == "<<" and not node.style:
        raise ValueError(f"line {line}: merge keys (<<) are not read: use `extends`")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"line {line}: the key {shown(node.value)} is not a text: put it in quotes")
    return node.value  # `epochs_per_length` has lengths for keys: JSON writes them as text, and so do we


def _scalar(node: Any) -> Any:
    line = node.start_mark.line + 1
    text: str = node.value
    if node.tag != _TAG + "str":
        raise ValueError(f"line {line}: the tag {shown(node.tag)} is not read: write the plain value")
    if node.style:  # quoted, or a block of text
        return text
    try:
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            return _whole(text)
        if _OCTAL.fullmatch(text):
            return _whole(text[2:], 8)
        if _HEXADECIMAL.fullmatch(text):
            return _whole(text[2:], 16)
        if _FLOAT.fullmatch(text):
            return _number(text)
        if _NOT_FINITE.fullmatch(text):
            raise ValueError(f"{text}: not a finite number")
    except ValueError as error:
        raise ValueError(f"line {line}: {error}") from None
    return text
