"""What a model is given to go on from: a text, or the tokens in which a chat template asks for an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmloop.data.document import Message
from lmloop.tokens.template import ChatTemplate

Prompt = str | np.ndarray
"""A text, which begins with the start token; or int32 tokens as they are."""


def as_prompts(texts: Sequence[str], template: ChatTemplate | None) -> list[Prompt]:
    """Each text as a message to be answered, where there is a template; an empty one begins a text of the model's own.

    ChatTemplateError: the template refuses one of them.
    """
    if template is None:
        return list(texts)
    return [template.prompt([Message("user", text)]) if text.strip() else text for text in texts]
