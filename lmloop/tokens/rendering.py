"""Where chat templates are rendered: ours here, a model's in a process of its own with limits of time, memory and output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmloop.confined import Confined, ConfinedError
from lmloop.data.source import one_line
from lmloop.tokens import template_worker
from lmloop.tokens.skeleton import ChatTemplateError, Job

RENDER_S = 2.0
"""Computing time for a batch, of which an ordinary one needs some hundredths; for one conversation alone as much."""

RENDER_BYTES = 512 << 20
MOST_SOURCE_CHARACTERS = 1_000_000

_MOST_VIOLATIONS = 2
"""A template may break a limit so often in a row before it is given up: more would look like a hang."""

_BATCH_JOBS = 256
_BATCH_CHARACTERS = 1 << 20


class GivenUpError(ValueError):
    """A template broke its limits again and again: whatever it is given, it is of no use. One line."""


class Trusted:
    """Renders one of our own templates."""

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        self._source = source
        self._tokens = tokens

    def __call__(self, jobs: Sequence[Job]) -> list[list[str]]:
        """See `Render`."""
        return template_worker.render(self._source, self._tokens, jobs)

    def close(self) -> None:
        """There is nothing to end."""


class Untrusted:
    """Renders a template that nobody vouches for."""

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        """The process starts with the first rendering. ChatTemplateError when the template is too large to be one."""
        if len(source) > MOST_SOURCE_CHARACTERS:
            raise ChatTemplateError(f"the template has {len(source):,} characters: it is none")
        self._source = source
        self._tokens = tokens
        self._process = Confined("lmloop.tokens.template_worker:render", memory_bytes=RENDER_BYTES)
        self._violations = 0

    def __call__(self, jobs: Sequence[Job]) -> list[list[str]]:
        """See `Render`.

        Raises:
            ChatTemplateError: the jobs broke a limit, or the template is none.
            GivenUpError: a limit was broken several times in a row.
        """
        try:
            rendered = self._process.call(self._source, self._tokens, jobs, timeout_s=RENDER_S)
        except ConfinedError as error:
            self._violations += 1
            kind = ChatTemplateError if self._violations <= _MOST_VIOLATIONS else GivenUpError
            raise kind(f"the template breaks a limit: {one_line(error)}") from None
        except ValueError as error:
            raise ChatTemplateError(f"the template cannot be read: {one_line(error)}") from None
        self._violations = 0
        return [[text, *(one_line(reason) for reason in reasons)] for text, *reasons in rendered]

    def each(self, jobs: Sequence[Job]) -> Iterator[list[str]]:
        """As `__call__`, for any number of jobs; where one breaks a limit, the others are rendered all the same."""
        for batch in _batches(jobs):
            try:
                yield from self(batch)
            except ChatTemplateError:
                for job in batch:
                    yield self._alone(job)

    def _alone(self, job: Job) -> list[str]:
        try:
            return self([job])[0]
        except ChatTemplateError as error:
            return ["", str(error)]

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        self._process.close()


def _batches(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    batch: list[Job] = []
    characters = 0
    for job in jobs:
        batch.append(job)
        characters += sum(len(content) for _, content in job[0])
        if len(batch) >= _BATCH_JOBS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
