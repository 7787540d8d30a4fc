"""What an export or an import did, and how files are read and written.

An import goes as far as it can: whatever it does not take is refused by itself, with its place and the reason, and
never stops the rest.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from mia.errors import RecordError, StoreError
from mia.store.base import storable

LONGEST_LINE = 256 * 2**20
"""Bytes. A longer line is passed over without being held in memory."""

GZIP = b"\x1f\x8b"
"""How gzipped files begin."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

OnProgress = Callable[[int], None]
"""Called now and then with how many lines, files or runs have been read (or memories written) so far."""

Source = Path | BinaryIO | Iterable[bytes]
"""A file (gzipped or not), an open binary stream, or lines."""


@dataclass(frozen=True)
class Refusal:
    """Something that was not imported."""

    line: int
    """From 1; in a JSON array of conversations the number of the item. 0: a file as a whole."""
    reason: str
    """A sentence without a full stop."""
    file: str = ""
    """The path inside the folder; empty where there is one file only."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    memories: int = 0
    """How many memories the export holds."""
    episodes: int = 0
    unchanged: int = 0
    """Markdown only: files that were up to date already; `memories` counts them too."""
    edited: tuple[str, ...] = ()
    """Markdown only: files whose texts somebody edited and did not import. They were left alone."""


@dataclass(frozen=True)
class Imported:
    """What became of what was read."""

    added: int = 0
    """Memories that were not in the store, in whatever state they are now."""
    known: int = 0
    """Memories (of logs: runs; with episodes: those too) that were in the store already."""
    replaced: int = 0
    """Edited Markdown files: how many of those added, or of those known whose edit was taken back, took the place of a
    memory."""
    quarantined: int = 0
    """How many of those added are out of sight, since they read like orders to the agent."""
    episodes: int = 0
    """Episodes (of logs: runs) that were not in the store."""
    unjudged: int = 0
    """How many of those carry no verdict: kept, and no memory until one comes."""
    waiting: int = 0
    """How many of those wait in the queue, since the embedder could not be asked."""
    refused: tuple[Refusal, ...] = ()


@dataclass
class Tally:
    """An `Imported` in the making."""

    added: int = 0
    known: int = 0
    replaced: int = 0
    quarantined: int = 0
    episodes: int = 0
    unjudged: int = 0
    waiting: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def refuse(self, line: int, reason: str, file: str = "") -> None:
        self.refused.append(Refusal(line, reason.rstrip("."), file))

    def imported(self) -> Imported:
        # What is stored together is counted together; the reader wants the order of the file.
        refused = tuple(sorted(self.refused, key=lambda one: (one.file, one.line)))
        return Imported(
            self.added,
            self.known,
            self.replaced,
            self.quarantined,
            self.episodes,
            self.unjudged,
            self.waiting,
            refused,
        )


@dataclass(frozen=True)
class Line:
    """One line that is not blank."""

    number: int
    content: bytes
    fault: str = ""
    """Why it could not be read; then there is no content."""


def read_lines(source: Source) -> Iterator[Line]:
    """The lines that are not blank. Raises RecordError if a file cannot be opened; damage further on is a fault."""
    if isinstance(source, Path):
        try:
            stream: BinaryIO = source.open("rb")
        except OSError as error:
            raise RecordError(f"cannot read '{source}': {error.strerror}.") from error
        with stream:
            yield from _stream_lines(stream)
    elif hasattr(source, "readline"):
        yield from _stream_lines(cast(BinaryIO, source))
    else:
        yield from _whole_lines((line for line in source), 0)


def parse(content: bytes) -> Any:
    """A line as JSON, lone surrogates replaced. Raises RecordError saying what is wrong with it."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"it is not UTF-8 (byte {error.start})") from error
    try:
        value = json.loads(text, parse_constant=_no_number)
        return json.loads(storable(json.dumps(value, ensure_ascii=False))) if "\\u" in text else value
    except RecursionError as error:
        raise RecordError("its JSON is nested too deep") from error
    except ValueError as error:
        raise RecordError(f"it is no JSON: {error}") from error


@contextmanager
def writing_to(path: Path, *, force: bool, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose bytes are at `path` once the block ends well, all of them, and never before; compressed if the
    name ends in ".gz". `sync`: they are on the disk then. Raises RecordError if something is there and `force` is off,
    StoreError for troubles of the disk."""
    if not force and (path.exists() or path.is_symlink()):
        raise RecordError(f"'{path}' exists.", wanted="a new file", hint="name another one, or overwrite it: --force")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                if path.suffix == ".gz":
                    # Without name and time in it: the same memories give the same bytes.
                    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                        yield cast(BinaryIO, packed)
                else:
                    yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write '{path}': {error.strerror or error}.") from error


def _stream_lines(stream: BinaryIO) -> Iterator[Line]:
    peek = getattr(stream, "peek", None)
    if peek is not None and peek(2)[:2] == GZIP:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=stream, mode="rb"))
    number = 0
    while True:
        number += 1
        try:
            content = stream.readline(LONGEST_LINE + 1)
            too_long = len(content) > LONGEST_LINE
            rest = content
            while too_long and rest and not rest.endswith(b"\n"):
                rest = stream.readline(2**20)
        except (OSError, EOFError, zlib.error) as error:
            yield Line(number, b"", f"the file cannot be read from here on: {error}")
            return
        if not content:
            return
        if too_long:
            yield Line(number, b"", f"it is longer than {LONGEST_LINE // 2**20} MiB")
        else:
            yield from _whole_lines([content], number - 1)


def _whole_lines(contents: Iterable[bytes], before: int) -> Iterator[Line]:
    for number, content in enumerate(contents, start=before + 1):
        content = content.removeprefix(_BYTE_ORDER_MARK) if number == 1 else content
        if content.strip():
            yield Line(number, content)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
