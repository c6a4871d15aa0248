"""What holds for all tests."""

import os

# Several test processes, each with as many threads as there are cores, would spend their time waiting for one another.
# PyTorch reads this when it is first imported, which is after this file; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
