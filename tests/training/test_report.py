import base64
import hashlib
import json
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lmloop.training.report import MAX_SAMPLES, write_report
from lmloop.training.run_files import read_run

EVIL = "</pre></script><script>alert('x')</script><img src=x onerror=alert(1)>\x1b[31m\ud800"


class Page(HTMLParser):
    """The page as a browser's parser would count it: elements, their attributes, and the text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._skip = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skip = False

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def metric(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": step * 1_000,
        "loss": 1 + 3 / step,
        "tokens_per_s": 5_000.0 + step % 7,
        "seq_len": 64 if step < 50 else 128,
        "lr": 1e-3 / step,
        "grad_norm": 0.5 + 1 / step,
        "epoch": 0,
        "stage": 0,
        "fraction": step / 100,
        "feed_wait": 0.01,
        "memory_bytes": 1_000_000_000,
        "sources": {"notes": 0.75, "web": 0.25},
        "elapsed_s": step * 0.2,
        "skipped": 0,
        **more,
    }


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def record(**more: Any) -> dict[str, Any]:
    phases = {"setup": 5.0, "train": 80.0, "data": 1.0, "evaluate": 10.0, "sample": 2.0, "save": 1.0}
    return {
        "name": "tiny",
        "description": "a small one",
        "preset": {"name": "tiny"},
        "preset_hash": "abc",
        "preset_path": "configs/my tiny.yaml",
        "machine": {"device": "cpu", "memory_bytes": 16_000_000_000},
        "versions": {"torch": "2.13.0"},
        "parameters": {"total": 4_213_760},
        "status": "finished",
        "reason": "the budget is used up",
        "warnings": [{"step": 10, "message": "update skipped"}, {"step": 20, "message": "update skipped"}],
        "sessions": [
            {"started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:01:40+00:00", "from_step": 0, "to_step": 100}
            | {"phases": phases}
        ],
        **more,
    }


def evaluated(step: int) -> dict[str, Any]:
    loss = 1.1 + 3 / step
    return metric(step, val_loss=loss, val_perplexity=math.exp(loss), val_bits_per_byte=loss / 2, val_tokens=1_000)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record()))
    write_lines(folder / "metrics.jsonl", [evaluated(s) if s % 20 == 0 else metric(s) for s in range(1, 101)])
    write_lines(
        folder / "samples.jsonl",
        [{"step": s, "tokens": s * 1_000, "prompt": "Once", "text": f" upon {s}"} for s in range(20, 101, 20)],
    )
    return folder


def page_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def test_it_says_what_happened(run_dir: Path) -> None:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    text = " ".join(Page(path.read_text(encoding="utf-8")).text.replace("\N{NO-BREAK SPACE}", " ").split())
    best = 1.1 + 3 / 100
    for said in (
        "finished",
        "the budget is used up",
        f"Best validation loss {best:.4g} at 100 k tokens",
        f"{math.exp(best):.4g}",
        f"{best / 2:.4g}",
        "4.21 M",
        "2 times, steps 10 to 20",
        "update skipped",
        f"lmloop chat {run_dir}",
        "lmloop train 'configs/my tiny.yaml'",
        "1 min 40 s in all",
        "notes75 %",
        "Row length",
        "16 GB",
        "2.13.0",
        "Once upon 100",
    ):
        assert said in text, said


def test_it_is_self_contained_and_its_policy_allows_its_script(run_dir: Path) -> None:
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", html)
    [policy] = [a["content"] or "" for tag, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy"]
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_text_from_models_and_data_is_escaped(run_dir: Path) -> None:
    clean = page_of(run_dir)
    hostile = record(name="x" + EVIL, description=EVIL, reason=EVIL, preset={EVIL: EVIL}, machine={EVIL: EVIL})
    hostile["warnings"] = [{"step": 1, "message": EVIL}, {"step": 2, "message": "again"}]
    (run_dir / "run.json").write_text(json.dumps(hostile))
    write_lines(run_dir / "samples.jsonl", [{"step": 1, "tokens": 1, "prompt": EVIL, "text": EVIL}])
    write_lines(run_dir / "metrics.jsonl", [metric(s, sources={EVIL: 0.5, "web": 0.5}) for s in range(1, 101)])
    write_lines(run_dir / "quarantine.jsonl", [{"source": EVIL, "file": EVIL, "line": 1, "reason": EVIL, "excerpt": EVIL}])
    page = page_of(run_dir)
    assert page.count("img") == 0
    assert page.count("script") == clean.count("script")
    assert page.text.count("<script>alert('x')</script>") >= 10
    assert (
        "\x1b" not in (run_dir / "report.html").read_text(encoding="utf-8").split("What it wrote")[1].split("</article>")[0]
    )


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    text = page_of(tmp_path).text
    assert "No step has been logged yet" in text
    assert "run.json is missing" in text


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "samples.jsonl", "quarantine.jsonl"])
@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe\x00\n{", b"null\n7\n[]\n", b'{"tokens": "many", "text": 3, "warnings": 1}\n{}\n']
)
def test_missing_and_torn_files_are_survived(run_dir: Path, name: str, content: bytes | None) -> None:
    (run_dir / name).unlink(missing_ok=True)
    if content is not None:
        (run_dir / name).write_bytes(content)
    assert "What to do next" in page_of(run_dir).text


@pytest.mark.parametrize(
    "wrong",
    [
        {"sessions": {"a": 1}},
        {"sessions": [{"started": "yesterday", "ended": 4, "phases": {"train": "long", "other": 3}}]},
        {"sessions": [{}], "parameters": [1], "machine": "cpu", "warnings": ["x", {"message": None}], "status": ["?"]},
        {"preset": None, "name": 5, "reason": None, "status": "lost"},
    ],
)
def test_a_record_of_another_shape_is_survived(run_dir: Path, wrong: dict[str, Any]) -> None:
    (run_dir / "run.json").write_text(json.dumps(record(**wrong)))
    assert "What to do next" in page_of(run_dir).text


def test_a_torn_last_line_costs_that_line_only(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "tok')
    files = read_run(run_dir)
    assert len(files.metrics) == 100
    assert files.problems == ["metrics.jsonl: 1 unreadable line left out"]


def test_a_run_that_went_back_replaces_what_it_repeats(run_dir: Path) -> None:
    lines = [metric(s, loss=9.0) for s in range(1, 11)] + [metric(s, loss=2.0) for s in range(6, 9)]
    write_lines(run_dir / "metrics.jsonl", lines)
    metrics = read_run(run_dir).metrics
    assert metrics["step"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert metrics["loss"].tolist() == [9.0] * 5 + [2.0] * 3


def test_non_finite_numbers_are_gaps_and_skipped_updates_are_marked(run_dir: Path) -> None:
    lines = [metric(s, skipped=int(s >= 40), loss=float("nan") if s == 40 else 2.0) for s in range(1, 81)]
    write_lines(run_dir / "metrics.jsonl", lines)
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "nan" not in html.split("<main>")[1].split("<script>")[0].lower().replace("finance", "")
    assert html.count('class="marks" d=') == 1
    assert "Updates skipped" in html


def test_many_samples_are_thinned_to_the_first_the_last_and_some_between(run_dir: Path) -> None:
    lines = [{"step": s, "tokens": s, "prompt": "p", "text": f" sample-{s}."} for s in range(1, 1_001)]
    write_lines(run_dir / "samples.jsonl", lines)
    page = page_of(run_dir)
    assert page.count("article") == MAX_SAMPLES
    assert "sample-1." in page.text
    assert "sample-1000." in page.text


def test_quarantine_is_counted_by_reason(run_dir: Path) -> None:
    rows = [{"source": "notes", "file": f"n{i}.jsonl", "line": i, "reason": "not valid JSON"} for i in range(14)]
    write_lines(run_dir / "quarantine.jsonl", [*rows, {"source": "web", "file": "w", "line": None, "reason": "no text"}])
    page = page_of(run_dir)
    assert "15 bad rows" in page.text
    assert re.search(r"not valid JSON\s*14", page.text)
    assert "n4.jsonl:4" in page.text
    assert "n5.jsonl" not in page.text


def test_the_chart_of_a_source_mix_appears_when_the_mix_changes(run_dir: Path) -> None:
    assert "Share of each source over" not in page_of(run_dir).text
    changing = [metric(s, sources={"notes": s / 100, "web": 1 - s / 100}) for s in range(1, 101)]
    write_lines(run_dir / "metrics.jsonl", changing)
    assert "Share of each source over" in page_of(run_dir).text


def test_a_long_run_is_quick_and_small(run_dir: Path) -> None:
    write_lines(run_dir / "metrics.jsonl", [evaluated(s) if s % 250 == 0 else metric(s) for s in range(1, 100_001)])
    started = time.process_time()
    path = write_report(run_dir)
    assert time.process_time() - started < 6  # about 1.5 s; the margin is for slow machines
    assert path.stat().st_size < 400_000
