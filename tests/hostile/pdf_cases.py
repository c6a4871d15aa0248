"""PDFs that are no PDFs, that nobody can open, that never end, or that want all of the memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

from tests import pdfs
from tests.hostile.case import Bad, Case

GOOD = "A good page that must be kept."
MEMORY = "needs more than 1,024 MB of memory"


def files(**contents: bytes | Callable[[], bytes]) -> Callable[[Path], None]:
    """Writes `contents` as PDFs, and one that is good after them."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            (folder / f"{name}.pdf").write_bytes(content if isinstance(content, bytes) else content())
        (folder / "zz.pdf").write_bytes(pdfs.plain([pdfs.text(GOOD)]))

    return make


def case(
    name: str, content: bytes | Callable[[], bytes], reason: str = "", texts: list[str] | None = None, page: int = 0
) -> Case:
    """A file `x.pdf` that gives `texts`, and is on record for `reason`."""
    bad: tuple[Bad, ...] = (("x.pdf", page, reason),) if reason else ()
    return Case(name, files(x=content), {"type": "pdf"}, [*(texts or []), GOOD], bad)


def with_root(tree: bytes, **objects: bytes) -> bytes:
    """A PDF whose page tree has this root; page 4 is good, `o6` is object 6."""
    more = {int(name[1:]): body for name, body in objects.items()}
    return pdfs.pdf(
        {1: pdfs.CATALOG, 2: tree, 3: pdfs.FONT, 4: pdfs.page(5), 5: pdfs.stream(pdfs.text("In a loop."))} | more
    )


def nested_forms(depth: int, uses: int) -> bytes:
    """A form that shows the next one so often, and so on: uses ** depth lines of text in the end."""
    show = b"/X Do " * uses

    def form(content: bytes, following: bytes) -> bytes:
        entries = b"/Type/XObject/Subtype/Form/BBox[0 0 600 800]/Resources<</Font<</F 3 0 R>>/XObject<<%s>>>>" % following
        return pdfs.stream(content, entries)

    objects = {
        1: pdfs.CATALOG,
        2: pdfs.tree([4]),
        3: pdfs.FONT,
        4: pdfs.page(5, b"/XObject<</X 6 0 R>>"),
        5: pdfs.stream(show),
    }
    objects |= {6 + k: form(show, b"/X %d 0 R" % (7 + k)) for k in range(depth)}
    return pdfs.pdf(objects | {6 + depth: form(pdfs.text("boom"), b"")})


def nested_bomb() -> bytes:
    """Three gigabytes in less than two kilobytes."""
    data = pdfs.deflated(pdfs.MEGABYTE_OF_SPACES, 3000, pdfs.text("boom"))
    for _ in range(2):
        data = zlib.compress(data, 9)
    return pdfs.plain([data], b"/Filter[/FlateDecode/FlateDecode/FlateDecode]")


def same_contents_many_times() -> bytes:
    """A page whose content is the same hundred megabytes, a hundred times."""
    content = pdfs.stream(pdfs.deflated(pdfs.MEGABYTE_OF_SPACES, 100), b"/Filter/FlateDecode")
    page = pdfs.page(5).replace(b"/Contents 5 0 R", b"/Contents[%s]" % (b"5 0 R " * 100))
    return pdfs.pdf({1: pdfs.CATALOG, 2: pdfs.tree([4]), 3: pdfs.FONT, 4: page, 5: content})


def slow_pages() -> bytes:
    """Four hundred pages that are one and the same, and take a tenth of a second each."""
    content = pdfs.stream(pdfs.deflated(pdfs.MEGABYTE_OF_SPACES, 60, pdfs.text("slow")), b"/Filter/FlateDecode")
    return pdfs.pdf({1: pdfs.CATALOG, 2: pdfs.tree([4] * 400), 3: pdfs.FONT, 4: pdfs.page(5), 5: content})


def half_broken() -> bytes:
    """Four pages of which the second is no page, and the content of the third is torn."""
    lines = [pdfs.text(f"Page number {n}.") for n in range(1, 5)]
    packed = [zlib.compress(line) for line in lines]
    packed[2] = packed[2][:5] + b"\xff" * (len(packed[2]) - 5)
    whole = pdfs.plain(packed, b"/Filter/FlateDecode")
    return whole.replace(b"6 0 obj\n<</Type/Page/", b"6 0 obj\n<</Type/None/")


def encrypted(folder: Path) -> None:
    files(x=pdfs.plain([pdfs.text("secret")]))(folder)
    pdfs.encrypt(folder / "x.pdf", "a password", "owner")


def no_files(folder: Path) -> None:
    files()(folder)
    os.mkfifo(folder / "a.pdf")
    (folder / "b.pdf").symlink_to("b.pdf")
    (folder / "c.pdf").symlink_to("/dev/zero")
    (folder / "d.pdf").symlink_to("nowhere")
    (folder / "e.pdf").mkdir()
    (folder / "loop").symlink_to(folder)


def private_letters() -> bytes:
    table = b"1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfrange <20> <7E> <E020> endbfrange"
    font = pdfs.FONT.replace(b">>", b"/ToUnicode 6 0 R>>")
    return with_root(pdfs.tree([4]), o3=font, o6=pdfs.stream(table))


def broken_letters() -> bytes:
    """Half of a surrogate pair for G, NUL for o."""
    table = b"1 begincodespacerange <00> <FF> endcodespacerange 2 beginbfchar <47> <D83D> <6F> <0000> endbfchar"
    font = pdfs.FONT.replace(b">>", b"/ToUnicode 6 0 R>>")
    text = pdfs.stream(pdfs.text("Letters and then Good ones."))
    return with_root(pdfs.tree([4]), o3=font, o5=text, o6=pdfs.stream(table))


WHOLE = pdfs.plain([pdfs.text("In a loop.")])

CASES = [
    case("empty", b"", "not a PDF: the file is empty"),
    case("text", b"This is a text.\n" * 1000, "not a PDF"),
    case("zeros", b"\0" * 1_000_000, "not a PDF"),
    case("head-only", b"%PDF-1.7\n", "damaged: its end is missing"),
    case("truncated", WHOLE[: len(WHOLE) // 2], "damaged: its end is missing"),
    case("noise", b"%PDF-1.7\n" + bytes(range(256)) * 400 + b"%%EOF", "damaged"),
    case("junk-before-it", b"junk\r\n" * 50 + WHOLE, "", ["In a loop."]),
    case("scanned", pdfs.scanned(12), "scanned: no text on its 12 pages"),
    case("no-pages", pdfs.pdf({1: pdfs.CATALOG, 2: pdfs.tree([])}), "it has no pages"),
    case("half-broken", half_broken, "1 of its 4 pages cannot be read (page 2)", ["Page number 1.\nPage number 4."], 2),
    case("private-letters", private_letters, "its fonts do not say which letters they show"),
    case("broken-letters", broken_letters, "", ["Letters and then d nes."]),
    case("tree-of-itself", pdfs.pdf({1: pdfs.CATALOG, 2: pdfs.tree([2])}), "damaged: its page cannot be read"),
    case("tree-with-a-loop", with_root(pdfs.tree([4, 6], 2), o6=pdfs.tree([2], 1)), "", ["In a loop.\nIn a loop."]),
    case("a-billion-pages", with_root(pdfs.tree([4], 10**9)), "", ["In a loop."]),
    case("half-a-million-pages", with_root(pdfs.tree([4], 500_000)), "499,999 of its 500,000 pages", ["In a loop."], 2),
    case("table-of-itself", WHOLE.replace(b"/Root", b"/Prev %d/Root" % WHOLE.rindex(b"xref\n0")), "", ["In a loop."]),
    case("length-of-itself", WHOLE.replace(b"<</Length 41>>", b"<</Length 5 0 R>>"), "", ["In a loop."]),
    case(
        "deep-arrays",
        lambda: with_root(pdfs.tree([4]), o1=b"<</Type/Catalog/Pages 2 0 R/X" + b"[" * 10**5 + b"]" * 10**5 + b">>"),
        "",
        ["In a loop."],
    ),
    case("deep-content", lambda: pdfs.plain([b"[" * 1_000_000]), "scanned: no text on its only page"),
    case("deep-states", lambda: pdfs.plain([b"q " * 1_000_000 + pdfs.text("kept")]), "", ["kept"]),
    case("bomb", lambda: pdfs.bomb(3000), MEMORY),
    case("nested-bomb", nested_bomb, MEMORY),
    case("bomb-in-pieces", same_contents_many_times, MEMORY),
    case("forms-to-the-sixth", lambda: nested_forms(6, 10), MEMORY),
    case("forms-to-the-twentieth", lambda: nested_forms(20, 10), MEMORY),
    case("slow-pages", slow_pages, "it takes longer than 10 s"),
    Case("encrypted", encrypted, {"type": "pdf"}, [GOOD], (("x.pdf", 0, "encrypted: it opens only with a password"),)),
    Case(
        "no-files",
        no_files,
        {"type": "pdf"},
        [GOOD],
        (
            ("a.pdf", 0, "a pipe"),
            ("b.pdf", 0, "levels of symbolic links"),
            ("c.pdf", 0, "a device"),
            ("d.pdf", 0, "No such file"),
        ),
    ),
    Case(
        "one-file",
        files(),
        {"type": "pdf", "path": "zz.pdf", "chunk_size": 8},
        ["A good ", "page ", "that ", "must be ", "kept."],
    ),
    Case("folder-missing", files(), {"type": "pdf", "path": "my_pdfs"}, [], stops="there is no file or folder"),
    Case("folder-empty", lambda folder: None, {"type": "pdf"}, [], stops="ends in .pdf: put some there"),
]
