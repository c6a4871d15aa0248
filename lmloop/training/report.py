"""The report of a run: one self-contained HTML file, made from the files of the run folder alone.

Everything that comes from data or a model is escaped by the template; the page's policy (CSP) allows the one script
below by its hash and nothing else, so that a text in a sample could not run even if it slipped through.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from lmloop.durable import atomic_write
from lmloop.training import charts, figures
from lmloop.training.commands import command
from lmloop.training.curves import loss_chart, small_charts
from lmloop.training.diagnosis import Finding, diagnose
from lmloop.training.journal_file import Section
from lmloop.training.record import PHASES
from lmloop.training.run_files import Metrics, RunFiles, read_run
from lmloop.training.verdict import judge, perplexity

MAX_SAMPLES = 80
"""Moments of the run whose samples are shown: the first, the last, and evenly chosen ones between them."""

SAMPLE_CHARACTERS = 3_000
MAX_WARNINGS = 50
MAX_SOURCES = 12

_PHASE_WORDS = {
    "train": "training",
    "data": "waiting for data",
    "evaluate": "evaluation",
    "sample": "samples",
    "save": "saving",
    "export": "exports",
}


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Reads what `read_run` reads; what is missing or torn is left out, and the
    report says so. Raises OSError when the file cannot be written.
    """
    path = run_dir / "report.html"
    atomic_write(path, render(read_run(run_dir), run_dir))
    return path


def render(files: RunFiles, run_dir: Path) -> str:
    """The report as HTML."""
    record, metrics = files.record, files.metrics
    name = str(record.get("name") or run_dir.name)
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        name=name,
        description=str(record.get("description") or ""),
        status=_status(record, metrics),
        reason=str(record.get("reason") or ""),
        written=datetime.now(UTC),
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_hash=digest,
        headline=_headline(record, metrics),
        fit=judge(metrics),
        findings=findings(files),
        facts=_facts(record, metrics),
        loss_chart=loss_chart(metrics),
        charts=small_charts(metrics),
        samples=_samples(files.samples),
        comparison=_comparison(files.comparison),
        journal=_journal(files.journal),
        phases=_phases(record),
        sessions=_sessions(record),
        sources=_sources(metrics),
        quarantine=_quarantine(files),
        warnings=_warnings(record, files.problems),
        machine=_rows(record.get("machine")),
        versions=_rows(record.get("versions")),
        parameters=_rows(record.get("parameters")),
        preset=json.dumps(record.get("preset") or {}, ensure_ascii=False, indent=2),
        commands=_commands(record, run_dir, trained=len(metrics) > 0),
    )


@functools.cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.filters |= {"count": lambda v: _unbroken(figures.count(v)), "number": lambda v: _unbroken(figures.value(v))}
    return environment.from_string(_asset("report.html"))


def _unbroken(text: str) -> str:
    """A number and its unit stay on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


# ---- in words ----


def _status(record: dict[str, Any], metrics: Metrics) -> str:
    status = record.get("status")
    if status in ("running", "finished", "stopped", "failed"):
        return str(status)
    return "unknown" if len(metrics) else "empty"


def _headline(record: dict[str, Any], metrics: Metrics) -> dict[str, Any]:
    """The best and the last validation loss with what they mean; without evaluations the training loss."""
    tokens, validation = metrics.points("val_loss")
    if not len(validation):
        losses = metrics.points("loss")[1]
        return {"train": float(charts.smooth(losses)[-1]) if len(losses) else None, "best": None}
    best = int(np.argmin(validation))
    known = np.isfinite(metrics["val_loss"])
    bits = metrics["val_bits_per_byte"][known]
    return {
        "best": float(validation[best]),
        "perplexity": perplexity(float(validation[best])),
        "bits_per_byte": float(bits[best]) if np.isfinite(bits[best]) else None,
        "at": float(tokens[best]),
        "is_last": best == len(validation) - 1,
        "last": float(validation[-1]),
        "evaluations": len(validation),
    }


def _facts(record: dict[str, Any], metrics: Metrics) -> list[tuple[str, str]]:
    """The numbers under the headline."""
    facts: list[tuple[str, str]] = []

    def add(label: str, number: float | None, words: Any) -> None:
        if number is not None:
            facts.append((label, _unbroken(words(number))))

    parameters = record.get("parameters")
    total = parameters.get("total") if isinstance(parameters, dict) else None
    add("Parameters", total if isinstance(total, int) else None, figures.count)
    add("Tokens trained", metrics.last("tokens"), figures.count)
    add("Updates", metrics.last("step"), lambda v: f"{v:,.0f}")
    add("Training time", metrics.last("elapsed_s"), figures.duration)
    speeds = metrics.points("tokens_per_s")[1]
    add("Tokens/s, median", float(np.median(speeds)) if len(speeds) else None, figures.count)
    memory = metrics.points("memory_bytes")[1]
    add("Memory, peak", float(memory.max()) if len(memory) else None, figures.size)
    waits = metrics.points("feed_wait")[1]
    add("Waiting for data", float(waits.mean()) if len(waits) else None, figures.percent)
    skipped = metrics.last("skipped")
    add("Updates skipped", skipped or None, lambda v: f"{v:,.0f}")
    return facts


def _commands(record: dict[str, Any], run_dir: Path, *, trained: bool) -> list[tuple[str, str]]:
    """What to type next, for a shell in the folder where the run was started."""
    commands = [("Go on training", command("train", str(record.get("preset_path") or run_dir / "preset.json")))]
    if trained:
        commands.insert(0, ("Talk to the model", command("chat", str(run_dir))))
        commands.append(("Measure it on a text", command("evaluate", str(run_dir), "--data", "FILE")))
    return commands


# ---- the other sections ----


def _samples(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples by the moment they were written: {step, tokens, texts: [(prompt, text)]}."""
    moments: dict[int, dict[str, Any]] = {}
    for line in samples:
        step = line["step"] if isinstance(line.get("step"), int) else 0
        tokens = line["tokens"] if isinstance(line.get("tokens"), int | float) else 0
        moment = moments.setdefault(step, {"step": step, "tokens": tokens, "texts": []})
        text = line["text"]
        cut = text[:SAMPLE_CHARACTERS] + ("…" if len(text) > SAMPLE_CHARACTERS else "")
        moment["texts"].append((_showable(str(line.get("prompt") or "")), _showable(cut)))
    ordered = [moments[step] for step in sorted(moments)]
    if len(ordered) > MAX_SAMPLES:
        chosen = np.unique(np.linspace(0, len(ordered) - 1, MAX_SAMPLES).round().astype(int))
        ordered = [ordered[int(index)] for index in chosen]
    return ordered


def findings(files: RunFiles) -> list[Finding]:
    """What went wrong in the run, and what to do about it."""
    preset = files.record.get("preset")
    adapter = isinstance(preset, dict) and preset.get("adapter") is not None
    return diagnose(files.metrics, files.samples, files.comparison, adapter=adapter)


def _comparison(content: dict[str, Any]) -> dict[str, Any] | None:
    """Before and after side by side: rows of figures, and what was written to each prompt."""
    before, after = content.get("before"), content.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return None
    figures_of = [_figures_of(before), _figures_of(after)]
    labels = [label for label in figures_of[0] if label in figures_of[1]]
    texts: list[dict[str, Any]] = []
    for key in ("samples", "answers"):
        for one, other in zip(_listed(before, key), _listed(after, key), strict=False):
            first, second = _written(one), _written(other)
            if first and second and first["asked"] == second["asked"]:
                texts.append({"asked": first["asked"], "expected": first["expected"], "both": (first, second)})
    return {
        "steps": [half["step"] if isinstance(half.get("step"), int) else 0 for half in (before, after)],
        "rows": [(label, figures_of[0][label], figures_of[1][label]) for label in labels],
        "texts": texts[:MAX_SAMPLES],
    }


def _figures_of(half: dict[str, Any]) -> dict[str, str]:
    """Loss, accuracy and how much of what was written repeats itself, as people read them."""
    rows: dict[str, str] = {}
    sources = half.get("sources")
    losses = [("Held-out loss", half.get("loss")), *(sources.items() if isinstance(sources, dict) else ())]
    for label, loss in losses:
        if isinstance(loss, int | float):
            rows[str(label)] = figures.value(loss)
    answers = [answer for answer in _listed(half, "answers") if isinstance(answer, dict)]
    if answers:
        right = sum(answer.get("right") is True for answer in answers)
        rows["Right answers"] = f"{right} of {len(answers)}"
    for n in (1, 2):
        share = half.get(f"distinct_{n}")
        if isinstance(share, int | float):
            rows[f"Distinct-{n}"] = figures.percent(share)
    return rows


def _listed(half: dict[str, Any], key: str) -> list[Any]:
    content = half.get(key)
    return content if isinstance(content, list) else []


def _written(one: object) -> dict[str, Any] | None:
    """A sample [prompt, text] or an answer as {asked, expected, text, right}."""
    if isinstance(one, list) and len(one) == 2:
        one = {"asked": one[0], "answer": one[1]}
    if not isinstance(one, dict):
        return None
    asked, expected, text = (
        _showable(str(one.get(key) or ""))[:SAMPLE_CHARACTERS] for key in ("asked", "expected", "answer")
    )
    return {"asked": asked, "expected": expected, "text": text, "right": one.get("right")}


def _journal(sections: list[Section]) -> list[dict[str, str]]:
    """The journal's parts, the newest last; of many the newest ones."""
    return [
        {"kind": part.kind, "id": part.id, "facts": _showable(part.facts), "text": _showable(part.text[:SAMPLE_CHARACTERS])}
        for part in sections[-MAX_SAMPLES:]
    ]


def _showable(text: str) -> str:
    """Without what HTML has no character for (control characters and lone surrogates)."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in text)


def _phases(record: dict[str, Any]) -> dict[str, Any] | None:
    """Where the time of all sessions went, as a bar; time in no phase is "other"."""
    seconds: Counter[str] = Counter()
    whole = 0.0
    for session in _sessions_of(record):
        phases = session.get("phases")
        items = phases.items() if isinstance(phases, dict) else ()
        known = {k: float(v) for k, v in items if k in PHASES and isinstance(v, int | float)}
        seconds.update(known)
        whole += max(_seconds_between(session.get("started"), session.get("ended")) or 0.0, sum(known.values()))
    other = whole - sum(seconds.values())
    parts: list[tuple[str, float]] = [
        (_PHASE_WORDS.get(p, p), seconds[p]) for p in (*PHASES[1:], PHASES[0]) if seconds[p] > 0
    ]
    if other > 0.005 * whole and other > 1:
        parts.append(("other", other))
    if not parts:
        return None
    bar = charts.stacked_bar("Time by phase", [(name, amount, figures.duration(amount)) for name, amount in parts])
    return {"bar": bar, "total": figures.duration(whole)}


def _sessions_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    sessions = record.get("sessions")
    return [s for s in sessions if isinstance(s, dict)] if isinstance(sessions, list) else []


def _sessions(record: dict[str, Any]) -> list[dict[str, str]]:
    sessions = _sessions_of(record)
    rows = []
    for index, session in enumerate(sessions):
        seconds = _seconds_between(session.get("started"), session.get("ended"))
        if seconds is None:
            last = index == len(sessions) - 1 and record.get("status") == "running"
            length = "not ended" if last else "cut off"
        else:
            length = figures.duration(seconds)
        started = _when(session.get("started"))
        first, end = session.get("from_step"), session.get("to_step")
        steps = f"{first:,} to {end:,}" if isinstance(first, int) and isinstance(end, int) else ""
        rows.append({"started": f"{started:%Y-%m-%d %H:%M} UTC" if started else "", "steps": steps, "length": length})
    return rows


def _when(text: object) -> datetime | None:
    try:
        when = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return when.astimezone(UTC) if when else None


def _seconds_between(start: object, end: object) -> float | None:
    begun, ended = _when(start), _when(end)
    return max((ended - begun).total_seconds(), 0.0) if begun and ended else None


def _sources(metrics: Metrics) -> dict[str, Any] | None:
    """Each source's share of the rows over the whole run, and over time where it changes."""
    totals: Counter[str] = Counter()
    gained = np.diff(metrics["tokens"], prepend=0.0)
    for shares, tokens in zip(metrics.sources, gained.tolist(), strict=True):
        for name, share in shares.items():
            totals[name] += share * tokens
    if not totals or sum(totals.values()) <= 0:
        return None
    names = [name for name, _ in totals.most_common(MAX_SOURCES)]
    rest = sum(totals.values()) - sum(totals[name] for name in names)
    parts = [(name, totals[name], f"{figures.count(totals[name])} tokens") for name in names]
    if len(totals) > len(names):
        parts.append((f"{len(totals) - len(names)} others", rest, f"{figures.count(rest)} tokens"))
    over_time = [(name, np.array([shares.get(name, 0.0) for shares in metrics.sources])) for name in names]
    changes = len(names) > 1 and max(float(_coarse(share).std()) for _, share in over_time) > 0.05
    area = (
        charts.area_chart("Share of each source over trained tokens", metrics["tokens"], over_time)
        if changes
        else Markup("")
    )
    return {
        "bar": charts.stacked_bar("Sources by tokens", parts),
        "area": area,
        "one": names[0] if len(parts) == 1 else None,
    }


def _coarse(share: np.ndarray) -> np.ndarray:
    """Means of ten stretches of the run."""
    return np.array([part.mean() for part in np.array_split(share, min(10, len(share)))])


def _quarantine(files: RunFiles) -> dict[str, Any] | None:
    if not files.quarantine:
        return None
    examples = [
        {
            "place": f"{line.get('file', '')}" + (f":{line['line']}" if line.get("line") is not None else ""),
            "reason": str(line.get("reason", "")),
            "excerpt": _showable(str(line.get("excerpt") or ""))[:300],
        }
        for line in files.quarantine_examples
    ]
    counts = [(source, reason, number) for (source, reason), number in files.quarantine.most_common(20)]
    return {"total": files.quarantine.total(), "counts": counts, "examples": examples}


def _warnings(record: dict[str, Any], problems: list[str]) -> list[tuple[str, str]]:
    """(where, message), equal messages as one."""
    steps: dict[str, list[int]] = {}
    listed = record.get("warnings")
    for warning in listed if isinstance(listed, list) else []:
        if isinstance(warning, dict):
            step = warning.get("step")
            steps.setdefault(str(warning.get("message", "")), []).append(step if isinstance(step, int) else 0)
    rows = [(_at(places), message) for message, places in steps.items()]
    dropped = record.get("warnings_dropped")
    older = len(rows) - MAX_WARNINGS + (dropped if isinstance(dropped, int) else 0)
    rows = rows[-MAX_WARNINGS:]
    if older > 0:
        rows.insert(0, ("", f"{older:,} older warnings are left out"))
    return [*rows, *(("report", problem) for problem in problems)]


def _at(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]:,}" if steps[0] else "start"
    return f"{len(steps)} times, steps {min(steps):,} to {max(steps):,}"


def _rows(content: object) -> list[tuple[str, str]]:
    """A mapping as label and text."""
    if not isinstance(content, dict):
        return []
    return [(str(key).removesuffix("_bytes").replace("_", " "), _cell(str(key), item)) for key, item in content.items()]


def _cell(key: str, item: object) -> str:
    if isinstance(item, bool) or item is None:
        return {True: "yes", False: "no", None: "–"}[item]
    if isinstance(item, int | float):
        return figures.size(item) if key.endswith("_bytes") else f"{item:,}"
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
