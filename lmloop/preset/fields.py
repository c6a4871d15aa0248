"""What the sections of a preset are made of: bounded numbers, texts, and the closed section itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=10**15, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, le=10**15, strict=True)]
Characters = Annotated[int, Field(ge=0, le=10_000_000, strict=True)]
"""Of one document, which is held in memory several times; 0: as many as there are."""
Width = Annotated[int, Field(ge=1, le=65_536, strict=True)]
Length = Annotated[int, Field(ge=1, le=16_777_216, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, le=1e12, strict=True, allow_inf_nan=False)]
PositiveOrZero = Annotated[float, Field(ge=0.0, le=1e12, strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1_000_000)]
Name = Annotated[str, Field(min_length=1, max_length=4_096)]


class Section(BaseModel):
    """A part of a preset: closed (an unknown key is an error), strict (`"yes"` is not true) and read-only once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
