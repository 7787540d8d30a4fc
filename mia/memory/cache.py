"""A bank on the disk between processes: a large store opens fast. A rebuildable copy, never the truth.

For each bank, in the folder beside the store, a manifest (JSON) names the files of one generation with their sizes and
checksums, and the state of the store that they were made from:

    <hash of the scope>.json                         the manifest
    <hash of the scope>.<generation>.<kind>.<part>   of each shelf: columns, vectors, and the indexes if there are any
    <hash of the scope>.lock                         held by whoever saves

The files get new names, and the manifest is moved into its place when all of them are written; so a reader finds the
old generation or the new one, and whatever a crash left behind fails its checks or is named by nobody. Anything
doubtful is ignored: it costs the time to load the rows, and nothing else; the logger "mia.memory" says so at debug
level.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mia.memory.bank import COLUMNS, Bank, Shelf
from mia.memory.nearest import Nearest
from mia.store.base import Census, MemoryStore

FORMAT = 1

_ROW = numpy.dtype([(name, kind if kind == "?" else f"<{kind}") for name, kind in COLUMNS.items()])
_INDEXES = {True: "correct", False: "incorrect"}
_LOG = logging.getLogger("mia.memory")


@dataclass(frozen=True)
class Kept:
    """A bank as it was at a revision of its store."""

    revision: int
    epoch: int
    last: int
    """The highest sequence number seen."""
    shelves: dict[tuple[bool, bool], Shelf]
    """By whether they hold plan pairs, and whether with captions."""

    def __len__(self) -> int:
        return sum(len(shelf) for shelf in self.shelves.values())


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _File(_Record):
    name: str
    bytes: int
    crc32: int


class _Page(_Record):
    """One shelf."""

    pair: bool
    captioned: bool
    rows: int
    dimension: int
    categories: list[str]
    files: dict[str, _File]
    """By part: "columns", "vectors", and with indexes "correct" and "incorrect"."""


class _Manifest(_Record):
    format: int
    store: str
    space: str
    epoch: int
    revision: int
    mark: str
    """`MemoryStore.mark` of the revision."""
    count: int
    last: int
    pages: list[_Page]
    checksum: int = 0
    """CRC-32 of the manifest as it is with the checksum 0."""

    def sum(self) -> int:
        return zlib.crc32(self.model_copy(update={"checksum": 0}).model_dump_json().encode())


class _Doubtful(Exception):
    """The files are not what the manifest says, or not of this store."""


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def save(store: MemoryStore, scope: str, kept: Kept) -> bool:
    """Write a bank down; False where somebody else is doing so, or the store wants none. Raises OSError, having left
    the earlier generation in place, and StoreError."""
    folder = store.cache
    if folder is None:
        return False
    census = store.census(scope)
    if census.epoch != kept.epoch:
        return False
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder / f"{_name(scope)}.lock") as alone:
        if not alone:
            return False
        _write_generation(folder, scope, kept, census, store.mark(kept.revision))
    # What was erased meanwhile must not outlive it here.
    if store.census(scope).epoch != kept.epoch:
        drop(folder, scope)
        return False
    return True


def drop(folder: Path, scope: str | None = None) -> None:
    """Remove what is kept of a scope, or of all. Raises OSError."""
    for path in folder.glob("*" if scope is None else f"{_name(scope)}.*"):
        path.unlink(missing_ok=True)


def _write_generation(folder: Path, scope: str, kept: Kept, census: Census, mark: str) -> None:
    name, generation = _name(scope), uuid.uuid4().hex[:12]
    manifest = folder / f"{name}.json"
    unfinished = folder / f"{name}.{generation}.manifest"
    written: list[Path] = []
    try:
        pages = []
        for (pair, captioned), shelf in kept.shelves.items():
            files = {}
            for part, content in _parts(shelf):
                path = folder / f"{name}.{generation}.{int(pair)}{int(captioned)}.{part}"
                written.append(path)
                _write(path, content)
                files[part] = _File(name=path.name, bytes=len(content), crc32=zlib.crc32(content))
            pages.append(
                _Page(
                    pair=pair,
                    captioned=captioned,
                    rows=len(shelf),
                    dimension=shelf.dimension,
                    categories=shelf.categories,
                    files=files,
                )
            )
        record = _Manifest(
            format=FORMAT,
            store=census.store,
            space=census.space,
            epoch=kept.epoch,
            revision=kept.revision,
            mark=mark,
            count=len(kept),
            last=kept.last,
            pages=pages,
        )
        written.append(unfinished)
        _write(unfinished, record.model_copy(update={"checksum": record.sum()}).model_dump_json().encode())
        unfinished.replace(manifest)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    # Earlier generations, and what a writer that was killed left.
    for path in folder.glob(f"{name}.*.*"):
        if path not in written:
            path.unlink(missing_ok=True)


def _parts(shelf: Shelf) -> Iterator[tuple[str, bytes | bytearray | memoryview]]:
    """The contents of a shelf's files."""
    table = numpy.empty(len(shelf), _ROW)
    for name in COLUMNS:
        table[name] = shelf.column(name)
    yield "columns", table.tobytes()
    yield "vectors", numpy.ascontiguousarray(shelf.vectors, "<f4").reshape(-1).view(numpy.uint8).data
    for judgement, index in shelf.indexes.items():
        yield _INDEXES[judgement], index.dump()


def _write(path: Path, content: bytes | bytearray | memoryview) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether nobody else held this lock; a kill lets go of it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(store: MemoryStore, scope: str, census: Census) -> Kept | None:
    """What was kept of a scope, if it is whole and belongs to the store as it is; None otherwise. Raises StoreError."""
    folder = store.cache
    if folder is None:
        return None
    path = folder / f"{_name(scope)}.json"
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
        if manifest.sum() != manifest.checksum:
            raise _Doubtful("the manifest is damaged")
        if manifest.store == census.store and manifest.epoch < census.epoch:
            # It holds what was purged or erased since.
            drop(folder, scope)
        _check_origin(manifest, census)
        # The same store may have been put back to an earlier state, and have gone another way since.
        if manifest.mark != store.mark(manifest.revision):
            raise _Doubtful("made from another history")
        shelves = {(page.pair, page.captioned): _read(folder, page) for page in manifest.pages}
        if sum(len(shelf) for shelf in shelves.values()) != manifest.count:
            raise _Doubtful("the number of rows is another")
        return Kept(manifest.revision, manifest.epoch, manifest.last, shelves)
    except FileNotFoundError:
        # Also where another process has just replaced the generation.
        return None
    except (OSError, ValueError, _Doubtful) as doubt:
        _LOG.debug("the vector cache %s is not used: %s", path, doubt)
        return None


def verify(store: MemoryStore, scope: str) -> list[str]:
    """What the cache of a scope says otherwise than the rows, element by element; empty where there is no cache, or
    none that would be used. Raises StoreError."""
    cached, fresh = Bank(scope, indexes=False), Bank(scope, indexes=False)
    with cached.refreshed(store), fresh.refreshed(store, kept=False):
        keys = sorted({*cached.shelves, *fresh.shelves})
        return [
            problem
            for pair, captioned in keys
            for problem in _differences(
                f"{'plan pairs' if pair else 'workflows'}{' with captions' if captioned else ''}",
                cached.shelf(pair=pair, captioned=captioned),
                fresh.shelf(pair=pair, captioned=captioned),
            )
        ]


def _differences(name: str, cached: Shelf, rows: Shelf) -> Iterator[str]:
    if len(cached) != len(rows):
        yield f"the cache of {name} has {len(cached)} rows, the store {len(rows)}"
        return
    for column in COLUMNS:
        if column == "category":
            same = _categories(cached) == _categories(rows)
        else:
            same = column == "indexed" or numpy.array_equal(cached.column(column), rows.column(column))
        if not same:
            yield f"the cache of {name} says otherwise about '{column}'"
    if not numpy.array_equal(cached.vectors, rows.vectors):
        yield f"the cache of {name} holds other vectors"


def _categories(shelf: Shelf) -> list[str]:
    return [shelf.categories[code] for code in shelf.column("category").tolist()]


def _check_origin(manifest: _Manifest, census: Census) -> None:
    if manifest.format != FORMAT:
        raise _Doubtful(f"format {manifest.format}")
    if (manifest.store, manifest.space, manifest.epoch) != (census.store, census.space, census.epoch):
        raise _Doubtful("made from another store, another embedder, or before something was removed for good")
    if manifest.count > census.count or manifest.last > census.last:
        raise _Doubtful("made from a later state of the store")


def _read(folder: Path, page: _Page) -> Shelf:
    rows, files = page.rows, page.files
    table = _checked(folder, files, "columns", rows * _ROW.itemsize).view(_ROW)
    row = page.dimension * 4
    vectors = _checked(folder, files, "vectors", rows * row, spare=rows // 8 * row).view("<f4")
    columns = {name: numpy.ascontiguousarray(table[name], dtype=kind) for name, kind in COLUMNS.items()}
    if (numpy.diff(columns["sequence"]) <= 0).any():
        raise _Doubtful("the rows are out of order")
    if rows and not 0 <= columns["category"].min() <= columns["category"].max() < len(page.categories):
        raise _Doubtful("a row is of no category")
    indexes = _indexes(folder, page, columns)
    if not indexes:
        columns["indexed"][:] = False
    shelf = Shelf(page.dimension)
    shelf.fill(columns, vectors.reshape(-1, page.dimension).astype(numpy.float32, copy=False), list(page.categories))
    shelf.indexes = indexes
    return shelf


def _indexes(folder: Path, page: _Page, columns: dict[str, NDArray[Any]]) -> dict[bool, Nearest]:
    """By judgement; none where there are none, or the library that reads them is missing."""
    indexes: dict[bool, Nearest] = {}
    for judgement, part in _INDEXES.items():
        if part not in page.files:
            return {}
        content = _checked(folder, page.files, part, page.files[part].bytes)
        try:
            index = Nearest.parse(content.data, page.dimension)
        except ImportError:
            return {}
        except RuntimeError as error:
            raise _Doubtful(f"no index: {error}") from error
        if len(index) != numpy.count_nonzero(columns["indexed"] & (columns["correct"] == judgement)):
            raise _Doubtful("an index holds another number of rows")
        indexes[judgement] = index
    return indexes


def _checked(folder: Path, files: dict[str, _File], part: str, size: int, *, spare: int = 0) -> NDArray[numpy.uint8]:
    """The bytes of a file, which has this size, and room for `spare` more, which is not touched until rows come."""
    if part not in files:
        raise _Doubtful(f"the part '{part}' is missing")
    entry = files[part]
    # A file's name comes from a file: no path of it is followed.
    path = folder / Path(entry.name).name
    if not size == entry.bytes == path.stat().st_size:
        raise _Doubtful(f"{path.name} has another size")
    room = numpy.empty(size + spare, numpy.uint8)
    content = room[:size]
    with path.open("rb") as file:
        read = file.readinto(content.data)
    if read != size or zlib.crc32(content.data) != entry.crc32:
        raise _Doubtful(f"{path.name} is damaged")
    return room


def _name(scope: str) -> str:
    """Scopes may name people; file names do not."""
    return hashlib.blake2b(scope.encode("utf-8", "replace"), digest_size=8).hexdigest()
