"""One token after another with prepared weights: as few and as cheap calls of PyTorch as a layer needs.

At batch 1 a call costs about as long as 30 kB take to come from memory, so buffers are allocated once, what all layers have
alike is computed once for all of them, and views are taken once a step. Keys and values are in fp32: PyTorch's attention of
one query in bf16 takes six times as long as two batched fp32 products and a softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmloop.models.attention import KeyValues
from lmloop.models.cache import Cache
from lmloop.models.prepared import Prepared


class Steps:
    """The tokens of a batch that follow those in `cache`, which the model's own `decode` has filled.

    length: tokens so far, padding included, of at most `max_tokens`. Changes neither model nor cache.
    """

    def __init__(self, prepared: Prepared, cache: Cache, max_tokens: int) -> None:
        assert len(cache.pad_B) == prepared.rows, f"prepared for {prepared.rows} rows, got {len(cache.pad_B)}"
        assert cache.length <= max_tokens, f"{cache.length} tokens do not fit into {max_tokens}"
        with torch.inference_mode():
            self._begin(prepared, cache, max_tokens)

    def _begin(self, prepared: Prepared, cache: Cache, max_tokens: int) -> None:
        B, H, K, E, L = prepared.rows, prepared.heads, prepared.kv_heads, prepared.head_dim, len(prepared.layers)
        self._prepared = prepared
        self.length, self.max_tokens = cache.length, max_tokens
        stored = torch.empty(L, 2, B * K, max_tokens, E)  # keys, then values
        for layer, state in zip(stored, cache.states, strict=True):
            assert isinstance(state, KeyValues), type(state)
            for kept_XSE, written_BKSE in zip(layer, state.written(cache.length), strict=True):
                kept_XSE[:, : cache.length] = written_BKSE.flatten(0, 1)
        self._keys_LXES, self._values_LXSE = stored[:, 0].mT, stored[:, 1]
        self._stored = stored.view(L, 2, B, K, max_tokens, E).transpose(1, 2)  # in the order of `_to_store`
        self._new_BHE = torch.empty(B, H + 2 * K, E)
        self._new_flat = self._new_BHE.view(B, -1)  # q, k and v of the newest tokens
        self._query_BHE = self._new_BHE[:, :H]
        self._turned = self._new_BHE[:, : H + K]
        self._to_store = self._new_BHE[:, H:].unflatten(1, (2, K))
        self._pad_B = cache.pad_B
        padding_BS = torch.arange(max_tokens) < self._pad_B[:, None]
        self._bias_BS: Tensor | None = None
        if bool(padding_BS.any()):
            bias_BS = torch.zeros(B, max_tokens).masked_fill_(padding_BS, float("-inf"))
            self._bias_BS = bias_BS.repeat_interleave(K, 0)[:, None]  # as the scores are
            self._positions_B = self.length - self._pad_B
        else:
            self._positions_B = torch.tensor([self.length])
        if prepared.turn is not None:
            cosine, sine = (x[0, :, 0] for x in prepared.turn.rotary(torch.arange(max_tokens)[None]))
            half = E // 2
            self._cosine_SE = cosine
            self._sine_SE = torch.cat((-sine[:, :half], sine[:, half:]), -1)
            self._weights = prepared.turn.weights_LHE[:, None]
            self._weights_swapped = self._weights.roll(half, -1)
            self._swap = half
            self._products = torch.empty_like(self._turned, memory_format=torch.contiguous_format)

    def logits(self, tokens_B: Tensor) -> Tensor:
        """Logits after the next token of each row, fp32 [B, V]."""
        assert self.length < self.max_tokens, f"no room behind {self.length} tokens"
        with torch.inference_mode():
            logits_BV = self._step(tokens_B)
        return logits_BV.clone() if logits_BV.dtype == torch.float32 else logits_BV.float()  # no inference tensors

    def _step(self, tokens_B: Tensor) -> Tensor:
        prepared = self._prepared
        B, K, E, G = prepared.rows, prepared.kv_heads, prepared.head_dim, prepared.heads // prepared.kv_heads
        length = self.length + 1
        bias = None if self._bias_BS is None else self._bias_BS[:, :, :length]
        keys, values = self._keys_LXES.narrow(3, 0, length).unbind(), self._values_LXSE.narrow(2, 0, length).unbind()
        slots = self._stored.select(4, self.length).unbind()
        turns = self._turns()
        hidden_BD = prepared.model.embed(tokens_B[:, None], self._positions_B[:, None])[:, 0]
        for index, layer in enumerate(prepared.layers):
            self._new_flat.copy_(layer.query_key_value(layer.mixer_norm(hidden_BD)))
            if turns:
                self._turn(*turns[index])
            slots[index].copy_(self._to_store)
            scores_XGS = torch.bmm(self._query_BHE.reshape(B * K, G, E), keys[index])
            if bias is not None:
                scores_XGS.add_(bias)
            mixed_XGE = torch.bmm(scores_XGS.softmax(-1), values[index])
            hidden_BD.add_(layer.out(mixed_XGE.view(B, -1).to(prepared.dtype)))
            hidden_BD.add_(layer.feed_forward(layer.feed_forward_norm(hidden_BD)))
        self.length = length
        self._positions_B.add_(1)
        return prepared.head(prepared.last_norm(hidden_BD))

    def _turns(self) -> list[tuple[Tensor, Tensor]]:
        """For each layer the factors of a head's elements and of those half a head away, [B or 1, H + K, E]."""
        if self._prepared.turn is None:
            return []
        places_B = self._positions_B
        cosine, sine = (table.index_select(0, places_B)[:, None] for table in (self._cosine_SE, self._sine_SE))
        return list(zip((self._weights * cosine).unbind(), (self._weights_swapped * sine).unbind(), strict=True))

    def _turn(self, factors: Tensor, of_the_other_half: Tensor) -> None:
        """Normalise and rotate the heads of q and k where they are."""
        assert self._prepared.turn is not None
        lengths = torch.linalg.vector_norm(self._turned, 2, -1, keepdim=True).hypot_(self._prepared.turn.floor)
        torch.mul(self._turned, factors, out=self._products)
        self._products.addcmul_(self._turned.roll(self._swap, -1), of_the_other_half)
        torch.div(self._products, lengths, out=self._turned)
