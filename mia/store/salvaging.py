"""What can still be read of a damaged store.

SQLite finds a row by way of pages that may be the damaged ones. So nothing is asked of it here but to fold in the
write-ahead log: the pages of the file are looked at one by one, and every leaf of a table gives its rows, whether or
not a way leads to it. A row is believed when it has the columns of ours and loads as a record. It all happens on a
copy; the store itself is only read.

The format of the file: https://www.sqlite.org/fileformat2.html, sections 1.5 and 2.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mia.errors import RecordError, StoreError
from mia.store import rows
from mia.store.base import MemoryVectors
from mia.types import Episode, Memory, MemoryKind, MemoryState, load_episode

_MAGIC = b"SQLite format 3\0"
_PAGE_SIZE = 4096
"""Of every store we make; what is assumed where the header is lost."""
_TABLE_LEAF, _INDEX_LEAF = 0x0D, 0x0A
_MEMORY_COLUMNS = (
    *("sequence", "id", "scope", "fingerprint", "kind", "judgement", "category", "state", "uses", "wins"),
    *("created_at", "updated_at", "expires_at", "replaced_by", "episode_id", "captioned"),
)
_TEXT_COLUMNS = ("sequence", "question", "caption", "workflow", "plan", "incorrect_plan", "reviews", "provenance")

Row = list[Any]


@dataclass
class Salvage:
    """What was found, filled in as it is read."""

    pages: int = 0
    memories: int = 0
    """Those that came out whole."""
    without_texts: int = 0
    """Memories of which only the counts are left."""
    without_counts: int = 0
    """Texts of which nobody can say whose they are."""
    episodes: int = 0
    broken: int = 0
    """Rows that load as no record."""
    space: str = ""
    """Of the vectors; empty if that is lost."""
    _found: dict[str, dict[int, Row]] = field(default_factory=dict, repr=False)

    def read(self) -> Iterator[tuple[Memory, MemoryVectors | None] | Episode]:
        """Every memory, with its vectors where their space is known, then every episode; each in the order of
        arrival."""
        memories, texts = self._found["memories"], self._found["texts"]
        self.without_texts = len(memories.keys() - texts.keys())
        self.without_counts = len(texts.keys() - memories.keys())
        for sequence in sorted(memories.keys() & texts.keys()):
            own = dict(zip(_MEMORY_COLUMNS, memories[sequence], strict=True))
            fields = own | dict(zip(_TEXT_COLUMNS, texts[sequence], strict=False))
            try:
                fields["reviews"] = json.loads(fields["reviews"])
                fields["provenance"] = json.loads(fields["provenance"])
                memory = Memory.model_validate({name: fields[name] for name in Memory.model_fields if name in fields})
            except ValueError:
                self.broken += 1
                continue
            self.memories += 1
            question, caption = texts[sequence][8:]
            yield memory, rows.memory_vectors(self.space, question, caption) if self.space else None
        for _, row in sorted(self._found["episodes"].items()):
            try:
                episode = load_episode(row[5])
            except (RecordError, ValidationError):
                self.broken += 1
                continue
            self.episodes += 1
            yield episode


def salvage(path: Path) -> Salvage:
    """Look through the file of a store, whatever its state. Raises StoreError if it cannot be read at all."""
    try:
        with tempfile.TemporaryDirectory(prefix="mia-salvage-") as folder:
            content = _with_its_log(path, Path(folder) / "copy.db")
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error.strerror}.", wanted="the file of a memory") from error
    pages = _Pages(content)
    found: dict[str, dict[int, Row]] = {"memories": {}, "texts": {}, "episodes": {}}
    salvaged = Salvage(pages=pages.count, _found=found)
    for rowid, row in pages.rows():
        table = _table(row)
        if table:
            found[table].setdefault(rowid, row)
        elif len(row) == 2 and row[0] == "space" and isinstance(row[1], str):
            salvaged.space = row[1]
    return salvaged


def _with_its_log(path: Path, copy: Path) -> bytes:
    """The bytes of the database with its write-ahead log folded in, as far as SQLite is able to."""
    shutil.copyfile(path, copy)
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
        if copy.read_bytes()[:16] != _MAGIC:
            with copy.open("r+b") as file:
                # A header as our stores have it: page size, journal in WAL, UTF-8.
                file.write(_MAGIC + struct.pack(">HBBBBBB", _PAGE_SIZE, 2, 2, 0, 64, 32, 32))
        with suppress(sqlite3.DatabaseError):
            connection = sqlite3.connect(copy)
            try:
                connection.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchone()
            finally:
                connection.close()
    return copy.read_bytes()


def _table(row: Row) -> str:
    """Which of our tables a row belongs to; empty if to none that matters here."""
    if len(row) == 16 and row[4] in tuple(MemoryKind) and row[7] in tuple(MemoryState):
        return "memories"
    if len(row) == 10 and all(isinstance(value, str) for value in row[1:8]) and _is_vector(row[8]):
        return "texts" if row[9] is None or _is_vector(row[9]) else ""
    if len(row) == 9 and isinstance(row[5], str) and row[5].startswith("{") and isinstance(row[1], str):
        return "episodes"
    return ""


def _is_vector(value: object) -> bool:
    return isinstance(value, bytes) and len(value) % 4 == 0


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Damaged(Exception):
    """A cell that points outside its page, or whose content is no record."""


class _Pages:
    """A database file as pages, counted from 1."""

    def __init__(self, content: bytes) -> None:
        size = int.from_bytes(content[16:18], "big") if content[:16] == _MAGIC else _PAGE_SIZE
        size = 65_536 if size == 1 else size
        self._size = size if 512 <= size <= 65_536 and size & (size - 1) == 0 else _PAGE_SIZE
        self._content = content
        self.count = len(content) // self._size

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Every row in a leaf, with its number (0 in an index). Pages on the list of free ones are passed over: what is
        in them was removed."""
        free = self._free()
        for number in range(1, self.count + 1):
            start = 100 if number == 1 else 0
            page = self._page(number)
            if number in free or page[start] not in (_TABLE_LEAF, _INDEX_LEAF):
                continue
            (cells,) = struct.unpack_from(">H", page, start + 3)
            for place in range(start + 8, min(start + 8 + 2 * cells, self._size - 1), 2):
                (offset,) = struct.unpack_from(">H", page, place)
                # Text that is no UTF-8 is damage too.
                with suppress(_Damaged, IndexError, struct.error, UnicodeDecodeError):
                    yield self._cell(page, offset, indexed=page[start] == _INDEX_LEAF)

    def _page(self, number: int) -> bytes:
        if not 1 <= number <= self.count:
            raise _Damaged
        return self._content[(number - 1) * self._size : number * self._size]

    def _free(self) -> set[int]:
        """The pages that hold nothing, as far as their list can be followed."""
        free: set[int] = set()
        trunk = int.from_bytes(self._content[32:36], "big")
        with suppress(_Damaged, struct.error):
            while trunk and trunk not in free:
                page = self._page(trunk)
                free.add(trunk)
                trunk, leaves = struct.unpack_from(">II", page)
                free.update(struct.unpack_from(f">{leaves}I", page, 8))
        return free

    def _cell(self, page: bytes, offset: int, *, indexed: bool) -> tuple[int, Row]:
        length, offset = _varint(page, offset)
        rowid = 0
        if not indexed:
            rowid, offset = _varint(page, offset)
        usable = self._size
        most = (usable - 12) * 64 // 255 - 23 if indexed else usable - 35
        if length > len(self._content):
            raise _Damaged
        if length <= most:
            return rowid, _record(page[offset : offset + length], length)
        least = (usable - 12) * 32 // 255 - 23
        here = least + (length - least) % (usable - 4)
        here = here if here <= most else least
        payload = bytearray(page[offset : offset + here])
        (following,) = struct.unpack_from(">I", page, offset + here)
        while len(payload) < length:
            overflow = self._page(following)
            (following,) = struct.unpack_from(">I", overflow)
            payload += overflow[4:]
        return rowid, _record(bytes(payload[:length]), length)


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    value = 0
    for index in range(8):
        byte = content[offset + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + index + 1
    return value << 8 | content[offset + 8], offset + 9


def _record(payload: bytes, length: int) -> Row:
    if len(payload) != length:
        raise _Damaged
    end, offset = _varint(payload, 0)
    place = end
    row: Row = []
    while offset < end:
        kind, offset = _varint(payload, offset)
        size = _INTEGER_SIZES[kind] if kind < 12 else (kind - 12) // 2
        content = payload[place : place + size]
        if len(content) != size or kind in (10, 11):
            raise _Damaged
        place += size
        row.append(_value(kind, content))
    if place != length:
        raise _Damaged
    return row


_INTEGER_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)


def _value(kind: int, content: bytes) -> Any:
    if kind == 0:
        return None
    if kind == 7:
        return struct.unpack(">d", content)[0]
    if kind in (8, 9):
        return kind - 8
    if kind < 7:
        return int.from_bytes(content, "big", signed=True)
    return content.decode() if kind % 2 else content
