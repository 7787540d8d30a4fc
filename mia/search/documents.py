"""Documents on disk to passages: which files count, how each kind is read, where it is split.

Nothing outside the named paths is ever read: links inside a folder are not followed, hidden entries are left alone. A
file that cannot be used (binary, broken, too large) is skipped with a reason, and never stops the others. JSONL is
different: it is data that somebody made for us, so its broken lines are errors, named by number.

A passage has at most about 200 words and an id that stays the same while its place does: the file's path and a number
("docs/guide.md#3"). A row of JSONL is a passage with the row's own `id`; a row of over 400 words is split like a
document, into "id#0", "id#1", …
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from mia.errors import CorpusError, ToolError
from mia.search import pages
from mia.types import Passage

ACCEPTED = "JSONL of {id, title, text} (.jsonl, .jsonl.gz), text (.txt), Markdown (.md), HTML (.html) and PDF (.pdf)"
INDEX_MARK = "mia-index.json"
"""A folder that holds this file is an index of ours, and no document of anyone's."""

Kind = Literal["jsonl", "text", "markdown", "html", "pdf"]

_SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
}
_WORDS = 200
"""A passage is filled up to so many words."""
_ROW_WORDS = 400
"""A row of JSONL up to this size is one passage, as it was made."""
_CHARACTERS_PER_WORD = 7
"""Cautious for English; it is what counts words in languages that write them without spaces."""
_TITLE_CHARACTERS = 500
"""A title is repeated with each passage; what is longer is cut."""
_ID_CHARACTERS = 2048
_FILE_BOUNDS = pages.Bounds(html_characters=10_000_000, pdf_pages=5_000, pdf_seconds=120.0)


@dataclass(frozen=True)
class Limits:
    """What is too large to read."""

    file_bytes: int = 32 * 1024 * 1024
    """For a file that is read whole: text, Markdown, HTML, PDF. JSONL is streamed and may have any size."""
    line_bytes: int = 4 * 1024 * 1024
    """For one line of JSONL."""
    page: pages.Bounds = _FILE_BOUNDS
    """For HTML and PDF. A file that is larger, or slower to read, is left out: half a document would not be noticed."""


@dataclass(frozen=True)
class SourceFile:
    """A file that counts. `key` names it inside the corpus: its path from the folder that was given."""

    path: Path
    key: str
    kind: Kind
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was left out, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Row:
    """A passage and the line it came from (JSONL only, else 0)."""

    passage: Passage
    line: int = 0


class UnusableFile(Exception):
    """A file that is skipped; the message is the reason."""


class BrokenLines(Exception):
    """A JSONL file with lines that are no rows; `lines` says which and what is wrong with them."""

    def __init__(self, key: str, lines: Sequence[str]) -> None:
        super().__init__(key)
        self.key = key
        self.lines = tuple(lines)


# ── which files ───────────────────────────────────────────────────────────────────────────────────────────────────


def find_files(paths: Sequence[str | Path]) -> tuple[list[SourceFile], list[Skipped]]:
    """Every file below the paths, in a fixed order, and what was left out. Raises CorpusError for a missing path."""
    roots = _roots(paths)
    files: dict[Path, SourceFile] = {}
    skipped: list[Skipped] = []
    for root, label in roots.items():
        found = _walk(root, label, skipped) if root.is_dir() else [(root, label)]
        for path, key in found:
            if path in files:
                continue
            try:
                files[path] = _source_file(path, key, named=path == root)
            except UnusableFile as reason:
                skipped.append(Skipped(key, str(reason)))
    return sorted(files.values(), key=lambda file: file.key), skipped


def _roots(paths: Sequence[str | Path]) -> dict[Path, str]:
    """The given paths, resolved, each with the shortest end of its path that tells it from the others."""
    roots: dict[Path, str] = {}
    for path in paths:
        try:
            roots[Path(path).resolve(strict=True)] = ""
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13.
            raise CorpusError(
                f"there is nothing to index at '{path}' ({getattr(error, 'strerror', None) or 'a loop of links'}).",
                wanted="a file or a folder",
            ) from error
    for root in roots:
        for length in range(1, len(root.parts) + 1):
            label = "/".join(part.strip("/\\") for part in root.parts[-length:])
            if sum(other.parts[-length:] == root.parts[-length:] for other in roots) == 1:
                break
        roots[root] = label
    return roots


def _walk(folder: Path, label: str, skipped: list[Skipped]) -> Iterator[tuple[Path, str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        skipped.append(Skipped(label, f"cannot be read: {error.strerror}"))
        return
    if any(entry.name == INDEX_MARK for entry in entries):
        return
    for entry in entries:
        key = f"{label}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            skipped.append(Skipped(key, "a link, which is not followed; name its target as a path of its own"))
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), key, skipped)
        else:
            yield Path(entry.path), key


def _source_file(path: Path, key: str, *, named: bool) -> SourceFile:
    """`named`: the user named this very file, so an unknown suffix is taken for text."""
    try:
        facts = path.stat()
    except OSError as error:
        raise UnusableFile(f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UnusableFile("not a regular file")
    name = path.name.lower()
    kind = _SUFFIXES.get(".jsonl.gz" if name.endswith(".jsonl.gz") else path.suffix.lower())
    if kind is None and (named or not path.suffix):
        kind = "text"
    if kind is None:
        raise UnusableFile(f"'{path.suffix}' is not a kind of file that is read")
    # Names on disk may hold bytes that are no text; keys and ids must be text.
    key = key.encode("utf-8", "backslashreplace").decode()
    return SourceFile(path, key, kind, facts.st_size, facts.st_mtime_ns)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def read_rows(file: SourceFile, limits: Limits = Limits()) -> Iterator[Row]:
    """The passages of a file. Raises UnusableFile, or at the end BrokenLines for JSONL."""
    if file.kind == "jsonl":
        for row, line in _read_jsonl(file, limits):
            for passage in _passages_of(row):
                yield Row(passage, line)
        return
    if file.size > limits.file_bytes:
        raise UnusableFile(
            f"{file.size / 2**20:.0f} MiB is more than {limits.file_bytes / 2**20:.0f} MiB; split it, or make it JSONL"
        )
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise UnusableFile(f"cannot be read: {error.strerror}") from error
    try:
        sections = list(_READERS[file.kind](content, file.path, limits))
    except ToolError as error:
        # A sentence there ("it is a PDF that …."), a reason behind the file's name here.
        raise UnusableFile(error.got.removeprefix("it is ").rstrip(".")) from error
    count = 0
    for section in sections:
        for text in split_text(section.text):
            title, source = section.title[:_TITLE_CHARACTERS], file.key + section.place
            yield Row(Passage(id=f"{file.key}#{count}", title=title, text=text, source=source))
            count += 1
    if not count:
        raise UnusableFile("holds no text")


def find_row(files: Sequence[SourceFile], id: str) -> Passage | None:
    """The first row of this id in the JSONL files among these, whole, however many passages it makes; None: there is
    none. Lines that are no rows, and files that cannot be read, are passed over."""
    for file in files:
        if file.kind == "jsonl":
            with contextlib.suppress(BrokenLines, UnusableFile):
                for row, _ in _read_jsonl(file, Limits()):
                    if row.id == id:
                        return row
    return None


@dataclass(frozen=True)
class _Section:
    title: str
    text: str
    place: str = ""
    """Where in the file, as the end of a URL, e.g. "#page=3"."""


def _read_jsonl(file: SourceFile, limits: Limits) -> Iterator[tuple[Passage, int]]:
    """The rows, whole, each with the number of its line. Raises UnusableFile, or at the end BrokenLines."""
    broken: list[str] = []
    number = 0
    try:
        with _open_jsonl(file.path) as lines:
            while line := lines.readline(limits.line_bytes + 1):
                number += 1
                if len(line) > limits.line_bytes:
                    broken.append(f"line {number}: longer than {limits.line_bytes} bytes")
                    break
                if not line.strip():
                    continue
                try:
                    row = _row(line, file.key)
                except ValueError as error:
                    broken.append(f"line {number}: {error}")
                    continue
                yield row, number
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        broken.append(f"after line {number}: the compressed data is broken ({error})")
    except OSError as error:
        raise UnusableFile(f"cannot be read: {error.strerror}") from error
    if broken:
        raise BrokenLines(file.key, broken)


def _open_jsonl(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _row(line: bytes, key: str) -> Passage:
    """Raises ValueError with what is wrong."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deep)") from None
    if not isinstance(row, dict):
        raise ValueError("not an object")
    values: dict[str, str] = {}
    for name, needed in (("id", True), ("title", False), ("text", True)):
        value = row.get(name, "")
        if name == "id" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f'"{name}" is not a string')
        # JSON can spell half a surrogate pair, which is no text.
        values[name] = value.encode("utf-8", "replace").decode().strip()
        if needed and not values[name]:
            raise ValueError(f'no "{name}"')
    if len(values["id"]) > _ID_CHARACTERS:
        raise ValueError(f'"id" is longer than {_ID_CHARACTERS} characters')
    return Passage(id=values["id"], title=values["title"][:_TITLE_CHARACTERS], text=values["text"], source=key)


def _passages_of(row: Passage) -> Iterator[Passage]:
    """A row as it is, or in pieces that are numbered where it is too long for one passage."""
    if _size(row.text) <= _ROW_WORDS:
        yield row
        return
    for count, text in enumerate(split_text(row.text)):
        yield row.evolve(id=f"{row.id}#{count}", text=text)


def _read_text(content: bytes, path: Path, limits: Limits) -> Iterator[_Section]:
    yield _Section(_title_of(path), pages.decode(content))


def _read_markdown(content: bytes, path: Path, limits: Limits) -> Iterator[_Section]:
    yield from _markdown_sections(pages.decode(content), _title_of(path))


def _read_html(content: bytes, path: Path, limits: Limits) -> Iterator[_Section]:
    page = pages.read_html(pages.decode(content, html=True), limits.page)
    if not page.whole:
        raise UnusableFile(f"more than {limits.page.html_characters:,} characters of HTML; split it")
    yield from _markdown_sections(page.text, page.title or _title_of(path))


def _read_pdf(content: bytes, path: Path, limits: Limits) -> Iterator[_Section]:
    pdf = pages.read_pdf(content, limits.page)
    if not pdf.whole:
        bounds = limits.page
        raise UnusableFile(f"a PDF of more than {bounds.pdf_pages:,} pages, or {bounds.pdf_seconds:g} s; split it")
    for number, page in enumerate(pdf.pages, start=1):
        yield _Section(pdf.title or _title_of(path), page, f"#page={number}")


_READERS: dict[str, Callable[[bytes, Path, Limits], Iterator[_Section]]] = {
    "text": _read_text,
    "markdown": _read_markdown,
    "html": _read_html,
    "pdf": _read_pdf,
}


def _title_of(path: Path) -> str:
    name = path.name.encode("utf-8", "replace").decode().partition(".")[0]
    return re.sub(r"[_\-\s]+", " ", name).strip()


# ── splitting ─────────────────────────────────────────────────────────────────────────────────────────────────────

_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_HEADING = re.compile(r" {0,3}(#{1,6})\s++(.+)")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-+)\s*$")
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:\s*+(.+)$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n")


def _markdown_sections(text: str, title: str) -> Iterator[_Section]:
    """One section per heading; its title is the path of headings down to it."""
    front = _FRONT_MATTER.match(text)
    if front:
        named = _FRONT_TITLE.search(front.group(1))
        title = named.group(1).strip().strip("\"'") if named else title
        text = text[front.end() :]
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        opened = _FENCE.match(line)
        if opened and not fence:
            fence = opened.group(1)
        elif opened and opened.group(1).startswith(fence):
            fence = ""
        heading = None if fence else _heading(line, lines)
        if heading is None:
            lines.append(line)
            continue
        yield _Section(_title(path, title), "\n".join(lines))
        lines = []
        path = [step for step in path if step[0] < heading[0]] + [heading]
    yield _Section(_title(path, title), "\n".join(lines))


def _heading(line: str, before: list[str]) -> tuple[int, str] | None:
    """The level and the words of a heading, with # or underlined; an underlined one is taken out of `before`."""
    marked = _HEADING.match(line)
    if marked:
        words = marked.group(2).rstrip()
        unclosed = words.rstrip("#")
        # The marks that close a heading stand apart; those of "C#" are its own.
        words = words if unclosed[-1:].strip() else unclosed.rstrip()
        return (len(marked.group(1)), words) if words else None
    underlined = _UNDERLINE.match(line)
    if underlined and before and before[-1].strip() and (len(before) == 1 or not before[-2].strip()):
        return (1 if "=" in line else 2), before.pop().strip()
    return None


def _title(path: list[tuple[int, str]], title: str) -> str:
    return " › ".join(words for _, words in path) or title


def split_text(text: str) -> Iterator[str]:
    """Passages of at most about 200 words: whole paragraphs where they fit, else sentences, else pieces."""
    passage = ""
    for piece, joint in _pieces(text):
        joined = passage + joint + piece if passage else piece
        if passage and _size(joined) > _WORDS:
            yield passage
            passage = piece
        else:
            passage = joined
    if passage:
        yield passage


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Pieces that each fit a passage, with what joins each to the one before."""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = paragraph.strip()
        if not paragraph:
            continue
        if _size(paragraph) <= _WORDS:
            yield paragraph, "\n\n"
            continue
        joint = "\n\n"
        for sentence in _SENTENCE_END.split(paragraph):
            for piece in _cut(sentence.strip()):
                yield piece, joint
                joint = " "


def _cut(sentence: str) -> Iterator[str]:
    """A sentence, cut where it is longer than a passage: between words if it has any, else anywhere."""
    longest = _WORDS * _CHARACTERS_PER_WORD
    start = 0
    while start < len(sentence):
        # Only what one piece may need is looked at, or a sentence of a megabyte would be counted a thousand times.
        window = sentence[start : start + longest + _CHARACTERS_PER_WORD]
        if window[0].isspace():
            start += len(window) - len(window.lstrip())
            continue
        end = len(window)
        if start + end < len(sentence) or _size(window) > _WORDS:
            words = window.split(None, _WORDS)
            end = min(end - len(words[-1]) if len(words) > _WORDS else longest, longest)
            space = window.rfind(" ", longest // 2, end + 1)
            end = space if space > 0 else end
        yield window[:end].strip()
        start += end


def _size(text: str) -> int:
    """In words."""
    return max(len(text.split()), len(text) // _CHARACTERS_PER_WORD)


def describe(broken: Sequence[BrokenLines], shown: int = 10) -> str:
    """The broken lines of a corpus, file by file, for an error message."""
    lines = [f"{problem.key}, {line}" for problem in broken for line in problem.lines]
    rest = f"\n  … and {len(lines) - shown} more" if len(lines) > shown else ""
    return "\n  ".join(lines[:shown]) + rest


def passage_text(passage: Passage) -> str:
    """What stands for a passage in a vector space."""
    return f"{passage.title}. {passage.text}" if passage.title else passage.text
