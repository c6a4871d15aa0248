"""The commands that are shown to people, as they have to type them here."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(*words: str) -> str:
    """`lmloop` with `words`, quoted for a shell in the present folder.

    Where the shell does not find the program by its name, as after `make train` without activating the environment, it is
    named by its path beside the Python that runs.
    """
    return shlex.join([_program(), *words])


def _program() -> str:
    program = Path(sys.executable).parent / "lmloop"
    if shutil.which("lmloop") or not program.exists():
        return "lmloop"
    relative = os.path.relpath(program)
    return str(program) if relative.startswith("..") else relative
