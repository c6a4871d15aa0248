"""What a preset may say of the journal: the model's reflections on its own training, which it is trained on in turn."""

from __future__ import annotations

import string
from typing import Annotated

from pydantic import Field, field_validator

from lmloop.preset.fields import Count, Name, Section, Text

PLACEHOLDERS = ("epoch", "step", "tokens", "length", "loss", "loss_history", "validation", "samples")
"""What a prompt may ask for in braces; `training/reflection.py` fills them in."""


class JournalPrompt(Section):
    """What the model is asked between epochs, in four parts, which stand one under the other. Placeholders in braces:
    `epoch`, `step`, `tokens`, `length`, `loss`, `loss_history`, `validation`, `samples`."""

    context: Text = Field(
        default="Training journal, after epoch {epoch}. Step {step}, rows of {length} tokens, training loss {loss}, "
        "validation {validation}.\nLoss of the epochs so far: {loss_history}.",
        description="Where training stands.",
    )
    observation: Text = Field(
        default="What I wrote lately:\n{samples}\nWhich patterns are emerging?", description="What to look at."
    )
    intention: Text = Field(default="What should I develop next?", description="What to decide.")
    values: Text = Field(
        default="Stay truthful, clear and kind.\n\nReflection:", description="What is to guide it; the end of the prompt."
    )

    @field_validator("context", "observation", "intention", "values")
    @classmethod
    def _known_placeholders(cls, text: str) -> str:
        try:
            fields = [field for field in string.Formatter().parse(text) if field[1] is not None]
        except ValueError as error:
            raise ValueError(f"{error}: a brace that is text is written twice, {{{{ or }}}}") from None
        for _, name, form, conversion in fields:
            if name not in PLACEHOLDERS or form or conversion:
                raise ValueError(f"unknown placeholder {{{name}}}; there are {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}")
        return text

    def __str__(self) -> str:
        return "\n".join(part for part in (self.context, self.observation, self.intention, self.values) if part)


class JournalSection(Section):
    """A journal that the model keeps of its training, and that is the first thing each epoch reads."""

    path: Name | None = Field(
        default=None,
        description="The file, relative to the working directory, which people may read and edit; default: `journal.md` in "
        "the run's folder. A source of `data.sources` with the same path is the journal and no source.",
    )
    system_prompt_path: Name | None = Field(
        default=None,
        description="A text file, often the journal itself, that stands before the prompts of reflections and samples as "
        "the system message, cut to its newest part that fits.",
    )
    every_tokens: Count | None = Field(
        default=None,
        description="Trained tokens between reflections; default: one after each epoch, where the budget counts epochs.",
    )
    prompt: JournalPrompt = Field(default_factory=JournalPrompt, description="What the model is asked.")
    reflection_tokens: Annotated[int, Field(ge=1, le=100_000, strict=True)] = Field(
        default=200, description="Longest reflection, in tokens. Sampling is that of `generation`."
    )
    max_share: Annotated[float, Field(gt=0.0, le=0.5, strict=True, allow_inf_nan=False)] = Field(
        default=0.1,
        description="The journal's largest share of an epoch's tokens (or of `every_tokens`); its newest part that fits is "
        "read.",
    )
    rollback: bool = Field(
        default=False,
        description="Take back an epoch (or `every_tokens`) that makes the loss on held-out data worse by more than two "
        "standard errors: weights and optimizer are those of its beginning again, and its newest entry is read no more.",
    )
