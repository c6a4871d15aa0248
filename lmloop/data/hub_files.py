"""The files of a data set of the hub, and the rows in them.

The `datasets` library finds out which files a split consists of. Parquet and JSON files are then read by the readers that
read files of this machine, through the hub's file system, which asks for ranges of bytes: so a stream goes on in the middle
of a file without asking for what comes before it, a bad row is one bad row, and a row group at a time is in memory. Other
formats are read as `datasets` streams them.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, cast

from lmloop.data import hub_client
from lmloop.data.compressed import unpacker
from lmloop.data.json_files import Json, JsonLines
from lmloop.data.listing import Listed, OpenFile, open_regular
from lmloop.data.parquet_files import Parquet
from lmloop.data.reader import BadRow, Place, Reader, Row, excerpt
from lmloop.data.records import BadRecordError
from lmloop.data.shape import Shape, shape_of
from lmloop.data.source import one_line
from lmloop.data.waiting import elsewhere, present_check
from lmloop.preset.sources import HubSource

BLOCK_BYTES = 4 << 20
"""How much is asked for beyond what is wanted just now."""

BUFFER_BYTES = 256 << 10
_END: Place = (1 << 62, 0, 0)
_BATCH_ROWS = 64


class HubSplit(Protocol):
    """One split of a data set at one commit.

    names: of its files, in order, as far as they are known; they are part of the ids of documents.
    """

    names: list[str]

    def rows(self, index: int, start: Place) -> Iterator[Row | BadRow]:
        """The rows of a file from a place on, which an earlier row's `after` gave. Unreached: the network failed."""
        ...


class Unreached(Exception):  # noqa: N818
    """What was asked for could not be had; `error` says why. What is wrong with the data itself is a BadRow."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def open_split(section: HubSource, commit: str | None) -> HubSplit:
    """The split that a preset names, at a commit; without one, of a folder. Raises what the libraries raise."""
    import datasets
    import datasets.config

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # would tell a third server, and wait 3 s where that is not reached
    if commit is not None:
        hub_client.install()
    builder = datasets.load_dataset_builder(section.dataset, section.subset, revision=commit)
    if builder.name == "cache":  # what an earlier program downloaded, of whatever revision
        raise hub_client.HubError(f"{section.dataset} cannot be had from the hub")
    shape = shape_of(section, section.data_type)
    by_split = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
    root = os.path.realpath(section.dataset) + os.sep if commit is None else f"hf://datasets/{section.dataset}@{commit}/"
    files = [str(file) for file in by_split.get(section.split, [])]
    if files and all(file.startswith(root) for file in files) and _plain(builder):
        return DirectFiles({file.removeprefix(root).replace(os.sep, "/"): file for file in files}, builder.name, shape)
    return Streamed(builder.as_streaming_dataset(split=section.split), f"{section.split}/", shape)


def _plain(builder: Any) -> bool:
    """Whether the files are read without any option that a data set's card can set."""
    options = {"parquet": ("columns", "filters"), "json": ("field",)}.get(builder.name)
    return (
        options is not None
        and all(getattr(builder.config, option, None) is None for option in options)
        and getattr(builder.config, "encoding", "utf-8").lower() in ("utf-8", "utf8")
    )


class DirectFiles:
    """Parquet or JSON files, on the hub or in a folder.

    files: name → where it is: a path, or `hf://...`. kind: `parquet` or `json`.
    """

    def __init__(self, files: dict[str, str], kind: str, shape: Shape) -> None:
        self.names = list(files)
        self._places = list(files.values())
        self._kind = kind
        self._shape = shape
        self._file_system: Any = None
        if self._places[0].startswith("hf://"):
            from huggingface_hub import HfFileSystem

            # one for all threads: the library's own habit, one for each, lists the repository anew for each
            self._file_system = HfFileSystem(skip_instance_cache=True)

    def rows(self, index: int, start: Place) -> Iterator[Row | BadRow]:
        """As HubSplit says. What cannot be decoded is asked for once more, in case the line garbled it."""
        again = self._file_system is not None
        while True:
            try:
                for row in self._once(index, start):
                    if again and self._is_damage(row):
                        break
                    start = row.after
                    yield row
                else:
                    return
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                if not again:
                    yield BadRow(0, f"damaged, nothing after it is read: {one_line(error, 120)}", "", _END)
                    return
            again = False

    def _is_damage(self, row: Row | BadRow) -> bool:
        """Whether it is a whole file or row group that is bad, after which reading goes on at the start of one."""
        return isinstance(row, BadRow) and self._kind == "parquet" and row.after[1] == 0

    def _once(self, index: int, start: Place) -> Iterator[Row | BadRow]:
        name, place = self.names[index], self._places[index]
        stem, unpack = unpacker(name)
        if self._file_system is None:
            opened = open_regular(Listed(name, place, 0))
            remote = None
        else:
            remote = _Remote(lambda: self._file_system.open(place, "rb", BLOCK_BYTES, cache_type="readahead"))
            handle = io.BufferedReader(remote, BUFFER_BYTES) if self._kind == "json" else cast(BinaryIO, remote)
            opened = OpenFile(name, place, handle, remote.size, 0)
        with opened.handle as handle:
            file = opened
            if unpack is not None:  # how long it is unpacked is not known
                file = OpenFile(name, place, unpack(handle), 0, 0)
            rows = self._reader(stem).rows(file, start, None)
            while True:
                try:
                    row = next(rows, None)
                except Exception:
                    _raise_fault(remote)
                    raise
                _raise_fault(remote)
                if row is None:
                    return
                yield row if isinstance(row, BadRow) or unpack is None else row._replace(share=0.0)

    def _reader(self, stem: str) -> Reader:
        if self._kind == "parquet":
            return Parquet(self._shape, confined=self._file_system is None)
        return JsonLines(self._shape) if stem.endswith((".jsonl", ".ndjson")) else Json(self._shape)


def _raise_fault(remote: _Remote | None) -> None:
    """Unreached, where the network failed and a reader may have taken that for damage of the file."""
    if remote is not None and remote.fault is not None:
        raise Unreached(remote.fault)


class _Remote(io.RawIOBase):
    """A file of the hub, which remembers what went wrong. Who reads it can leave while it waits."""

    def __init__(self, open_file: Callable[[], Any]) -> None:
        self.fault: Exception | None = None
        self._check = present_check()
        self._file: Any = None
        try:
            self._file = elsewhere(open_file)
        except Exception as error:
            raise Unreached(error) from error
        self.size: int = self._file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        if self.fault is not None:
            raise self.fault
        file = self._file  # all that the other thread knows of this one
        try:
            data = elsewhere(lambda: file.read(len(view)), self._check)
        except Exception as error:
            self.fault = error
            raise
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


class Streamed:
    """A split in a format that only `datasets` reads. A place is (rows before it, 0, 0)."""

    def __init__(self, stream: Any, prefix: str, shape: Shape) -> None:
        self.names = [f"{prefix}{index}" for index in range(stream.num_shards)]
        self._stream = stream
        self._shape = shape
        if stream.column_names is not None:
            with contextlib.suppress(
                BadRecordError
            ):  # of pictures and sounds nothing is read; a missing field each row says
                self._stream = stream.select_columns(shape.pick(stream.column_names))

    def rows(self, index: int, start: Place) -> Iterator[Row | BadRow]:
        """As HubSplit says."""
        number = start[0]
        part = self._stream.shard(len(self.names), index)
        batches = iter(part.skip(number).iter(_BATCH_ROWS))
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:
                raise Unreached(error) from error
            if batch is None:
                return
            for values in zip(*batch.values(), strict=True):
                number += 1
                record = dict(zip(batch, values, strict=True))
                after = (number, 0, 0)
                try:
                    content = self._shape.content(record)
                except BadRecordError as error:
                    yield BadRow(number, str(error), excerpt(str(record)), after)
                    continue
                yield Row(number, content.text, after, 0.0, messages=content.messages, pair=content.pair)
