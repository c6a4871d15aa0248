"""The lanes that one rank works: a lane for each part of a source of which it may train rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmloop.data.source import Source, SourceError
from lmloop.preset.schema import DataSection
from lmloop.tokens.batch import RowBlock
from lmloop.tokens.chat_packing import ChatLane
from lmloop.tokens.conversations import ChatEncoder
from lmloop.tokens.dealing import workers
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.packed import PackedLane
from lmloop.tokens.packing import Lane

Key = tuple[int, int]
"""A lane: index of its source, and which part of it."""


@dataclass(frozen=True)
class Part:
    """Rows from one lane, and their places in the step."""

    key: Key
    places: np.ndarray
    block: RowBlock


@dataclass(frozen=True)
class Rows:
    """The rows of a step of all ranks as they are planned, and those of the lanes that this rank works.

    slot_N: which slot of the round each row has, int64. source_N: its source. A planned row that its lane could not give is
    in none of the parts.
    """

    slot_N: np.ndarray
    source_N: np.ndarray
    parts: list[Part]


def lane_of(
    source: Source,
    encoder: Encoder,
    chats: ChatEncoder | None = None,
    *,
    index: int = 0,
    min_text_length: int = 0,
    check: Callable[[], None] = lambda: None,
) -> PackedLane[Any, Any]:
    """What packs a source, or a part of it, into rows; `chats` for those whose names it knows."""
    if chats is not None and source.name in chats.names:
        return ChatLane(source, encoder.tokenizer, chats, index=index, min_text_length=min_text_length, check=check)
    return Lane(source, encoder.tokenizer, index=index, min_text_length=min_text_length, encoder=encoder, check=check)


def too_short(skipped: int, too_long: int = 0) -> str:
    """What to add where a source gave no document: that it has some, but they are too short, or too long."""
    if too_long:
        return " of which an answer fits into model.seq_length"
    return " that is long enough for data.min_text_length" if skipped else ""


def nothing_left(
    names: Sequence[str], skipped: int, broken: bool = False, faults: Sequence[str] = (), too_long: int = 0
) -> SourceError:
    """The end of a run: no source gives a document. `broken`: one broke off; `faults` may say why."""
    quoted = ", ".join(f"'{name}'" for name in names)
    if broken:
        return SourceError(f"no source is left: {'; '.join(faults) or f'{quoted} broke off: check the network'}")
    return SourceError(f"no source ({quoted}) gives a document{too_short(skipped, too_long)}: correct data.sources")


class Lanes:
    """See above. worked: the lanes by key. counts: parts of each source. shared: the lanes that all ranks work."""

    def __init__(
        self,
        parts: Sequence[Sequence[Source]],
        encoder: Encoder,
        chats: ChatEncoder | None,
        section: DataSection,
        *,
        rank: int,
        world: int,
        check: Callable[[], None],
    ) -> None:
        self.names = [sources[0].name for sources in parts]
        self.counts = [len(sources) for sources in parts]
        self.keys: list[Key] = [(index, part) for index, count in enumerate(self.counts) for part in range(count)]
        ranks = {(index, part): workers(part, self.counts[index], world) for index, part in self.keys}
        self.shared = {key for key in self.keys if len(ranks[key]) == world}
        self.worked = {
            (index, part): lane_of(
                parts[index][part], encoder, chats, index=index, min_text_length=section.min_text_length, check=check
            )
            for index, part in self.keys
            if rank in ranks[index, part]
        }
        self._others: dict[str, Any] = {}

    def skipped(self, source: int) -> int:
        """Documents of a source that were left out as too short, in the lanes worked here."""
        return sum(lane.skipped for (index, _), lane in self.worked.items() if index == source)

    def too_long(self, source: int) -> int:
        """Conversations of a source that were left out as too long, in the lanes worked here."""
        return sum(lane.too_long for (index, _), lane in self.worked.items() if index == source)

    def state_dict(self) -> dict[str, Any]:
        """By source: the number of its parts, and the lanes worked here. Sources that are absent keep what they had."""
        state = {name: {"count": count, "parts": {}} for name, count in zip(self.names, self.counts, strict=True)}
        for (index, part), lane in self.worked.items():
            state[self.names[index]]["parts"][str(part)] = lane.state_dict()
        return {**self._others, **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; a source that was in other parts then begins anew."""
        self._others = {name: entry for name, entry in state.items() if name not in self.names}
        for (index, part), lane in self.worked.items():
            entry = state.get(self.names[index], {})
            same = entry.get("count") == self.counts[index]
            lane.load_state_dict(entry["parts"].get(str(part), {}) if same else {})
