"""The journal between two epochs: the model writes what it makes of its training, and reads it first in the next epoch.

A stretch is an epoch, or `journal.every_tokens`. At its end, in this order: an epoch that did harm is taken back, the model
writes, what is worth it is appended to the file, the file is read, and what is read of it goes before the data. All of it is
done once, also when the run is stopped or killed in the middle: what was decided is in `Progress.journal`, hence in every
checkpoint, and an entry that was appended after the checkpoint that a run goes on from is found in the file by its number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmloop.data.source import Source
from lmloop.durable import in_words
from lmloop.preset.journal import JournalSection
from lmloop.processes import Processes
from lmloop.tokens.preface import PrefaceFeed
from lmloop.training import figures
from lmloop.training.journal_file import JournalFile, Section, mark_of, readable
from lmloop.training.paired import Difference, Losses, difference
from lmloop.training.reflection import clean, fault, fill, newest_that_fit
from lmloop.training.state import Progress

Stop = Callable[[], bool]

SAMPLE_CHARACTERS = 600
"""Of the newest samples so much stands in the prompt of a reflection."""


@dataclass(frozen=True)
class Means:
    """What the journal needs of the rest of the run; all ranks call them alike.

    write: the model's continuation of a prompt, None when asked to stop. measure: losses on the held-out documents, None
    when asked to stop; itself None where there are no such documents. pin, restore: keep the present state; put back the one
    that was kept at a step. count: tokens of a text. real_characters: of the data, up to a number of characters.
    control_tokens: of the tokenizer.
    """

    write: Callable[[str, Stop], str | None]
    measure: Callable[[Stop], Losses | None] | None
    pin: Callable[[], str | None]
    restore: Callable[[int], bool]
    count: Callable[[str], int]
    real_characters: Callable[[int], int]
    control_tokens: Iterable[str]
    notice: Callable[[str], None]


class Journal:
    """The journal of one run. Every rank has one and calls it alike; the first one reads and writes the file."""

    def __init__(
        self,
        section: JournalSection,
        file: JournalFile,
        *,
        progress: Progress,
        feed: PrefaceFeed,
        processes: Processes,
        means: Means,
        resumed: bool,
    ) -> None:
        """`resumed`: the feed goes on where a checkpoint says. ValueError, OSError: the file cannot be read."""
        self.section = section
        self.file = file
        self.progress = progress
        self.feed = feed
        self.processes = processes
        self.means = means
        if not progress.journal:
            progress.journal = {"next": processes.on_first(file.first_free), "open": False, "losses": [], "mark": ""}
            self._mark()
        elif not resumed:
            progress.journal |= {"open": False, "before": None}  # the data begins anew, and with it the stretch
        elif self._mark_now() != progress.journal["mark"]:
            means.notice(
                f"{file.path.name} was edited since the last checkpoint: this epoch goes on with what it began with, and "
                "the next one reads the edit"
            )

    @property
    def state(self) -> dict[str, Any]:
        """What is saved of it. next: number of the next entry. open: a stretch has begun, at `step`, `tokens`, `epochs`.
        loss, loss_tokens: sums of the stretch. losses: means of those before. mark: the journal as it was last seen."""
        return self.progress.journal

    # ---- what happens meanwhile ----

    def after_step(self, loss: float | None, tokens: int, facts: dict[str, Any]) -> None:
        """Take note of an update."""
        state = self.state
        state["length"] = facts["seq_len"]
        if loss is not None:
            state["loss"] += loss * tokens
            state["loss_tokens"] += tokens

    def evaluated(self, cross_entropy: float) -> None:
        """Take note of an evaluation."""
        self.state["validation"] = cross_entropy

    def sampled(self, written: list[tuple[str, str]]) -> None:
        """Take note of samples."""
        self.state["samples"] = [[prompt, text] for prompt, text in written]

    # ---- between two stretches ----

    def is_due(self, *, final: bool) -> bool:
        """There is something to do before the next update."""
        return self._is_over(final) or not (final or self.state["open"])

    def pass_through(self, should_stop: Stop, *, final: bool) -> bool:
        """End the stretch where it is over, and begin the next one. False when asked to stop before it was done."""
        if self._is_over(final) and not self._end(should_stop):
            return False
        return final or self.state["open"] or self._begin(should_stop)

    def _is_over(self, final: bool) -> bool:
        state, progress = self.state, self.progress
        if not state["open"] or progress.tokens == state["tokens"]:
            return False
        if self.section.every_tokens is not None:
            return final or progress.tokens - state["tokens"] >= self.section.every_tokens
        return final or progress.epochs > state["epochs"]

    def _end(self, should_stop: Stop) -> bool:
        state = self.state
        after: Losses | None = None
        if state["before"] is not None and self.means.measure is not None:
            after = self.means.measure(should_stop)
            if after is None:
                return False
            after = self._take_back(Losses(**state["before"]), after)
        unedited = self._mark_now() == state["mark"]
        loss = state["loss"] / state["loss_tokens"] if state["loss_tokens"] else None
        losses = [*state["losses"], loss]
        if not self._reflect(self._facts(loss, losses), should_stop):
            return False
        read = sum(self.means.count(text) for _, text in self.feed.texts)
        real_tokens = max(self.progress.tokens - state["tokens"] - read, 0)
        changes = {"open": False, "losses": losses, "next": state["next"] + 1, "real_tokens": real_tokens}
        self.progress.journal = {**state, **changes, "before": after and asdict(after)}
        if unedited:  # else it is said when the file is read
            self._mark()
        return True

    def _begin(self, should_stop: Stop) -> bool:
        state, progress = self.state, self.progress
        before = state.get("before") if self.section.rollback else None
        if before is None and self.section.rollback and self.means.measure is not None:
            losses = self.means.measure(should_stop)
            if losses is None:
                return False
            before = asdict(losses)
        edited = self._mark_now() != state["mark"]
        if edited and state["mark"]:
            self.means.notice(f"{self.file.path.name} was edited: it is read as it is now")
        texts, share, cut = self.processes.on_first(lambda: self._read(state))
        if cut and not state.get("cut"):
            share_text = figures.percent(self.section.max_share)
            self.means.notice(f"the journal is longer than journal.max_share ({share_text}): its newest part is read")
        begins_an_epoch = self.section.every_tokens is None and self.feed.progress == 0.0
        self.feed.begin(texts, share if begins_an_epoch else 0.0)
        progress.journal = {
            **state,
            "open": True,
            "step": progress.step,
            "tokens": progress.tokens,
            "epochs": progress.epochs,
            "loss": 0.0,
            "loss_tokens": 0,
            "before": before,
            "cut": bool(state.get("cut")) or cut,
        }
        self._mark()
        if before is not None and (problem := self.means.pin()) is not None:
            progress.journal["before"] = None
            self.means.notice(f"this epoch cannot be taken back: its beginning was not kept ({problem})")
        return True

    # ---- the parts of it ----

    def _take_back(self, before: Losses, after: Losses) -> Losses:
        """Put back what the stretch began with, if it made the model worse; the losses that hold from here."""
        change, state = difference(before, after), self.state
        if not change.is_worse:
            return after
        if not self.means.restore(state["step"]):
            self.means.notice(f"this epoch made it worse ({_words(change)}), but its beginning is not there to go back to")
            return after
        self.means.notice(f"this epoch made it worse ({_words(change)}): weights of step {state['step']:,} again")
        newest = self.file.id(state["next"] - 1)
        if any(name == newest for name, _ in self.feed.texts):
            where = f"epoch {self.progress.epochs}, step {self.progress.step:,}"
            self._append("withdrawn", state["next"], f"{newest}: {where}: {_words(change)}: it is not read any more")
        return before

    def _facts(self, loss: float | None, losses: list[float | None]) -> dict[str, str]:
        """What the prompt may ask for."""
        state, progress = self.state, self.progress
        samples = "\n\n".join(prompt + text for prompt, text in state.get("samples", []))
        return {
            "epoch": str(progress.epochs if self.section.every_tokens is None else len(losses)),
            "step": f"{progress.step:,}",
            "tokens": f"{progress.tokens:,}",
            "length": str(state.get("length", "")),
            "loss": _number(loss),
            "loss_history": ", ".join(map(_number, losses[-20:])),
            "validation": _number(state.get("validation")),
            "samples": samples[-SAMPLE_CHARACTERS:],
        }

    def _reflect(self, facts: dict[str, str], should_stop: Stop) -> bool:
        """Write an entry, unless it stands in the file already. False when asked to stop before."""
        number = self.state["next"]
        if self.processes.on_first(lambda: self._stands(number)):
            return True  # it was written before the run was killed
        prompt = fill(self.section.prompt, facts)
        written = self.means.write(prompt, should_stop)
        if written is None:
            return False
        text = clean(written, self.means.control_tokens)
        others = self.processes.on_first(
            lambda: [(s.id or "what a person wrote", s.text) for s in self._sections() if s.text]
        )
        reason = fault(text, prompt, others)
        where = f"epoch {facts['epoch']}, step {facts['step']}, {facts['tokens']} tokens, rows of {facts['length']}"
        provenance = f"{where}, loss {facts['loss']}, validation {facts['validation']}"
        if reason:
            self.means.notice(f"journal: the reflection after epoch {facts['epoch']} is left out: {reason}")
            self._append("dropped", number, f"{provenance}: {reason}")
        else:
            self._append("entry", number, provenance, f"## After epoch {facts['epoch']}\n\n{text}")
        return True

    def _stands(self, number: int) -> bool:
        try:
            return self.file.find(("entry", "dropped"), number) is not None
        except OSError:
            return False  # then it cannot be appended to either, which is said

    def _append(self, kind: str, number: int, facts: str, text: str = "") -> None:
        """Into the file; where the disk refuses, the run goes on without."""
        problem: str | None = None
        if self.processes.first:
            try:
                self.file.append(kind, number, facts, text)
            except OSError as error:
                problem = in_words(error)
        if (problem := self.processes.broadcast(problem)) is not None:
            self.means.notice(f"journal: this entry is lost: {problem}")

    def _read(self, state: dict[str, Any]) -> tuple[list[tuple[str, str]], float, bool]:
        """What is read next: the newest part of the journal that its share allows; that share; whether it was cut."""
        texts = readable(self._sections())
        tokens = sum(self.means.count(text) for _, text in texts)
        if not tokens:
            return [], 0.0, False
        most = self.section.max_share / (1.0 - self.section.max_share)
        if self.section.every_tokens is not None:
            real = self.section.every_tokens * (1.0 - self.section.max_share)
        elif state.get("real_tokens"):
            real = state["real_tokens"]
        else:  # the first epoch: by characters, of which no more are counted than it takes
            characters = sum(len(text) for _, text in texts)
            real = tokens * self.means.real_characters(int(characters / most) + 1) / characters
        kept, cut = newest_that_fit(texts, int(most * real), self.means.count)
        tokens = sum(self.means.count(text) for _, text in kept)
        return kept, tokens / (tokens + real) if tokens else 0.0, cut

    def _mark_now(self) -> str:
        return self.processes.on_first(lambda: mark_of(self._sections()))

    def _mark(self) -> None:
        """The journal is known as it is now."""
        self.state["mark"] = self._mark_now()

    def visible_text(self) -> str:
        """The journal as a system message has it."""
        return self.processes.on_first(lambda: "\n\n".join(text for _, text in readable(self._sections())))

    def _sections(self) -> list[Section]:
        """What stands in the file, on the first rank; nothing where it cannot be read."""
        try:
            return self.file.sections(self.state["next"])
        except OSError as error:
            self.means.notice(f"the journal cannot be read, and is left out until it can: {in_words(error)}")
            return []


def characters_of(sources: Sequence[Source], at_most: int) -> int:
    """Characters of the sources' documents, of which no more are read than it takes to count `at_most`."""
    count = 0
    for source in sources:
        for document, _ in source.read({}):
            count += len(document.text)
            if count >= at_most:
                return at_most
    return count


def _words(change: Difference) -> str:
    return f"held-out loss {change.mean:+.4f} nats a token, standard error {change.error:.4f}"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"
