"""What a preset may say of a source of documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmloop.preset.fields import CountOrZero, Name, Section, Text


class SourceBase(Section):
    """What every source says of itself."""

    weight: Annotated[float, Field(gt=0.0, le=1_000_000.0, strict=True, allow_inf_nan=False)] = Field(
        default=1.0,
        description="Share of rows under `weighted`; under `sequential`, how often the source is read in an epoch "
        "(a whole number). Without meaning under `round_robin`.",
    )
    description: Text = Field(default="", description="For logs and the report.")
    text_field: Name = Field(default="text", description="The field of a record that holds its text.")
    fields: list[Name] | None = Field(default=None, description="Fields of a record that `format` combines.")
    format: Text | None = Field(
        default=None, description="How `fields` become one text, for example `Q: {question}\\nA: {answer}`."
    )

    @model_validator(mode="after")
    def _format_fits_fields(self) -> SourceBase:
        if (self.fields is None) != (self.format is None):
            raise ValueError("fields and format belong together: set both or neither")
        if self.fields is not None and self.format is not None:
            missing = [name for name in self.fields if "{" + name + "}" not in self.format]
            if missing:
                raise ValueError(
                    f"format does not use the field '{missing[0]}': write {{{missing[0]}}} in it or drop the field"
                )
        return self


class FilesSource(SourceBase):
    """Files on this machine: text, Markdown, JSON, JSONL, Parquet."""

    type: Literal["files"] = Field(default="files", description="Files on this machine.")
    path: Name = Field(description="A file or a folder, relative to the working directory; `~` is the home folder.")
    is_directory: bool | None = Field(default=None, description="Checked against what is found at `path`; default: either.")
    file_pattern: Name | None = Field(
        default=None,
        description="Which files of a folder, for example `*.txt`, `**/*.{txt,md}`; default: every known kind, recursively.",
    )
    exclude: list[Name] = Field(default_factory=list, description="Patterns of files to leave out.")
    chunk_size: CountOrZero = Field(
        default=0, description="Characters of a document cut from a text file; 0: a file is one document."
    )
    data_type: Literal["auto", "text", "json"] = Field(
        default="auto", description="`text`, `json` (JSON, JSONL and Parquet records), or by the file's ending."
    )


class HubSource(SourceBase):
    """A data set of the Hugging Face hub, streamed."""

    type: Literal["hub"] = Field(default="hub", description="A data set of the Hugging Face hub.")
    dataset: Name = Field(description="`owner/name`.")
    subset: Name | None = Field(default=None, description="The data set's configuration.")
    split: Name = Field(default="train", description="Split of the data set.")
    revision: Name | None = Field(
        default=None, description="Commit or tag; default: what is current at the first start, then pinned."
    )


Source = Annotated[FilesSource | HubSource, Field(discriminator="type")]
