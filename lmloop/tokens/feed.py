"""The feed: where batches come from."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from lmloop.data.shards import cut
from lmloop.data.source import Source
from lmloop.data.waiting import while_waiting
from lmloop.preset.schema import DataSection
from lmloop.tokens.batch import Batch
from lmloop.tokens.conversations import ChatEncoder
from lmloop.tokens.dealing import workers
from lmloop.tokens.encoding import Encoder
from lmloop.tokens.lanes import nothing_left, too_short
from lmloop.tokens.readahead import Interrupted, ReadAhead
from lmloop.tokens.rounds import BROKEN
from lmloop.tokens.steps import Step, StepBuilder
from lmloop.tokens.tokenizer import Tokenizer

__all__ = ["Feed", "Interrupted", "TextFeed", "merge_states"]

_PATIENCE_S = 2.0
"""How long closing waits for a thread that may hang in the network."""


class Feed(Protocol):
    """What the loop asks of a feed."""

    @property
    def wait_s(self) -> float:
        """Seconds that `next_step` has waited so far."""
        ...

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        ...

    @property
    def progress(self) -> float:
        """Share of the current epoch that was returned, 0 to 1; 0 where it cannot be told."""
        ...

    def next_step(self, length: int) -> list[Batch]:
        """The micro-batches of the next update, in rows of `length` tokens; [] when an epoch has ended."""
        ...

    def ballot(self) -> list[int]:
        """What this rank found out in the last step; of the same length on every rank."""
        ...

    def settle(self, ballot: list[int]) -> None:
        """Take the maximum of all ranks' ballots as known, at the same step on every rank, before the step is trained."""
        ...

    def rewind(self) -> None:
        """Stand before the last step returned, which was not trained: it comes again."""
        ...

    def fingerprint(self) -> int:
        """31 bits that are equal on all ranks after `settle`, unless they were fed from different data."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the step after the last one returned begins."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        ...

    def close(self) -> None:
        """Let go of threads and files."""
        ...


class TextFeed:
    """Documents, mixed, packed and batched, in an order that depends on nothing but the sources and the section.

    A step is `tokens_per_step // length` rows (at least one) over all ranks, fewer at the end of an epoch, whatever the
    number of ranks; each takes its share of them in micro-batches of at most `micro_batch_tokens // length` rows, as many
    micro-batches on every rank. Where sources begin again by themselves (`loop`, except under `sequential`), each is cut
    into parts, and a rank reads and encodes only those of which it trains rows. Else a source is one part, which all read.

    With `section.workers` a thread builds steps ahead and that many threads encode; the order is the same. State, `epoch`
    and `progress` are those of the last step that was returned, whatever was read ahead.

    wait_s: seconds that `next_step` has waited so far. notices: a line for each source that gives no documents.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        section: DataSection,
        *,
        micro_batch_tokens: int,
        tokens_per_step: int,
        loop: bool = True,
        should_stop: Callable[[], bool] | None = None,
        rank: int = 0,
        world: int = 1,
        chats: ChatEncoder | None = None,
    ) -> None:
        """`loop`: a source that ends begins again at once (budgets of tokens and steps), except under `sequential`.

        chats: encodes the sources that hold conversations; the feed closes it.

        `should_stop` is asked while waiting for data; when it says yes, `next_step` raises Interrupted and no step is lost.
        """
        self.source_names = [source.name for source in sources]
        assert sources, "a feed needs a source"
        assert len(set(self.source_names)) == len(sources), self.source_names
        assert 0 <= rank < world, (rank, world)
        self.notices: list[str] = []
        self.wait_s = 0.0
        self._sources = list(sources)
        self._section = section
        self._micro_batch_tokens = micro_batch_tokens
        self._tokens_per_step = tokens_per_step
        self._endless = loop and section.mix_strategy != "sequential"
        self._should_stop = should_stop or (lambda: False)
        self._rank = rank
        self._world = world
        self._encoder = Encoder(tokenizer, section.workers)
        self._chats = chats
        self._builder: StepBuilder | None = None
        self._ahead: ReadAhead | None = None
        self._ahead_length = 0
        self._put(Step([], {}, 0, 0.0))

    def _put(self, step: Step) -> None:
        """Stand after `step`, with nothing known of what came before."""
        self._last = self._before = step
        self._parts: list[list[Source]] | None = None

    @property
    def epoch(self) -> int:
        """Epochs that are over; with `loop`, passes over the part of a source that is furthest behind."""
        return self._last.epoch

    @property
    def progress(self) -> float:
        """Share of the current epoch that was returned, 0 to 1; 0 where it cannot be told."""
        return self._last.progress

    @property
    def skipped(self) -> dict[str, int]:
        """Documents that `data.min_text_length` left out, by source, counted in every pass. Summed over the ranks these are
        all: of what several ranks read, the first counts."""
        return self._counted("skipped")

    @property
    def too_long(self) -> dict[str, int]:
        """Conversations of which not even the first answer fits into a row, counted as `skipped` is."""
        return self._counted("too_long")

    @property
    def cut(self) -> dict[str, int]:
        """Conversations whose last turns were left out, since they do not fit into a row, counted as `skipped` is."""
        return self._counted("cut")

    def _counted(self, what: str) -> dict[str, int]:
        lanes = self._last.state.get("lanes", {})
        return {
            name: sum(
                lane.get(what, 0)
                for part, lane in lanes[name]["parts"].items()
                if workers(int(part), lanes[name]["count"], self._world).start == self._rank
            )
            for name in self.source_names
            if name in lanes
        }

    def next_step(self, length: int) -> list[Batch]:
        """The micro-batches of the next update, in rows of `length` tokens; [] when an epoch has ended.

        Raises:
            Interrupted: `should_stop` said so while waiting.
            SourceError, TooManyBadRows: from reading, also when that was done in the thread. The state stays that of the
                last step returned, and another call tries again from there.
        """
        started = time.perf_counter()
        try:
            step = self._read_ahead(length) if self._section.workers else self._build_now(length)
        except Interrupted:
            raise
        except BaseException:
            self._drop()
            raise
        finally:
            self.wait_s += time.perf_counter() - started
        self._before, self._last = self._last, step
        return step.batches

    # ---- what ranks agree on ----

    def ballot(self) -> list[int]:
        """What this rank found out in the last step: lanes that give nothing, and its epoch."""
        return self._last.ballot

    def settle(self, ballot: list[int]) -> None:
        """Take the maximum of all ranks' ballots as known: lanes that give nothing are left out from the next step on.

        Raises:
            SourceError: no lane is left. The state is again that before the last step, which cannot be trained.
        """
        if not ballot:
            return
        *found, epoch = ballot
        assert self._parts is not None
        lanes = [(parts[0].name, str(index)) for parts in self._parts for index in range(len(parts))]
        left_out = copy.deepcopy(self._last.state["left_out"])
        for (name, part), why in zip(lanes, found, strict=True):
            if why:
                left_out.setdefault(name, {})[part] = why
        last = self._last
        if left_out != last.state["left_out"]:
            if all(found):
                skipped, too_long = sum(self.skipped.values()), sum(self.too_long.values())
                error = nothing_left(self.source_names, skipped, BROKEN in found, last.faults, too_long)
                self.rewind()
                raise error
            self._builder, self._ahead_length = None, 0  # what was read ahead is of no use
            for parts in self._parts:
                name = parts[0].name
                before = last.state["left_out"].get(name, {})
                if left_out.get(name, {}) != before and BROKEN not in before.values():  # once, whatever else breaks off
                    faults = [fault for fault in last.faults if fault.startswith(f"source '{name}': ")]
                    self._notice(name, len(parts), left_out[name], faults[0] if faults else "")
        self._last = replace(last, epoch=-epoch, state={**last.state, "left_out": left_out})

    def rewind(self) -> None:
        """Stand before the last step returned, which was not trained: it comes again."""
        self._builder, self._ahead_length = None, 0
        self._put(self._before)

    def _notice(self, name: str, count: int, left_out: dict[str, int], fault: str) -> None:
        """Say that a source is gone, or a part of it that should not be, and why where that is known."""
        broken = list(left_out.values()).count(BROKEN)
        if len(left_out) == count:
            what = (
                "broke off"
                if broken
                else f"gave no document{too_short(self.skipped.get(name, 0), self.too_long.get(name, 0))}"
            )
            gone = fault or f"source '{name}' {what}"
            self.notices.append(f"{gone}: training goes on without it")
        elif broken:
            why = f" ({fault.partition(': ')[2]})" if fault else ""
            self.notices.append(
                f"source '{name}': {broken} of its {count} parts broke off{why}: training goes on without what breaks off"
            )

    def fingerprint(self) -> int:
        """31 bits that are equal on all ranks after `settle`, unless they were fed from different data."""
        left_out = self._last.state.get("left_out", {})
        gone = [(index, int(part)) for index, name in enumerate(self.source_names) for part in left_out.get(name, {})]
        shared = [(key, checksum) for key, checksum in sorted(self._last.shared.items()) if key not in gone]
        return zlib.crc32(repr((self._last.plan, self._last.epoch, gone, shared)).encode()) & 0x7FFFFFFF

    # ---- building ----

    def _leave_if_asked(self) -> None:
        if self._should_stop():
            raise Interrupted

    def _build_now(self, length: int) -> Step:
        if self._builder is None:
            self._builder = self._new_builder(self._leave_if_asked)
        try:
            return self._builder.next_step(length)
        except BaseException:  # it may have taken a part of the step
            self._builder = None
            raise

    def _read_ahead(self, length: int) -> Step:
        if self._ahead is not None and self._ahead_length != length:
            self._ahead_length = 0  # of no use any more, also when closing it is interrupted
            self._ahead.close(self._should_stop)
            self._ahead = None
        if self._ahead is None:
            ahead = ReadAhead(lambda: builder.next_step(length))
            builder = self._new_builder(ahead.check)
            self._ahead, self._ahead_length = ahead, length
            ahead.start()
        step = self._ahead.get(self._should_stop)
        if not step.batches:
            self._ahead = None  # its thread ended with the epoch
        return step

    def _new_builder(self, check: Callable[[], None]) -> StepBuilder:
        """A builder that goes on after the last step returned."""
        if self._parts is None:
            with while_waiting(self._leave_if_asked):
                self._parts = self._cut()
        return StepBuilder(
            self._parts,
            self._encoder,
            self._chats,
            self._section,
            micro_batch_tokens=self._micro_batch_tokens,
            tokens_per_step=self._tokens_per_step,
            endless=self._endless,
            rank=self._rank,
            world=self._world,
            state=copy.deepcopy(self._last.state),
            notices=self.notices,
            check=check,
        )

    def _cut(self) -> list[list[Source]]:
        """The parts of each source; in as many as when the state was taken, so that what grew goes on where it was."""
        before = {name: entry["count"] for name, entry in self._last.state.get("lanes", {}).items()}
        if self._endless:
            return [cut(source, before.get(source.name)) for source in self._sources]
        self.notices += [
            f"source '{name}' begins anew: it was read in {before[name]} parts, and epochs need it whole"
            for name in self.source_names
            if before.get(name, 1) > 1
        ]
        return [[source] for source in self._sources]

    def _drop(self, patience_s: float | None = None) -> None:
        """Throw away what was read ahead."""
        if self._ahead is not None:
            self._ahead.close(patience_s=patience_s)
        self._ahead = self._builder = None

    def state_dict(self) -> dict[str, Any]:
        """Where the step after the last one returned begins, as far as this rank knows it (`merge_states` makes the whole):
        JSON-able, and the caller's own."""
        return copy.deepcopy({"epoch": self._last.epoch, "progress": self._last.progress, "builder": self._last.state})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state`, of any number of ranks, was taken, with the same documents and tokens to the last one."""
        self._drop()
        builder = copy.deepcopy(state["builder"])
        if "left_out" in builder:  # what broke off elsewhere is tried again
            builder["left_out"] = {
                name: {part: why for part, why in parts.items() if why != BROKEN}
                for name, parts in builder["left_out"].items()
            }
        self._put(Step([], builder, state["epoch"], state["progress"]))

    def close(self) -> None:
        """Let go of the threads. The state can still be asked for; the feed cannot be read on."""
        self._drop(_PATIENCE_S)
        self._encoder.close()
        if self._chats is not None:
            self._chats.close()


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole state of a feed from those of its ranks, in the order of the ranks; it loads into any number of ranks."""
    whole = copy.deepcopy(states[0])
    whole["epoch"], whole["progress"] = min((state["epoch"], state["progress"]) for state in states)
    for state in states[1:]:
        for name, entry in state["builder"].get("lanes", {}).items():
            known = whole["builder"]["lanes"][name]
            assert known["count"] == entry["count"], (name, known["count"], entry["count"])
            known["parts"] = {**copy.deepcopy(entry["parts"]), **known["parts"]}
    return whole
