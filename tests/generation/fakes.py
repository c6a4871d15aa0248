"""Models small enough to know exactly what they must write, and tokenizers made of a line of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lmloop.data.document import Document, Position
from lmloop.models.base import LanguageModel
from lmloop.models.cache import Cache
from lmloop.preset.schema import GenerationSection, TokenizerSection
from lmloop.tokens.build import build_tokenizer
from lmloop.tokens.tokenizer import Tokenizer

GREEDY = GenerationSection(temperature=0.0, top_p=1.0)


class Line:
    """A source of one text."""

    name = "line"

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, position: Position, epoch: int = 0) -> Iterator[tuple[Document, Position]]:
        yield Document("line", "line", self._text, 1.0), {"done": True}

    def parents(self) -> list[str]:
        return ["line"]


def tokenizer_of(text: str, kind: str = "char") -> Tokenizer:
    return build_tokenizer(TokenizerSection(type=kind, vocab_size=256), [Line(text)])  # type: ignore[arg-type]


class Recurrent(LanguageModel):
    """h_t = 0.8 h_(t-1) + embedding(x_t) + place(position), in fp64: causal, and exact whichever way it is computed."""

    def __init__(self, vocab_size: int, context: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size, self.context_length = vocab_size, context
        self.embedding = nn.Parameter(torch.randn(vocab_size, 16, generator=generator, dtype=torch.float64))
        self.place = nn.Parameter(torch.randn(context, 16, generator=generator, dtype=torch.float64))
        self.prefills: list[tuple[int, int]] = []

    def head_weight(self) -> Tensor:
        return self.embedding.roll(1, 0)  # not its own embedding: it would repeat one token for ever

    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        assert segments_BT is None
        return self.decode(tokens_BT, self.make_cache(*tokens_BT.shape))

    def make_cache(self, batch_size: int, max_tokens: int) -> Cache:
        return Cache([torch.zeros(batch_size, 16, dtype=torch.float64)], batch_size, max_tokens, torch.device("cpu"))

    def decode(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        assert cache.length + tokens_BT.shape[1] <= cache.max_tokens, "the cache is too small"
        if cache.length == 0:
            self.prefills.append(tuple(tokens_BT.shape))  # type: ignore[arg-type]
        hidden = []
        for token_B in tokens_BT.unbind(1):
            position_B = cache.length - cache.pad_B
            new_BD = 0.8 * cache.states[0] + self.embedding[token_B] + self.place[position_B.clamp_min(0)]
            cache.states[0] = torch.where((position_B >= 0)[:, None], new_BD, cache.states[0])
            hidden.append(cache.states[0])
            cache.length += 1
        return torch.stack(hidden, dim=1)


class Scripted(LanguageModel):
    """Writes the tokens of a script, whatever it is asked, and remembers what it was asked.

    `scripts` are used in turn, one for each prefill; at its end a script is silent (the token `end`).
    """

    def __init__(self, vocab_size: int, scripts: Sequence[Sequence[int]], end: int, context: int = 10_000) -> None:
        super().__init__()
        self.vocab_size, self.context_length = vocab_size, context
        self.weight = nn.Parameter(torch.eye(vocab_size))
        self.scripts, self.end = scripts, end
        self.asked: list[list[int]] = []
        self.before_step: Callable[[int], None] = lambda step: None

    def head_weight(self) -> Tensor:
        return self.weight

    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def make_cache(self, batch_size: int, max_tokens: int) -> Cache:
        return Cache([0], batch_size, max_tokens, torch.device("cpu"))

    def decode(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        if cache.length == 0:
            self.asked.append(tokens_BT[0].tolist())
        cache.length += tokens_BT.shape[1]
        step = cache.states[0]
        self.before_step(step)
        cache.states = [step + 1]
        script = [*self.scripts[(len(self.asked) - 1) % len(self.scripts)], self.end]
        wanted = torch.full((tokens_BT.shape[0], 1), script[min(step, len(script) - 1)])
        return 10 * nn.functional.one_hot(wanted, self.vocab_size).float()
