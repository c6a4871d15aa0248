"""What setting up a run has built."""

from __future__ import annotations

from dataclasses import dataclass

from lmloop.data.corpus import Corpus
from lmloop.objectives.language import LanguageObjective
from lmloop.tokens.template import ChatTemplate
from lmloop.training.contents import Contents
from lmloop.training.evaluate import HeldOut


@dataclass(frozen=True)
class Parts:
    """What a checkpoint holds, and what belongs to it."""

    contents: Contents
    objective: LanguageObjective
    validation: HeldOut
    corpus: Corpus
    packed: bool
    """Rows may hold more than one document."""
    template: ChatTemplate | None
    """In which conversations are written; then samples are answers."""
