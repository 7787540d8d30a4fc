"""Files, folders and standard input as one text, streamed in pieces as often as it is wanted.

Text, Markdown and JSONL (each also as .gz) may have any size and are never in memory as a whole, nor is a line of
text. HTML and PDF must be parsed whole: they have the size limits of the documents of a corpus, and what they hold is
then kept in a file beside the reading, as is what comes from standard input.

A text is looked through once when it is opened. So its digest and its length are known before a model is asked, and
what is empty, binary or broken is refused then: a file that was named with an error, one in a folder by leaving it out
and saying so. Several files are joined by lines that name them.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Self, cast

from mia.errors import RecordError, ToolError
from mia.search import documents, pages
from mia.search.documents import BrokenLines, Limits, Skipped, SourceFile, UnusableFile

STDIN = "-"
"""The path that stands for standard input."""

_BLOCK = 1 << 16
_BETWEEN = "\n\n"
_GZIP = b"\x1f\x8b"
_READS = "text, Markdown, JSONL (each also .gz), HTML or PDF"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def check_exists(path: str | Path) -> None:
    """Raises RecordError where there is nothing of this name; `-` is standard input."""
    if str(path) != STDIN and not Path(path).exists():
        raise RecordError(f"there is no file '{path}'.", wanted="a file, a folder, or - for standard input")


@dataclass(frozen=True)
class _Part:
    """One document: its name, and what makes its pieces."""

    key: str
    pieces: Callable[[], Iterator[str]]


class TextSource:
    """A text in pieces. Close it when it has been read; it is a context manager, too."""

    def __init__(self, name: str, parts: Sequence[_Part], skipped: Sequence[Skipped] = ()) -> None:
        """Looks through all of it once. Raises RecordError where there is nothing to read."""
        self.name = name
        self.skipped = tuple(skipped)
        """Files of a folder that were left out, and why."""
        self.parts = tuple(part.key for part in parts)
        self._parts = tuple(parts)
        self._resources = ExitStack()
        digest, self.characters, self.bytes, something = hashlib.sha256(), 0, 0, False
        for piece in self.pieces():
            content = piece.encode("utf-8", "replace")
            digest.update(content)
            self.characters += len(piece)
            self.bytes += len(content)
            something = something or not piece.isspace()
        if not something:
            raise RecordError(f"there is no text in {name}.", wanted=_READS)
        self.digest = digest.hexdigest()
        """The SHA-256 of the text as UTF-8."""

    @classmethod
    def of(cls, text: str, name: str = "the text") -> Self:
        """A text that is there already."""
        whole = text.encode("utf-8", "replace").decode()
        return cls(name, [_Part(name, lambda: _sliced(whole))])

    @classmethod
    def open(
        cls,
        paths: Sequence[str | Path],
        *,
        stdin: BinaryIO | None = None,
        folder: Path | None = None,
        limits: Limits = Limits(),
    ) -> Self:
        """The text of files and folders, in the order in which they are named, those of a folder by name. `stdin`: what
        the path "-" stands for. `folder`: where what cannot be read twice is kept until `close`; None: the system's
        folder for such files. Raises RecordError for what cannot be read."""
        with ExitStack() as resources:
            opener = _Opener(folder, limits, resources)
            parts: list[_Part] = []
            for path in dict.fromkeys(str(path) for path in paths):
                parts += opener.stdin(stdin) if path == STDIN and stdin is not None else opener.path(Path(path))
            if not parts:
                left_out = "; ".join(f"{one.key}: {one.reason}" for one in opener.skipped[:3])
                raise RecordError(
                    f"there is nothing to read in {_named(paths)}{f' ({left_out})' if left_out else ''}.",
                    wanted=_READS,
                )
            source = cls(_named(paths), parts, opener.skipped)
            source._resources = resources.pop_all()
        return source

    def pieces(self) -> Iterator[str]:
        """The text from its beginning, in pieces of some 64 thousand characters at most. Raises RecordError where a
        file has changed or cannot be read any more."""
        several = len(self._parts) > 1
        for number, part in enumerate(self._parts, start=1):
            if several:
                yield f"{_BETWEEN if number > 1 else ''}[Document {number}: {part.key}]\n"
            yield from part.pieces()

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Opener:
    """Finds out how each document is read."""

    def __init__(self, folder: Path | None, limits: Limits, resources: ExitStack) -> None:
        self.skipped: list[Skipped] = []
        self._folder = folder
        self._limits = limits
        self._resources = resources
        self._spool: Path | None = None
        self._spooled = 0

    def stdin(self, stream: BinaryIO, key: str = "standard input") -> list[_Part]:
        """What comes once is kept in a file, to be looked through before it is read."""
        path = self._spool_file()
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file, _BLOCK)
        return [self._part(_stated(path, key, "text"))]

    def path(self, path: Path) -> list[_Part]:
        check_exists(path)
        if path.is_fifo():
            with path.open("rb") as stream:
                return self.stdin(stream, str(path))
        files, skipped = documents.find_files([path])
        if not path.is_dir():
            if skipped:
                raise RecordError(f"'{path}' cannot be read: {skipped[0].reason}.", wanted=_READS)
            return [self._part(file) for file in files]
        self.skipped += skipped
        parts = []
        for file in files:
            try:
                parts.append(self._part(file))
            except RecordError as error:
                self.skipped.append(Skipped(file.key, error.got.removeprefix(f"'{file.key}': ").rstrip(".")))
        return parts

    def _part(self, file: SourceFile) -> _Part:
        """Raises RecordError for a document that holds no text, or none that can be read."""
        try:
            if file.kind == "jsonl":
                part = _Part(file.key, lambda: _rows(file, self._limits))
                if not any(not piece.isspace() for piece in part.pieces()):
                    raise UnusableFile("it holds no text")
                return part
            kind = _parsed_kind(file)
            if kind:
                return self._parsed(file, kind)
            encoding = _encoding(file)
            return _Part(file.key, lambda: _decoded(file, encoding))
        except UnusableFile as reason:
            raise RecordError(f"'{file.key}': {reason}.", wanted=_READS) from reason
        except ToolError as error:
            raise RecordError(f"'{file.key}': {error.got.rstrip('.')}.", wanted=error.wanted or _READS) from error

    def _parsed(self, file: SourceFile, kind: str) -> _Part:
        """HTML and PDF: parsed once, within limits, and kept as text."""
        limits = self._limits
        with _opened(file) as stream:
            content = _read_guarded(stream, limits.file_bytes + 1)
        if len(content) > limits.file_bytes:
            raise UnusableFile(
                f"more than {limits.file_bytes / 2**20:.0f} MiB of {kind.upper()}, which is parsed whole; split it, or "
                "make text of it"
            )
        if kind == "html":
            page = pages.read_html(pages.decode(content, html=True), limits.page)
            text, whole = f"{page.title}\n\n{page.text}" if page.title else page.text, page.whole
        else:
            pdf = pages.read_pdf(content, limits.page)
            text, whole = "\n\n".join((pdf.title, *pdf.pages) if pdf.title else pdf.pages), pdf.whole
        if not whole:
            raise UnusableFile(f"{kind.upper()} that is too long to be parsed; split it, or make text of it")
        if not text.strip():
            raise UnusableFile("it holds no text")
        path = self._spool_file()
        path.write_text(text, encoding="utf-8", newline="")
        kept = _stated(path, file.key, "text")
        return _Part(file.key, lambda: _decoded(kept, "utf-8"))

    def _spool_file(self) -> Path:
        if self._spool is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix="text-", dir=self._folder)
            self._spool = Path(self._resources.enter_context(made))
        self._spooled += 1
        return self._spool / f"{self._spooled}.txt"


def _stated(path: Path, key: str, kind: documents.Kind) -> SourceFile:
    facts = path.stat()
    return SourceFile(path, key, kind, facts.st_size, facts.st_mtime_ns)


def _parsed_kind(file: SourceFile) -> str:
    """ "html" or "pdf"; empty for what is streamed."""
    if file.kind in ("html", "pdf"):
        return file.kind
    name = file.path.name.lower().removesuffix(".gz")
    with _opened(file) as stream:
        if _read_guarded(stream, 5) == b"%PDF-":
            return "pdf"
    return "html" if name.endswith((".html", ".htm", ".xhtml")) else ""


@contextmanager
def _opened(file: SourceFile) -> Iterator[IO[bytes]]:
    """A file, unpacked where it is packed. Raises RecordError for one that has changed since it was looked through."""
    try:
        raw = file.path.open("rb")
    except OSError as error:
        raise UnusableFile(f"it cannot be read: {error.strerror}") from error
    with raw:
        facts = os.fstat(raw.fileno())
        if (facts.st_size, facts.st_mtime_ns) != (file.size, file.mtime_ns):
            raise RecordError(f"'{file.key}' has changed while it was read.", hint="read it again from its beginning")
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw


def _read_guarded(stream: IO[bytes], size: int) -> bytes:
    """Bytes of a file; what is broken in it is its reader's to know. Raises UnusableFile."""
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnusableFile(f"the compressed data is broken ({error})") from error
    except OSError as error:
        raise UnusableFile(f"it cannot be read: {error.strerror}") from error


def _encoding(file: SourceFile) -> str:
    """By the byte order mark, as UTF-8 where all of it is, else by the best guess. Raises UnusableFile for bytes that
    are no text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    something = False
    with _opened(file) as stream:
        first = block = _read_guarded(stream, _BLOCK)
        for mark, encoding in _BYTE_ORDER_MARKS:
            if first.startswith(mark):
                return encoding
        if b"\x00" in first:
            raise UnusableFile("it is binary data")
        before = b""
        while block:
            try:
                something = not decoder.decode(block).isspace() or something
            except UnicodeDecodeError:
                return _guessed((before + block)[-2 * _BLOCK :])
            before, block = block, _read_guarded(stream, _BLOCK)
    if not something:
        raise UnusableFile("it is empty" if not first else "it holds no text")
    return "utf-8"


def _guessed(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    guesses = from_bytes(sample)
    best = guesses.best()
    if best is None:
        raise UnusableFile("it is binary data")
    # As for pages: of equally likely encodings, Windows' western one is the most common by far.
    equal = {guess.encoding for guess in guesses if (guess.chaos, guess.coherence) == (best.chaos, best.coherence)}
    return "cp1252" if "cp1252" in equal else best.encoding


def _decoded(file: SourceFile, encoding: str) -> Iterator[str]:
    """The text of a file, with the line ends and without the NULs that no text holds."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)("replace"), translate=True)
    try:
        with _opened(file) as stream:
            while block := _read_guarded(stream, _BLOCK):
                if text := decoder.decode(block):
                    yield text.replace("\x00", " ")
        if text := decoder.decode(b"", final=True):
            yield text.replace("\x00", " ")
    except UnusableFile as reason:
        raise RecordError(f"'{file.key}': {reason}.") from reason


def _rows(file: SourceFile, limits: Limits) -> Iterator[str]:
    """The rows of a JSONL file, each with its title, as text."""
    title, begun = "", False
    try:
        for row in documents.read_rows(file, limits):
            heading = f"{row.passage.title}\n" if row.passage.title and row.passage.title != title else ""
            title = row.passage.title
            yield f"{_BETWEEN if begun else ''}{heading}{row.passage.text}"
            begun = True
    except BrokenLines as error:
        raise RecordError(
            f"lines that cannot be read:\n  {documents.describe([error])}", wanted=documents.ACCEPTED
        ) from error
    except UnusableFile as reason:
        raise RecordError(f"'{file.key}': {reason}.") from reason


def _sliced(text: str) -> Iterator[str]:
    for start in range(0, len(text), _BLOCK):
        yield text[start : start + _BLOCK]


def _named(paths: Sequence[str | Path]) -> str:
    names = ["standard input" if str(path) == STDIN else f"'{path}'" for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
