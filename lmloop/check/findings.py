"""Everything that a check of the data has found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from lmloop.check.bad_rows import BadRows
from lmloop.check.budget import Budget
from lmloop.check.counts import PartCounts
from lmloop.check.duplicates import Repeats
from lmloop.check.preview import Sample

PARTS = ("train", "validation", "test")
NONE_REPEATED = Repeats(0, 0, None, None)


@dataclass
class SourceFindings:
    """What was found in one source; `parts` has those that it has documents for."""

    name: str
    parts: dict[str, PartCounts] = field(default_factory=dict)
    repeats: dict[str, Repeats] = field(default_factory=dict)
    """By part: of the training part, documents that repeat an earlier one; of the others, those that stand in training."""
    bad: list[BadRows] = field(default_factory=list)
    refusal: str = ""
    """What training would stop with because of the bad rows."""
    empty: int = 0
    """Rows without text."""
    samples: list[Sample] = field(default_factory=list)

    @property
    def quarantined(self) -> int:
        """Bad rows."""
        return sum(entry.rows for entry in self.bad)


@dataclass
class Findings:
    """What was found in a preset's data."""

    preset: str
    path: str
    run: str
    seq_length: int
    sources: list[SourceFindings] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What opening and reading the data had to say: sources that were left out, files that are gone."""
    tokenizer: str = ""
    vocab_size: int = 0
    budget: Budget | None = None
    checkpoint_bytes: int = 0
    free_bytes: int = 0
    """On the disk of the run's folder, with what its present checkpoints take."""
    limit: int | None = None
    """Documents of each part of a source that were asked for."""
    interrupted: bool = False
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """Why training on it would be a mistake, a line each with the remedy."""
    warnings: list[str] = field(default_factory=list)
    """What somebody should know before training."""

    def parts(self, name: str | None = None) -> list[PartCounts]:
        """The counts of all sources' parts, or of those called `name`."""
        return [part for source in self.sources for key, part in source.parts.items() if name in (None, key)]

    @property
    def ok(self) -> bool:
        """Nothing speaks against training."""
        return not self.problems

    @property
    def complete(self) -> bool:
        """All of the data was read."""
        return not self.interrupted and all(part.complete for part in self.parts())

    def as_dict(self) -> dict[str, Any]:
        """As `check-data --json` prints it. `tokens` counts each document's end as one."""
        return {
            "preset": self.preset,
            "run": self.run,
            "ok": self.ok,
            "problems": self.problems,
            "warnings": self.warnings,
            "notices": self.notices,
            **_sums(self.parts()),
            "quarantined": sum(source.quarantined for source in self.sources),
            "complete": self.complete,
            "interrupted": self.interrupted,
            "parts": {name: _sums(self.parts(name)) for name in PARTS if self.parts(name)},
            "sources": [_source(source, self.budget) for source in self.sources],
            "tokenizer": {"is": self.tokenizer, "vocab_size": self.vocab_size},
            "budget": asdict(self.budget) if self.budget else None,
            "disk": {"needed_bytes": self.checkpoint_bytes, "free_bytes": self.free_bytes},
            "seconds": round(self.seconds, 3),
        }


def _sums(parts: Iterable[PartCounts]) -> dict[str, int]:
    parts = list(parts)
    return {
        "documents": sum(part.documents for part in parts),
        "characters": sum(part.characters for part in parts),
        "tokens": sum(part.tokens for part in parts),
        "trained_tokens": sum(part.trained_tokens for part in parts if part.part == "train"),
    }


def _source(source: SourceFindings, budget: Budget | None) -> dict[str, Any]:
    parts = {}
    for name, part in source.parts.items():
        repeats = source.repeats.get(name, NONE_REPEATED)
        counts = asdict(part)
        del counts["source"], counts["part"], counts["progress"]
        signs = counts.pop("signs")
        parts[name] = {**counts, **signs, "exact_repeats": repeats.exact, "near_repeats": repeats.near}
    return {
        "name": source.name,
        **_sums(source.parts.values()),
        "quarantined": source.quarantined,
        "bad_rows": [asdict(entry) for entry in source.bad],
        "empty": source.empty,
        "passes": budget.passes_by_source.get(source.name) if budget else None,
        "parts": parts,
    }
