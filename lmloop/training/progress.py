"""What a run shows while it trains: a live block on a terminal, plain lines everywhere else.

On a terminal the block at the bottom is redrawn in place and evaluations, samples and notices scroll by above it. There
is no thread: the block is drawn when the loop says something, at most ten times a second. A terminal that goes away, or a
pipe that is closed, makes the display silent; it never ends the run.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lmloop.training import figures
from lmloop.training.commands import command

REDRAW_S = 0.1
SAMPLE_CHARACTERS = 1_200
HISTORY = 24
"""Logged losses in the small curve beside the loss."""

_JOINERS = "\u200c\u200d"  # needed by scripts and emoji; every other format character can turn text around or hide it


def visible(text: str) -> str:
    """`text` with everything that a terminal would obey instead of show replaced by U+FFFD.

    That is: control characters other than line breaks and tabs (escape sequences begin with one), characters that change
    the direction of text, and lone surrogates. Line breaks become newlines.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return "".join(c if c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in _UNSAFE else "\ufffd" for c in text)


_UNSAFE = frozenset({"Cc", "Cf", "Cs"})


class Display:
    """The terminal display of one run. All output goes to standard output, or to standard error under `json_mode`.

    Use it as a context manager, or call `finish` or `close` at the end: both leave the terminal as it was.
    """

    def __init__(
        self,
        *,
        json_mode: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        silent: bool = False,
    ) -> None:
        """`silent`: for one of several processes that another speaks for."""
        if console is None:
            stream = sys.stderr if json_mode else sys.stdout
            console = Console(stderr=json_mode, force_terminal=None if stream.isatty() else False)
        self._console = console
        self._on_terminal = console.is_terminal and not console.is_dumb_terminal and not silent
        self._silent = silent
        self._clock = clock
        self._live: Live | None = None
        self._drawn_at = -REDRAW_S
        self._name = ""
        self._line: Mapping[str, Any] = {}
        self._step = 0
        self._fraction = 0.0
        self._activity = ""
        self._announced = ""
        self._newest_loss: float | None = None
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._validation: float | None = None
        self._pace: deque[tuple[float, float]] = deque(maxlen=240)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- what the run says ----

    def status(self, activity: str) -> None:
        """What is being done before training starts, for example "building the tokenizer"."""
        self._activity = activity
        if self._on_terminal:
            self._draw(force=True)
        else:
            self._print(Text(f"{visible(activity)} …"))

    def start(self, facts: Mapping[str, Any]) -> None:
        """Say what is going to run, and begin the progress.

        `facts` may have preset, run, machine, parameters, trainable, sources (names), memory_bytes, tokens_per_s and
        forecast; what it lacks is left out. Of a run that goes on, `step` and `fraction` say where it stands.
        """
        self._step, self._fraction = facts.get("step", 0), facts.get("fraction", 0.0)
        self._activity = ""
        self._name = visible(str(facts.get("preset", "")))
        number, trainable = facts.get("parameters"), facts.get("trainable")
        size = f"{figures.count(number)} parameters" if number else ""
        if number and trainable and trainable != number:
            size = f"{trainable:,} of {number:,} parameters trained ({trainable / number:.2%})"
        head = [self._name, size, str(facts.get("machine") or "")]
        sources = [str(name) for name in facts.get("sources") or ()]
        speed, memory = facts.get("tokens_per_s"), facts.get("memory_bytes")
        pace = [
            f"about {figures.count(speed)} tokens/s" if speed else "",
            f"{figures.size(memory)} of memory" if memory else "",
            str(facts.get("forecast") or ""),
        ]
        rows = {"run": head, "data": sources, "speed": pace, "folder": [str(facts.get("run") or "")]}
        self._facts(rows, width=7)
        if self._on_terminal:
            self._print(Text("Ctrl-C saves and stops; the same command goes on from there.", style="dim"))
        self._draw(force=True)

    def tick(self, step: int, fraction: float, loss: float | None = None) -> None:
        """An update is done: `step` updates so far, `fraction` of the run. Its `loss` is shown until a line is logged."""
        self._step, self._fraction = step, fraction
        if loss is not None:
            self._newest_loss = loss
        now = self._clock()
        if not self._pace or now - self._pace[-1][0] >= 0.5:
            self._pace.append((now, fraction))
        self._draw()

    def step(self, line: Mapping[str, Any]) -> None:
        """Show a line of `metrics.jsonl`."""
        self._line = line
        if (loss := line.get("loss")) is not None:
            self._losses.append(loss)
        self.tick(line.get("step", self._step), line.get("fraction", self._fraction))
        if not self._on_terminal:
            self._print(Text("  ".join([f"step {self._step:,}", figures.percent(self._fraction), *self._log_parts()])))

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Show the evaluation in a line of `metrics.jsonl`."""
        value = line.get("val_loss")
        if value is None:
            return
        change = "" if self._validation is None else f" ({value - self._validation:+.4f})".replace("-", "−")
        self._validation = value
        parts = [f"validation {value:.4f}{change}"]
        if (perplexity := line.get("val_perplexity")) is not None:
            parts.append(f"perplexity {figures.value(perplexity)}")
        if (bits := line.get("val_bits_per_byte")) is not None:
            parts.append(f"{figures.value(bits)} bits per byte")
        where = f"step {line.get('step', self._step):,} · {figures.count(line.get('tokens', 0))} tokens   "
        if len(where) + len(parts[0]) > self._room():
            parts.insert(0, "")
        first, *more = _rows([where + parts[0], *parts[1:]], self._room())
        self._print(
            Text.assemble((where, "dim"), (first.removeprefix(where), "bold")),
            *(Text.assemble("  ", (row, "bold")) for row in more),
        )

    def sample(self, prompt: str, text: str) -> None:
        """Show a text that the model wrote: `prompt` and its continuation `text`."""
        cut = text[:SAMPLE_CHARACTERS] + ("…" if len(text) > SAMPLE_CHARACTERS else "")
        whole = Text.assemble((visible(prompt), "bold"), visible(cut))
        whole.expand_tabs(4)
        rows = list(whole.split("\n", allow_blank=True))
        if self._on_terminal:
            width = max(self._console.width - 2, 20)
            rows = [row for line in rows for row in (line.wrap(self._console, width) or [line])]
        for row in rows:
            row.rstrip()
        head = Text(f"sample at step {self._step:,}", style="dim")
        self._print(head, *(Text.assemble(("│ ", "cyan"), row) for row in rows))

    def notice(self, message: str) -> None:
        """One line about something that a person should know: a source dropped, an update skipped."""
        words = Text(visible(" ".join(message.split())))
        rows = words.wrap(self._console, self._room() - 2) if self._on_terminal else [words]
        self._print(*(Text.assemble(("  " if index else "! ", "yellow"), row) for index, row in enumerate(rows)))

    def announce(self, message: str) -> None:
        """Show a message at once, from any thread, while the loop computes: that a signal has been heard.

        It takes the place of the block's last row and stays in the block from then on. Printed as a line of its own it
        would move the cursor away from where the block expects it.
        """
        if self._silent:
            return
        self._announced = message
        descriptor, text = 2, f"\n{message}\n"
        with suppress(OSError, ValueError):  # the terminal is gone, or is none
            if self._live is not None:
                descriptor, text = self._console.file.fileno(), f"\r\x1b[2K{message[: self._console.width - 1]}"
            os.write(descriptor, text.encode())

    @contextmanager
    def busy(self, activity: str) -> Iterator[None]:
        """Show what the run is doing other than training, for as long as it takes."""
        self._activity = activity
        self._draw(force=True)
        try:
            yield
        finally:
            self._activity = ""
            self._draw(force=True)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """End the display with how the run ended, where its files are and what to type next.

        `facts` may have status, reason, step, tokens, val_loss, best_step, checkpoint, report, run, findings (a line each),
        exports (what each is; one with `error` was not made) and again (a command).
        """
        self.close()
        status = str(facts.get("status", "finished"))
        style = {"finished": "bold green", "failed": "bold red"}.get(status, "bold yellow")
        reason = visible(" ".join(str(facts.get("reason") or "").split()))
        self._print(Text.assemble((status.capitalize(), style), f": {reason}" if reason else ""))
        reached = [
            f"{facts['step']:,} steps" if facts.get("step") is not None else "",
            f"{figures.count(facts['tokens'])} tokens" if facts.get("tokens") is not None else "",
        ]
        if (best := facts.get("val_loss")) is not None:
            at = f" at step {facts['best_step']:,}" if facts.get("best_step") is not None else ""
            reached.append(f"best validation loss {best:.4f}{at}")
        for finding in facts.get("findings") or ():
            self._print(Text(visible(finding), "yellow"))
        rows = {
            "reached": reached,
            "checkpoint": [str(facts.get("checkpoint") or "")],
            "report": [str(facts.get("report") or "")],
            "exported": [str(one["out"]) for one in facts.get("exports") or () if "error" not in one],
            "talk to it": [command("chat", str(facts["run"]))] if facts.get("run") and status != "failed" else [],
            "train on": [str(facts.get("again") or "")],
        }
        self._facts(rows, width=11)

    def close(self) -> None:
        """Take the live block away; whatever is printed after that is ordinary output."""
        if self._live is not None:
            live, self._live = self._live, None
            try:
                live.stop()
            except OSError:
                self._silence()

    # ---- how it is shown ----

    def _room(self) -> int:
        """Cells of a row; unlimited where lines are read by programs too."""
        return self._console.width if self._on_terminal else 1_000_000

    def _facts(self, rows: Mapping[str, Sequence[str]], *, width: int) -> None:
        """Labels with their facts; what a terminal's row has no room for goes on under the first fact."""
        for label, parts in rows.items():
            known = [visible(part) for part in parts if part]
            for index, row in enumerate(_rows(known, self._room() - width - 1)):
                self._print(Text.assemble((f"{'' if index else label:<{width}} ", "dim"), row))

    def _print(self, *lines: Text) -> None:
        if self._silent:
            return
        try:
            for line in lines:
                if self._on_terminal:
                    # The terminal breaks what is too long: a path that is copied from it must stay in one piece.
                    self._console.print(self._encodable(line), highlight=False, soft_wrap=True)
                else:
                    self._console.file.write(self._encodable(line).plain + "\n")
            if not self._on_terminal:
                self._console.file.flush()
        except (OSError, ValueError):  # the terminal is gone, or the stream was closed
            self._silence()

    def _draw(self, *, force: bool = False) -> None:
        """Draw the live block, unless that was done a moment ago."""
        now = self._clock()
        if not self._on_terminal or (not force and now - self._drawn_at < REDRAW_S):
            return
        self._drawn_at = now
        try:
            if self._live is None:
                # Only streams that reach this terminal may be caught by the block, so that `2> file` stays a file.
                self._live = Live(
                    console=self._console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=sys.stdout.isatty() and not self._console.stderr,
                    redirect_stderr=sys.stderr.isatty(),
                )
                self._live.start()
                self._console.show_cursor(True)  # a killed run must not leave a terminal without a cursor
            self._live.update(self._block(), refresh=True)
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        self._live, self._on_terminal, self._silent = None, False, True

    def _block(self) -> RenderableType:
        if not self._name:  # still setting up
            return Text(self._announced or f"{visible(self._activity)} …", style="dim")
        width = self._console.width
        head = Table.grid(padding=(0, 2), expand=True)
        cells: list[RenderableType] = [
            Text(self._name, style="bold", no_wrap=True, overflow="ellipsis"),
            ProgressBar(total=1.0, completed=min(self._fraction, 1.0), complete_style="cyan", finished_style="green"),
            Text(figures.percent(self._fraction), no_wrap=True),
        ]
        left = self._time_left()
        if left and width >= 60:
            cells.append(Text(left, no_wrap=True))
        for index, _ in enumerate(cells):
            head.add_column(ratio=1 if index == 1 else None, max_width=max(width // 4, 8) if index == 0 else None)
        head.add_row(*cells)
        parts = self._loss_parts() if self._line else []
        if not self._line and self._newest_loss is not None:
            parts = [f"loss {self._newest_loss:.4f}"]
        rows = [Text(row, style="bold") for row in _rows(parts, width)]
        rows += [Text(row, style="dim") for row in _rows(self._detail_parts(), width)]
        if left and width < 60:
            rows.append(Text(left, style="dim"))
        if self._activity:
            rows.append(Text(f"{visible(self._activity)} …", style="cyan"))
        if self._announced:
            rows.append(Text(self._announced, style="yellow"))
        return Group(head, *(self._encodable(row) for row in rows))

    def _log_parts(self) -> list[str]:
        parts = [*self._loss_parts(curve=False), *self._detail_parts(step=False)]
        left = self._time_left()
        return [*parts, left] if left else parts

    def _loss_parts(self, *, curve: bool = True) -> list[str]:
        line = self._line
        loss = line.get("loss")
        parts = [f"loss {loss:.4f}" if loss is not None else "loss not finite"]
        if curve and len(self._losses) > 2:
            parts[0] += f"  {_sparkline(self._losses)}"
        if curve and self._validation is not None:
            parts.append(f"validation {self._validation:.4f}")
        if (speed := line.get("tokens_per_s")) is not None:
            parts.append(f"{figures.count(speed)} tokens/s")
        return parts

    def _detail_parts(self, *, step: bool = True) -> list[str]:
        line = self._line
        parts = [f"step {self._step:,}"] if step else []
        shown: list[tuple[str, Callable[[Any], str]]] = [
            ("tokens", lambda v: f"{figures.count(v)} tokens"),
            ("epoch", lambda v: f"epoch {v + 1:,}"),
            ("stage", lambda v: f"stage {v + 1}"),
            ("seq_len", lambda v: f"length {v:,}"),
            ("lr", lambda v: f"lr {figures.value(v)}"),
            ("grad_norm", lambda v: f"gradient {figures.value(v)}"),
            ("feed_wait", lambda v: f"waiting for data {figures.percent(v)}"),
            ("memory_bytes", figures.size),
        ]
        parts += [words(line[key]) for key, words in shown if line.get(key) is not None]
        sources = line.get("sources") or {}
        if len(sources) > 1:
            shares = sorted(sources.items(), key=lambda item: -item[1])[:4]
            parts.append(" ".join(f"{visible(name)} {share:.0%}" for name, share in shares))
        if line.get("skipped"):
            parts.append(f"{line['skipped']} skipped")
        return parts

    def _time_left(self) -> str:
        """By the pace of this session's last minutes; empty while it is not known."""
        if len(self._pace) < 2 or self._fraction >= 1:
            return ""
        (start, before), (end, after) = self._pace[0], self._pace[-1]
        if end - start < 2 or after <= before:
            return ""
        return f"{figures.duration((1 - self._fraction) * (end - start) / (after - before))} left"

    def _encodable(self, text: Text) -> Text:
        """With "?" for what the terminal's character set lacks."""
        encoding = self._console.encoding
        if "utf" in encoding.lower():
            return text
        plain = text.plain.encode(encoding, "replace").decode(encoding)
        return Text(plain, style=text.style, spans=list(text.spans))


def _rows(parts: Sequence[str], width: int) -> list[str]:
    """Join parts into as few rows of at most `width` cells as they need, broken only between parts."""
    rows: list[str] = []
    for part in parts:
        if rows and len(rows[-1]) + 3 + len(part) <= width:
            rows[-1] += f" · {part}"
        else:
            rows.append(part)
    return rows


def _sparkline(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) * scale)] for value in values)
