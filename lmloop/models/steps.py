"""One token after another with prepared weights: as few and as cheap calls of PyTorch as a layer needs.

At batch 1 a call costs about as long as 30 kB take to come from memory, so buffers are allocated once, what all layers have
alike is computed once for all of them, and views are taken once a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmloop.models.attention import KeyValues
from lmloop.models.cache import Cache
from lmloop.models.prepared import Layout, Prepared, Turn, side_by_side
from lmloop.models.step_attention import StepAttention

LARGEST_STORED = 1024.0
"""Of the prompt's keys and values, for them to be stored in fp16: what comes later may be 64 times as large."""


class Steps:
    """The tokens of a batch that follow those in `cache`, which the model's own `decode` has filled.

    length: tokens so far, padding included, of at most `max_tokens`. Changes neither model nor cache.
    """

    def __init__(self, prepared: Prepared, cache: Cache, max_tokens: int) -> None:
        assert len(cache.pad_B) == prepared.layout.rows, f"prepared for {prepared.layout.rows} rows, got {len(cache.pad_B)}"
        assert cache.length <= max_tokens, f"{cache.length} tokens do not fit into {max_tokens}"
        with torch.inference_mode():
            self._begin(prepared, cache, max_tokens)

    def _begin(self, prepared: Prepared, cache: Cache, max_tokens: int) -> None:
        B, H, K, E = prepared.layout.rows, prepared.heads, prepared.kv_heads, prepared.head_dim
        self._prepared = prepared
        self.length, self.max_tokens = cache.length, max_tokens
        stored = []
        for state in cache.states:
            assert isinstance(state, KeyValues), type(state)
            stored.append(state.written(cache.length))
        self._attention = StepAttention(len(stored), (B, H, K, E), max_tokens, _stored_as(prepared.layout, stored))
        for layer, (keys_BKSE, values_BKSE) in enumerate(stored):
            self._attention.fill(layer, keys_BKSE if prepared.turn is None else side_by_side(keys_BKSE, 3), values_BKSE)
        self._new_BHE = torch.empty(B, H + 2 * K, E)
        self._new_flat = self._new_BHE.view(B, -1)  # q, k and v of the newest tokens
        self._query_BHE, self._key_BKE, self._value_BKE = self._new_BHE.split((H, K, K), 1)
        self._turned = self._new_BHE[:, : H + K]
        self._pad_B = cache.pad_B
        padding_BS = torch.arange(max_tokens) < self._pad_B[:, None]
        self._bias_B1S: Tensor | None = None
        if bool(padding_BS.any()):
            bias_BS = torch.zeros(B, max_tokens, dtype=self._attention.dtype).masked_fill_(padding_BS, float("-inf"))
            self._bias_B1S = bias_BS[:, None]
            self._positions_B = self.length - self._pad_B
        else:
            self._positions_B = torch.tensor([self.length])
        self._phases_SE = torch.empty(max_tokens, 0)
        if prepared.turn is not None:
            cosine_SE, sine_SE = (x[0, :, 0, : E // 2] for x in prepared.turn.rotary(torch.arange(max_tokens)[None]))
            self._phases_SE = torch.complex(cosine_SE, sine_SE)  # of pairs of elements
            self._pairs = torch.view_as_complex(self._turned.unflatten(-1, (-1, 2)))

    def logits(self, tokens_B: Tensor) -> Tensor:
        """Logits after the next token of each row, fp32 [B, V]."""
        assert self.length < self.max_tokens, f"no room behind {self.length} tokens"
        with torch.inference_mode():
            last_BD = self._step(tokens_B)
        return self._prepared.head(last_BD).float()  # outside: no tensor of inference mode, which would refuse changes

    def _step(self, tokens_B: Tensor) -> Tensor:
        prepared, attention, length = self._prepared, self._attention, self.length + 1
        attention.move_to(length)
        bias_B1S = None if self._bias_B1S is None else self._bias_B1S[:, :, :length]
        turn, phases_BHE = prepared.turn, self._phases_SE.index_select(0, self._positions_B)[:, None]
        hidden_BD = prepared.model.embed(tokens_B[:, None], self._positions_B[:, None])[:, 0]
        for index, layer in enumerate(prepared.layers):
            self._new_flat.copy_(layer.query_key_value(layer.mixer_norm(hidden_BD)))
            if turn is not None:
                self._turn(turn, index, phases_BHE)
            mixed_BHE = attention.mix(index, self._query_BHE, self._key_BKE, self._value_BKE, bias_B1S)
            hidden_BD.add_(layer.out(mixed_BHE.flatten(1).to(prepared.layout.inputs)))
            hidden_BD.add_(layer.feed_forward(layer.feed_forward_norm(hidden_BD)))
        self.length = length
        self._positions_B.add_(1)
        return prepared.last_norm(hidden_BD)

    def _turn(self, turn: Turn, layer: int, phases_BHE: Tensor) -> None:
        """Normalise and rotate the heads of q and k where they are."""
        lengths_BH1 = torch.linalg.vector_norm(self._turned, 2, -1, keepdim=True).hypot_(turn.floor)
        self._turned.mul_(turn.weights_LHE[layer])
        self._pairs.mul_(phases_BHE)
        self._turned.div_(lengths_BH1)


def _stored_as(layout: Layout, stored: list[tuple[Tensor, Tensor]]) -> torch.dtype:
    """The type of keys and values: fp16 beside products of 16 bits, where its numbers reach far enough."""
    if layout.dtype == torch.float32 or any(float(x.abs().max()) > LARGEST_STORED for pair in stored for x in pair):
        return torch.float32
    return torch.float16
