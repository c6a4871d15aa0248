"""A conversation with a model that continues text: its turns, and the prompt that is made of them."""

from __future__ import annotations

from collections.abc import Iterator

from lmloop.data.document import Message
from lmloop.generation.engine import Engine, Generation, Stream
from lmloop.generation.prompts import Prompt
from lmloop.preset.schema import GenerationSection
from lmloop.tokens.template import ChatTemplate

PLACE = "{user}"
"""Where `chat_format` puts the message."""


class Conversation:
    """Turns of (message, reply), oldest first.

    The prompt of a reply is the concatenation of all turns, each as `chat_format` followed by its reply and a line break,
    cut to the newest that leave room for the reply (at most half of the context is kept free for it). Where the format
    begins with a mark of whose turn it is (`Q:`), that mark at the beginning of a line ends a reply: else the model would
    go on to write both parts.

    With a `template` the turns are written in it, and its own tokens end a reply.
    """

    def __init__(self, engine: Engine, options: GenerationSection, seed: int, template: ChatTemplate | None = None) -> None:
        if PLACE not in options.chat_format:
            raise ValueError(
                f"generation.chat_format {options.chat_format!r}: no {PLACE} in it: write it where the message goes, "
                f"for example 'Q: {PLACE}\\nA:'"
            )
        self.engine = engine
        self.options = options
        self.turns: list[tuple[str, str]] = []
        self._template = template
        self._seed = seed
        self._replies = 0

    def reply(self, message: str) -> Reply:
        """Answer a message; the turn counts once the reply has run out."""
        prompt, dropped = self._prompt(message)
        self._replies += 1
        options = self.options.model_copy(update={"stop": [*self.options.stop, *self._turn_mark()]})
        return Reply(self, message, prompt, options, dropped, self._seed + self._replies - 1)

    def retry(self) -> Reply:
        """Answer the last message again, with other random numbers, in place of the last reply."""
        message, _ = self.turns.pop()
        return self.reply(message)

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()

    def transcript(self) -> str:
        """The conversation for people to read."""
        return "\n".join(f"You: {message}\n\nModel: {reply.strip()}\n" for message, reply in self.turns)

    def _turn_mark(self) -> list[str]:
        if self._template is not None:
            return []
        mark = self.options.chat_format.partition(PLACE)[0].strip()
        return [f"\n{mark}"] if mark else []

    def _prompt(self, message: str) -> tuple[Prompt, int]:
        """The prompt for a message, and how many of the oldest turns it leaves out. ChatTemplateError."""
        if self._template is not None:
            return self._written(self._template, message)
        parts = [self._formatted(past) + _own_line(reply) for past, reply in self.turns]
        newest = self._formatted(message)
        room = self._room - 1  # the start token
        first = len(parts)
        prompt = newest
        while first and len(self.engine.tokenizer.encode(parts[first - 1] + prompt)) <= room:
            first -= 1
            prompt = parts[first] + prompt
        return prompt, first

    def _written(self, template: ChatTemplate, message: str) -> tuple[Prompt, int]:
        """The same in a template; a turn without a reply is not in it."""
        first = 0
        while True:
            said = [Message(role, text) for turn in self.turns[first:] if turn[1].strip() for role, text in _roles(turn)]
            prompt = template.prompt([*said, Message("user", message)])
            if len(prompt) <= self._room or first == len(self.turns):
                return prompt, first
            first += 1

    @property
    def _room(self) -> int:
        """Tokens of the prompt."""
        context = self.engine.context_tokens
        return context - min(self.options.max_new_tokens, context // 2)

    def _formatted(self, message: str) -> str:
        return self.options.chat_format.replace(PLACE, message)


class Reply(Iterator[str]):
    """The pieces of a reply as it is written; the turn is added to the conversation when they have run out."""

    def __init__(
        self,
        conversation: Conversation,
        message: str,
        prompt: Prompt,
        options: GenerationSection,
        dropped_turns: int,
        seed: int,
    ) -> None:
        self.dropped_turns = dropped_turns
        self.result: Generation | None = None
        self._conversation = conversation
        self._message = message
        self._text = ""
        self._stopped = False
        self._stream: Stream = conversation.engine.stream(prompt, options, seed=seed, should_stop=lambda: self._stopped)

    def __next__(self) -> str:
        try:
            piece = next(self._stream)
        except StopIteration:
            if self.result is None:
                self.result = self._stream.result
                self._add_turn()
            raise
        self._text += piece
        return piece

    def stop(self) -> None:
        """Write no further token; the pieces run out with what there is."""
        self._stopped = True

    def abandon(self) -> None:
        """The pieces are not read to their end: the turn is what has been given out."""
        self._add_turn()

    def _add_turn(self) -> None:
        self._conversation.turns.append((self._message, self._text))


def _roles(turn: tuple[str, str]) -> Iterator[tuple[str, str]]:
    return zip(("user", "assistant"), turn, strict=True)


def _own_line(reply: str) -> str:
    """A reply as it stands in the next prompt: what follows begins on a new line."""
    return reply if reply.endswith("\n") else reply + "\n"
