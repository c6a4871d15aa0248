import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lmloop.training.progress import Display, visible


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


FACTS = {
    "preset": "tiny",
    "run": "checkpoints/tiny",
    "machine": "2 cores",
    "parameters": 4_213_760,
    "sources": ["notes", "web"],
    "memory_bytes": 1_200_000_000,
    "tokens_per_s": 12_300.0,
    "forecast": "about 6 min",
}
LINE = {
    "step": 40,
    "tokens": 327_680,
    "loss": 2.5,
    "tokens_per_s": 12_345.0,
    "seq_len": 256,
    "lr": 6.1e-4,
    "grad_norm": 0.62,
    "epoch": 0,
    "stage": 1,
    "fraction": 0.25,
    "feed_wait": 0.004,
    "memory_bytes": 1_240_000_000,
    "sources": {"notes": 0.6, "web": 0.4},
    "skipped": 0,
}
EVALUATION = {**LINE, "val_loss": 2.0, "val_perplexity": 7.389, "val_bits_per_byte": 1.1}
EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\u202egnirts [bold]not bold[/bold] :smile: \ud800\x00"
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


def plain(clock: Clock | None = None) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(console=Console(file=out, force_terminal=False, width=80), clock=clock or Clock()), out


def terminal(clock: Clock, width: int = 100) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, height=40, color_system="truecolor", _environ={"TERM": "xterm"}
    )
    return Display(console=console, clock=clock), out


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("dos\r\nline\rend", "dos\nline\nend"),
        ("a\x1b[2Jb", "a\ufffd[2Jb"),
        ("\x9b31m", "\ufffd31m"),
        ("\u202eback\u2066", "\ufffdback\ufffd"),
        ("\ud800", "\ufffd"),
        ("日本語 é 👩\u200d🚀", "日本語 é 👩\u200d🚀"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_elsewhere_than_on_a_terminal_each_line_is_one_plain_line() -> None:
    display, out = plain()
    display.start(FACTS)
    before = out.getvalue().count("\n")
    display.step(LINE)
    written = out.getvalue()
    assert "\x1b" not in written
    assert written.count("\n") == before + 1
    line = written.splitlines()[-1]
    for said in (
        "step 40",
        "25 %",
        "loss 2.5000",
        "12.3 k tokens/s",
        "stage 2",
        "length 256",
        "lr 6.1e-4",
        "notes 60% web 40%",
    ):
        assert said in line, said
    assert "4.21 M parameters" in written
    assert "about 6 min" in written


def test_ticks_and_busy_write_nothing_there() -> None:
    display, out = plain()
    display.tick(1, 0.1)
    with display.busy("evaluating"):
        pass
    assert out.getvalue() == ""


@pytest.mark.parametrize("on_terminal", [False, True])
def test_text_of_a_model_cannot_command_the_terminal(on_terminal: bool) -> None:
    display, out = terminal(Clock()) if on_terminal else plain()
    display.start({**FACTS, "preset": EVIL, "sources": [EVIL], "run": EVIL, "machine": EVIL})
    display.status(EVIL)
    display.step({**LINE, "sources": {EVIL: 0.5, "web": 0.5}})
    display.notice(EVIL)
    display.sample(EVIL, EVIL)
    display.finish({"status": "failed", "reason": EVIL, "run": EVIL, "report": EVIL})
    written = out.getvalue()
    for text in ("]0;title", "[bold]not bold[/bold]", ":smile:"):
        assert text in without_codes(written)
    assert "\x1b]" not in written
    assert not HARMFUL.search(without_codes(written).replace("\r", ""))


def test_a_sample_keeps_its_lines() -> None:
    display, out = plain()
    display.step(LINE)
    display.sample("ROMEO:\n", "\tIs the day " + "so " * 60 + "young?\n\nEnd.")
    assert out.getvalue().splitlines()[-5:-2] == [
        "sample at step 40",
        "│ ROMEO:",
        "│     Is the day " + "so " * 60 + "young?",
    ]


def test_evaluations_show_the_change_since_the_last() -> None:
    display, out = plain()
    display.evaluation(EVALUATION)
    display.evaluation({**EVALUATION, "val_loss": 1.95})
    first, second = out.getvalue().splitlines()
    assert "validation 2.0000 · perplexity 7.389 · 1.1 bits per byte" in first
    assert "validation 1.9500 (−0.0500)" in second


def test_time_left_follows_the_pace_of_this_session() -> None:
    clock = Clock()
    display, out = plain(clock)
    for second in range(21):  # resumed at half, 1 % a second
        clock.now = float(second)
        display.tick(second, 0.5 + second / 100)
    display.step({**LINE, "fraction": 0.7})
    assert out.getvalue().rstrip().endswith("30 s left")


def test_the_live_block_shows_the_run_and_is_drawn_at_most_ten_times_a_second() -> None:
    clock = Clock()
    display, out = terminal(clock)
    display.start(FACTS)
    clock.now += 1
    display.step(LINE)
    shown = without_codes(out.getvalue())
    for said in ("tiny", "━", "25 %", "loss 2.5000", "waiting for data 0.4 %", "lr 6.1e-4"):
        assert said in shown, said
    size = len(out.getvalue())
    for step in range(50):
        clock.now += 0.001
        display.tick(41 + step, 0.26)
    assert len(out.getvalue()) == size
    with display.busy("evaluating"):
        assert "evaluating …" in without_codes(out.getvalue()[size:])
    display.close()
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l")  # the cursor is never left hidden


@pytest.mark.parametrize("width", [20, 44, 80, 200])
def test_no_line_of_the_live_block_is_wider_than_the_terminal(width: int) -> None:
    clock = Clock()
    display, out = terminal(clock, width)
    display.start({"preset": "a_preset_with_quite_a_long_name"})
    mark = len(out.getvalue())
    clock.now += 1
    display.step({**LINE, "sources": {}})
    block = without_codes(out.getvalue()[mark:])
    assert block.strip()
    assert max(len(row.strip("\r")) for row in block.split("\n")) <= width


def test_a_closed_pipe_does_not_end_the_run() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    display = Display(console=Console(file=Closed(), force_terminal=False))
    display.start(FACTS)
    display.step(LINE)
    display.finish({"status": "finished"})


def test_json_mode_leaves_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(json_mode=True)
    display.start(FACTS)
    display.step(LINE)
    display.notice("source dropped")
    display.sample("a", "b")
    display.finish({"status": "finished", "report": "report.html"})
    print(json.dumps({"status": "finished"}), file=sys.stdout)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"status": "finished"}
    assert "report.html" in captured.err


def test_the_end_names_files_and_the_next_command() -> None:
    display, out = plain()
    display.finish(
        {
            "status": "stopped",
            "reason": "asked to stop",
            "run": "checkpoints/tiny",
            "step": 600,
            "tokens": 4_915_200,
            "val_loss": 1.468,
            "best_step": 500,
            "checkpoint": "checkpoints/tiny/lm_current.pth",
            "report": "checkpoints/tiny/report.html",
            "again": "lmloop train tiny.yaml",
        }
    )
    text = out.getvalue()
    for said in (
        "Stopped: asked to stop",
        "600 steps · 4.92 M tokens",
        "1.4680 at step 500",
        "lmloop chat checkpoints/tiny",
    ):
        assert said in text, said
    assert text.splitlines()[-1].split(maxsplit=2) == ["train", "on", "lmloop train tiny.yaml"]


def test_a_failed_run_offers_no_chat() -> None:
    display, out = plain()
    display.finish({"status": "failed", "reason": "disk full", "run": "checkpoints/tiny"})
    assert "lmloop chat" not in out.getvalue()


def test_an_old_character_set_gets_question_marks() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    display = Display(console=Console(file=stream, force_terminal=False))
    display.sample("é", "日本")
    stream.flush()
    assert raw.getvalue().decode("ascii").splitlines()[-1] == "? ???"


def test_a_narrow_terminal_breaks_between_facts_and_indents() -> None:
    clock = Clock()
    display, out = terminal(clock, width=44)
    display.start(FACTS)
    display.evaluation(EVALUATION)
    display.notice("a source was left out because nothing in it could be read as text")
    display.close()
    shown = [re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", line).rpartition("\r")[2] for line in out.getvalue().split("\n")]
    assert "speed   about 12.3 k tokens/s" in shown
    assert "        1.2 GB of memory · about 6 min" in shown
    assert "  perplexity 7.389 · 1.1 bits per byte" in shown
    assert "  it could be read as text" in shown


def test_the_loss_is_shown_from_the_first_update_on() -> None:
    clock = Clock()
    display, out = terminal(clock)
    display.start(FACTS)
    clock.now = 1.0
    display.tick(1, 0.01, 6.25)
    assert "loss 6.2500" in out.getvalue()
    clock.now = 2.0
    display.step(LINE)
    out.truncate(0)
    clock.now = 3.0
    display.tick(41, 0.26, 9.75)
    assert "loss 2.5000" in out.getvalue()
    assert "9.75" not in out.getvalue()
    display.close()


def test_a_run_that_goes_on_begins_where_it_stands() -> None:
    display, out = terminal(Clock())
    display.start({**FACTS, "step": 300, "fraction": 0.5})
    display.sample("A", "b")
    display.close()
    assert "50 %" in out.getvalue()
    assert "sample at step 300" in out.getvalue()


def test_an_announcement_takes_the_last_row_of_the_block_and_stays_in_it(tmp_path: Path) -> None:
    clock = Clock()
    with (tmp_path / "terminal").open("w+") as file:
        console = Console(file=file, force_terminal=True, width=30, color_system=None, _environ={"TERM": "xterm"})
        display = Display(console=console, clock=clock)
        display.start(FACTS)
        file.flush()
        before = (tmp_path / "terminal").read_bytes().decode()
        display.announce("stopping at the next step and saving")
        said = (tmp_path / "terminal").read_bytes().decode().removeprefix(before)
        assert said == "\r\x1b[2Kstopping at the next step and", "one row, on which the cursor stays"
        clock.now = 1.0
        display.tick(1, 0.5)
        file.flush()
        assert "stopping" in (tmp_path / "terminal").read_bytes().decode().removeprefix(before + said)
        display.close()


def test_without_a_block_an_announcement_is_a_line_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    display, _ = plain()
    display.announce("stopping")
    assert capfd.readouterr() == ("", "\nstopping\n")


def test_a_silent_display_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for console in (None, Console(file=sys.stdout, force_terminal=True)):
        with Display(console=console, silent=True) as display:
            display.status("opening the data")
            display.start(FACTS)
            display.step(LINE)
            display.evaluation(EVALUATION)
            display.sample("a", "b")
            display.notice("a source is gone")
            display.announce("stopping")
            with display.busy("evaluating"):
                display.tick(1, 0.5)
            display.finish({"status": "finished"})
    assert capfd.readouterr() == ("", "")
