"""What lies beside a checkpoint: its size and SHA-256, and where in training it was saved.

PyTorch's own format does not notice flipped bits, so a checkpoint is trusted only if a manifest vouches for its content.
Any manifest of the folder may do so, not only the one of the same name: in the middle of a rotation names and content are
apart for a moment.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

ENDING = ".manifest.json"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Facts about one checkpoint file. `saved` is an ISO 8601 time in UTC, `torch` the version that wrote the file.

    `shards` is the folder of its parts, where its tensors are held in parts.
    """

    sha256: str
    bytes: int
    step: int
    tokens: int
    preset_hash: str
    saved: str
    torch: str
    shards: str = ""

    def to_json(self) -> str:
        """The content of a manifest file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def manifest_path(checkpoint: Path) -> Path:
    """Where the manifest of `checkpoint` lies: `lm_best.pth` has `lm_best.manifest.json`."""
    return checkpoint.with_name(checkpoint.stem + ENDING)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`; None where there is none or it is damaged (then it vouches for nothing)."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    fields = dataclasses.fields(Manifest)
    if not isinstance(content, dict):
        return None
    content = {"shards": "", **content}
    if set(content) != {field.name for field in fields}:
        return None
    for field in fields:
        if type(content[field.name]).__name__ != field.type:
            return None
    manifest = Manifest(**content)
    return manifest if _SHA256.fullmatch(manifest.sha256) else None


def read_manifests(folder: Path) -> dict[str, Manifest]:
    """Every readable manifest of `folder` by the SHA-256 that it vouches for."""
    found = (read_manifest(path) for path in sorted(folder.glob("*" + ENDING)))
    return {manifest.sha256: manifest for manifest in found if manifest is not None}
