"""Choose a preset and train it. Behaviour is set in the presets in `configs/`, nowhere else."""

import sys

if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(
            f"main.py takes no arguments (got '{sys.argv[1]}'): what a run does is set in its preset in configs/; "
            "`lmloop train PRESET` starts one by name"
        )
    from lmloop.menu import main

    sys.exit(main())
