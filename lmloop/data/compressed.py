"""Reading compressed files as if they were not. Going to a place in one means to unpack what comes before it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

MAX_WHOLE_BYTES = 1 << 30
"""What wants all of a file at once gets no more than this."""

_BUFFER_BYTES = 256 << 10
_AT_ONCE_BYTES = 32 << 10


class _Unpacked(io.BufferedReader):
    """A compressed file's contents."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As ever; what wants all of it at once gets no more than may be held in memory."""
        if size is not None and size >= 0:
            return super().read(size)
        data = super().read(MAX_WHOLE_BYTES + 1)
        if len(data) > MAX_WHOLE_BYTES:
            raise OSError(f"unpacked it has more than {MAX_WHOLE_BYTES >> 20} MB, too much for one array")
        return data


class _Forward(io.RawIOBase):
    """What the standard library unpacks, a little at a time: of a file that breaks off, what comes before is not lost."""

    def __init__(self, contents: Any) -> None:
        self._contents = contents

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._contents.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._contents.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._contents.read1(len(view))
        view[: len(data)] = data
        return len(data)


class _Lent:
    """A handle for pyarrow, which closes what it has read when it lets go of it."""

    closed = False

    def __init__(self, handle: BinaryIO) -> None:
        self.read = handle.read

    def close(self) -> None:
        """Not ours to close."""


class _Zstandard(io.RawIOBase):
    """The same of a file compressed by zstd, which pyarrow unpacks."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._begin()

    def _begin(self) -> None:
        import pyarrow

        self._handle.seek(0)
        self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(_Lent(self._handle), "r"), "zstd")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        assert whence != os.SEEK_END, "the end is not known"
        target = offset + (self._at if whence == os.SEEK_CUR else 0)
        if target < self._at:
            self._begin()
        while self._at < target:
            data = self._stream.read(min(target - self._at, _BUFFER_BYTES))
            if not data:
                break
            self._at += len(data)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._stream.read(min(len(view), _AT_ONCE_BYTES))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


_UNPACKERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda handle: _Forward(gzip.GzipFile(fileobj=handle)),
    ".bz2": lambda handle: _Forward(bz2.BZ2File(handle)),
    ".xz": lambda handle: _Forward(lzma.LZMAFile(handle)),  # noqa: SIM115 (who reads closes the file below it)
    ".zst": _Zstandard,
}


def unpacker(name: str) -> tuple[str, Callable[[BinaryIO], BinaryIO] | None]:
    """A file's name without the ending of its compression, in lower case, and what makes its contents of a handle on it."""
    ending = Path(name).suffix.lower()
    if ending not in _UNPACKERS:
        return name.lower(), None
    return name[: -len(ending)].lower(), lambda handle: cast(BinaryIO, _Unpacked(_UNPACKERS[ending](handle), _BUFFER_BYTES))
