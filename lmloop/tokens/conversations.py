"""Conversations on their way into rows: which template they are written in, encoded, and cut where they are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from lmloop.data.corpus import source_names, trained_sources
from lmloop.data.document import Message
from lmloop.data.quarantine import Quarantine
from lmloop.preset.schema import DataSection, GenerationSection, Preset
from lmloop.preset.sources import Kind
from lmloop.tokens.chat_templates import TEMPLATES
from lmloop.tokens.encoding import CACHE_BYTES, Remembering
from lmloop.tokens.masked import Masked
from lmloop.tokens.skeleton import ChatTemplateError
from lmloop.tokens.template import MODEL, ChatTemplate, Trained, chat_template
from lmloop.tokens.tokenizer import Tokenizer

TEXT = "text"
"""What `data.template` says where conversations are trained as plain text."""

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as pairs of an input and its next token, up to the last one that is trained.

    line_N: ids, int32; input k is line_N[k], its target line_N[k + 1]. weights_N: of the targets, fp32, one fewer.
    cut: later turns were left out, since they do not fit. trained_bytes: UTF-8 length of the messages that are trained.
    """

    line_N: np.ndarray
    weights_N: np.ndarray
    cut: bool
    trained_bytes: int

    def __len__(self) -> int:
        return len(self.weights_N)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a conversation is not trained: '' where even its first answer does not fit, else why the template refuses it."""

    reason: str = ""


class ChatEncoder(Remembering[Messages, Encoded | LeftOut]):
    """Encodes the conversations of a run.

    template, trained: how they are written and what has a weight. limit: the most pairs of one. names: the sources that
    hold them. quarantine: where those that the template refuses are set aside.
    """

    def __init__(
        self,
        template: ChatTemplate,
        trained: Trained,
        *,
        limit: int,
        names: frozenset[str],
        quarantine: Quarantine,
        workers: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__(workers, cache_bytes)
        self.template = template
        self.trained: Trained = trained
        self.limit = limit
        self.names = names
        self.quarantine = quarantine

    def encode_many(self, given: Sequence[Messages]) -> list[Encoded | LeftOut]:
        """Each conversation as it is trained, or why it is not. GivenUpError as from the template."""
        return [
            LeftOut(str(made)) if isinstance(made, ChatTemplateError) else fitted(made, messages, self.limit)
            for messages, made in zip(given, self.template.encode(given, self.trained), strict=True)
        ]

    def bytes_of(self, made: Encoded | LeftOut) -> int:
        """Those of the arrays."""
        return made.line_N.nbytes + made.weights_N.nbytes if isinstance(made, Encoded) else 0

    def close(self) -> None:
        """Let go of the threads, and of the process that renders a model's template."""
        super().close()
        self.template.close()


def fitted(masked: Masked, messages: Sequence[Message], limit: int) -> Encoded | LeftOut:
    """A conversation in at most `limit` pairs: cut behind an answer of the assistant's, so that what is left is whole."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    ends = [_end(masked, index) for index in answers]
    fit = [(index, end) for index, end in zip(answers, ends, strict=True) if end - 1 <= limit]
    if not fit:
        return LeftOut()
    last, end = fit[-1]
    cut = last != answers[-1]
    if not cut and len(masked.tokens_N) - 1 <= limit:
        end = len(masked.tokens_N)  # under `all`, what the template writes behind the last answer is trained too
    weights_N = masked.weights_N[1:end]
    trained = np.flatnonzero(weights_N)
    if len(trained) == 0:
        return LeftOut()
    pairs = int(trained[-1]) + 1  # nothing is learned from what comes after the last target
    everything = bool(masked.weights_N.all())
    said = (m.content for m in messages[: last + 1] if everything or m.role == "assistant")
    return Encoded(masked.tokens_N[: pairs + 1], weights_N[:pairs], cut, sum(len(text.encode()) for text in said))


def _end(masked: Masked, index: int) -> int:
    """Where a message's tokens end."""
    return masked.spans[index][1]


# ---- the template of a run ----


def conversation_sources(section: DataSection) -> frozenset[str]:
    """The names of the sources, also of those that validate, whose records hold conversations."""
    kinds = set(get_args(Kind)) - {"pairs"}
    return frozenset(
        name
        for sources in (trained_sources(section), section.validation or [])
        for name, source in zip(source_names(sources), sources, strict=True)
        if getattr(source, "data_type", None) in kinds
    )


def template_name(section: DataSection, tokenizer: Tokenizer, *, pretrained: bool) -> str:
    """What `data.template` comes to: a name for `chat_template`, or TEXT.

    `auto`: the tokenizer's own; else, beside a pretrained model, the first of ours whose control tokens it has; without
    one, plain text as ever.
    """
    if section.template != "auto":
        return section.template
    if tokenizer.chat_template is not None:
        return MODEL
    if not pretrained:
        return TEXT
    known = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
    fits = (name for name, forms in TEMPLATES.items() if forms[0].needs and known >= set(forms[0].needs))
    return next(fits, "plain")


def with_template(section: DataSection, tokenizer: Tokenizer, *, pretrained: bool) -> tuple[Tokenizer, str]:
    """The tokenizer of a run that begins, which carries the template along to wherever the model goes; and a notice."""
    if not conversation_sources(section):
        return tokenizer, ""
    name = template_name(section, tokenizer, pretrained=pretrained)
    if name in (TEXT, MODEL):
        return tokenizer, ""
    source = _named(name, tokenizer).source
    chosen = f"the tokenizer has no chat template of its own: conversations are written as '{name}' (data.template)"
    return tokenizer.with_chat_template(source), chosen if section.template == "auto" else ""


def _named(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template called so. ValueError, one line."""
    try:
        return chat_template(name, tokenizer)
    except ValueError as error:
        raise ValueError(f"data.template: {error}") from None


def answering_template(preset: Preset, tokenizer: Tokenizer, *, only_trained: bool = False) -> ChatTemplate | None:
    """The template in which a run's model is talked to; None where it goes on from plain text.

    A `generation.chat_format` beyond the bare message counts before it. A pretrained model that was trained on texts is
    talked to in its own, unless `only_trained` asks for one that conversations of this run were written in.

    Raises:
        ValueError: it does not suit the tokenizer, or is none that can be used. One line.
    """
    section = preset.data
    plain = preset.generation.chat_format.strip() != GenerationSection.model_fields["chat_format"].default
    written = bool(conversation_sources(section)) and section.template != TEXT
    if plain or tokenizer.chat_template is None or not (written or (preset.model.pretrained and not only_trained)):
        return None
    return chat_template(MODEL, tokenizer)


def open_chats(
    section: DataSection,
    tokenizer: Tokenizer,
    *,
    seq_length: int,
    quarantine: Quarantine,
    workers: int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> ChatEncoder | None:
    """What encodes the run's conversations, under the tokenizer that `with_template` gave; None where there are none.

    Raises:
        ValueError: the template does not suit the tokenizer, or cannot be trained. One line.
    """
    names = conversation_sources(section)
    as_text = section.template == TEXT or (section.template == "auto" and tokenizer.chat_template is None)
    if not names or as_text:
        return None
    return ChatEncoder(
        _named(MODEL, tokenizer),
        section.train_on,
        limit=seq_length,
        names=names,
        quarantine=quarantine,
        workers=section.workers if workers is None else workers,
        cache_bytes=cache_bytes,
    )
