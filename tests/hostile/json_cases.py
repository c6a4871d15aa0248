"""JSON files: an array, or records one after the other."""

from __future__ import annotations

from tests.hostile.case import Bad, Case
from tests.hostile.making import files, record

A, B, C = record("a"), record("b"), record("c")


def whole(name: str, data: bytes, good: list[str], *bad: Bad) -> Case:
    return Case(name, files(a__json=data), {}, good, bad)


def record_in_array(name: str, bad: bytes, reason: str) -> Case:
    """A bad record between good ones on lines of their own."""
    return Case(
        name, files(a__json=b"[\n  " + b",\n  ".join([A, bad, C]) + b"\n]\n"), {}, ["a", "c"], [("a.json", 2, reason)]
    )


CASES = [
    whole("empty", b"", []),
    whole("only white space", b" \n\t\r\n ", []),
    whole("empty array", b"[]", []),
    whole("one record", A, ["a"]),
    whole("byte order mark", b"\xef\xbb\xbf[" + A + b"]", ["a"]),
    whole("array", b"[" + A + b"," + B + b"]", ["a", "b"]),
    whole("array of texts", b'["a", "b", "\\ud83d\\ude00"]', ["a", "b", "\U0001f600"]),
    whole("trailing comma", b"[" + A + b"," + B + b",]", ["a", "b"]),
    whole("no commas", b"[" + A + B + b"]", ["a", "b"]),
    whole("records one after the other", A + B + b"  " + C, ["a", "b", "c"]),
    whole("records on several lines each", A.replace(b" ", b"\n") + b"\n" + B.replace(b" ", b"\n"), ["a", "b"]),
    whole("JSONL named .json", A + b"\n" + B + b"\n", ["a", "b"]),
    whole("JSONL named .json with a bad line", A + b"\nbad\n" + B + b"\n", ["a", "b"], ("a.json", 2, "not JSON")),
    whole("two arrays", b"[" + A + b"]\n[" + B + b"]", ["a", "b"]),
    whole("text after the array", b"[" + A + b"] that is all", ["a"], ("a.json", 2, "more text after the array")),
    whole("array of arrays", b"[[" + A + b"], " + B + b"]", ["b"], ("a.json", 1, "not an object with fields but a list")),
    whole("array that is not closed", b"[" + A + b"," + B, ["a", "b"], ("a.json", 3, "its array is not closed")),
    whole("only an opening bracket", b"[", [], ("a.json", 1, "its array is not closed")),
    whole("only a closing bracket", b"]", [], ("a.json", 1, "not JSON")),
    whole("cut off in a record", b"[" + A + b',{"text": "b', ["a"], ("a.json", 2, "Unterminated string")),
    whole("cut off in a word", b"[" + A + b',{"text": "b", "n": tru', ["a"], ("a.json", 2, "not JSON")),
    whole("cut off in an escape", b"[" + A + b',{"text": "b\\u00', ["a"], ("a.json", 2, "not JSON")),
    whole("object with the array within", b'{"data": [' + A + b"]}", [], ("a.json", 1, "no field 'text'; there are: data")),
    whole("UTF-16", (b"[" + A + b"]").decode().encode("utf-16"), [], ("a.json", 0, "UTF-16")),
    whole("UTF-32", (b"[" + A + b"]").decode().encode("utf-32"), [], ("a.json", 0, "UTF-32")),
    whole("NUL bytes", b"\0" * 100, [], ("a.json", 1, "not JSON")),
    whole("binary named .json", b"\x89PNG\r\n\x1a\n\0\0", [], ("a.json", 1, "not JSON")),
    record_in_array("single quotes in an array", b"{'text': 'b'}", "not JSON"),
    record_in_array("comment in an array", b'{"text": "b" /* so */}', "not JSON"),
    record_in_array("no end of a text in an array", b'{"text": "b}', "not JSON"),
    record_in_array("a bracket too few in an array", b'{"text": "b"', "not JSON"),
    record_in_array("NaN in an array", b'{"text": "b", "n": [NaN, "]}"]}', "NaN is not JSON (line 3)"),
    record_in_array("NaN for a record", b"NaN", "NaN is not JSON"),
    record_in_array("duplicate key in an array", b'{"text": "b", "text": "\\"}{"}', "field 'text' occurs twice"),
    record_in_array("depth in an array", b'{"n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    record_in_array(
        "depth across blocks in an array",
        b'{"n": ' + b'[ "]", ' * 300_000 + b"[]" + b"]" * 300_000 + b"}",
        "nested too deeply",
    ),
    record_in_array("invalid UTF-8 in an array", b'{"text": "caf\xe9"}', "not UTF-8 (byte 0xe9)"),
    record_in_array("null in an array", b"null", "not an object with fields but null"),
    record_in_array("number in an array", b"-0", "not an object with fields but a number"),
    record_in_array("10^400 in an array", b"1" + b"0" * 400, "not an object with fields but a number"),
    record_in_array("number across blocks in an array", b"7" * 1_500_000, "not an object with fields but a number"),
]
