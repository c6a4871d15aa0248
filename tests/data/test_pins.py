from __future__ import annotations

from pathlib import Path

import pytest

from lmloop.data.pins import FILE, Pins
from lmloop.preset.sources import HubSource


def section(dataset: str = "owner/name", **options: str) -> HubSource:
    return HubSource.model_validate({"dataset": dataset, **options})


def test_what_was_read_first_stays(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pins = Pins(run_dir)
    assert pins.pinned(section()) == section()
    pins.keep([(section(), "a" * 40), (section("owner/dead"), None), (section(revision="v1"), "b" * 40)])
    later = Pins(run_dir)
    later.keep([(section(), "c" * 40), (section(subset="en"), "c" * 40)])
    for known in (later, Pins(run_dir)):
        assert known.pinned(section()).revision == "a" * 40
        assert known.pinned(section(subset="en", split="test")) == section(subset="en", split="test", revision="a" * 40)
        assert known.pinned(section(revision="v1")).revision == "b" * 40
        assert known.pinned(section(revision="v2")).revision == "v2"
        assert known.pinned(section("owner/dead")).revision is None


def test_without_a_folder_nothing_is_kept() -> None:
    pins = Pins(None)
    pins.keep([(section(), "a" * 40)])
    assert pins.pinned(section()) == section()


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', "\x00"])
def test_a_damaged_record(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"hub_commits.json is damaged: restore it, or delete it"):
        Pins(tmp_path)
