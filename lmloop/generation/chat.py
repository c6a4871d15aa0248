"""The terminal conversation.

On a terminal: a header, a prompt, replies that appear as they are written, commands. When standard input is piped, each
line of it is a message (or a command), the output is the replies alone, and the rest goes to standard error.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from pydantic import ValidationError
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lmloop.durable import atomic_write
from lmloop.generation.conversation import Conversation, Reply
from lmloop.generation.engine import Engine, Generation
from lmloop.preset.schema import GenerationSection
from lmloop.tokens.skeleton import ChatTemplateError
from lmloop.tokens.template import ChatTemplate

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation and start anew",
    "/retry": "write the last reply again, differently",
    "/temperature X": "how daring the model writes: 0 is always the likeliest token, 1 as it has learned",
    "/save FILE": "write the conversation to a text file",
    "/exit": "leave (Ctrl-D too)",
}
"""What can be typed besides a message; a message that begins with a slash is typed with two."""

PROMPT = "> "


def chat(
    engine: Engine,
    options: GenerationSection,
    console: Console,
    *,
    title: str = "",
    seed: int = 0,
    read_line: Callable[[], str] | None = None,
    interactive: bool | None = None,
    template: ChatTemplate | None = None,
) -> int:
    """Talk until the end of input; the number of messages that were answered.

    Args:
        engine: writes the replies.
        options: how they are sampled; `chat_format` turns a message into a prompt.
        console: where all output goes.
        title: what is talked to, for the header.
        seed: with the number of the reply it decides that reply's random numbers.
        read_line: gives the next line without its end, EOFError when there is none; default: standard input.
        template: in which the conversation is written, instead of `chat_format`.
        interactive: with header, prompts and figures; default: both input and console are terminals.

    Raises:
        ValueError: `chat_format` has no place for the message.
    """
    if interactive is None:
        interactive = bool(sys.stdin.isatty() and console.is_terminal)
    read_line = read_line or (_terminal_reader(console) if interactive else _piped_reader())
    return _Chat(engine, options, console, title, seed, read_line, interactive, template).run()


class _Chat:
    """The conversation's state and its commands."""

    def __init__(
        self,
        engine: Engine,
        options: GenerationSection,
        console: Console,
        title: str,
        seed: int,
        read_line: Callable[[], str],
        interactive: bool,
        template: ChatTemplate | None,
    ) -> None:
        self.conversation = Conversation(engine, options, seed, template)
        self.console = console
        self.aside = console if interactive else Console(stderr=True)  # of a pipe's output, all is replies
        self.title = title
        self.read_line = read_line
        self.interactive = interactive
        self.answered = 0

    def run(self) -> int:
        """Read and answer until the end."""
        if self.interactive:
            self._header()
        while True:
            try:
                line = self.read_line().strip()
            except EOFError:
                if self.interactive:
                    self.console.print()
                return self.answered
            except KeyboardInterrupt:
                self._say("\nCtrl-C stops a reply; /exit or Ctrl-D leaves.")
                continue
            if line.startswith("//") or (line and not line.startswith("/")):
                self._reply(line[1:] if line.startswith("//") else line)
            elif line and self._command(*line.split(maxsplit=1)):
                return self.answered

    def _reply(self, message: str) -> None:
        try:
            reply = self.conversation.reply(message)
        except ChatTemplateError as error:
            self._say(f"The model's template refuses it: {error}")
        else:
            self._answer(reply)

    def _command(self, name: str, argument: str = "") -> bool:
        """Do what a line with a slash says; True: leave."""
        match name:
            case "/exit" | "/quit":
                return True
            case "/help":
                self._help()
            case "/reset":
                self.conversation.reset()
                self._say("A new conversation.")
            case "/retry":
                if self.conversation.turns:
                    self._answer(self.conversation.retry())
                else:
                    self._say("There is no reply yet to write again.")
            case "/temperature":
                self._temperature(argument)
            case "/save":
                self._save(argument)
            case _:
                self._say(f"{name}: no such command; /help lists them (a message that begins with / is typed with //)")
        return False

    def _answer(self, reply: Reply) -> None:
        """Show a reply while it is written; Ctrl-C ends it and keeps what is there."""
        with _ctrl_c_calls(reply.stop):
            try:
                for piece in reply:
                    self.console.out(_printable(piece), end="", highlight=False)
            except KeyboardInterrupt:  # pressed twice: not even the next token is waited for
                reply.abandon()
        self.console.out("", highlight=False)
        self.answered += 1
        if self.interactive:
            self._figures(reply)

    def _figures(self, reply: Reply) -> None:
        if reply.dropped_turns:
            turns = "turn is" if reply.dropped_turns == 1 else f"{reply.dropped_turns} turns are"
            self._say(f"The context is full: the oldest {turns} no longer read. /reset starts anew.")
        if reply.result is None:
            self._say("stopped")
            return
        if reply.result.dropped_tokens:
            self._say(
                f"The message is longer than the context: its first {reply.result.dropped_tokens:,} tokens were not read."
            )
        self._say(_figures(reply.result))

    def _header(self) -> None:
        engine = self.conversation.engine
        parameters = sum(parameter.numel() for parameter in engine.model.parameters())
        facts = [
            f"{_short(parameters)} parameters",
            f"context {engine.context_tokens:,} tokens",
            f"temperature {self.conversation.options.temperature:g}",
        ]
        body = Text()
        if self.title:
            body.append(f"{self.title}\n", style="bold")
        body.append(" · ".join(facts) + "\n")
        body.append("/help lists the commands · Ctrl-C stops a reply · Ctrl-D leaves", style="dim")
        self.console.print(Panel(body, title="lmloop chat", title_align="left", border_style="cyan", expand=False))

    def _help(self) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for command, meaning in COMMANDS.items():
            table.add_row(Text(command, style="cyan"), meaning)
        self.aside.print(table)

    def _temperature(self, argument: str) -> None:
        options = self.conversation.options
        if not argument:
            self._say(f"The temperature is {options.temperature:g}.")
            return
        try:
            self.conversation.options = GenerationSection.model_validate(
                {**options.model_dump(), "temperature": float(argument)}
            )
        except ValidationError as error:
            self._say(f"/temperature {argument}: {error.errors()[0]['msg'].lower()}")
        except ValueError:
            self._say(f"/temperature {argument}: not a number; for example /temperature 0.7")
        else:
            self._say(f"The temperature is {self.conversation.options.temperature:g} now.")

    def _save(self, argument: str) -> None:
        path = Path(argument).expanduser()
        if not argument:
            self._say("/save needs the name of a file, for example /save talk.txt")
        elif not self.conversation.turns:
            self._say("There is nothing to save yet.")
        elif path.exists():
            self._say(f"{path} exists already: choose another name")
        else:
            try:
                atomic_write(path, self.conversation.transcript())
            except OSError as error:
                self._say(f"{path}: {error.strerror or error}")
            else:
                self._say(f"Saved to {path}.")

    def _say(self, text: str) -> None:
        """Words of the program, told apart from the model's."""
        self.aside.print(Text(text, style="dim"), soft_wrap=True)


@contextlib.contextmanager
def _ctrl_c_calls(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `stop`, the second raises KeyboardInterrupt; elsewhere than in the main thread: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _terminal_reader(console: Console) -> Callable[[], str]:
    """Lines typed at a terminal, with editing and history where the system has them."""
    with contextlib.suppress(ImportError):  # importing it is what switches editing on; Windows has its own
        import readline  # noqa: F401

    def read() -> str:
        if console.file is sys.stdout:
            return input(PROMPT)  # editing must know the prompt's width, so it is not printed apart
        console.out(PROMPT, end="", highlight=False)
        return input()

    return read


def _piped_reader() -> Callable[[], str]:
    """Lines of a pipe or file; bytes that are no UTF-8 are replaced, not fatal."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="replace")

    def read() -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    return read


def _printable(text: str) -> str:
    """Text without control characters, so that nothing a model writes can move the cursor or recolour the terminal."""
    return "".join(one for one in text if one in "\n\t" or unicodedata.category(one) not in ("Cc", "Cs"))


def _figures(result: Generation) -> str:
    tokens = "1 token" if result.new_tokens == 1 else f"{result.new_tokens:,} tokens"
    parts = [tokens, f"{result.new_tokens / max(result.seconds, 1e-9):,.0f} tokens/s"]
    if result.stopped_by == "length":
        parts.append("cut at max_new_tokens")
    elif result.stopped_by == "interrupted":
        parts.append("stopped")
    return " · ".join(parts)


def _short(count: int) -> str:
    """1,234,567 as 1.23 M."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)
