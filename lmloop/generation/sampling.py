"""From logits to the next token: pure functions on logits_BV, and what a row has written so far.

The order is that of transformers: repetition penalty, n-gram blocking, temperature, top-k, top-p, min-p. A token that is
ruled out has the logit −inf. Each function returns its argument untouched when it has nothing to do, and never changes it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from lmloop.preset.schema import GenerationSection

NUCLEUS_CANDIDATES = 256
"""Top-p looks at this many of the likeliest tokens before it sorts the whole vocabulary, which is 15 times as slow."""

LEAST_TEMPERATURE = 1e-30
"""A division by less than this could overflow fp32; the distribution is all on the likeliest token long before."""


class History:
    """The text tokens of one row, in the forms that penalty and blocking look them up in; nothing is kept for what is off.

    Control tokens do not belong in it: a text may always end, even where every document begins with the token that ends it.
    """

    def __init__(
        self, options: GenerationSection, vocab_size: int, device: torch.device, tokens: Iterable[int] = ()
    ) -> None:
        self.ngram_size = options.no_repeat_ngram_size
        self.seen_V: Tensor | None = None
        if options.repetition_penalty != 1.0:
            self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._newest: list[int] = []
        self._followers: dict[tuple[int, ...], set[int]] = {}
        tokens = list(tokens)
        if self.seen_V is not None and tokens:
            self.seen_V[torch.tensor(tokens, device=device)] = True
        for token in tokens:
            self._follow(token)

    def append(self, token: int) -> None:
        """Note one more token."""
        if self.seen_V is not None:
            self.seen_V[token] = True
        self._follow(token)

    def banned(self) -> Collection[int]:
        """Tokens that would complete an n-gram that has been there before."""
        if not self.ngram_size or len(self._newest) < self.ngram_size - 1:
            return ()
        return self._followers.get(tuple(self._newest), ())

    def _follow(self, token: int) -> None:
        """`_newest` holds the last n − 1 tokens: what the next token would complete."""
        if not self.ngram_size:
            return
        if len(self._newest) == self.ngram_size - 1:
            self._followers.setdefault(tuple(self._newest), set()).add(token)
        self._newest.append(token)
        if len(self._newest) > self.ngram_size - 1:
            del self._newest[0]


def row_generator(seed: int, row: int) -> torch.Generator:
    """The random numbers of one row of a call: they depend on the seed and the row's index and on nothing else.

    torch's generator looks at the low 32 bits of its seed alone, hence the mixing.
    """
    mixed = int(np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(1, np.uint32)[0])
    return torch.Generator().manual_seed(mixed)


def penalise_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make tokens in `seen_BV` less likely: positive logits are divided by the penalty, negative ones multiplied.

    CTRL (arXiv 1909.05858, section 4.1), with the usual correction for negative logits.
    """
    if penalty == 1.0:
        return logits_BV
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def block(logits_BV: Tensor, banned: Sequence[Collection[int]]) -> Tensor:
    """Rule out the tokens of `banned`, one collection for each row."""
    if not any(banned):
        return logits_BV
    rows = [row for row, tokens in enumerate(banned) for _ in tokens]
    columns = [token for tokens in banned for token in tokens]
    blocked_BV = logits_BV.clone()
    blocked_BV[torch.tensor(rows, device=logits_BV.device), torch.tensor(columns, device=logits_BV.device)] = -math.inf
    return blocked_BV


def apply_temperature(logits_BV: Tensor, temperature: float) -> Tensor:
    """Divide by a temperature above 0, relative to each row's largest logit so that no temperature overflows."""
    if temperature == 1.0:
        return logits_BV
    return (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / max(temperature, LEAST_TEMPERATURE)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row, and what equals the last of them; 0: all."""
    if k == 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    last_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < last_B1, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches p (nucleus sampling, arXiv 1904.09751).

    What is exactly as likely as the last of them stays too, so that the result does not depend on an order of equals.
    """
    if p >= 1.0:
        return logits_BV
    probabilities_BV = logits_BV.softmax(dim=-1)
    candidates = min(NUCLEUS_CANDIDATES, probabilities_BV.shape[-1])
    largest_BK = probabilities_BV.topk(candidates, dim=-1).values
    cumulative_BK = largest_BK.cumsum(dim=-1)
    if candidates < probabilities_BV.shape[-1] and bool((cumulative_BK[:, -1] < p).any()):
        largest_BK = probabilities_BV.sort(dim=-1, descending=True).values
        cumulative_BK = largest_BK.cumsum(dim=-1)
    last_B1 = (cumulative_BK < p).sum(dim=-1, keepdim=True).clamp_(max=largest_BK.shape[-1] - 1)
    return logits_BV.masked_fill(probabilities_BV < largest_BK.gather(-1, last_B1), -math.inf)


def keep_min_p(logits_BV: Tensor, share: float) -> Tensor:
    """Drop tokens whose probability is below `share` of the likeliest one's (arXiv 2407.01082)."""
    if share == 0.0:
        return logits_BV
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(dim=-1, keepdim=True) + math.log(share), -math.inf)


def adjust(logits_BV: Tensor, options: GenerationSection, histories: Sequence[History]) -> Tensor:
    """The logits, in fp32, whose softmax is what is sampled from; at temperature 0 those whose largest is taken."""
    logits_BV = logits_BV.float()
    if options.repetition_penalty != 1.0:
        seen_BV = torch.stack([history.seen_V for history in histories if history.seen_V is not None])
        logits_BV = penalise_repetition(logits_BV, seen_BV, options.repetition_penalty)
    if options.no_repeat_ngram_size:
        logits_BV = block(logits_BV, [history.banned() for history in histories])
    if options.temperature == 0.0:
        return logits_BV
    logits_BV = apply_temperature(logits_BV, options.temperature)
    return keep_min_p(keep_top_p(keep_top_k(logits_BV, options.top_k), options.top_p), options.min_p)


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Sample softmax(logits) by inverting its cumulative sum at `uniform_B`, numbers in [0, 1); int64 [B].

    One random number for a token, not one for each entry of the vocabulary: seven times as fast as `torch.multinomial`
    at 8,192 tokens. A token that is ruled out is never drawn, whatever is rounded.
    """
    probabilities_BV = logits_BV.softmax(dim=-1)
    exact = torch.float32 if logits_BV.device.type == "mps" else torch.float64  # MPS has no fp64
    cumulative_BV = probabilities_BV.cumsum(dim=-1, dtype=exact)
    threshold_B1 = uniform_B.to(cumulative_BV)[:, None] * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True).clamp_(max=logits_BV.shape[-1] - 1)
    possible_B1 = probabilities_BV.gather(-1, tokens_B1) > 0
    return torch.where(possible_B1, tokens_B1, probabilities_BV.argmax(dim=-1, keepdim=True))[:, 0]


def sample(
    logits_BV: Tensor, options: GenerationSection, generators: Sequence[torch.Generator], histories: Sequence[History]
) -> Tensor:
    """The next token of each row, int64 [B]; each row has a generator (on the CPU) and a history of its own."""
    adjusted_BV = adjust(logits_BV, options, histories)
    if options.temperature == 0.0:
        return adjusted_BV.argmax(dim=-1)
    uniform_B = torch.stack([torch.rand((), dtype=torch.float64, generator=one) for one in generators])
    return draw(adjusted_BV, uniform_B)
