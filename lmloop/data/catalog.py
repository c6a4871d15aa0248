"""Sources that are known by name.

What is said of a data set's size and licence is what its card on the hub says; where nothing was found, nothing is said.
Whoever trains on it should read the card.
"""

from __future__ import annotations

import difflib
import sysconfig
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lmloop.preset.sources import FilesSource, HubSource


@dataclass(frozen=True)
class Entry:
    """A source by name.

    fields: what its records hold. section: what a preset would have to spell out.
    """

    kind: Literal["pretraining", "fine-tuning", "preferences"]
    domain: str
    size: str
    licence: str
    fields: tuple[str, ...]
    section: FilesSource | HubSource

    def as_dict(self, name: str) -> dict[str, Any]:
        """All of it as JSON has it."""
        section = self.section.model_dump(mode="json", exclude_unset=True, exclude={"description"})
        facts = {**asdict(self), "fields": list(self.fields), "section": section}
        return {"name": name, "description": self.section.description, **facts}


def _hub(description: str, dataset: str, **options: Any) -> HubSource:
    return HubSource.model_validate({"type": "hub", "dataset": dataset, "description": description, **options})


_PYTHON_STDLIB = FilesSource.model_validate(
    {
        "type": "files",
        "path": sysconfig.get_paths()["stdlib"],
        "file_pattern": "**/*.{py,txt}",
        "exclude": [
            "site-packages",
            "dist-packages",
            "__pycache__",
            "test",
            "tests",
            "idle_test",
            "lib2to3/tests",
            "config-*",
        ],
        "data_type": "text",
        "description": "Text and code of the Python standard library on this machine",
    }
)

_WEB = ("text", "id", "dump", "url", "date", "file_path", "language", "language_score", "token_count")

BUILT_IN: dict[str, Entry] = {
    "python_stdlib": Entry("pretraining", "code and English", "", "PSF-2.0", (), _PYTHON_STDLIB),
    "wikipedia": Entry(
        "pretraining",
        "encyclopaedia, English",
        "",
        "CC-BY-SA-3.0, GFDL",
        ("id", "url", "title", "text"),
        _hub("English Wikipedia, November 2023", "wikimedia/wikipedia", subset="20231101.en"),
    ),
    "fineweb-edu": Entry(
        "pretraining",
        "educational web pages, English",
        "10 B tokens",
        "ODC-By",
        _WEB,
        _hub("FineWeb-Edu: educational web pages, 10 B tokens", "HuggingFaceFW/fineweb-edu", subset="sample-10BT"),
    ),
    "common_crawl": Entry(
        "pretraining",
        "web pages, English",
        "10 B tokens",
        "ODC-By",
        _WEB,
        _hub("FineWeb: filtered Common Crawl, 10 B tokens", "HuggingFaceFW/fineweb", subset="sample-10BT"),
    ),
    "c4": Entry(
        "pretraining",
        "web pages, English",
        "365 M pages",
        "ODC-By",
        ("text", "timestamp", "url"),
        _hub("C4: cleaned Common Crawl of April 2019, English", "allenai/c4", subset="en"),
    ),
    "openwebtext": Entry(
        "pretraining",
        "web pages, English",
        "",
        "",
        ("text",),
        _hub("OpenWebText: pages linked from Reddit (Parquet copy)", "dylanebert/openwebtext"),
    ),
    "bookcorpus": Entry(
        "pretraining",
        "novels, English",
        "",
        "",
        ("text",),
        _hub("BookCorpus: sentences of unpublished novels, lower case", "SamuelYang/bookcorpus"),
    ),
    "pile_subset": Entry(
        "pretraining",
        "mixed, mostly English",
        "",
        "other (see its card)",
        ("text",),
        _hub("The Pile without the parts under copyright", "monology/pile-uncopyrighted"),
    ),
    "alpaca": Entry(
        "fine-tuning",
        "instructions, English",
        "52,002 rows",
        "CC-BY-NC-4.0",
        ("instruction", "input", "output", "text"),
        _hub("Alpaca: instructions, answered by a model", "tatsu-lab/alpaca", data_type="alpaca"),
    ),
    "dolly": Entry(
        "fine-tuning",
        "instructions, English",
        "15 k rows",
        "CC-BY-SA-3.0",
        ("instruction", "context", "response", "category"),
        _hub(
            "Dolly: instructions, written and answered by people",
            "databricks/databricks-dolly-15k",
            data_type="alpaca",
            columns={"input": "context"},
        ),
    ),
    "ultrachat": Entry(
        "fine-tuning",
        "conversations, English",
        "207,865 rows",
        "",
        ("prompt", "prompt_id", "messages"),
        _hub(
            "UltraChat 200k: conversations with a model",
            "HuggingFaceH4/ultrachat_200k",
            split="train_sft",
            data_type="messages",
        ),
    ),
    "ultrafeedback": Entry(
        "preferences",
        "answers compared, English",
        "61.1 k rows",
        "",
        ("prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"),
        _hub(
            "UltraFeedback: two answers to a prompt, the better and the worse",
            "HuggingFaceH4/ultrafeedback_binarized",
            split="train_prefs",
            data_type="pairs",
        ),
    ),
}
"""Built-in names. Each stands for a section that a preset could spell out; no data set needs a loading script."""


def built_in(name: str) -> FilesSource | HubSource:
    """The source that a built-in name stands for. ValueError names the nearest."""
    if name not in BUILT_IN:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(BUILT_IN)}."
        raise ValueError(
            f"data.sources: no built-in source is called '{name}': {hint} Files and data sets are objects with a `type`"
        )
    return BUILT_IN[name].section


def listed(kind: str | None = None) -> list[dict[str, Any]]:
    """The entries of one kind, or all, as JSON has them."""
    return [entry.as_dict(name) for name, entry in BUILT_IN.items() if kind in (None, entry.kind)]


def table(entries: list[dict[str, Any]]) -> Any:
    """The same for a terminal, as a table of rich."""
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in ("name", "kind", "size", "licence", "domain", "fields", "from"):
        shown.add_column(column, overflow="fold")
    for entry in entries:
        section = entry["section"]
        place = "/".join(section[key] for key in ("dataset", "subset") if key in section) or "this machine"
        shown.add_row(
            *(entry[key] or "?" for key in ("name", "kind", "size", "licence", "domain")), ", ".join(entry["fields"]), place
        )
    return shown
