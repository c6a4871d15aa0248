"""The process in which a program is asked: MODULE FOLDER QUESTIONS ANSWERS."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from lmloop.export.questions import NOT_HERE, Questions


def main() -> None:
    """Read the questions, ask, write the answers. Status NOT_HERE: the program itself cannot be started."""
    module, folder, asked, answered = sys.argv[1:]
    try:
        program = importlib.import_module(f"lmloop.export.consumers.{module}")
    except Exception as error:  # what fails here is its installation
        print(error)
        sys.exit(NOT_HERE)
    program.answer(Path(folder), Questions.read(Path(asked))).write(Path(answered))


if __name__ == "__main__":
    main()
