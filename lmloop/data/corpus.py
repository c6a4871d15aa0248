"""Opening what a preset's data section names: sources, their splits, and what had to be left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmloop.data import frozen
from lmloop.data.catalog import built_in
from lmloop.data.files import Files
from lmloop.data.frozen import FrozenPart, HeldOut, StreamRest
from lmloop.data.hub import HubStream
from lmloop.data.listing import absolute
from lmloop.data.pdf import open_pdfs
from lmloop.data.pins import Pins
from lmloop.data.quarantine import Quarantine
from lmloop.data.run_folders import belongs_to
from lmloop.data.shuffle import Shuffled
from lmloop.data.source import Notify, Source, SourceError, one_line
from lmloop.data.split import PositionPart, split
from lmloop.preset.schema import DataSection
from lmloop.preset.sources import FilesSource, HubSource, PdfSource

SOURCES: dict[str, Callable[[str, Any, Quarantine, Notify], Source]] = {"files": Files, "hub": HubStream, "pdf": open_pdfs}
"""What can stand as a source's `type`."""

CHARACTERS_PER_TOKEN = 4
"""Of ordinary text under a usual tokenizer; for how much of a stream is held out."""


@dataclass(frozen=True)
class Corpus:
    """The sources that could be opened, in the preset's order.

    `notices` has a line for each source that was left out; sources add to it while they are
    read, when a file is gone or a stream breaks off.
    """

    train: list[Source]
    validation: list[Source]
    test: list[Source]
    notices: list[str] = field(default_factory=list)

    @property
    def is_one_document(self) -> bool:
        """What is trained is a single text, so no row holds parts of two."""
        return len(self.train) == 1 and len(self.train[0].parents() or ()) == 1


def source_names(sources: Sequence[FilesSource | HubSource | PdfSource | str]) -> list[str]:
    """The name of each source: a built-in name, a path or a data set; numbered where several would have the same."""
    names: list[str] = []
    for source in sources:
        if isinstance(source, str):
            name = source
        elif isinstance(source, FilesSource | PdfSource):
            name = source.path
        else:
            name = source.dataset if source.subset is None else f"{source.dataset}/{source.subset}"
        count = 1
        while (name if count == 1 else f"{name} ({count})") in names:
            count += 1
        names.append(name if count == 1 else f"{name} ({count})")
    return names


def trained_sources(section: DataSection) -> list[FilesSource | HubSource | PdfSource | str]:
    """What is trained on: `section.sources`, then what is replayed; they are named together."""
    return [*section.sources, *(section.replay.sources if section.replay else ())]


def replayed_names(section: DataSection) -> list[str]:
    """The names of the sources that are replayed."""
    return source_names(trained_sources(section))[len(section.sources) :]


def source_weights(section: DataSection) -> list[float]:
    """The weight of each of `section.sources`: from `source_weights`, else its own. ValueError on an unknown name."""
    names = source_names(section.sources)
    own = [1.0 if isinstance(source, str) else float(source.weight) for source in section.sources]
    if isinstance(section.source_weights, list):
        return [float(weight) for weight in section.source_weights]
    for name in section.source_weights or {}:
        if name not in names:
            raise ValueError(f"data.source_weights: no source is called '{name}': there are {', '.join(names)}")
    return [float((section.source_weights or {}).get(name, weight)) for name, weight in zip(names, own, strict=True)]


def open_corpus(
    section: DataSection, *, seed: int, eval_tokens: int, run_dir: Path | None, quarantine: Quarantine
) -> Corpus:
    """Open every source by reading its first document, and split what is open; sources that are replayed come last.

    seed: of `shuffle`. eval_tokens: how much is held out of a stream. run_dir: where that is kept; None writes nothing, and
    leaves streams unsplit. A source that cannot be read is dropped with a notice. SourceError when none is left;
    TooManyBadRows; ValueError on a name that is not known, and on a source that the run itself writes.
    """
    if not section.sources:
        raise ValueError("data.sources is empty: name at least one source, for example 'python_stdlib'")
    opening = _Opening(quarantine, Pins(run_dir), run_dir)
    source_weights(section)  # names that do not exist are refused before anything is read
    candidates, old = opening.trained(section)
    held_out = [] if section.validation is None else opening.live(opening.sources(section.validation), "data.validation")
    live = opening.live(candidates, "data.sources")
    live += opening.live(old, "data.replay.sources") if old else []
    candidates += old
    opening.keep_commits([*live, *held_out])
    shares = (section.split.validation if section.validation is None else 0.0, section.split.test)
    parts = _Parts(opening.notices, shares, seed if section.shuffle else None)
    streams = parts.freeze(candidates, live, eval_tokens, run_dir)
    for source in candidates:
        parts.add(source, source in live, streams.get(source.name))
    return Corpus(parts.train, held_out or parts.validation, parts.test, opening.notices)


def open_held_out(section: DataSection, *, seed: int, run_dir: Path, quarantine: Quarantine) -> Corpus:
    """The held-out parts of a run's own data, as its training saw them; writes nothing, and asks no stream again.

    SourceError when nothing can be read; ValueError on a damaged file of held-out text.
    """
    opening = _Opening(quarantine, Pins(run_dir))
    explicit = [] if section.validation is None else opening.live(opening.sources(section.validation), "data.validation")
    shares = (section.split.validation if section.validation is None else 0.0, section.split.test)
    parts = _Parts(opening.notices, shares, seed if section.shuffle else None)
    kept = [frozen.load(run_dir / f"{part}.jsonl") for part in ("validation", "test")]
    candidates, old = opening.trained(section)
    for source in candidates + old:
        have = [part.get(source.name) for part in kept]
        held = None if have == [None, None] else HeldOut(have[0] or [], have[1] or [])
        try:
            is_stream = source.parents() is None
        except SourceError:
            is_stream = False  # `fault` says why
        fault = None if is_stream else opening.fault(source)
        if fault is not None:
            opening.notify(f"left out: {fault}")
        parts.add(source, not is_stream and fault is None, held)
    return Corpus(parts.train, explicit or parts.validation, parts.test, opening.notices)


class _Opening:
    """Makes sources, finds out which can be read, and gathers notices."""

    def __init__(self, quarantine: Quarantine, pins: Pins, run_dir: Path | None = None) -> None:
        self.notices: list[str] = []
        self._run_dir = run_dir
        self._quarantine = quarantine
        self._pins = pins
        self._asked: dict[int, HubSource] = {}

    def notify(self, line: str) -> None:
        if line not in self.notices:
            self.notices.append(line)

    def sources(self, sections: Sequence[FilesSource | HubSource | PdfSource | str]) -> list[Source]:
        """All of them, none opened. ValueError on a name that is not known."""
        made: list[Source] = []
        for name, section in zip(source_names(sections), sections, strict=True):
            asked = built_in(section) if isinstance(section, str) else section
            resolved = self._pins.pinned(asked) if isinstance(asked, HubSource) else asked
            if not isinstance(resolved, HubSource) and self._run_dir and belongs_to(self._run_dir, absolute(resolved.path)):
                raise ValueError(f"data: source '{name}' is written by this very run: choose another path or output_dir")
            made.append(SOURCES[resolved.type](name, resolved, self._quarantine, self.notify))
            if isinstance(asked, HubSource):
                self._asked[id(made[-1])] = asked
        return made

    def trained(self, section: DataSection) -> tuple[list[Source], list[Source]]:
        """The new sources and those that are replayed, none opened."""
        made = self.sources(trained_sources(section))
        return made[: len(section.sources)], made[len(section.sources) :]

    def keep_commits(self, live: Sequence[Source]) -> None:
        """Pin what is read of the hub. OSError."""
        self._pins.keep([(self._asked[id(s)], s.commit) for s in live if isinstance(s, HubStream)])

    def live(self, sources: list[Source], key: str) -> list[Source]:
        """Those that have a first document. SourceError when that is none."""
        reasons = {source.name: self.fault(source) for source in sources}
        live = [source for source in sources if reasons[source.name] is None]
        faults = [reason for reason in reasons.values() if reason is not None]
        if not live:
            raise SourceError(f"{key}: no source can be read: {'; '.join(faults)}")
        for reason in faults:
            self.notify(f"left out: {reason}")
        return live

    def fault(self, source: Source) -> str | None:
        """Why a source gives no first document; None where it does."""
        try:
            if next(source.read({}), None) is not None:
                return None
        except SourceError as error:
            return one_line(error)
        reasons = self._quarantine.reasons(source.name)
        why = f"its rows are bad: {next(iter(reasons))}" if reasons else "its files are empty"
        return f"source '{source.name}' has no document ({why})"


class _Parts:
    """Splits sources one by one."""

    def __init__(self, notices: list[str], shares: tuple[float, float], shuffle_seed: int | None) -> None:
        self.train: list[Source] = []
        self.validation: list[Source] = []
        self.test: list[Source] = []
        self._notices = notices
        self._shares = shares
        self._seed = shuffle_seed

    def add(self, source: Source, is_live: bool, frozen_parts: HeldOut | None) -> None:
        """Put a source's parts where they belong. What was held out of a stream is used even where the stream is dead."""
        if frozen_parts is not None:
            self._add_held_out(source, frozen_parts)
        if not is_live:
            return
        if source.parents() is None:
            held = frozen_parts or HeldOut([], [])
            held_out = [*held.validation, *held.test]
            self.train.append(StreamRest(source, held_out) if held_out else source)
            return
        order = (
            Shuffled(source, self._seed, self._notify) if self._seed is not None and isinstance(source, Files) else source
        )
        parts = split(order, *self._shares, whole=source)
        if order is not source and isinstance(parts.train, PositionPart):
            self._notify(f"source '{source.name}' is one document, split by position: data.shuffle does not apply to it")
        self.train.append(parts.train)
        self.validation += [parts.validation] if parts.validation else []
        self.test += [parts.test] if parts.test else []

    def _notify(self, line: str) -> None:
        if line not in self._notices:
            self._notices.append(line)

    def _add_held_out(self, source: Source, held: HeldOut) -> None:
        if held.validation and self._shares[0]:
            self.validation.append(FrozenPart(source.name, held.validation))
        if held.test and self._shares[1]:
            self.test.append(FrozenPart(source.name, held.test))

    def freeze(
        self, candidates: list[Source], live: list[Source], eval_tokens: int, run_dir: Path | None
    ) -> dict[str, HeldOut]:
        """What is held out of each stream: as kept in the run's folder, else chosen now and kept there."""
        if run_dir is None or not any(self._shares):
            return {}
        paths = [run_dir / f"{part}.jsonl" for part in ("validation", "test")]
        kept = [frozen.load(path) for path in paths]
        characters = eval_tokens * CHARACTERS_PER_TOKEN // len(candidates) + 1
        wanted = [characters if share else 0 for share in self._shares]
        held: dict[str, HeldOut] = {}
        changed = [False, False]
        for source in candidates:
            have = [part.get(source.name) for part in kept]
            is_stream = source in live and source.parents() is None
            if not is_stream and have == [None, None]:
                continue
            missing = [is_stream and have[k] is None and wanted[k] > 0 for k in range(2)]
            if any(missing):
                chosen = frozen.head(source, wanted[0], wanted[1])
                for k, documents in enumerate((chosen.validation, chosen.test)):
                    if missing[k]:
                        have[k] = kept[k][source.name] = documents
                        changed[k] = True
            held[source.name] = HeldOut(have[0] or [], have[1] or [])
        for k, path in enumerate(paths):
            if changed[k]:
                frozen.save(path, kept[k])
        return held
