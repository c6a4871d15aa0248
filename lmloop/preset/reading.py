"""From a file to a preset: parse, extend, rename, check; every error is a `ValueError` of one line."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmloop.preset.aliases import Canonical, canonical
from lmloop.preset.check import Problem, check
from lmloop.preset.compare import preset_hash, resolved
from lmloop.preset.parsing import ENDINGS, one_line, read_file, shown
from lmloop.preset.schema import Preset
from lmloop.preset.shape import KeyPath, dotted, sections

__all__ = [
    "LoadedPreset",
    "find_preset",
    "list_presets",
    "load_preset",
    "preset_from_resolved",
    "preset_hash",
    "presets_folder",
    "resolved",
]

MAX_CHAIN = 16
OWN_KEYS = ("name", "description", "output_dir")
"""What `extends` does not hand on: two presets in one folder would overwrite each other's model without having said so."""

_BUDGETS = ("epochs", "max_steps", "num_tokens", "epochs_per_length")


@dataclass(frozen=True)
class LoadedPreset:
    """A preset, where it was read from, and what there is to say about how it was read."""

    preset: Preset
    path: Path
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Layer:
    """One file of a chain of `extends`."""

    path: Path
    content: Canonical


def load_preset(path: str | Path) -> LoadedPreset:
    """The preset that the file at `path` describes.

    Raises:
        ValueError: one line with the file, the key, its value and what is allowed; with several errors, the first and how
            many more there are.
    """
    path = Path(path)
    layers = _chain(path)
    values = _merged([layer.content.values for layer in reversed(layers)])
    notes = [note for layer in layers for note in layer.content.notes] + _complete(values, layers)
    problems = [_Located(layer.path, key, text) for layer in layers for key, text in layer.content.problems]
    checked = check(values)
    if isinstance(checked, list):
        problems += [_located(problem, layers) for problem in checked]
    elif not problems and not checked.data.sources:
        problems.append(_Located(path, "data.sources", 'empty; name what to train on, for example ["python_stdlib"]'))
    if problems or isinstance(checked, list):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(one_line(f"{problems[0]}{more}"))
    return LoadedPreset(checked, path, notes)


def list_presets(folder: str | Path) -> list[tuple[Path, LoadedPreset | ValueError]]:
    """The preset files of `folder` in the order of their names, each with its preset or with what is wrong with it."""
    entries: list[tuple[Path, LoadedPreset | ValueError]] = []
    for path in preset_files(Path(folder)):
        try:
            entries.append((path, load_preset(path)))
        except ValueError as error:
            entries.append((path, error))
    return entries


def presets_folder() -> Path:
    """Where presets are found by name: `configs` in the working directory, else the one that came with the program."""
    here = Path("configs")
    return here if here.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def find_preset(text: str, folder: str | Path | None = None) -> Path:
    """The file that `text` means: a path, or the name (with or without ending) of a preset in `folder`.

    `folder` is `presets_folder()` unless given.
    """
    given = Path(text)
    if _exists(given) or len(given.parts) != 1:
        return given
    folder = presets_folder() if folder is None else Path(folder)
    found = _named(folder, text)
    if found is None:
        raise ValueError(
            one_line(f"{text[:200]}: no such file, and no preset of that name{_those_there(folder, given.stem)}")
        )
    return found


def preset_from_resolved(values: dict[str, Any], origin: str) -> Preset:
    """The preset whose `resolved` form is `values`, as a checkpoint holds it; `origin` names it in errors."""
    checked = check(values)
    if isinstance(checked, list):
        more = f" (and {len(checked) - 1} more)" if len(checked) > 1 else ""
        raise ValueError(one_line(f"{origin}: {dotted(checked[0].path)}: {checked[0].text}{more}"))
    return checked


def preset_files(folder: Path) -> list[Path]:
    """Files of `folder` that end like a preset's, by name; none if there is no such folder."""
    try:
        return sorted(
            path for path in folder.iterdir()
            if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and not path.is_dir()
        )  # fmt: skip
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class _Located:
    path: Path
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.key + ': ' if self.key else ''}{self.text}"


def _located(problem: Problem, layers: list[_Layer]) -> _Located:
    """The problem with the file that wrote the value, under the name by which it was written there."""
    for end in range(len(problem.path), 0, -1):
        for layer in layers:
            if _holds(layer.content.values, problem.path[:end]):
                key = dotted(problem.path)
                for canonical_key, written in layer.content.written.items():
                    if key == canonical_key or key.startswith((canonical_key + ".", canonical_key + "[")):
                        key += f" (written as {written})"
                        break
                return _Located(layer.path, key, problem.text)
    return _Located(layers[0].path, dotted(problem.path), problem.text)


def _holds(values: Any, path: KeyPath) -> bool:
    for key in path:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _chain(path: Path) -> list[_Layer]:
    """The file at `path` and what it extends, the nearest first."""
    layers: list[_Layer] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        document = _read(current)
        real = Path(os.path.realpath(current))
        seen.append(real)
        layers.append(_Layer(current, canonical({k: v for k, v in document.items() if k not in ("$schema", "extends")})))
        if document.get("extends") is None:
            return layers
        following = _extended(current, document["extends"])
        if Path(os.path.realpath(following)) in seen:
            names = " → ".join(layer.path.name for layer in layers)
            raise ValueError(one_line(f"{current}: extends: a circle: {names} → {following.name}"))
        if len(layers) == MAX_CHAIN:
            raise ValueError(one_line(f"{path}: extends: a chain of more than {MAX_CHAIN} presets"))
        current = following
    return layers


def _extended(path: Path, other: object) -> Path:
    """The file that `extends: other` in the file at `path` means."""
    if not isinstance(other, str) or not other.strip():
        raise ValueError(
            one_line(f"{path}: extends: {shown(other)} is not allowed; it is a file, or a preset's name in the same folder")
        )
    try:
        named = _named(path.parent, other) if len(Path(other).parts) == 1 else None
    except ValueError as error:
        raise ValueError(one_line(f"{path}: extends: {error}")) from None
    target = named or path.parent / Path(other).expanduser()
    if not _exists(target):
        raise ValueError(
            one_line(f"{path}: extends: {shown(other)}: no such preset{_those_there(target.parent, target.stem)}")
        )
    return target


def _named(folder: Path, name: str) -> Path | None:
    """The preset `name` of `folder`, by its file's name with or without the ending."""
    files = preset_files(folder)
    found = [path for path in files if path.name == name] or [path for path in files if path.stem == name]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(one_line(f"{shown(name)}: {folder} has {names}: write the ending too"))
    return found[0] if found else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _those_there(folder: Path, wanted: str) -> str:
    """The presets of `folder` for a message, the one most like `wanted` first."""
    from rapidfuzz import fuzz

    names = sorted((path.name for path in preset_files(folder)), key=lambda name: -fuzz.ratio(name, wanted[:200]))
    more = ", …" if len(names) > 8 else ""
    return f"; in {folder} there are {', '.join(names[:8])}{more}" if names else f"; in {folder} there is no preset"


def _read(path: Path) -> dict[str, Any]:
    if not _exists(path):
        raise ValueError(one_line(f"{str(path)[:300]}: no such file{_those_there(path.parent, path.stem)}"))
    if path.is_dir():
        raise ValueError(one_line(f"{path}: a folder, not a preset{_those_there(path, '')}"))
    try:
        return read_file(path)
    except ValueError as error:
        raise ValueError(one_line(f"{path}: {error}")) from None


def _merged(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Documents laid over one another, the base first: sections key by key, everything else as a whole."""
    result: dict[str, Any] = {}
    for document in documents:
        result = {key: value for key, value in result.items() if key not in OWN_KEYS}
        train = document.get("train")
        if (
            isinstance(train, dict)
            and isinstance(result.get("train"), dict)
            and any(train.get(key) is not None for key in _BUDGETS)
        ):
            result["train"] = {key: value for key, value in result["train"].items() if key not in _BUDGETS}
        for key, value in document.items():
            result[key] = _laid_over(result.get(key), value, key)
    return result


def _laid_over(under: Any, over: Any, path: str) -> Any:
    if path not in _SECTION_PATHS or not isinstance(over, dict):
        return over
    under = under if isinstance(under, dict) else {}
    return {**under, **{key: _laid_over(under.get(key), value, f"{path}.{key}") for key, value in over.items()}}


_SECTION_PATHS = {*sections(), "data.split"}


def _complete(values: dict[str, Any], layers: list[_Layer]) -> list[str]:
    """Fill in what follows from what is written, and say so: name, order of seed files, context of a schedule."""
    notes: list[str] = []
    if "name" not in values:
        values["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", layers[0].path.stem).lstrip("._-")[:100] or "preset"
    for layer in layers:
        for key, value in layer.content.defaults.items():
            section, _, name = key.partition(".")
            if isinstance(values.get(section), dict) and name not in values[section]:
                values[section][name] = value
                notes.append(f"{key} is {shown(value)}: `data_configs` are read in strict order")
    notes += _find_journal(values)
    model, train = values.setdefault("model", {}), values.get("train")
    if isinstance(model, dict) and model.get("pretrained") is not None:
        _bring_tokenizer(values, model)
    if isinstance(model, dict) and isinstance(train, dict) and "seq_length" not in model:
        longest = _longest(train.get("sequence_schedule"))
        if longest is not None:
            model["seq_length"] = longest
            notes.append(f"model.seq_length is {longest}: the longest of train.sequence_schedule")
    return notes


def _find_journal(values: dict[str, Any]) -> list[str]:
    """The journal is read first by itself, and is no source besides: written as one, it is taken from there; in the folder
    of one, it is left out of that."""
    journal, data = values.get("journal"), values.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(journal, dict) or not isinstance(data, dict) or not isinstance(sources, list):
        return []
    named = journal.get("path") or journal.get("system_prompt_path")
    if not isinstance(named, str):
        return []
    kept, notes = [], []
    for source in sources:
        inside = _inside(source, named)
        if inside == ".":
            journal["path"] = named
            notes.append(f"data.sources: {shown(named)} is the journal, which is read first, before the sources")
            continue
        excluded = source.get("exclude", []) if isinstance(source, dict) else None
        if inside and journal.get("path") and isinstance(source, dict) and isinstance(excluded, list):
            pattern = "./" + re.sub(r"[*?{}\[\],]", "?", inside)
            source = source if pattern in excluded else {**source, "exclude": [*excluded, pattern]}
        kept.append(source)
    data["sources"] = kept
    return notes


def _inside(source: object, path: str) -> str:
    """Where `path` is in a source of files: relative to its folder, '.' where it is the source itself, '' elsewhere."""
    written = source.get("path") if isinstance(source, dict) else None
    if not isinstance(written, str):
        return ""
    folder, wanted = (os.path.abspath(os.path.expanduser(name)) for name in (written, path))
    if wanted != folder and not wanted.startswith(folder.rstrip(os.sep) + os.sep):
        return ""
    return os.path.relpath(wanted, folder).replace(os.sep, "/")


def _bring_tokenizer(values: dict[str, Any], model: dict[str, Any]) -> None:
    """A pretrained model's tokenizer is its own, unless another path is written."""
    tokenizer = values.setdefault("tokenizer", {})
    if isinstance(tokenizer, dict) and tokenizer.get("type", "pretrained") == "pretrained" and "path" not in tokenizer:
        tokenizer.update(type="pretrained", path=model["pretrained"])
        if model.get("revision") is not None:
            tokenizer.setdefault("revision", model["revision"])


def _longest(schedule: object) -> int | None:
    if isinstance(schedule, dict):
        schedule = [schedule.get("start"), schedule.get("end")]
    if not isinstance(schedule, list):
        return None
    lengths = [item.get("length") if isinstance(item, dict) else item for item in schedule]
    numbers = [length for length in lengths if isinstance(length, int) and not isinstance(length, bool)]
    return max(numbers) if numbers and len(numbers) == len(lengths) and min(numbers) > 0 else None
