"""Sources that are known by name."""

from __future__ import annotations

import difflib
import sysconfig
from collections.abc import Callable

from lmloop.preset.sources import FilesSource, HubSource


def _python_stdlib() -> FilesSource:
    """The text and code of the standard library that runs this program: on every machine, and real."""
    return FilesSource.model_validate(
        {
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


def _hub(dataset: str, subset: str | None, description: str) -> Callable[[], HubSource]:
    return lambda: HubSource.model_validate({"dataset": dataset, "subset": subset, "description": description})


BUILT_IN: dict[str, Callable[[], FilesSource | HubSource]] = {
    "python_stdlib": _python_stdlib,
    "wikipedia": _hub("wikimedia/wikipedia", "20231101.en", "English Wikipedia, November 2023"),
    "openwebtext": _hub("dylanebert/openwebtext", None, "OpenWebText: pages linked from Reddit (Parquet copy)"),
    "c4": _hub("allenai/c4", "en", "C4: cleaned Common Crawl of April 2019, English"),
    "bookcorpus": _hub("SamuelYang/bookcorpus", None, "BookCorpus: sentences of unpublished novels, lower case"),
    "pile_subset": _hub("monology/pile-uncopyrighted", None, "The Pile without the parts under copyright"),
    "common_crawl": _hub("HuggingFaceFW/fineweb", "sample-10BT", "FineWeb: filtered Common Crawl, 10 B tokens"),
    "fineweb-edu": _hub("HuggingFaceFW/fineweb-edu", "sample-10BT", "FineWeb-Edu: educational web pages, 10 B tokens"),
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
    return BUILT_IN[name]()
