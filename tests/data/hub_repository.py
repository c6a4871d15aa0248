"""What a hub on loopback serves: data sets with their commits."""

from __future__ import annotations

import hashlib
from typing import Any


class Repository:
    """A data set: commits of files, of which `main` is the newest."""

    def __init__(self, name: str, files: dict[str, bytes], *, gated: bool, private: bool) -> None:
        self.name = name
        self.gated = gated
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.commit(files)

    def commit(self, files: dict[str, bytes]) -> str:
        """A new commit on main that holds `files`; its id."""
        digest = hashlib.sha1(f"{self.name} {len(self.commits)}".encode())
        for path in sorted(files):
            digest.update(path.encode() + hashlib.sha1(files[path]).digest())
        commit = digest.hexdigest()
        self.commits[commit] = dict(files)
        self.refs["main"] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file, as the hub lists it."""
    return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}


def tree(files: dict[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]] | None:
    """What is in a folder, as the hub lists it; None where there is no such folder."""
    prefix = folder + "/" if folder else ""
    inside = {path: data for path, data in files.items() if path.startswith(prefix)}
    if folder and not inside:
        return None
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(inside):
        names = path[len(prefix) :].split("/")
        for depth in range(1, len(names)):
            name = prefix + "/".join(names[:depth])
            if recursive or depth == 1:
                entries.setdefault(name, {"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
        if recursive or len(names) == 1:
            entries[path] = entry(path, inside[path])
    return list(entries.values())
