"""Which commits of the hub's data sets a run reads, kept in its folder: what the hub has later is for later runs.

A position names its commit too, but a pass begins without one, and so does a process that has to know the files of a data
set before it knows any position.
"""

from __future__ import annotations

import json
from pathlib import Path

from lmloop import durable
from lmloop.preset.sources import HubSource

FILE = "hub_commits.json"


class Pins:
    """Commits by data set and the revision that the preset asks for, as `owner/name@revision`."""

    def __init__(self, run_dir: Path | None) -> None:
        """Those on record in a run's folder; None keeps none. ValueError when the record is damaged."""
        self._path = None if run_dir is None else run_dir / FILE
        self._commits: dict[str, str] = {}
        if self._path is not None and self._path.exists():
            try:
                self._commits = json.loads(self._path.read_text(encoding="utf-8"))
                assert all(isinstance(commit, str) for commit in self._commits.values())
            except (ValueError, AttributeError, AssertionError, RecursionError):
                raise ValueError(f"{self._path} is damaged: restore it, or delete it to take what the hub has now") from None

    def pinned(self, section: HubSource) -> HubSource:
        """The section with the commit that is on record for its revision."""
        commit = self._commits.get(_key(section))
        return section if commit is None else section.model_copy(update={"revision": commit})

    def keep(self, read: list[tuple[HubSource, str | None]]) -> None:
        """Record what was read for which section, unless something is on record for it. OSError."""
        new = {_key(section): commit for section, commit in read if commit is not None}
        new = {key: commit for key, commit in new.items() if key not in self._commits}
        if new and self._path is not None:
            self._commits.update(new)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            durable.atomic_write(self._path, json.dumps(self._commits, indent=1, sort_keys=True) + "\n")


def _key(section: HubSource) -> str:
    return f"{section.dataset}@{section.revision or ''}"
