"""What the documents promise to hold."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_last_torture_is_on_record_without_a_failure() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = page.partition("<!-- result of `make torture` -->")[2].partition("<!-- end of the result -->")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) >= 9, table
    assert [row[3].strip() for row in rows] == ["0"] * len(rows), table


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_messages_in_the_troubleshooting_table_are_what_the_program_says() -> None:
    source = "".join(path.read_text() for path in (ROOT / "lmloop").rglob("*.py"))
    for words in ("no source can be read", "left out:", "unknown key", "does not fit in memory", "is not used", "is done"):
        assert words in (ROOT / "docs" / "troubleshooting.md").read_text(), words
        assert words in source, words


def test_the_file_for_rented_machines_runs_what_everybody_runs() -> None:
    import yaml

    task = yaml.safe_load((ROOT / "cloud" / "sky.yaml").read_text())
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert task["setup"].split() == ["make", "env"]
    assert task["run"].split() == ["echo", '"$PRESET"', "|", "make", "train"]
    assert {"env", "train"} <= set(targets)
    assert any(path.stem == task["envs"]["PRESET"] for path in (ROOT / "configs").iterdir())
