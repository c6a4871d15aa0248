"""What must survive a crash: the only module that writes state to disk.

Everything above is built from the thin operations at the top, each of which first calls `before_operation(name, path)`.
A test that replaces that hook can count the operations of a save, let any one of them fail as a full or broken disk would,
or kill the process there.

A name in a folder only ever changes by a rename, so a reader sees the old content or the new one, never a part. The new
content is on the disk before its name is, and the name is on the disk before the function returns.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

BUFFER_BYTES = 1 << 20  # small writes are gathered up to this size
PIECE_BYTES = 64 << 20  # large writes are cut into pieces of this size


_NOT_IN_A_LINE = re.compile("[\u0085\u2028\u2029\ud800-\udfff]")


def _nothing(operation: str, path: Path) -> None:
    """The hook outside tests."""


before_operation: Callable[[str, Path], None] = _nothing
"""Called before each operation with its name and the path it changes. For tests; it may raise or never return."""


def in_words(error: ValueError | OSError) -> str:
    """What went wrong in one line; of the disk's errors with the file and without their number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


# ---- the operations ----


def open_for_write(path: Path) -> int:
    """Create `path` and return its descriptor. A leftover of that name is removed first, never written into.

    Opening it with truncation would be wrong: the leftover may be a hard link to a file that is still needed.
    """
    unlink(path)
    before_operation("open", path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def write(descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
    """Write all of `data`: one operation, however many calls the system needs."""
    before_operation("write", path)
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def fsync(descriptor: int, path: Path) -> None:
    """Wait until the file's content is on the disk. On macOS `fsync` alone stops at the drive's cache."""
    before_operation("fsync", path)
    full = getattr(fcntl, "F_FULLFSYNC", None)
    with contextlib.suppress(OSError):  # network and foreign file systems do not know it
        if full is not None:
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def close(descriptor: int, path: Path) -> None:
    """Close a file that was written; network file systems report a failed write only here.

    On error, too, the descriptor is gone.
    """
    try:
        before_operation("close", path)
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, in one step even where `target` exists.

    Two names of one file are not renamed by the system but both kept: then `source` is removed.
    """
    before_operation("replace", target)
    os.replace(source, target)
    if source.exists():
        unlink(source)


def link(source: Path, target: Path) -> None:
    """Make `target` (which must not exist) a second name of `source`. OSError where the file system has no hard links."""
    before_operation("link", target)
    os.link(source, target)


def unlink(path: Path) -> None:
    """Remove `path`; nothing happens where there is none."""
    if not os.path.lexists(path):
        return
    before_operation("unlink", path)
    path.unlink(missing_ok=True)


def truncate(descriptor: int, size: int, path: Path) -> None:
    """Cut an open file to `size` bytes."""
    before_operation("truncate", path)
    os.ftruncate(descriptor, size)


def fsync_dir(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk (where the file system offers it: some network ones do not)."""
    before_operation("fsync_dir", folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


# ---- what is built from them ----


def temporary(path: Path) -> Path:
    """Where the next content of `path` is prepared: a hidden name in the same folder, hence on the same file system."""
    return path.with_name(f".{path.name}.tmp")


def leftovers(folder: Path) -> list[Path]:
    """Temporaries in `folder` that a killed process left, sorted. Only for whoever holds the folder's lock."""
    return sorted(path for path in folder.glob(".?*.tmp") if path.is_file() or path.is_symlink())


@contextlib.contextmanager
def removed_on_error(*paths: Path) -> Iterator[None]:
    """Remove `paths` if the body fails; a failure to remove them does not hide the first error."""
    try:
        yield
    except BaseException:
        for path in paths:
            with contextlib.suppress(OSError):
                unlink(path)
        raise


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an error of the disk the name of the file that was to be written."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def atomic_write(path: Path, data: bytes | str) -> None:
    """Make `data` the content of `path`: all of it or, on error or kill, nothing. OSError.

    Text is written as UTF-8, with a question mark for a lone surrogate.
    """
    content = data.encode("utf-8", "replace") if isinstance(data, str) else data
    prepared = temporary(path)
    with _naming(path), removed_on_error(prepared):
        descriptor = open_for_write(prepared)
        try:
            write(descriptor, content, prepared)
            fsync(descriptor, prepared)
        finally:
            close(descriptor, prepared)
        replace(prepared, path)
        fsync_dir(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` hold what `source` holds: a hard link where the file system has them, else a synced copy.

    A leftover `target` is removed first: this is for temporaries. OSError; then nothing is left under `target`.
    """
    unlink(target)
    try:
        link(source, target)
        return
    except OSError as error:
        if error.errno not in (
            errno.EPERM,
            errno.ENOTSUP,
            errno.EOPNOTSUPP,
            errno.ENOSYS,
            errno.EMLINK,
            errno.EXDEV,
            errno.EINVAL,
        ):
            raise
    with removed_on_error(target), source.open("rb") as reader:
        descriptor = open_for_write(target)
        try:
            while piece := reader.read(BUFFER_BYTES):
                write(descriptor, piece, target)
            fsync(descriptor, target)
        finally:
            close(descriptor, target)


class HashingFile:
    """A new file for `torch.save` and the like, whose SHA-256 is known when it is written.

    Used as a context manager: on leaving, what is buffered is written, synced and closed; on error the file is closed and
    its remover is the caller. `torch.save` wraps an error of its file into one of its own, and writes on: so the first
    OSError is kept, later writes are ignored, and leaving raises it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_written = 0
        self._sha256 = hashlib.sha256()
        self._buffer = bytearray()
        self._error: OSError | None = None
        self._descriptor = open_for_write(path)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take `data`; returns its length in bytes. OSError of the disk, once."""
        view = memoryview(data).cast("B")
        if self._error is not None:
            return len(view)
        if len(self._buffer) + len(view) <= BUFFER_BYTES:
            self._buffer += view
            return len(view)
        self._empty_buffer()
        for start in range(0, len(view), PIECE_BYTES):
            self._put(view[start : start + PIECE_BYTES])
        return len(view)

    def flush(self) -> None:
        """Nothing: `torch.save` calls it, but what is gathered is written when there is enough of it, and on leaving."""

    def _empty_buffer(self) -> None:
        if self._buffer:
            self._put(memoryview(self._buffer))
            self._buffer = bytearray()

    def _put(self, piece: memoryview) -> None:
        try:
            write(self._descriptor, piece, self.path)
        except OSError as error:
            self._error = error
            raise
        self._sha256.update(piece)
        self.bytes_written += len(piece)

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of what is written; complete after leaving."""
        return self._sha256.hexdigest()

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None and self._error is None:
                self._empty_buffer()
                fsync(self._descriptor, self.path)
        finally:
            close(self._descriptor, self.path)
        if self._error is not None and error is not self._error:
            raise self._error


def hash_stream(stream: Any) -> str:
    """SHA-256 of what a binary file still has to read, hexadecimal."""
    sha256 = hashlib.sha256()
    while piece := stream.read(BUFFER_BYTES):
        sha256.update(piece)
    return sha256.hexdigest()


def free_bytes(folder: Path) -> int | None:
    """Bytes a user may still write in `folder`'s file system; None where it does not say."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        return usage.free if usage.total else None
    return None


def require_space(folder: Path, size: int) -> None:
    """OSError (no space) if `folder` certainly has no room for `size` bytes: better before half a file is written."""
    free = free_bytes(folder)
    if free is not None and free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


# ---- line files ----


def json_line(obj: object) -> str:
    """`obj` as one line of strict JSON, without the line break.

    NaN and infinities, which JSON lacks, become null. What some reader would take for a line's end (U+0085, U+2028,
    U+2029) and lone surrogates, which UTF-8 lacks, are written as escapes.
    """
    try:
        line = json.dumps(obj, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(obj), ensure_ascii=False, allow_nan=False)
    return _NOT_IN_A_LINE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {repr(key) if isinstance(key, float) else key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def append_line(path: Path, obj: Mapping[str, Any]) -> int:
    """Append `obj` as one JSON line in a single write; returns the file's size after it. For one writer at a time.

    A last line without its line break is what a crash tore: it is cut off first. When the write fails or is short (full
    disk), the file is cut back to where it was and OSError raised. The line survives the end of the process at once, the
    end of the machine's power only after `sync`.
    """
    line = json_line(obj).encode() + b"\n"
    before_operation("open", path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        whole = _whole_lines(descriptor, size)
        if whole < size:
            truncate(descriptor, whole, path)
        try:
            before_operation("write", path)
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                truncate(descriptor, whole, path)
            raise
        return whole + len(line)
    finally:
        os.close(descriptor)


def complete_size(path: Path) -> int:
    """Bytes of `path` up to its last line break; 0 where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        return _whole_lines(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def truncate_to(path: Path, size: int) -> bool:
    """Cut a line file back to `size` bytes, as recorded earlier; a shorter or missing file is left alone.

    Where `size` is not at a line's end (somebody edited the file), the cut is at the line's beginning. Returns whether the
    file had everything up to `size`.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return size == 0
    try:
        present = os.fstat(descriptor).st_size
        if present < size:
            return False
        whole = _whole_lines(descriptor, size)
        if whole < present:
            truncate(descriptor, whole, path)
            fsync(descriptor, path)
        return whole == size
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a line file's content and name are on the disk; nothing where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fsync(descriptor, path)
    finally:
        os.close(descriptor)
    fsync_dir(path.parent)


def _whole_lines(descriptor: int, size: int) -> int:
    """Bytes up to and with the last line break before `size`."""
    end = size
    while end > 0:
        start = max(0, end - 65_536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
