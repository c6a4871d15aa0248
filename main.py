"""Choose a preset and train it. Behaviour is set in the presets in `configs/`, nowhere else."""

import importlib.util
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(
            f"main.py takes no arguments (got '{sys.argv[1]}'): what a run does is set in its preset in configs/; "
            "`lmloop train PRESET` starts one by name"
        )
    if importlib.util.find_spec("torch") is None:  # another Python than the environment's
        own = Path(__file__).resolve().parent / ".venv" / "bin" / "python"
        if not own.exists():
            sys.exit("the environment is not set up: run `make train`, or `make env` for that alone")
        os.execv(own, [str(own), __file__])
    from lmloop.menu import main

    sys.exit(main())
