"""Who of several processes is still alive.

A process that ends closes its connections, and whoever waits for it learns so at once. One that is stopped, or whose
machine is gone, says nothing; and one that works for long (a slow disk, a source that answers late) says nothing either. So
each process writes a number into the launcher's store every few seconds, from a thread that runs while it works, and reads
those of the others.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

LONGEST_PAUSE_S = 5.0
"""Between two signs of life; shorter where the limit is."""

_LEFT = b"left"


class Heartbeat:
    """The signs of life of one process, and how long those of the others have been missing.

    `lost` is called with a rank, in a thread of its own, when that rank has given no sign of life for `limit_s`. Only time
    in which this process itself could listen counts, so that stopping all of them together and going on harms nothing.
    """

    def __init__(self, store: Store, *, rank: int, world: int, limit_s: float, lost: Callable[[int], None]) -> None:
        """`store` is used by nobody else: a wait in another thread would block it."""
        self._store = store
        self._rank = rank
        self._keys = [f"alive/{other}" for other in range(world)]
        self._limit_s = limit_s
        self._lost = lost
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Wait until every process has given its first sign, and begin. RuntimeError when one does not come in time."""
        self._say(b"0")
        self._store.wait(self._keys, timedelta(seconds=self._limit_s))
        self._thread.start()

    def stop(self) -> None:
        """This process leaves in order: nobody is to miss it."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # the launcher may be gone already
            self._say(_LEFT)

    def _say(self, word: bytes) -> None:
        self._store.set(self._keys[self._rank], word.decode())

    def _run(self) -> None:
        pause_s = min(self._limit_s / 4, LONGEST_PAUSE_S)
        patience = math.ceil(self._limit_s / pause_s)
        heard = [b""] * len(self._keys)
        missed = [0] * len(self._keys)
        beat = 0
        while not self._end.wait(pause_s):
            beat += 1
            try:
                self._say(str(beat).encode())
                words = self._store.multi_get(self._keys)
            except RuntimeError:  # the launcher is gone; processes that end are noticed without it
                return
            for other, word in enumerate(words):
                missed[other] = missed[other] + 1 if word == heard[other] != _LEFT else 0
                heard[other] = word
                if missed[other] >= patience and not self._end.is_set():
                    self._lost(other)
