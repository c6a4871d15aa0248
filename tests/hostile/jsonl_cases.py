"""JSONL: a record on each line."""

from __future__ import annotations

from tests.hostile.case import Bad, Case
from tests.hostile.making import files, lines, record

ONE, TWO = record("one", n=""), record("two", n="")


def bad_line(name: str, line: bytes, reason: str, **section: object) -> Case:
    """A bad line between two good ones."""
    return Case(name, files(a__jsonl=lines(ONE, line, TWO)), section, ["one", "two"], [("a.jsonl", 2, reason)])


def good_line(name: str, line: bytes, text: str, **section: object) -> Case:
    return Case(name, files(a__jsonl=lines(ONE, line, TWO)), section, ["one", text, "two"])


def whole(name: str, data: bytes, good: list[str], *bad: Bad) -> Case:
    return Case(name, files(a__jsonl=data), {}, good, bad)


FIELDS = {"fields": ["text", "n"], "format": "{text}{n}"}

CASES = [
    bad_line("no JSON", b"what is this", "not JSON: Expecting value"),
    bad_line("trailing comma in an object", b'{"text": "a",}', "not JSON"),
    bad_line("trailing comma in a list", b'{"text": "a", "n": [1,]}', "not JSON"),
    bad_line("comma after the record", b'{"text": "a"},', "more text after the record"),
    bad_line("two records", b'{"text": "a"}{"text": "b"}', "more text after the record"),
    bad_line("two records with CR between", b'{"text": "a"}\r{"text": "b"}', "more text after the record"),
    bad_line("comment before", b'// so it is\t{"text": "a"}', "not JSON"),
    bad_line("comment within", b'{"text": /* so it is */ "a"}', "not JSON"),
    bad_line("single quotes", b"{'text': 'a'}", "not JSON"),
    bad_line("Python's words", b'{"text": "a", "n": None, "b": True}', "not JSON"),
    bad_line("no quotes", b'{text: "a"}', "not JSON"),
    bad_line("no end of the text", b'{"text": "a', "not JSON: Unterminated string"),
    bad_line("tab in a text", b'{"text": "a\tb"}', "not JSON: Invalid control character"),
    bad_line("escape that is none", rb'{"text": "\x41"}', "not JSON: Invalid"),
    bad_line("half an escape", rb'{"text": "\u12"}', "not JSON: Invalid"),
    bad_line("NaN", b'{"text": "a", "n": NaN}', "NaN is not JSON"),
    bad_line("Infinity", b'{"text": "a", "n": -Infinity}', "-Infinity is not JSON"),
    bad_line("number that begins with 0", b'{"text": "a", "n": 012}', "not JSON"),
    bad_line("hexadecimal", b'{"text": "a", "n": 0x12}', "not JSON"),
    bad_line("duplicate key", b'{"text": "a", "text": "b"}', "field 'text' occurs twice"),
    bad_line("duplicate key by another spelling", rb'{"text": "a", "te\u0078t": "b"}', "field 'text' occurs twice"),
    bad_line("duplicate key within", b'{"text": "a", "n": {"k": 1, "k": 2}}', "field 'k' occurs twice"),
    bad_line("depth of lists", b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    bad_line("depth of objects", b'{"n": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    bad_line("depth without an end", b"[" * 100_000, "nested too deeply"),
    bad_line("NUL byte", b'{"text": "a\0b"}', "not text (NUL bytes)"),
    bad_line("nothing but NUL bytes", b"\0" * 5000, "not text (NUL bytes)"),
    bad_line("invalid UTF-8", b'{"text": "caf\xe9"}', "not UTF-8 (byte 0xe9)"),
    bad_line("surrogate in UTF-8", b'{"text": "\xed\xa0\xbd"}', "not UTF-8"),
    bad_line("null for a text", record(None), "field 'text' is not text but null"),
    bad_line("number for a text", record(3), "field 'text' is not text but a number"),
    bad_line("10^400 for a text", b'{"text": 1' + b"0" * 400 + b"}", "field 'text' is not text but a number"),
    bad_line("true for a text", record(True), "field 'text' is not text but true or false"),
    bad_line("list for a text", record(["a"]), "field 'text' is not text but a list"),
    bad_line("object for a text", record({"a": "b"}), "field 'text' is not text but an object"),
    bad_line("empty object", b"{}", "no field 'text'; there are: none"),
    bad_line("key in capitals", b'{"Text": "a"}', "no field 'text'; there are: Text"),
    bad_line("null for a record", b"null", "not an object with fields but null"),
    bad_line("number for a record", b"-0", "not an object with fields but a number"),
    bad_line("list for a record", b'["text"]', "not an object with fields but a list"),
    bad_line(
        "200,000 keys, and one of them twice",
        b"{" + b",".join(b'"%d":1' % (n % 199_999) for n in range(200_000)) + b"}",
        "field '0' occurs twice",
    ),
    bad_line("a key that a terminal would obey", rb'{"\u001b[2J\n\u202e": 1}', "there are: \\x1b[2J \\u202e"),
    bad_line("a key that is half a surrogate pair", rb'{"\ud83d": 1}', "there are: \\ud83d"),
    bad_line("list in a field of a format", b'{"text": "a", "n": [1, 2]}', "field 'n' is not text but a list", **FIELDS),
    good_line("half a surrogate pair", rb'{"text": "a\ud83db"}', "a\ufffdb"),
    good_line("halves in the wrong order", rb'{"text": "\ude00\ud83d"}', "\ufffd\ufffd"),
    good_line("surrogate pair", rb'{"text": "\ud83d\ude00"}', "\U0001f600"),
    good_line("escaped NUL", rb'{"text": "a\u0000b"}', "a\0b"),
    good_line("breaks of Unicode in a text", '{"text": "a\u2028b\x85c"}'.encode(), "a\u2028b\x85c"),
    good_line("a text for a record", b'"just so"', "just so"),
    good_line("white space around", b' \t{"text": "a"} \r', "a"),
    good_line("byte order mark on a line", b'\xef\xbb\xbf{"text": "a"}', "a"),
    good_line("10^400 beside the text", b'{"text": "a", "n": 1' + b"0" * 400 + b"}", "a"),
    good_line("10^400 in a field of a format", b'{"text": "a", "n": 1' + b"0" * 400 + b"}", "a1" + "0" * 400, **FIELDS),
    good_line("1e400 in a field of a format", b'{"text": "a", "n": 1e400}', "a1e400", **FIELDS),
    good_line("-0 in a field of a format", b'{"text": "a", "n": -0}', "a-0", **FIELDS),
    good_line("a format in a value", b'{"text": "{n}", "n": "{text}{0}%s"}', "{n}{text}{0}%s", **FIELDS),
    good_line("a number of a million digits", b'{"text": "a", "n": ' + b"7" * 1_000_000 + b"}", "a"),
    whole("torn last line", lines(ONE) + b'{"text": "tw', ["one"], ("a.jsonl", 2, "torn last line")),
    whole("last line without a break", lines(ONE) + TWO, ["one", "two"]),
    whole("CRLF", lines(ONE, TWO).replace(b"\n", b"\r\n"), ["one", "two"]),
    whole("CR alone", lines(ONE, TWO).replace(b"\n", b"\r"), [], ("a.jsonl", 1, "more text after the record")),
    whole("blank lines and empty texts", lines(b"", ONE, b" \t", record(""), record(" \n"), TWO, b""), ["one", "two"]),
    whole("UTF-16", lines(ONE, TWO).decode().encode("utf-16"), [], ("a.jsonl", 0, "UTF-16; convert the file to UTF-8")),
    whole(
        "UTF-16 without a byte order mark",
        lines(ONE).decode().encode("utf-16-le"),
        [],
        ("a.jsonl", 1, "NUL"),
        ("a.jsonl", 2, "NUL"),
    ),
    whole("UTF-32", lines(ONE).decode().encode("utf-32"), [], ("a.jsonl", 0, "UTF-32; convert the file to UTF-8")),
    whole(
        "an array named .jsonl",
        b'[\n{"text": "a"},\n{"text": "b"}\n]\n',
        ["b"],
        ("a.jsonl", 1, "not JSON"),
        ("a.jsonl", 2, "more text after the record"),
        ("a.jsonl", 4, "not JSON"),
    ),
    whole("text named .jsonl", b"Dear diary,\nit rains.\n", [], ("a.jsonl", 1, "not JSON"), ("a.jsonl", 2, "not JSON")),
    Case(
        "more bad rows than may be",
        files(a__jsonl=lines(*[ONE, b"bad"] * 30)),
        {},
        ["one"] * 10,
        [("a.jsonl", 2 * n, "not JSON") for n in range(1, 11)],
        stops="10 of the first 20 rows are bad",
        max_bad_fraction=0.4,
    ),
    Case(
        "as many bad rows as may be",
        files(a__jsonl=lines(*[ONE, b"bad"] * 30)),
        {},
        ["one"] * 30,
        [("a.jsonl", 2 * n, "not JSON") for n in range(1, 31)],
        max_bad_fraction=0.5,
    ),
]
