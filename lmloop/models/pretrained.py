"""Pretrained models of transformers behind the project's interface: hidden states and a head, packed documents apart."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lmloop.models.base import LanguageModel
from lmloop.models.base_folder import Base
from lmloop.models.cache import Cache
from lmloop.models.from_transformers import quiet
from lmloop.models.segment_attention import NAME, Packing
from lmloop.preset.schema import AdapterSection
from lmloop.tokens.batch import positions_in_segments


class Pretrained(LanguageModel):
    """A causal language model of transformers, with or without an adapter of peft's.

    network: transformers' model, or peft's around it. packs: whether it keeps packed documents apart by itself; if not,
    each of them runs in a row of its own. notices: what there is to say about it, a line each.
    """

    def __init__(self, network: nn.Module, base: Base, adapter: AdapterSection | None = None) -> None:
        super().__init__()
        self.network = network
        self.base = base
        self.adapter = adapter
        self.packs = True
        self.notices: list[str] = []
        config = self.causal.config.get_text_config(decoder=True)
        self.vocab_size = self.head_weight().shape[0]
        self.context_length = getattr(config, "max_position_embeddings", None) or 0
        windows = (getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size"))
        scaling, scale = getattr(config, "logits_scaling", None), getattr(config, "logit_scale", None)
        self._logit_factor = 1.0 / scaling if scaling else scale or 1.0  # as Granite says it, and as Cohere does
        self._window = min((window for window in windows if window), default=None)
        self._checkpoints = False

    # ---- its parts ----

    @property
    def causal(self) -> Any:
        """transformers' model with its head, in which an adapter's layers may stand."""
        return self.network if self.adapter is None else self.network.get_base_model()  # pyright: ignore[reportCallIssue]

    @property
    def body(self) -> Any:
        """transformers' model without the head."""
        return self.causal.base_model

    def blocks(self) -> Iterable[nn.Module]:
        """The layers in order."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [module for module in self.body.modules() if isinstance(module, GradientCheckpointingLayer)]

    def head_weight(self) -> Tensor:
        """[V, D]; the embedding's own matrix when tied."""
        return self.causal.get_output_embeddings().weight

    @cached_property
    def _knows_positions(self) -> bool:
        return "position_ids" in inspect.signature(self.body.forward).parameters

    # ---- forward ----

    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, [B, T, D]; packed documents (`segments_BT`) do not see each other."""
        self._follow_checkpointing()
        if segments_BT is None:
            return self._run(tokens_BT)
        if not self.packs:
            return self._each_in_a_row(tokens_BT, segments_BT)
        positions_BT = positions_in_segments(segments_BT)
        if self.attention != NAME or (self._window is not None and self._window < tokens_BT.shape[1]):
            return self._run(tokens_BT, position_ids=positions_BT)  # transformers makes masks from where positions restart
        packing = Packing(segments_BT)
        made = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens_BT.device)  # in the place of a mask it would make
        return self._run(tokens_BT, position_ids=positions_BT, attention_mask=made, packing=packing)

    def _run(self, tokens_BT: Tensor, **options: Any) -> Tensor:
        return self._scaled(self.body(input_ids=tokens_BT, use_cache=False, **options).last_hidden_state)

    def _scaled(self, hidden_BTD: Tensor) -> Tensor:
        """What models multiply their logits by is a factor of the hidden states here, where the head is a matrix alone."""
        return hidden_BTD if self._logit_factor == 1.0 else hidden_BTD * self._logit_factor

    def _each_in_a_row(self, tokens_BT: Tensor, segments_BT: Tensor) -> Tensor:
        """Each document in a row of its own, padded on the right to the longest, in groups of no more tokens than came."""
        B, T = tokens_BT.shape
        lengths = [length for row in Packing(segments_BT).lengths for length in row]
        documents = tokens_BT.flatten().split(lengths)
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        hidden: dict[int, Tensor] = {}
        while order:
            fit = max(B * T // lengths[order[0]], 1)
            group, order = order[:fit], order[fit:]
            rows_SL = nn.utils.rnn.pad_sequence([documents[index] for index in group], batch_first=True)
            for index, hidden_LD in zip(group, self._run(rows_SL), strict=True):
                hidden[index] = hidden_LD[: lengths[index]]
        return torch.cat([hidden[index] for index in range(len(lengths))]).unflatten(0, (B, T))

    @property
    def attention(self) -> str:
        """What transformers calls the kind of attention that runs."""
        return self.causal.config._attn_implementation

    @attention.setter
    def attention(self, name: str) -> None:
        with quiet():
            self.causal.set_attn_implementation(name)

    def _follow_checkpointing(self) -> None:
        if self.activation_checkpointing == self._checkpoints:
            return
        self._checkpoints = self.activation_checkpointing
        with quiet():
            if self._checkpoints:
                self.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            else:
                self.causal.gradient_checkpointing_disable()

    # ---- decoding ----

    def make_cache(self, batch_size: int, max_tokens: int) -> Cache:
        """An empty cache for `batch_size` rows of up to `max_tokens` tokens, padding included."""
        from transformers import DynamicCache

        return Cache([DynamicCache(config=self.causal.config)], batch_size, max_tokens, self.head_weight().device)

    def decode(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        """Append T tokens to the cache; their hidden states after the last norm, [B, T, D]."""
        B, T = tokens_BT.shape
        (kept,) = cache.states
        if kept.get_seq_length() > cache.length:
            kept.crop(cache.length - kept.get_seq_length())
        options: dict[str, Any] = {"attention_mask": cache.visible(T)}
        if self._knows_positions:
            options["position_ids"] = cache.positions(T).expand(B, T)
        hidden_BTD = self.body(input_ids=tokens_BT, past_key_values=kept, use_cache=True, **options).last_hidden_state
        cache.length += T
        return self._scaled(hidden_BTD)

    # ---- what a checkpoint holds ----

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """All of its tensors, or the adapter's alone: the base is named instead, by `base_identity`."""
        tensors = self.state_dict(keep_vars=True)
        return tensors if self.adapter is None else {name: t for name, t in tensors.items() if t.requires_grad}

    @property
    def base_identity(self) -> dict[str, Any]:
        """The base in plain values, and how the model runs on it."""
        return {**self.base.identity, "packs": self.packs, "attention": self.attention}
