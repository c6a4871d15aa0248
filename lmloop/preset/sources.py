"""What a preset may say of a source of documents."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from lmloop.preset.fields import Characters, Name, Section, Text

Kind = Literal["chat", "messages", "sharegpt", "alpaca", "completion", "chatgpt", "claude", "pairs"]
"""What a record can hold besides a text: a conversation in one of these formats (`chat`: in whichever it is), or two
answers to compare."""


class SourceBase(Section):
    """What every source says of itself."""

    weight: Annotated[float, Field(gt=0.0, le=1_000_000.0, strict=True, allow_inf_nan=False)] = Field(
        default=1.0,
        description="Share of rows under `weighted`; under `sequential`, how often the source is read in an epoch "
        "(a whole number). Without meaning under `round_robin`.",
    )
    description: Text = Field(default="", description="For logs and the report.")


class RecordSource(SourceBase):
    """A source that may hold records, and how a record becomes a text."""

    text_field: Name = Field(default="text", description="The field of a record that holds its text.")
    fields: list[Name] | None = Field(default=None, description="Fields of a record that `format` combines.")
    format: Text | None = Field(
        default=None, description="How `fields` become one text, for example `Q: {question}\\nA: {answer}`."
    )
    columns: dict[Name, Name] | None = Field(
        default=None,
        description="Where conversations and pairs have other names for their fields: our name and theirs, for example "
        '`{"prompt": "query"}`.',
    )

    @model_validator(mode="after")
    def _format_fits_fields(self) -> RecordSource:
        if (self.fields is None) != (self.format is None):
            raise ValueError("fields and format belong together: set both or neither")
        if self.fields is not None and self.format is not None:
            missing = [name for name in self.fields if "{" + name + "}" not in self.format]
            if missing:
                raise ValueError(
                    f"format does not use the field '{missing[0]}': write {{{missing[0]}}} in it or drop the field"
                )
        return self

    def _check_kind(self, data_type: str) -> None:
        """Ways to find a text and ways to find a conversation exclude each other."""
        if data_type not in get_args(Kind):
            if self.columns is not None:
                raise ValueError(f"columns is for conversations and pairs, and data_type is '{data_type}': set it to 'chat'")
        elif self.fields is not None or self.text_field != RecordSource.model_fields["text_field"].default:
            raise ValueError(
                f"data_type '{data_type}' has fields of its own: leave out text_field, fields and format; where they have "
                "other names, columns says which"
            )


class FilesSource(RecordSource):
    """Files on this machine: text, Markdown, JSON, JSONL, Parquet."""

    type: Literal["files"] = Field(default="files", description="Files on this machine.")
    path: Name = Field(description="A file or a folder, relative to the working directory; `~` is the home folder.")
    is_directory: bool | None = Field(default=None, description="Checked against what is found at `path`; default: either.")
    file_pattern: Name | None = Field(
        default=None,
        description="Which files of a folder, for example `*.txt`, `**/*.{txt,md}`; default: every known kind, recursively.",
    )
    exclude: list[Name] = Field(default_factory=list, description="Patterns of files to leave out.")
    chunk_size: Characters = Field(
        default=0,
        description="Characters of a document cut from a text file; 0: a file is one document, and one of more than 32 MB "
        "is cut into documents of 4,000,000.",
    )
    data_type: Literal["auto", "text", "json", Kind] = Field(
        default="auto",
        description="`text`; `json`: texts in JSON, JSONL or Parquet records; `auto`: one of these by the file's ending; "
        "else what each record holds: a conversation (`chat`: in any of the formats that follow), or a pair of answers; "
        "see docs/chat-data.md.",
    )

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> FilesSource:
        self._check_kind(self.data_type)
        return self


class HubSource(RecordSource):
    """A data set of the Hugging Face hub, streamed."""

    type: Literal["hub"] = Field(default="hub", description="A data set of the Hugging Face hub.")
    dataset: Name = Field(description="`owner/name`.")
    subset: Name | None = Field(default=None, description="The data set's configuration.")
    split: Name = Field(default="train", description="Split of the data set.")
    data_type: Literal["text", Kind] = Field(
        default="text", description="What each record holds: a text, a conversation or a pair, as in `files`."
    )
    revision: Name | None = Field(
        default=None, description="Commit or tag; default: what is current at the first start, then pinned."
    )

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> HubSource:
        self._check_kind(self.data_type)
        return self


class PdfSource(SourceBase):
    """PDFs on this machine. What holds no text (scans), asks for a password or is broken is set aside."""

    type: Literal["pdf"] = Field(default="pdf", description="PDFs on this machine.")
    path: Name = Field(
        description="A PDF, or a folder whose PDFs are read recursively, relative to the working directory; `~` is the home "
        "folder."
    )
    exclude: list[Name] = Field(default_factory=list, description="Patterns of files to leave out.")
    chunk_size: Characters = Field(
        default=5000,
        description="The most characters of a document, which has three fifths of them at the least and ends with a "
        "paragraph, a sentence or a word; 0: a file is one document.",
    )


Source = Annotated[FilesSource | HubSource | PdfSource, Field(discriminator="type")]


class ReplaySection(Section):
    """Old data among the new, so that a model that is trained on does not forget it."""

    sources: list[Source | Name] = Field(
        min_length=1, max_length=1_000, description="What the model was trained on before; as in `data.sources`."
    )
    share: Annotated[float, Field(gt=0.0, lt=1.0, strict=True, allow_inf_nan=False)] = Field(
        default=0.2,
        description="Their share of the rows, by the weights of these sources among themselves. An epoch ends with the new "
        "data; the old begins again as often as it is needed, and goes on in the next epoch where it was.",
    )

    @field_validator("sources", mode="before")
    @classmethod
    def _hf_is_hub(cls, sources: object) -> object:
        return hf_is_hub(sources)


def hf_is_hub(sources: object) -> object:
    """Sources with `hub` where `hf` is written for their type."""
    if not isinstance(sources, list):
        return sources
    return [{**s, "type": "hub"} if isinstance(s, dict) and s.get("type") == "hf" else s for s in sources]
