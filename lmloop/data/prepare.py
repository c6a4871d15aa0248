"""Conversations in any of the known formats, made into training files: ShareGPT, one on a line, split into parts.

A conversation that another one repeats or goes on from is left out: of two exports of the same account the older one says
nothing new, and its half of a conversation must not train what the other half tests.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmloop import durable
from lmloop.data.document import Message
from lmloop.data.files import Files
from lmloop.data.listing import absolute
from lmloop.data.quarantine import Quarantine
from lmloop.data.source import SourceError
from lmloop.data.split import share_counts
from lmloop.preset.sources import FilesSource

PARTS = ("train", "validation", "test")
BAD_ROWS = "quarantine.jsonl"
_NAMES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


def read_shares(text: str) -> tuple[int, int, int]:
    """`80/10/10`: per cent for training, validation and test; the last may be left out. ValueError."""
    numbers = text.split("/")
    shares = [int(number) for number in numbers if number.isdecimal() and len(number) <= 3]
    if len(shares) != len(numbers) or len(shares) not in (2, 3) or sum(shares) != 100 or not shares[0]:
        raise ValueError(f"--split {text}: two or three whole numbers that make 100, the first above 0, such as 80/10/10")
    return shares[0], shares[1], 100 - shares[0] - shares[1]


def prepare(inputs: Sequence[str], out: str, *, split: str = "80/10/10", overwrite: bool = False) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`, and the rows that are none with the reason; what was done.

    Which part a conversation goes to depends on its text and on the others that there are, not on their order.

    Raises:
        ValueError: an input is not there or holds no conversation, or `out` has such files and they may not be replaced.
        OSError: the disk; what was there before stays where nothing could be written.
    """
    _, validation, test = read_shares(split)
    folder, own_names = absolute(out), [*(f"{part}.jsonl" for part in PARTS), BAD_ROWS]
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {out}: is a file, name a folder")
    there = [name for name in own_names if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(f"--out {out} has {', '.join(there)} already: name another folder, or add --overwrite")
    bad = _Rows()
    sources = [_source(path, folder, bad) for path in inputs]
    kept, begun, read = _survey(sources)
    if not kept:
        raise ValueError(_nothing(inputs, bad))
    ordered = sorted(kept)
    validating, testing = share_counts(len(ordered), validation / 100, test / 100)
    part_of = dict.fromkeys(ordered[:validating], "validation")
    part_of |= dict.fromkeys(ordered[validating : validating + testing], "test")
    part_of |= dict.fromkeys(ordered[validating + testing :], "train")
    folder.mkdir(parents=True, exist_ok=True)
    counts = _write(sources, part_of, folder)
    bad.write(folder / BAD_ROWS)
    for name in there:
        if (name == BAD_ROWS and not bad.rows) or counts.get(name.removesuffix(".jsonl")) == 0:
            durable.unlink(folder / name)
    return {
        "out": str(folder),
        "conversations": sum(counts.values()),
        "parts": counts,
        "left_out": {"repeated": read - len(kept) - begun, "continued": begun, "empty": len(bad.blanks)},
        "bad": bad.report(sources),
        "replaced": there,
    }


class _Rows(Quarantine):
    """Bad rows and rows that hold nothing, each counted once however often the files are read."""

    def __init__(self) -> None:
        super().__init__(None, max_bad_fraction=1.0)
        self.rows: list[dict[str, Any]] = []
        self.blanks: set[tuple[str, str, int]] = set()

    def blank(self, source: str, file: str, line: int) -> None:
        """Note an empty chat."""
        self.blanks.add((source, file, line))

    def write(self, path: Path) -> None:
        """One JSON line for each bad row; no file where there is none. OSError."""
        self.rows = self.take()
        if self.rows:
            durable.atomic_write(path, "".join(durable.json_line(row) + "\n" for row in self.rows))

    def report(self, sources: Sequence[Files]) -> list[dict[str, Any]]:
        """How many rows are bad for which reason, and the first of them."""
        return [
            {"source": source.name, "reason": reason, "count": count, "file": first[0], "line": first[1]}
            for source in sources
            for reason, count in self.reasons(source.name).items()
            if (first := self.first(source.name, reason))
        ]


def _source(path: str, out: Path, bad: Quarantine) -> Files:
    """An input, opened. ValueError."""
    at = absolute(path)
    if not at.exists():
        raise ValueError(f"{path}: no such file or folder")
    if at.suffix.lower() in (".zip", ".gz", ".7z", ".tar"):
        raise ValueError(f"{path}: an archive: unpack it, and name the conversations.json in it")
    if at.is_dir() and out.resolve().is_relative_to(at.resolve()):
        raise ValueError(f"--out {out} is within the input {path}, where it would be read: name a folder outside")
    if out.resolve() == at.resolve().parent and at.name in [f"{part}.jsonl" for part in PARTS]:
        raise ValueError(f"{path} is where the result is to be written: name another folder with --out")
    source = Files(path, FilesSource(path=path, data_type="chat"), bad, lambda line: None)
    try:
        source.files()
    except SourceError as error:
        why = str(error).removeprefix(f"source '{path}': ")
        raise ValueError(f"{path}: no .json, .jsonl or .parquet file in it" if at.is_dir() else why) from None
    return source


def _conversations(sources: Sequence[Files]) -> Iterator[tuple[tuple[Message, ...], list[int]]]:
    """Each conversation, with the digest of its messages up to each; the last one is its own."""
    for source in sources:
        for document, _ in source.read({}):
            assert document.messages is not None, document.id
            digest, digests = hashlib.blake2b(digest_size=8), []
            for message in document.messages:
                said = message.content.encode("utf-8")
                digest.update(f"{message.role} {len(said)} ".encode() + said)
                digests.append(int.from_bytes(digest.digest(), "big"))
            yield document.messages, digests


def _survey(sources: Sequence[Files]) -> tuple[set[int], int, int]:
    """The digests of what is kept, how many others are beginnings of those, and how many conversations were read."""
    found: set[int] = set()
    beginnings: set[int] = set()
    read = 0
    for _, digests in _conversations(sources):
        read += 1
        found.add(digests[-1])
        beginnings.update(digests[:-1])
    return found - beginnings, len(found & beginnings), read


def _write(sources: Sequence[Files], part_of: dict[int, str], folder: Path) -> dict[str, int]:
    """The parts' files, none before all are whole; how many conversations each has."""
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    paths = {part: folder / f"{part}.jsonl" for part in PARTS}
    prepared = {part: durable.temporary(path) for part, path in paths.items()}
    with durable.removed_on_error(*prepared.values()):
        with contextlib.ExitStack() as stack:
            files = {part: stack.enter_context(path.open("w", encoding="utf-8")) for part, path in prepared.items()}
            for messages, digests in _conversations(sources):
                part = part_of.pop(digests[-1], None)
                if part is not None:
                    turns = [{"from": _NAMES[message.role], "value": message.content} for message in messages]
                    files[part].write(durable.json_line({"conversations": turns}) + "\n")
                    counts[part] += 1
        for part, path in prepared.items():
            if counts[part]:
                durable.sync(path)
                durable.replace(path, paths[part])
            else:
                durable.unlink(path)
        durable.fsync_dir(folder)
    return counts


def _nothing(inputs: Sequence[str], bad: Quarantine) -> str:
    """Why there is nothing to write."""
    for name in inputs:
        for reason in bad.reasons(name):
            file, line = bad.first(name, reason)
            return f"{name}: no conversation can be read, most often: {reason} (first {file}:{line})"
    return f"{', '.join(inputs)}: no conversation in it"


def lines_of(report: dict[str, Any]) -> list[str]:
    """What was done, for people."""
    said = [f"{report['out']}: {report['conversations']:,} conversations"]
    for part, count in report["parts"].items():
        said.append(f"  {part}.jsonl: {count:,}" if count else f"  {part}: none")
    words = {
        "repeated": "left out: the same as another one",
        "continued": "left out: another one goes on from it",
        "empty": "passed over: nobody said anything",
    }
    said += [f"  {count:,} {words[why]}" for why, count in report["left_out"].items() if count]
    total = sum(entry["count"] for entry in report["bad"])
    if total:
        said.append(f"  {total:,} bad, in {BAD_ROWS} with file, line and reason:")
        for entry in report["bad"][:10]:
            said.append(f"    {entry['count']:,} × {entry['reason']} (first {entry['file']}:{entry['line']})")
    if report["replaced"]:
        said.append(f"  replaced: {', '.join(report['replaced'])}")
    return said
