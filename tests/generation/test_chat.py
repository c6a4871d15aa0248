import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lmloop.generation.chat import COMMANDS, chat
from lmloop.generation.engine import Engine
from lmloop.preset.schema import GenerationSection
from lmloop.tokens.tokenizer import Tokenizer
from tests.generation.fakes import GREEDY, Scripted, tokenizer_of


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of("Hello you, what is it? [bold]\x1b[31m\n")


class Terminal:
    """A conversation with typed lines; an entry of `lines` may be an exception, which reading raises."""

    def __init__(self, tokenizer: Tokenizer, *replies: str, context: int = 10_000) -> None:
        scripts = [tokenizer.encode(reply).tolist() for reply in replies or ("Hello",)]
        self.model = Scripted(tokenizer.vocab_size, scripts, tokenizer.eos_id, context)
        self.engine = Engine(self.model, tokenizer, torch.device("cpu"))
        self.tokenizer = tokenizer
        self.turns = 0

    def type(self, *lines: str | BaseException, options: GenerationSection = GREEDY, width: int = 100) -> str:
        """What is shown after all lines and then the end of input."""
        entries = iter([*lines, EOFError()])

        def read_line() -> str:
            entry = next(entries)
            if isinstance(entry, BaseException):
                raise entry
            return entry

        console = Console(file=io.StringIO(), width=width)
        self.turns = chat(self.engine, options, console, title="a run · step 5", read_line=read_line, interactive=True)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    @property
    def asked(self) -> list[str]:
        return [self.tokenizer.decode(ids) for ids in self.model.asked]


def test_header_says_what_is_talked_to_and_how(tokenizer: Tokenizer) -> None:
    shown = Terminal(tokenizer, context=128).type()
    for fact in ("a run · step 5", "parameters", "context 128 tokens", "temperature 0", "/help", "Ctrl-D"):
        assert fact in shown


def test_a_reply_with_its_figures(tokenizer: Tokenizer) -> None:
    terminal = Terminal(tokenizer)
    shown = terminal.type("you", "")
    assert "\nHello\n5 tokens · " in shown
    assert "tokens/s\n" in shown
    assert (terminal.turns, terminal.asked) == (1, ["you"])


def test_a_reply_that_was_cut_says_so(tokenizer: Tokenizer) -> None:
    assert "\nHe\n2 tokens" in (
        shown := Terminal(tokenizer).type("you", options=GREEDY.model_copy(update={"max_new_tokens": 2}))
    )
    assert "cut at max_new_tokens" in shown


@pytest.mark.parametrize("leave", ["/exit", "/quit", EOFError()])
def test_leaving(leave: str | BaseException, tokenizer: Tokenizer) -> None:
    terminal = Terminal(tokenizer)
    terminal.type("you", leave, "never read")
    assert terminal.turns == 1


def test_help_lists_every_command(tokenizer: Tokenizer) -> None:
    shown = Terminal(tokenizer).type("/help")
    assert all(command in shown for command in COMMANDS)


def test_reset_forgets(tokenizer: Tokenizer) -> None:
    terminal = Terminal(tokenizer)
    terminal.type("you", "what", "/reset", "it")
    assert terminal.asked == ["you", "youHello\nwhat", "it"]


def test_retry_writes_the_last_reply_again(tokenizer: Tokenizer) -> None:
    terminal = Terminal(tokenizer, "Hello", "it is")
    shown = terminal.type("/retry", "you", "/retry", "what")
    assert "There is no reply yet" in shown
    assert terminal.asked == ["you", "you", "youit is\nwhat"]


def test_temperature(tokenizer: Tokenizer) -> None:
    terminal = Terminal(tokenizer)
    shown = terminal.type(
        "/temperature", "/temperature 50", "/temperature hot", "/temperature -1", "/temperature nan", "you"
    )
    assert "The temperature is 0." in shown
    assert "The temperature is 50 now." in shown
    assert "/temperature hot: not a number" in shown
    assert "/temperature -1: input should be greater than or equal to 0" in shown
    assert "/temperature nan: input should be" in shown
    assert "\nHello\n" not in shown, "at temperature 50 it does not write what is likeliest"


def test_save(tokenizer: Tokenizer, tmp_path: Path) -> None:
    terminal, path = Terminal(tokenizer), tmp_path / "a talk.txt"
    shown = terminal.type(
        "/save", f"/save {path}", "you", f"/save {path}", f"/save {path}", f"/save {tmp_path}/no/where", width=500
    )
    assert "/save needs the name of a file" in shown
    assert "There is nothing to save yet." in shown
    assert f"Saved to {path}." in shown
    assert f"{path} exists already: choose another name" in shown
    assert f"{tmp_path}/no/where: No such file or directory" in shown
    assert path.read_text() == "You: you\n\nModel: Hello\n"


def test_an_unknown_command_is_not_sent_and_two_slashes_are_one(tokenizer: Tokenizer) -> None:
    terminal = Terminal(tokenizer)
    shown = terminal.type("/what is it", "//what is it")
    assert "/what: no such command; /help lists them" in shown
    assert terminal.asked == ["/what is it"]


def test_a_reply_is_shown_as_it_is_without_control_characters(tokenizer: Tokenizer) -> None:
    shown = Terminal(tokenizer, "[bold]\x1b[31m\x07\x9b you\r,\nHello").type("you")
    assert "\n[bold][31m you,\nHello\n" in shown


def test_ctrl_c_at_the_prompt_only_says_how_to_leave(tokenizer: Tokenizer) -> None:
    terminal = Terminal(tokenizer)
    assert "/exit or Ctrl-D leaves" in terminal.type(KeyboardInterrupt(), "you")
    assert terminal.turns == 1


def press_ctrl_c(*steps: int) -> Callable[[int], None]:
    def before_step(step: int) -> None:
        if step in steps:
            signal.raise_signal(signal.SIGINT)

    return before_step


def test_ctrl_c_stops_the_reply_and_not_the_program(tokenizer: Tokenizer) -> None:
    terminal = Terminal(tokenizer)
    handler = signal.getsignal(signal.SIGINT)
    terminal.model.before_step = press_ctrl_c(2)
    shown = terminal.type("you", "it")
    assert "\nHel\n3 tokens" in shown
    assert "· stopped\n" in shown
    assert terminal.asked == ["you", "youHel\nit"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_does_not_wait_for_the_token(tokenizer: Tokenizer) -> None:
    def twice(step: int) -> None:
        if step == 2 and len(terminal.model.asked) == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    terminal = Terminal(tokenizer)
    terminal.model.before_step = twice
    shown = terminal.type("you", "it")
    assert "\nHe\nstopped\n" in shown
    assert terminal.asked == ["you", "youHe\nit"]


def test_a_full_context_is_told(tokenizer: Tokenizer) -> None:
    options = GREEDY.model_copy(update={"max_new_tokens": 5})
    shown = Terminal(tokenizer, context=14).type("you", "what", "Hello you, what is it?", options=options)
    assert "The context is full: the oldest turn is no longer read." in shown
    assert "The message is longer than the context: its first 9 tokens were not read." in shown


def test_piped_input(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines in, replies out, everything else on standard error; bytes that are no text do not end it."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"you\n\n/nothing\n\xff\xfe\nit"), encoding="utf-8"))
    terminal = Terminal(tokenizer, "Hello", "what", "is")
    assert chat(terminal.engine, GREEDY, Console(), title="a run") == 3
    out, err = capsys.readouterr()
    assert out == "Hello\nwhat\nis\n"
    assert "/nothing: no such command" in err
    assert terminal.asked[1] == "youHello\n\ufffd\ufffd"


def test_elsewhere_than_in_the_main_thread(tokenizer: Tokenizer) -> None:
    from threading import Thread

    terminal, shown = Terminal(tokenizer), []
    thread = Thread(target=lambda: shown.append(terminal.type("you")))
    thread.start()
    thread.join()
    assert "\nHello\n" in shown[0]
