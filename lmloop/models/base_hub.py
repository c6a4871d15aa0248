"""Pretrained models of the Hugging Face hub: their files, fetched into its cache, and what went wrong in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lmloop.data.hub import unreachable
from lmloop.data.source import one_line
from lmloop.models.tensor_files import INDEX, SINGLE

T = TypeVar("T")

_LOGIN = "log in with `hf auth login`, or the variable HF_TOKEN"


def fetch_config(name: str, revision: str | None) -> Path:
    """The folder of the hub's cache that holds config.json of a model; it is named for the commit. ValueError, one line."""
    return _said(name, revision, lambda: _file(name, "config.json", revision)).parent


def fetch_weights(name: str, commit: str) -> None:
    """Fetch a model's safetensors, and what belongs to them, beside its config.json. ValueError, one line."""

    def fetch() -> None:
        _optional(name, "generation_config.json", commit)
        index = _optional(name, INDEX, commit)
        if index is None:
            _optional(name, SINGLE, commit)  # where there is none, who looks through the folder says so
            return
        places = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        for file in sorted(set(places.values())):
            _file(name, file, commit)

    _said(name, commit, fetch)


def fetch_code(name: str, commit: str) -> None:
    """Fetch the code of a model that is trusted. ValueError, one line."""
    from huggingface_hub import snapshot_download

    _said(name, commit, lambda: snapshot_download(name, revision=commit, allow_patterns="*.py", local_files_only=_offline()))


def _offline() -> bool:
    return unreachable() is not None  # asked once, and fast, where the hub's own client would try for half a minute


def _file(name: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, revision=revision, local_files_only=_offline()))


def _optional(name: str, file: str, revision: str) -> Path | None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return _file(name, file, revision)
    except LocalEntryNotFoundError:
        if not _offline():
            raise
        return None  # without the hub, what the cache lacks may not exist there either
    except EntryNotFoundError:
        return None


def _said(name: str, revision: str | None, fetch: Callable[[], T]) -> T:
    """`fetch`'s result, or a ValueError that says in one line why there is none."""
    try:
        return fetch()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"model.pretrained: {_words(error, name, revision)}") from None


def _words(error: BaseException, name: str, revision: str | None) -> str:
    from huggingface_hub import constants

    kinds = {kind.__name__ for kind in type(error).__mro__}
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    page = f"{constants.ENDPOINT}/{name}"
    if "GatedRepoError" in kinds:
        return f"{name} is gated: accept its conditions at {page}, then {_LOGIN}"
    if "RevisionNotFoundError" in kinds:
        return f"{name} has no revision '{revision}': correct model.revision or leave it out"
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return (
            f"{name} is no folder here, and no model of that name is on the hub, or it is private: correct it, or {_LOGIN}"
        )
    if "LocalEntryNotFoundError" in kinds:
        return f"{name} is no folder here and not to be had from the hub ({unreachable() or one_line(error, 120)})"
    if "EntryNotFoundError" in kinds:
        return f"{name} lacks a file that a model has ({one_line(error, 160)})"
    if status in (401, 403):
        return f"the hub refuses {name} to your token: renew it or correct its permissions ({_LOGIN})"
    return f"{name} could not be fetched ({one_line(error, 200)})"
