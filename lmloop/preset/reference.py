"""Writes docs/presets.md and docs/preset.schema.json from the schema: `python -m lmloop.preset.reference [--check]`."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmloop.preset.aliases import ALIASES, FIXED, SECTION_ALIASES, SOURCE_TYPES, UNSUPPORTED, UNSUPPORTED_SOURCES, VALUES
from lmloop.preset.compare import APPLIES, FEED, MODEL, NOTHING, OPTIMIZER, effect_of
from lmloop.preset.fields import Section
from lmloop.preset.parsing import shown
from lmloop.preset.reading import OWN_KEYS
from lmloop.preset.schema import TOKENS_PER_RUN, ExportSection, Ramp, Stage
from lmloop.preset.shape import Node, allowed, leaves, properties, resolve, root, sections
from lmloop.preset.sources import FilesSource, HubSource, PdfSource

DOCS = Path(__file__).resolve().parents[2] / "docs"

_INTRODUCTION = f"""\
# Presets

<!-- Written by `python -m lmloop.preset.reference` from the descriptions in lmloop/preset/. Change them there. -->

A preset is a JSON or YAML file that says what is trained, on what, and how. It is the only place where behaviour is set.
Everything has a default but the data; this is a complete preset:

```json
{{
  "$schema": "../docs/preset.schema.json",
  "description": "My notes",
  "data": {{ "sources": [{{ "type": "files", "path": "./notes" }}] }}
}}
```

The presets in `configs/` are listed by `python main.py`; `lmloop train FILE` takes one from anywhere.

- **Strict.** A key that does not exist is an error that names the nearest one that does; so is a value of the wrong kind
  (`"yes"` for `true`, `3.0` for `3`), a key written twice, or NaN. Nothing is written before a preset is found to be right.
- **JSON and YAML** say the same. YAML is read as version 1.2: `3e-4` is a number, `on` and `2024-01-01` are text; anchors
  and tags are refused. A file is UTF-8, at most 1 MB (YAML: 250 kB).
- **`$schema`** is for editors: with `"$schema": "../docs/preset.schema.json"` they complete keys and show their meaning. In
  YAML write `# yaml-language-server: $schema=../docs/preset.schema.json` in the first line.
- **`null`** stands for the default wherever the default is "none".

## extends

`"extends": "00_best_general"` lays a preset over another one: a name in the same folder, or a file relative to this one.
The sections are merged key by key; any other value, lists included, is replaced as a whole. A budget replaces the other's
budget. {", ".join(f"`{key}`" for key in OWN_KEYS[:-1])} and `{OWN_KEYS[-1]}` are never taken over: two presets train in
one folder only where both say so.

## Budget

A run ends after `train.epochs`, `train.max_steps`, the stages of `train.sequence_schedule` or `train.epochs_per_length`:
one of them. Started again, it says that it is done. A preset with none of them trains **{TOKENS_PER_RUN:,} tokens per run**,
and again as many each time it is started, from where the model stands; `train.num_tokens` (`"10B"`) ends that at a total.
Tokens are trained targets, without padding.

## Row lengths

`train.sequence_schedule` changes the length of rows over the run; tokens per update stay the same, so shorter rows come in
greater number. It is one of

- lengths, `[1, 128, 512]`: equal shares of the run, or with `epochs_per_length` `{{"1": 1, "128": 3, "512": 6}}` that many
  epochs each;
- stages, `[{{"length": 1, "epochs": 1}}, {{"length": 512, "epochs": 9}}]`, by `epochs` or by `tokens`; these are the budget;
- a ramp, `{{"start": 64, "end": 512, "until": 0.5}}`, linear in the share of the run that is done.

No length exceeds `model.seq_length`; where that is not set, it is the longest of the schedule. A length of 1 means one input
token and the token after it.
"""

_SOURCES = """\
## Sources

An entry of `data.sources` or `data.validation` is a built-in name (`wikipedia`, `openwebtext`, `c4`, `bookcorpus`,
`pile_subset`, `common_crawl`, `fineweb-edu`, `python_stdlib`) or an object whose `type` says what it is. Without a `type`,
an object with a `path` is `files` and one with a `dataset` is `hub`.
"""


def render_markdown() -> str:
    """The text of docs/presets.md."""
    parts = [
        _INTRODUCTION,
        "## The preset itself\n\n" + _table(_own_keys()),
        _nested("Entry of `export`", ExportSection),
    ]
    for name, node in sections().items():
        rows = [(key, child) for dotted, child in leaves(node) for key in [dotted]]
        parts.append(f"## {name}\n\n{_doc(node)}\n\n{_table(rows)}")
        if name == "data":
            parts.append(_SOURCES)
            parts += [
                _nested(f"Source of type `{kind}`", model)
                for kind, model in (("files", FilesSource), ("hub", HubSource), ("pdf", PdfSource))
            ]
        if name == "train":
            parts += [_nested("Entry of `sequence_schedule`", Stage), _nested("Ramp as `sequence_schedule`", Ramp)]
    parts += [_aliases(), _changes()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def render_schema() -> str:
    """The text of docs/preset.schema.json: what an editor may complete, with `$schema`, `extends` and `type: hf`."""
    schema: dict[str, Any] = copy.deepcopy(root())
    schema["required"] = []
    schema["properties"] = {
        "$schema": {"type": "string", "description": "Where an editor finds this schema."},
        "extends": {
            "type": "string",
            "minLength": 1,
            "description": "A preset in the same folder, or a file, that this one is laid over.",
        },
        **schema["properties"],
    }
    for definition in schema["$defs"].values():
        kind = definition.get("properties", {}).get("type", {})
        if "const" in kind:
            names = [kind.pop("const"), *(alias for alias, name in SOURCE_TYPES.items() if name == kind.get("default"))]
            kind["enum"] = names
    for items in _discriminated(schema):
        items.pop("discriminator")
        items["anyOf"] = items.pop("oneOf")
    return (
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2, ensure_ascii=False)
        + "\n"
    )


def _discriminated(node: Any) -> Iterable[dict[str, Any]]:
    if isinstance(node, dict):
        if "discriminator" in node:
            yield node
        for value in list(node.values()):
            yield from _discriminated(value)
    elif isinstance(node, list):
        for value in node:
            yield from _discriminated(value)


def _own_keys() -> list[tuple[str, Node]]:
    return [(key, node) for key, node in properties(root()).items() if key not in sections()]


def _nested(title: str, model: type[Section]) -> str:
    node = resolve({"$ref": f"#/$defs/{model.__name__}"})
    required = set(node.get("required", []))
    rows = list(properties(node).items())
    return f"### {title}\n\n{_doc(node)}\n\n{_table(rows, required)}"


def _doc(node: Node) -> str:
    model = {m.__name__: m for m in _models(Section)}[node["title"]]
    return (model.__doc__ or "").strip()


def _models(base: type[Section]) -> Iterable[type[Section]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def _table(rows: Iterable[tuple[str, Node]], required: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    lines = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    for key, node in rows:
        default = "required" if key in required else _default(key, node)
        words = allowed(node, "`") if key != "type" else f"`{node['const']}`" if "const" in node else allowed(node, "`")
        meaning = resolve(node).get("description", "")
        lines.append(f"| `{key}` | {_cell(words)} | {default} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _default(key: str, node: Node) -> str:
    if key == "name":
        return "the file's name"
    if "default" not in node:
        factory = {"prompts": '`[""]`'}  # pydantic's JSON schema does not say what a factory makes
        return factory.get(key, "`[]`")
    return "none" if node["default"] is None else f"`{shown(node['default'])}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _aliases() -> str:
    by_target: dict[str, list[str]] = {}
    for alias, target in {**SECTION_ALIASES, **ALIASES}.items():
        by_target.setdefault(target, []).append(alias)
    lines = [
        "## Other names",
        "",
        "Configurations written for other programs load as they are where their keys mean the same: these names are read at",
        "the top level and in the key's section, and so are the canonical keys themselves at the top level (`learning_rate`",
        "is `train.learning_rate`). Two names of one key with different values are an error. `data_configs` also makes",
        "`data.mix_strategy` `sequential` where nothing else is set.",
        "",
        "| key | other names |",
        "| --- | --- |",
    ]
    lines += [f"| `{target}` | {', '.join(f'`{alias}`' for alias in names)} |" for target, names in by_target.items()]
    lines += ["", "| key | other names of its values |", "| --- | --- |"]
    for target, values in VALUES.items():
        lines.append(f"| `{target}` | {', '.join(f'`{shown(old)}` is `{shown(new)}`' for old, new in values.items())} |")
    lines += ["", "Read, and answered with a note, since their meaning is fixed:", ""]
    lines += [f"- `{key}`: {meaning}." for key, meaning in FIXED.items()]
    lines += [
        "",
        "Refused, since they mean something that lmloop does otherwise or not at all:",
        "",
        "| name | answer |",
        "| --- | --- |",
    ]
    by_answer: dict[str, list[str]] = {}
    for name, answer in UNSUPPORTED.items():
        by_answer.setdefault(answer, []).append(f"`{name}`")
    for name, answer in UNSUPPORTED_SOURCES.items():
        by_answer.setdefault(answer, []).append(f"source type `{name}`")
    lines += [f"| {', '.join(names)} | {answer} |" for answer, names in by_answer.items()]
    return "\n".join(lines) + "\n"


def _changes() -> str:
    keys: dict[str, list[str]] = {}
    entries = [key for key, _ in leaves()] + ["data.sources[].description"]
    for key in entries:
        keys.setdefault(effect_of(key), []).append(f"`{key}`")
    meaning = {
        NOTHING: "not part of the preset's hash: the run goes on exactly as it would have.",
        APPLIES: "weights, optimizer and feed are as they were.",
        FEED: "the data is read from its beginning.",
        OPTIMIZER: "weights and feed are as they were.",
        MODEL: "what does not fit the folder's checkpoint is refused, with the difference named, unless it only grows.",
    }
    lines = [
        "## Changing a preset",
        "",
        "A run is its folder and a hash of its preset. A preset with the same hash resumes exactly; with another one, each",
        "changed key is named with what it does:",
        "",
    ]
    for effect, text in meaning.items():
        lines += [f"**{effect[0].upper()}{effect[1:]}**: {text}", "", ", ".join(keys[effect]) + ".", ""]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write the documents, or with `--check` say which are stale; the exit status."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m lmloop.preset.reference [--check]", file=sys.stderr)
        return 2
    documents = {DOCS / "presets.md": render_markdown(), DOCS / "preset.schema.json": render_schema()}
    if not arguments:
        DOCS.mkdir(exist_ok=True)
        for path, text in documents.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [p for p, text in documents.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"docs/{path.name} is stale: run `python -m lmloop.preset.reference`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
