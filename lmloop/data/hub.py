"""Data sets of the Hugging Face hub, streamed: read from the network as training needs them, resumed exactly.

A position holds the commit that is read, so that a data set that changes on the hub stays what it was for a run, and the
state of the `datasets` library, which goes to the right file and skips to the right row. Its `shuffle` is never used: the
buffer of a shuffled stream is lost at a resume.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

from lmloop.data.document import Document, Position
from lmloop.data.quarantine import Quarantine
from lmloop.data.reader import excerpt
from lmloop.data.records import BadRecordError, RecordShape
from lmloop.data.source import Notify, SourceError, one_line
from lmloop.preset.sources import HubSource

REACH_S = 3.0
"""How long the hub may take to answer at all, once per process."""

REQUEST_S = 10.0
"""How long it may take to say which commit a data set is at."""

RETRY_DELAYS_S = (1.0, 5.0, 15.0)
"""Pauses before a broken stream is opened again; after the last the source ends. A row read starts the count anew."""


class HubStream:
    """One split of a data set of the hub."""

    def __init__(self, name: str, section: HubSource, quarantine: Quarantine, notify: Notify) -> None:
        """Nothing is opened yet."""
        self.name = name
        self.section = section
        self._shape = RecordShape.of(section)
        self._quarantine = quarantine
        self._notify = notify
        self._revision: str | None = None
        self._ended = False
        subset = "" if section.subset is None else f"/{section.subset}"
        self._label = f"{section.dataset}{subset}:{section.split}"

    def parents(self) -> None:
        """A stream is not listed."""

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        """One pass from `position`. A stream that breaks and cannot be opened again ends, with a notice; from then on it is
        empty for this process, so that training goes on with the other sources instead of beginning this one again.
        """
        if self._ended:
            return
        local = os.path.isdir(self.section.dataset)
        revision = None if local else position.get("revision") or self._pinned()
        number = position.get("row", 0)
        good, bad = position.get("rows", (0, 0))
        for state, record in self._records(revision, position.get("state")):
            number += 1
            try:
                text = self._shape.text(record)
            except BadRecordError as error:
                bad += 1
                self._quarantine.bad(self.name, self._label, number, str(error), excerpt(str(record)))
                self._quarantine.check(self.name, good, bad)
                continue
            if text and not text.isspace():
                good += 1
                name = f"{self._label}#{number}"
                after = {"revision": revision, "state": state, "row": number, "rows": [good, bad]}
                yield Document(name, name, text, 0.0), after

    def _records(self, revision: str | None, state: Any) -> Iterator[tuple[Any, Any]]:
        """Each record with the state after it, over as many connections as it takes."""
        failures = 0
        begun = False
        while True:
            try:
                stream = self._open(revision)
                if state is not None:
                    stream.load_state_dict(state)
                records = iter(stream)
                while True:
                    record = next(records, None)
                    if record is None:
                        return
                    state, failures, begun = stream.state_dict(), 0, True
                    yield state, record
            except Exception as error:  # GeneratorExit is none; what a reader of the stream raises does not come here
                if isinstance(error, SourceError) and not begun:
                    raise
                failures += 1
                if not begun and not _may_pass(error):
                    raise SourceError(self._says(error)) from None
                if failures > len(RETRY_DELAYS_S) or not _may_pass(error):
                    if not begun:
                        raise SourceError(self._says(error)) from None
                    self._ended = True
                    self._notify(f"{self._says(error)}; training goes on without it")
                    return
            time.sleep(RETRY_DELAYS_S[failures - 1])

    def _open(self, revision: str | None) -> Any:
        """The stream as `datasets` has it."""
        import datasets

        _be_brief(datasets)
        return datasets.load_dataset(
            self.section.dataset, self.section.subset, split=self.section.split, streaming=True, revision=revision
        )

    def _pinned(self) -> str:
        """The commit that this process reads when no position names one. SourceError."""
        if self._revision is None:
            why = unreachable()
            if why is not None:
                raise SourceError(f"source '{self.name}': the Hugging Face hub cannot be reached ({why}): check the network")
            try:
                self._revision = commit_of(self.section.dataset, self.section.revision)
            except Exception as error:
                raise SourceError(self._says(error)) from None
        return self._revision

    def _says(self, error: Exception) -> str:
        """One line on what went wrong and what helps."""
        kind = type(error).__name__
        what = f"source '{self.name}' ({self.section.dataset})"
        if kind in ("RepositoryNotFoundError", "DatasetNotFoundError", "GatedRepoError"):
            return f"{what}: no such data set on the hub, or it needs a login: correct its name, or run `hf auth login`"
        if kind == "RevisionNotFoundError":
            return f"{what}: the hub has no revision '{self.section.revision}' of it: correct it or leave it out"
        return f"{what}: {kind}: {one_line(error, 200)}"


def _may_pass(error: Exception) -> bool:
    """Whether an error may be gone at the next attempt: the network's are, the data's are not."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if type(cause).__name__ in (
            "DatasetNotFoundError",
            "RepositoryNotFoundError",
            "GatedRepoError",
            "DataFilesNotFoundError",
        ):
            return False
        network = type(cause).__module__.partition(".")[0] in (
            "httpx",
            "httpx2",
            "httpcore",
            "aiohttp",
            "requests",
            "urllib3",
        )
        if network or (isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | PermissionError)):
            return True
        cause = cause.__cause__
    return False


def commit_of(dataset: str, revision: str | None) -> str:
    """The commit that a revision (default: the newest) of a data set stands for."""
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(dataset, revision=revision, timeout=REQUEST_S).sha
    if commit is None:
        raise ConnectionError("the hub did not say which commit this is")
    return commit


@cache
def unreachable() -> str | None:
    """Why the hub does not answer, or None when it does; asked once per process.

    The libraries' own retries take half a minute for each data set before they give up. Names are looked up in a thread,
    for no timeout ends a lookup.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_ask(constants.ENDPOINT)), daemon=True, name="hub-reach")
    thread.start()
    thread.join(REACH_S)
    return answer[0] if answer else f"no answer within {REACH_S:.0f} s"


def _ask(endpoint: str) -> str | None:
    import urllib.error
    import urllib.request

    reason, start = "", time.monotonic()
    for attempt in range(2):
        if attempt:
            time.sleep(0.5)
        try:
            with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=2 * REACH_S):
                return None
        except urllib.error.HTTPError:
            return None  # an answer, whatever it says
        except (OSError, ValueError) as error:
            reason = one_line(getattr(error, "reason", None) or error, 120)
        if time.monotonic() - start > REACH_S / 2:
            break  # nobody waits for a second answer
    return reason


def _be_brief(datasets: Any) -> None:
    """No progress bars, no warning for each retry, and few retries within the library: ours are above it."""
    import huggingface_hub.utils

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    datasets.config.STREAMING_READ_MAX_RETRIES = 3
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 2
    datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 5
    datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 15
    datasets.config.STREAMING_OPEN_MAX_RETRIES = 3
    datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 2
