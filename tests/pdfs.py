"""PDFs for tests: written by hand where their structure matters, by reportlab where they should be like anybody's."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>"
MEGABYTE_OF_SPACES = b" " * (1 << 20)


def pdf(objects: dict[int, bytes], trailer: bytes = b"") -> bytes:
    """A PDF of these objects, by number; the catalog is 1."""
    out, offsets = b"%PDF-1.7\n", {}
    for number, body in objects.items():
        offsets[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    last = max(objects)
    table = b"".join(b"%010d %05d n \n" % (offsets.get(number, 0), 0) for number in range(1, last + 1))
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (last + 1, table)
    end = b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (last + 1, trailer, len(out))
    return out + table + end


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """A stream object."""
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries, len(data), data)


def text(line: str) -> bytes:
    """The page content that shows a line of text."""
    escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return b"BT /F 12 Tf 40 700 Td (%s) Tj ET\n" % escaped.encode("cp1252")


def page(content: int, resources: bytes = b"") -> bytes:
    """A page object below the page tree's root, 2, with the font 3."""
    return b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents %d 0 R/Resources<</Font<</F 3 0 R>>%s>>>>" % (
        content,
        resources,
    )


def tree(kids: Sequence[int], count: int | None = None) -> bytes:
    """The root of the page tree."""
    names = b" ".join(b"%d 0 R" % kid for kid in kids)
    return b"<</Type/Pages/Kids[%s]/Count %d>>" % (names, len(kids) if count is None else count)


def plain(contents: Sequence[bytes], entries: bytes = b"") -> bytes:
    """A PDF with a page for each of `contents`, its operators."""
    objects = {1: CATALOG, 2: tree([4 + 2 * k for k in range(len(contents))]), 3: FONT}
    for k, content in enumerate(contents):
        objects |= {4 + 2 * k: page(5 + 2 * k), 5 + 2 * k: stream(content, entries)}
    return pdf(objects)


def deflated(unit: bytes, times: int, end: bytes = b"") -> bytes:
    """`unit` so many times, compressed: as one block that is repeated."""
    packing = zlib.compressobj(9, wbits=-15)
    block = packing.compress(unit) + packing.flush(zlib.Z_FULL_FLUSH)
    checksum = 1
    for _ in range(times):
        checksum = zlib.adler32(unit, checksum)
    last = packing.compress(end) + packing.flush()
    return b"\x78\xda" + block * times + last + zlib.adler32(end, checksum).to_bytes(4, "big")


def bomb(megabytes: int, line: str = "good") -> bytes:
    """A page whose content is so long when it is unpacked; then comes its line."""
    return plain([deflated(MEGABYTE_OF_SPACES, megabytes, text(line))], b"/Filter/FlateDecode")


def scanned(pages: int) -> bytes:
    """Pages that are pictures."""
    picture = b"/Type/XObject/Subtype/Image/Width 60 /Height 80 /ColorSpace/DeviceGray/BitsPerComponent 8/Filter/FlateDecode"
    objects = {1: CATALOG, 2: tree(range(10, 10 + pages)), 3: FONT, 4: stream(b"600 0 0 800 0 0 cm /I Do")}
    objects[5] = stream(deflated(b"\x80" * 60, 80), picture)
    return pdf(objects | {10 + k: page(4, b"/XObject<</I 5 0 R>>") for k in range(pages)})


def write_book(path: Path, paragraphs: Sequence[str], title: str = "The Keeper of Lights") -> None:
    """A book of these paragraphs on pages with a title above and a number below, as a word processor writes it."""
    from reportlab.lib.pagesizes import A5
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.pdfgen.canvas import Canvas
    from reportlab.platypus import Paragraph, SimpleDocTemplate

    def margins(canvas: Canvas, template: SimpleDocTemplate) -> None:
        canvas.drawString(72, A5[1] - 40, title)
        canvas.drawCentredString(A5[0] / 2, 30, str(canvas.getPageNumber()))

    style = getSampleStyleSheet()["BodyText"]
    template = SimpleDocTemplate(str(path), pagesize=A5, invariant=1)
    template.build([Paragraph(escape(one), style) for one in paragraphs], onFirstPage=margins, onLaterPages=margins)


def encrypt(path: Path, user: str, owner: str) -> None:
    """Encrypt a PDF in its place: `user` opens it, `owner` may do everything with it."""
    import pypdf

    writer = pypdf.PdfWriter(clone_from=path)
    writer.encrypt(user, owner, algorithm="AES-256")
    writer.write(path)
