"""What reads a PDF, in a process of its own (`confined.py`): nothing in such a file can be trusted."""

from __future__ import annotations

import os
import stat
from typing import Any, BinaryIO

import pypdfium2
from pypdfium2 import raw

from lmloop.data.pdf_text import chunks, running_text, unreadable_share

MAX_UNREADABLE = 0.3
NAMED_PAGES = 5
HEAD_BYTES = TAIL_BYTES = 1024


def chunks_of(path: str, chunk_size: int) -> dict[str, Any]:
    """The text of a PDF: `chunks`, and where some of its pages are bad `page` (the first of them) and `fault`.

    ValueError says in one line why there is no text at all.
    """
    try:
        with _opened(path) as file:
            document = _document(file)
            try:
                pages, bad = _pages(document)
            finally:
                document.close()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    count = len(pages) + len(bad)
    if not pages:
        raise ValueError(
            f"damaged: none of its {count:,} pages can be read" if count > 1 else "damaged: its page cannot be read"
        )
    if unreadable_share(pages) > MAX_UNREADABLE:
        raise ValueError("its fonts do not say which letters they show, so that its text is garbled; OCR can read it")
    text = running_text(pages)
    if not text:
        where = f"{count:,} pages" if count > 1 else "only page"
        raise ValueError(f"scanned: no text on its {where}; OCR can add it")
    return {"chunks": list(chunks(text, chunk_size)), "page": bad[0] if bad else 0, "fault": _fault(bad, count)}


def _opened(path: str) -> BinaryIO:
    """A file and nothing else: a pipe that has taken its place is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ValueError("not a file")
    return file


def _document(file: BinaryIO) -> pypdfium2.PdfDocument:
    """The document. ValueError says why there is none."""
    head = file.read(HEAD_BYTES)
    if b"%PDF-" not in head:
        raise ValueError("not a PDF" if head else "not a PDF: the file is empty")
    try:
        return pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        reasons = {
            raw.FPDF_ERR_PASSWORD: "encrypted: it opens only with a password",
            raw.FPDF_ERR_SECURITY: "encrypted in a way that is not known",
            raw.FPDF_ERR_SUCCESS: "it has no pages",
        }
        reason = reasons.get(error.err_code or raw.FPDF_ERR_SUCCESS)
    if reason is None:
        file.seek(-min(TAIL_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
        whole = b"%%EOF" in file.read()
        reason = "damaged: its structure cannot be read" if whole else "damaged: its end is missing; get it again"
    raise ValueError(reason)


def _pages(document: pypdfium2.PdfDocument) -> tuple[list[str], list[int]]:
    """The text of each page that can be read, and the numbers of the others, from 1."""
    pages: list[str] = []
    bad: list[int] = []
    for number in range(1, len(document) + 1):
        try:
            page = document[number - 1]
            text_page = page.get_textpage()
            pages.append(text_page.get_text_bounded())
        except pypdfium2.PdfiumError:
            bad.append(number)
            continue
        text_page.close()
        page.close()
    return pages, bad


def _fault(bad: list[int], count: int) -> str:
    if not bad:
        return ""
    named = ", ".join(map(str, bad[:NAMED_PAGES])) + (", …" if len(bad) > NAMED_PAGES else "")
    return f"damaged: {len(bad):,} of its {count:,} pages cannot be read (page {named}); the others are kept"
