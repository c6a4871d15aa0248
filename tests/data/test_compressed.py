from __future__ import annotations

import io
import random

import pytest

from lmloop.data import compressed
from lmloop.data.compressed import unpacker
from tests.data.hub_data import packed

FORMS = ["jsonl.gz", "jsonl.bz2", "jsonl.xz", "jsonl.zst"]
RECORDS = [{"text": "".join(random.Random(n).choices("abc", k=n % 900)), "n": n} for n in range(3000)]
PLAIN = packed(RECORDS, "jsonl")


def contents(form: str, data: bytes | None = None) -> io.BufferedReader:
    stem, unpack = unpacker(f"data/File.{form.upper()}")
    assert stem == "data/file.jsonl"
    assert unpack is not None
    opened = unpack(io.BytesIO(packed(RECORDS, form) if data is None else data))
    assert isinstance(opened, io.BufferedReader)
    return opened


@pytest.mark.parametrize("form", FORMS)
def test_reading_and_going_to_a_place(form: str) -> None:
    opened = contents(form)
    assert opened.read() == PLAIN
    assert opened.seek(0) == 0
    assert list(opened) == PLAIN.splitlines(keepends=True)
    for place in (5, 70_000, 900_000, 3, len(PLAIN) - 4, len(PLAIN) + 10):
        opened.seek(place)
        assert opened.read(100) == PLAIN[place : place + 100]


@pytest.mark.parametrize("form", FORMS)
def test_several_archives_in_one_file(form: str) -> None:
    assert contents(form, packed(RECORDS, form) * 2).read() == PLAIN * 2


@pytest.mark.parametrize("form", FORMS)
def test_what_wants_all_of_it_gets_no_more_than_fits(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "MAX_WHOLE_BYTES", 1 << 20)
    with pytest.raises(OSError, match="unpacked it has more than 1 MB, too much for one array"):
        contents(form).read()


def test_what_is_not_compressed() -> None:
    assert unpacker("A/B.JsonL") == ("a/b.jsonl", None)
