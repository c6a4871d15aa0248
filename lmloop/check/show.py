"""The findings on a terminal, or as plain text in a file or pipe."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lmloop.check.budget import Budget
from lmloop.check.findings import PARTS, Findings, SourceFindings
from lmloop.check.preview import Sample, in_colour, in_marks
from lmloop.training import figures
from lmloop.training.progress import visible

PREVIEWED_SOURCES = 8
"""With more sources, the others' samples are left out."""

PLAIN_WIDTH = 120
"""Columns where there is no terminal to ask."""


def show(findings: Findings) -> None:
    """Counts, what was noticed, samples of what is trained, and the verdict last, where the eye is."""
    console = Console(highlight=False)
    if console.is_terminal:
        _show(console, findings)
        return
    console = Console(highlight=False, width=PLAIN_WIDTH)
    with console.capture() as captured:
        _show(console, findings)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _show(console: Console, findings: Findings) -> None:
    console.print(_head(findings))
    if findings.sources:
        console.print(_table(findings, console.width))
        console.print(_facts(findings))
        for source in findings.sources:
            _notes(console, source)
        _preview(console, findings)
    _verdict(console, findings)


def _pairs(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, words in rows:
        grid.add_row(label, Text(visible(words)))
    return grid


def _head(findings: Findings) -> Table:
    rows = [("preset", f"{findings.preset} · {findings.path}"), ("run", findings.run)]
    if findings.vocab_size:
        rows.append(("tokenizer", f"{findings.tokenizer} · {findings.vocab_size:,} tokens"))
    return _pairs(rows)


def _table(findings: Findings, width: int) -> Padding:
    """A row for each source, and one for all."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("source", no_wrap=True)
    held_out = [name for name in PARTS[1:] if findings.parts(name)]
    for column in ("train", *held_out, "characters", "tokens", "passes"):
        table.add_column(column, justify="right", no_wrap=True)

    def row(name: str, source: SourceFindings | None, passes: float | None, style: str = "") -> None:
        parts = [part for part in findings.parts() if source is None or part.source == source.name]
        by_part = [sum(part.documents for part in parts if part.part == key) for key in ("train", *held_out)]
        table.add_row(
            Text(_end_of(visible(name), max(width - 50, 16))),
            *(f"{count:,}" for count in by_part),
            figures.count(sum(part.characters for part in parts)),
            figures.count(sum(part.tokens for part in parts)),
            "" if passes is None else _passes(passes),
            style=style,
        )

    budget = findings.budget
    for source in findings.sources:
        row(source.name, source, budget.passes_by_source.get(source.name) if budget else None)
    if len(findings.sources) > 1:
        row("all", None, budget.passes if budget else None, "bold")
    return Padding(table, (1, 0))


def _facts(findings: Findings) -> Table:
    train = findings.parts("train")
    rows: list[tuple[str, str]] = []
    if train:
        documents = sum(part.documents for part in train)
        median = max(train, key=lambda part: part.documents).median_tokens
        longest = max(part.longest_tokens for part in train)
        longer = sum(part.longer_than_context for part in train)
        words = f"median {figures.count(median)} tokens, longest {figures.count(longest)}"
        if longer:
            context = f"the context of {findings.seq_length:,}"
            words += f"; {longer:,} of {documents:,} are longer than {context} and go on in the next row"
        rows.append(("documents", words))
        tokens, trained = sum(part.tokens for part in train), sum(part.trained_tokens for part in train)
        share = "all" if trained == tokens else f"{figures.count(trained)} ({figures.percent(trained / max(tokens, 1))})"
        rows.append(("trained", f"{share} of the {figures.count(tokens)} tokens of the training part"))
    if findings.budget:
        rows.append(("budget", _budget(findings.budget)))
    rows.append(
        (
            "disk",
            f"about {figures.size(findings.checkpoint_bytes)} of checkpoints, {figures.size(findings.free_bytes)} free",
        )
    )
    if not findings.complete:
        rows.append(("read", _how_far(findings)))
    return _pairs(rows)


def _end_of(name: str, width: int) -> str:
    """The end of a long name: of a path, what tells it from others."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _passes(number: float) -> str:
    return f"{number:.1f}" if number < 99.95 else figures.count(number)


def _budget(budget: Budget) -> str:
    about = "about " if budget.estimated else ""
    if budget.run_tokens is None:
        return f"{budget.amount:,} {'pass' if budget.amount == 1 else 'passes'} over this data"
    words = f"{figures.count(budget.run_tokens)} tokens"
    if budget.unit == "epochs":
        words = f"{budget.amount:,} {'pass' if budget.amount == 1 else 'passes'} = {about}{words}"
    elif budget.passes is not None:
        words += f" = {about}{_passes(budget.passes)} passes over this data"
    return f"{words} · {budget.steps:,} updates of {budget.tokens_per_step:,}"


def _how_far(findings: Findings) -> str:
    if findings.interrupted:
        return "interrupted: all numbers are of what had been read"
    parts = [part for part in findings.parts() if not part.complete and not part.failure]
    names = dict.fromkeys(part.source for part in parts)
    return f"a part only of {', '.join(names)}: all numbers are of that part (--limit reads more)"


def _notes(console: Console, source: SourceFindings) -> None:
    """What stands in a source besides good documents; nothing where there is nothing to say."""
    lines = [
        f"{entry.rows:,} {'row' if entry.rows == 1 else 'rows'} left out: {entry.reason} "
        f"({'first ' if entry.rows > 1 else ''}{entry.where})"
        for entry in source.bad
    ]
    if source.empty:
        lines.append(f"{source.empty:,} without text left out")
    for name, part in source.parts.items():
        where = "" if name == "train" else f" in {name}"
        counts = [
            (part.too_short, "shorter than data.min_text_length left out"),
            (part.documents_without_training, "with nothing to train"),
            (part.rows_without_training, "rows with nothing to train"),
        ]
        lines += [f"{count:,} {what}{where}" for count, what in counts if count]
        repeats = source.repeats.get(name)
        if repeats is not None and name == "train":
            counts = [(repeats.exact, repeats.first_exact, "repeat"), (repeats.near, repeats.first_near, "nearly repeat")]
            for count, first, verb in counts:
                if first is not None:
                    lines.append(f"{count:,} {verb} an earlier document (first {first.document} = {first.earlier})")
    signs = [part.signs for part in source.parts.values()]
    names: dict[str, int] = {}
    for sign in signs:
        for name, count in sign.control_strings.items():
            names[name] = names.get(name, 0) + count
    if names:
        most = sorted(names.items(), key=lambda item: -item[1])[:5]
        listed = ", ".join(f"{name} {count:,}×" for name, count in most)
        lines.append(f"names of control tokens stand in the text, where they are plain text: {listed}")
    if not lines:
        return
    console.print()
    console.print(Text(visible(source.name), style="bold"))
    for line in lines:
        console.print(Padding(Text(visible(line), overflow="fold"), (0, 0, 0, 2)))


def _preview(console: Console, findings: Findings) -> None:
    sources = [source for source in findings.sources if source.samples]
    if not sources:
        return
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    render = in_colour if coloured else in_marks
    legend = Text("\nWhat is trained: ", style="bold")
    if coloured:
        for words, style in (("to", "black on green"), ("ken", "black on bright_green"), (" is trained, ", "")):
            legend.append(words, style)
        legend.append("to", "dim").append("ken", "dim underline").append(" is only read, ")
        legend.append("⟦end⟧", "bold white on magenta").append(" is a control token")
    else:
        legend.append("«to·ken» is trained, the rest is only read, ⟦end⟧ is a control token", "")
    console.print(legend)
    for source in sources[:PREVIEWED_SOURCES]:
        for sample in source.samples:
            console.print(Text(f"\n{visible(sample.document)} · {_of(sample)}", style="dim"), soft_wrap=True)
            console.print(Padding(render(sample), (0, 0, 0, 2)))
    if len(sources) > PREVIEWED_SOURCES:
        console.print(Text(f"\nand {len(sources) - PREVIEWED_SOURCES} more sources", style="dim"))


def _of(sample: Sample) -> str:
    words = f"{sample.trained_tokens:,} of {sample.tokens:,} tokens trained"
    if not sample.begins:
        words += " · goes on from the row before"
    if not sample.ends:
        words += " · goes on in the next row"
    return words


def _verdict(console: Console, findings: Findings) -> None:
    console.print()
    for lines, mark, style in ((findings.warnings, "!", "yellow"), (findings.problems, "✗", "red")):
        for line in lines:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(Text(mark, style=f"bold {style}"), Text(visible(line), overflow="fold"))
            console.print(grid)
    count = len(findings.problems)
    if findings.interrupted:
        console.print(Text("Interrupted; what is said is of what had been read.", style="bold yellow"))
    elif count:
        console.print(Text(f"Not to be trained on: {count} problem{'s' if count > 1 else ''}.", style="bold red"))
    else:
        console.print(Text("Good to train on.", style="bold green"))
