"""Data sets for the hub on loopback, as files in memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]

FORMATS = ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "jsonl.xz", "jsonl.bz2", "json"]


def packed(records: Sequence[Record], form: str, group: int = 10) -> bytes:
    """Records as a file; `group` is the rows of a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(records)), sink, row_group_size=group)
        return sink.getvalue()
    if form == "json":
        return json.dumps(list(records)).encode()
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if form == "jsonl.zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(lines)
        return sink.getvalue().to_pybytes()
    packers = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.xz": lzma.compress, "jsonl.bz2": bz2.compress}
    return packers[form](lines)


def sentence(generator: random.Random, words: int) -> str:
    return " ".join("".join(generator.choices("abcdefghij", k=5)) for _ in range(words))


def corpus(form: str, files: int = 3, rows: int = 30, words: int = 12, **more: Any) -> tuple[dict[str, bytes], list[str]]:
    """A data set of some files without a card, and its texts in order."""
    generator = random.Random(form)
    contents: dict[str, bytes] = {}
    texts: list[str] = []
    for file in range(files):
        records = [{"text": f"{file}.{row} {sentence(generator, words)}", "n": row} for row in range(rows)]
        texts += [record["text"] for record in records]
        contents[f"data/train-{file:05}-of-{files:05}.{form}"] = packed(records, form, **more)
    return contents, texts


def card(**yaml: Any) -> bytes:
    """A README with a head, which says what a data set is."""
    return f"---\n{json.dumps(yaml)}\n---\n# A data set\n".encode()
