"""What holds for all tests."""

import os

import hypothesis

# Several test processes, each with as many threads as there are cores, would spend their time waiting for one another.
# PyTorch reads this when it is first imported, which is after this file; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is the machine's affair; only what it shows is a test's.
hypothesis.settings.register_profile("lmloop", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("lmloop")
