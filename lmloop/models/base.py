"""What every language model offers: final hidden states, a head, and decoding with a cache. Never a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from lmloop.models.cache import Cache


class LanguageModel(nn.Module, ABC):
    """A causal language model: the hidden state of position t predicts token t + 1.

    vocab_size: rows of the head. context_length: tokens it was made for, a soft limit.
    activation_checkpointing: recompute blocks in the backward pass. growable: names of parameters whose first
    dimension may be longer than in a state dict that is loaded.
    """

    growable: ClassVar[frozenset[str]] = frozenset()

    vocab_size: int
    context_length: int
    activation_checkpointing: bool = False

    @abstractmethod
    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, [B, T, D].

        `segments_BT` numbers packed documents in ascending order within a row: they do not see each other and positions
        restart with each. None: every row is one document.
        """

    @abstractmethod
    def head_weight(self) -> Tensor:
        """The matrix of the output head, [V, D]; there is no bias."""

    @abstractmethod
    def make_cache(self, batch_size: int, max_tokens: int) -> Cache:
        """An empty cache for `batch_size` rows of up to `max_tokens` tokens, padding included."""

    @abstractmethod
    def decode(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        """Append T tokens to the cache; their hidden states after the last norm, [B, T, D].

        Tokens may come in any number of calls. Rows of unequal length are padded on the left: set `cache.pad_B` before
        the first call. The first `pad_B` tokens of a row are invisible, and positions start behind them; the hidden
        states of padding have no meaning.
        """

    @property
    def base_identity(self) -> dict[str, Any] | None:
        """What a checkpoint says of the pretrained model that this one began as, in plain values; None: it began as none."""
        return None

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint stores: the model's own tensors, not copies of them, without a base that it only names."""
        return self.state_dict(keep_vars=True)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return nn.functional.linear(hidden, self.head_weight())
