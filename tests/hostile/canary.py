"""A canary: files that leave a mark when anybody runs what is in them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Bird:
    """Unpickled, it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.mark,)


def as_pickle(mark: Path) -> bytes:
    return pickle.dumps(Bird(mark), protocol=2)


def as_torch(mark: Path, **state: Any) -> bytes:
    """As `torch.save` writes it, beside a `state`."""
    out = io.BytesIO()
    torch.save({"bird": Bird(mark), **state}, out)
    return out.getvalue()


def as_torch_of_old(mark: Path) -> bytes:
    out = io.BytesIO()
    torch.save(Bird(mark), out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def as_array(mark: Path) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Bird(mark)], dtype=object), allow_pickle=True)
    return out.getvalue()


def as_python(mark: Path) -> str:
    return f"import os\nos.mkdir({str(mark)!r})\n"


def as_yaml(mark: Path) -> str:
    return f"!!python/object/apply:os.mkdir [{json.dumps(str(mark))}]"


def as_template(mark: Path) -> str:
    """A template of Jinja that gets at `os` where nothing keeps it in."""
    return (
        "{% for c in ''.__class__.__mro__[1].__subclasses__() if c.__name__ == '_wrap_close' %}"
        "{{ c.__init__.__globals__['mkdir'](" + json.dumps(str(mark)) + ") }}{% endfor %}"
        "{{ messages[0].content }}{{ lipsum.__globals__['os'].mkdir(" + json.dumps(str(mark)) + ") }}"
    )


def in_a_file(content: bytes | str) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return put


def vouched(path: Path) -> None:
    """Make the manifest beside a checkpoint say that its content is the right one."""
    manifest = path.with_suffix(".manifest.json")
    if manifest.exists():
        data = path.read_bytes()
        content = json.loads(manifest.read_text()) | {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest.write_text(json.dumps(content))
