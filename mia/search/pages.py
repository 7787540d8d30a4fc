"""The bytes of a page or a file to its title and text: HTML, plain text and its relatives, JSON, PDF.

Both the documents of a corpus and the pages that are fetched are read here. Pages are written by strangers, some with
bad intent: what is read is bounded in size, in PDF pages and in time, and whatever a parser raises becomes a
`ToolError`. Nothing here reaches the network. It computes, so it is sync.
"""

from __future__ import annotations

import codecs
import html
import io
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mia.errors import ToolError

Kind = Literal["html", "text", "pdf"]

_TITLE = re.compile(r"<title[^>]{0,200}>([^<]{1,2000})", re.IGNORECASE)
_META_CHARSET = re.compile(rb"<meta[^>]{0,300}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PAGE_ENCODING = re.compile(r"(utf-(8|16|32)|iso8859|iso2022|cp\d|koi8|gb|big5|euc|shift_jis|hz|mac|tis|johab)")
"""Encodings of the web, as Python names them. Python knows others that take quadratic time, and some that unpack."""

# What these log of a broken page is said by our errors; without a handler, Python would print it on stderr.
for _library in ("trafilatura", "pypdf"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Bounds:
    """How much of one page is read. The defaults are for a page of the web."""

    html_characters: int = 2_000_000
    """More is not parsed: a hostile page takes the extractor up to 3 s per million characters."""
    pdf_pages: int = 50
    pdf_seconds: float = 10.0


@dataclass(frozen=True)
class Page:
    title: str
    text: str
    whole: bool = True
    """False: the end of it was not read."""


@dataclass(frozen=True)
class Pdf:
    title: str
    pages: tuple[str, ...]
    whole: bool
    """False: the pages after these were not read."""


def kind_of(content_type: str) -> Kind | None:
    """How a content type is read; None: it says nothing, and the bytes decide. Raises ToolError for other kinds."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in ("", "application/octet-stream", "binary/octet-stream"):
        return None
    if media_type in ("application/pdf", "application/x-pdf"):
        return "pdf"
    if media_type in ("text/html", "text/xml", "application/xml") or media_type.endswith("+xml"):
        return "html"
    if media_type.startswith("text/") or media_type in ("application/json", "application/x-ndjson"):
        return "text"
    if media_type.endswith("+json"):
        return "text"
    raise ToolError(f"it is of the type '{media_type[:80]}', which is not read.", wanted="HTML, text, JSON or PDF")


def read_page(content: bytes, content_type: str) -> Page:
    """Raises ToolError for bytes that hold no text that can be read."""
    kind = kind_of(content_type)
    start = content[:1024].lstrip()
    if start.startswith(b"%PDF-"):
        kind = "pdf"
    elif kind is None:
        kind = "html" if start[:1] == b"<" else "text"
    if kind == "pdf":
        pdf = read_pdf(content)
        page = Page(title=pdf.title, text="\n\n".join(pdf.pages), whole=pdf.whole)
    else:
        text = decode(content, content_type, html=kind == "html")
        page = read_html(text) if kind == "html" else Page(title="", text=text)
    if not page.text.strip():
        raise ToolError("it holds no text.")
    return page


def read_html(text: str, bounds: Bounds = Bounds()) -> Page:
    """The text of an HTML page as Markdown. Raises ToolError."""
    import trafilatura

    whole = len(text) <= bounds.html_characters
    text = text[: bounds.html_characters]
    title = _TITLE.search(text)
    # The extractor and the parser below it raise nearly anything on hostile pages; it becomes the reason of a failure.
    try:
        found = trafilatura.extract(
            text, output_format="markdown", include_comments=False, include_links=False, favor_recall=True
        )
        # Wrapped, because a page that is a fragment of HTML is taken for none.
        found = found or trafilatura.html2txt(f"<html><body><div>{text}</div></body></html>")
    except Exception as error:
        raise ToolError(f"it is no HTML that can be read ({type(error).__name__}).") from error
    words = " ".join(_clean(html.unescape(title.group(1))).split()) if title else ""
    return Page(title=words, text=_clean(found), whole=whole)


def read_pdf(content: bytes, bounds: Bounds = Bounds()) -> Pdf:
    """The pages of a PDF. Raises ToolError."""
    import pypdf

    # The reader is written in Python over a format of many dialects; what it raises becomes the reason of a failure.
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ToolError("it is a PDF that needs a password.")
        title = " ".join(_clean(str((reader.metadata and reader.metadata.title) or "")).split())
        texts = tuple(_pdf_pages(reader, bounds))
        whole = len(texts) == len(reader.pages)
    except ToolError:
        raise
    except Exception as error:
        raise ToolError(f"it is no PDF that can be read ({type(error).__name__}).") from error
    if whole and not any(text.strip() for text in texts):
        raise ToolError("it is a PDF without text (only pictures of pages?).")
    return Pdf(title=title, pages=texts, whole=whole)


def _pdf_pages(reader: Any, bounds: Bounds) -> Iterator[str]:
    """The texts of the first pages, as far as the bounds let it come."""
    deadline = time.monotonic() + bounds.pdf_seconds

    def check_time(*_: object) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    for page in reader.pages[: bounds.pdf_pages]:
        try:
            yield _clean(page.extract_text(visitor_operand_before=check_time) or "")
        except TimeoutError:
            return


def decode(content: bytes, content_type: str = "", *, html: bool = False) -> str:
    """Bytes to text: by the byte order mark, by what is declared, as UTF-8, else by the best guess. Raises ToolError
    for bytes that are no text."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return _clean(content.decode(encoding, "replace"))
    declared = re.search(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", content_type, re.IGNORECASE)
    labels = [declared.group(1)] if declared else []
    if html:
        labels += [label.decode("ascii", "replace") for label in _META_CHARSET.findall(content[:4096])[:1]]
    for label in [*labels, "utf-8"]:
        text = _decode_as(content, label)
        if text is not None:
            break
    else:
        text = content.decode(_guess(content), "replace")
    if "\x00" in text[:65_536]:
        raise ToolError("it is binary data.")
    return _clean(text)


def _guess(content: bytes) -> str:
    from charset_normalizer import from_bytes

    guesses = from_bytes(content[:65_536])
    best = guesses.best()
    if best is None:
        raise ToolError("it is binary data.")
    # Of equally likely ones the library takes the first by name; Windows' western one is the most common by far.
    equal = {each.encoding for each in guesses if (each.chaos, each.coherence) == (best.chaos, best.coherence)}
    return "cp1252" if "cp1252" in equal else best.encoding


def _decode_as(content: bytes, label: str) -> str | None:
    """The text in this encoding, or None. A character that was cut in two at the end is left out."""
    try:
        encoding = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    if encoding in ("iso8859-1", "ascii"):
        encoding = "cp1252"  # What pages mean that say Latin-1, and what every browser takes it for.
    if not _PAGE_ENCODING.match(encoding):
        return None
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        torn_at_end = error.start > 0 and len(content) - error.start < 4
        return content[: error.start].decode(encoding, "replace") if torn_at_end else None


def _clean(text: str) -> str:
    """The text without what no text holds: half surrogates and NUL."""
    return text.encode("utf-8", "replace").decode().replace("\x00", " ").replace("\r\n", "\n").replace("\r", "\n")
