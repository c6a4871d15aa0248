"""What a model in training writes: samples, and reflections for the journal, behind a system message where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from lmloop.data.document import Message
from lmloop.data.records import encodable
from lmloop.durable import in_words
from lmloop.generation.engine import Engine, Generation
from lmloop.generation.prompts import Prompt, as_prompts
from lmloop.models.base import LanguageModel
from lmloop.models.own_copy import own_copy
from lmloop.preset.schema import GenerationSection, Preset
from lmloop.processes import Processes
from lmloop.tokens.skeleton import ChatTemplateError
from lmloop.tokens.template import ChatTemplate
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.reflection import newest_part

Stop = Callable[[], bool]


def writing_engine(
    model: LanguageModel,
    tokenizer: Tokenizer,
    device: torch.device,
    preset: Preset,
    template: ChatTemplate | None,
    *,
    autocast: bool,
    processes: Processes,
) -> Engine:
    """What writes with a model in training, by a copy of it where that is faster. autocast: it is trained in bf16."""
    copy = own_copy(model)
    # Weights of a pretrained model may be bf16; with an adapter added to them, bf16 would lose what it has learned.
    in_bf16 = autocast and preset.model.pretrained is not None
    return Engine(
        model if copy is None else copy,
        tokenizer,
        device,
        autocast=in_bf16 and (copy is None or preset.adapter is None),
        agree=processes.broadcast,
        stops=template.stop_ids if template else (),
    )


class Writer:
    """Writes with the model as it is; every rank calls it alike.

    engine: makes one. in_use: around uses of the model. template: of conversations. system: the system message, '' for none,
    on every rank.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        in_use: Callable[[], AbstractContextManager[None]],
        options: GenerationSection,
        template: ChatTemplate | None,
        *,
        seed: int,
        notice: Callable[[str], None],
        system: Callable[[], str] = lambda: "",
    ) -> None:
        self.engine = engine
        self.in_use = in_use
        self.options = options
        self.template = template
        self.seed = seed
        self.notice = notice
        self.system = system
        self._said_dropped = False

    def samples(self, should_stop: Stop) -> list[tuple[str, str]] | None:
        """(prompt, continuation) of the preset's prompts; none where the outputs are not finite; None when asked to stop."""
        engine, prompts = self.engine(), self.options.prompts
        written = self._write(engine, self._prompts(engine, prompts, self.options.max_new_tokens), None, 0, should_stop)
        return None if written is None else [(p, one.text) for p, one in zip(prompts, written, strict=False)]

    def answers(self, prompts: Sequence[Prompt], should_stop: Stop) -> list[str] | None:
        """The likeliest continuations, for what is checked; None when asked to stop."""
        greedy = self.options.model_copy(update={"temperature": 0.0})
        written = self._write(self.engine(), prompts, greedy, 0, should_stop)
        return None if written is None else [one.text for one in written]

    def reflection(self, prompt: str, tokens: int, number: int, should_stop: Stop) -> str | None:
        """What the model answers to a prompt, at most `tokens`; `number` gives each its own random numbers. None when asked
        to stop."""
        engine = self.engine()
        asked, options = prompt, self.options
        if self.template is None:
            before, _, _ = options.chat_format.partition("{user}")
            asked = options.chat_format.replace("{user}", prompt)
            marks = [f"\n{before.strip()}"] if before.strip() else []
            options = options.model_copy(update={"stop": [*options.stop, *marks]})
        options = options.model_copy(update={"max_new_tokens": tokens})
        written = self._write(engine, self._prompts(engine, [asked], tokens), options, 1_000 + number, should_stop)
        if written is None:
            return None
        if written and written[0].dropped_tokens and not self._said_dropped:
            self._said_dropped = True
            one = written[0]
            self.notice(
                f"journal: the oldest {one.dropped_tokens:,} of {one.prompt_tokens:,} tokens of the prompt do not fit into "
                f"the context of {engine.context_tokens:,} and were not read"
            )
        return written[0].text if written else ""

    def _write(
        self, engine: Engine, prompts: Sequence[Prompt], options: GenerationSection | None, seed: int, should_stop: Stop
    ) -> list[Generation] | None:
        try:
            with self.in_use():
                written = engine.generate(prompts, options or self.options, seed=self.seed + seed, should_stop=should_stop)
        except ValueError as error:  # outputs that are not finite: the loop deals with them
            self.notice(f"no sample: {error}")
            return []
        return None if any(one.stopped_by == "interrupted" for one in written) else written

    def _prompts(self, engine: Engine, texts: Sequence[str], new_tokens: int) -> list[Prompt]:
        """The texts as prompts, each behind the newest part of the system message that leaves room for it and its answer."""
        plain, system = as_prompts(texts, self.template), encodable(self.system())
        if not system:
            return plain
        room = engine.context_tokens - min(new_tokens, engine.context_tokens // 2) - 1
        return [self._behind(engine, system, text, prompt, room) for text, prompt in zip(texts, plain, strict=True)]

    def _behind(self, engine: Engine, system: str, text: str, plain: Prompt, room: int) -> Prompt:
        def count(part: str) -> int:
            return len(engine.tokenizer.encode(part))

        if self.template is None or isinstance(plain, str):
            left = room - count(f"\n\n{text}")
            part = newest_part(system, left, count)
            return f"{part}\n\n{text}" if part else text
        left = room - len(plain)
        while part := newest_part(system, left, count):
            prompt = self._asked(self.template, part, text)
            if len(prompt) <= room:
                return prompt
            left = min(left, count(part)) - (len(prompt) - room)
        return plain

    @staticmethod
    def _asked(template: ChatTemplate, system: str, text: str) -> Prompt:
        try:
            return template.prompt([Message("system", system), Message("user", text)])
        except ChatTemplateError:  # it knows no system message
            return template.prompt([Message("user", f"{system}\n\n{text}")])


def read_system(path: Path, processes: Processes, notice: Callable[[str], None]) -> str:
    """What stands in a system message's file, on every rank; '' where it cannot be read, which is said."""

    def read() -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            notice(f"journal.system_prompt_path: {in_words(error)}: there is no system message until it can be read")
            return ""

    return processes.on_first(read)
