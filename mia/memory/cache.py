"""A bank on the disk between processes: a large store opens fast. A rebuildable copy, never the truth.

For each bank, in the folder beside the store, a manifest (JSON) names the files of one generation with their sizes and
checksums, and the census of the store that they were made from. The files get new names, and the manifest is moved into
its place when all of them are written; so a reader finds the old generation or the new one, and whatever a crash or a
quarrel between two writers left behind fails its checks. Anything doubtful is ignored: it costs the time to load the
rows, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from mia.memory.bank import COLUMNS, Shelf, same_store
from mia.memory.nearest import Nearest
from mia.store.base import Census, MemoryStore

if TYPE_CHECKING:
    from mia.memory.bank import Bank

FORMAT = 1

_LOG = logging.getLogger("mia.memory")


@dataclass(frozen=True)
class Kept:
    """What was found on the disk."""

    revision: int
    last: int
    shelves: dict[tuple[bool, bool], Shelf]


class _Doubtful(Exception):
    """The files are not what the manifest says, or not of this store."""


def save(store: MemoryStore, bank: Bank) -> None:
    """Write a bank down, unless the store has gone on to another epoch. Raises OSError, having left the earlier
    generation in place."""
    folder, census = store.cache, store.census(bank.scope)
    if folder is None or census.epoch != bank.epoch:
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name, generation = _name(bank.scope), uuid.uuid4().hex[:12]
    written: list[Path] = []
    try:
        shelves = []
        for (pair, captioned), shelf in bank.shelves.items():
            files = {}
            for part, content in _parts(shelf):
                path = folder / f"{name}.{generation}.{int(pair)}{int(captioned)}.{part}"
                written.append(path)
                _write(path, content)
                files[part] = {"file": path.name, "bytes": len(content), "crc32": zlib.crc32(content)}
            shelves.append(
                {
                    "pair": pair,
                    "captioned": captioned,
                    "rows": len(shelf),
                    "dimension": shelf.dimension,
                    "categories": shelf.categories,
                    "files": files,
                }
            )
        manifest = {
            "format": FORMAT,
            "census": asdict(census),
            "revision": bank.revision,
            "mark": store.mark(bank.revision),
            "last": bank.known,
            "shelves": shelves,
        }
        unfinished = folder / f"{name}.{generation}.manifest"
        written.append(unfinished)
        _write(unfinished, json.dumps(manifest).encode())
        os.replace(unfinished, folder / f"{name}.json")
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    for path in folder.glob(f"{name}.*"):
        if path not in written and path.suffix != ".json":
            path.unlink(missing_ok=True)


def load(store: MemoryStore, scope: str, census: Census) -> Kept | None:
    """What was kept of a scope, if it is whole and belongs to the store as it is; None otherwise."""
    if store.cache is None:
        return None
    path = store.cache / f"{_name(scope)}.json"
    try:
        manifest = json.loads(path.read_bytes())
        # The same store may have been put back to an earlier state, and have gone another way since.
        if manifest["mark"] != store.mark(int(manifest["revision"])):
            raise _Doubtful("made from another history")
        return _read(path.parent, manifest, census)
    except FileNotFoundError:
        return None
    # Damaged files raise whatever the parsers of numpy, JSON and usearch think of.
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, ImportError, _Doubtful) as doubt:
        _LOG.debug("the vector cache %s is not used: %s", path, doubt)
        return None


def drop(folder: Path, scope: str | None = None) -> None:
    """Remove what is kept of a scope, or of all. Raises OSError."""
    for path in folder.glob("*" if scope is None else f"{_name(scope)}.*"):
        path.unlink(missing_ok=True)


def verify(store: MemoryStore, scope: str) -> list[str]:
    """What the cache of a scope says otherwise than the rows, element by element; empty where there is no cache, or
    none that would be used. Raises StoreError."""
    census = store.census(scope)
    kept = load(store, scope, census)
    if kept is None:
        return []
    from mia.memory.bank import Bank

    cached, fresh = Bank(scope), Bank(scope)
    cached.revision, cached.epoch, cached.known, cached.shelves = kept.revision, census.epoch, kept.last, kept.shelves
    with cached.refreshed(store), fresh.refreshed(store, kept=False):
        return [problem for key in fresh.shelves for problem in _differences(key, cached.shelves.get(key), fresh)]


def _differences(key: tuple[bool, bool], cached: Shelf | None, fresh: Bank) -> Iterator[str]:
    rows = fresh.shelves[key]
    name = f"{'plan pairs' if key[0] else 'workflows'}{' with captions' if key[1] else ''}"
    if cached is None or len(cached) != len(rows):
        yield f"the cache of {name} has {0 if cached is None else len(cached)} rows, the store {len(rows)}"
        return
    for column in COLUMNS:
        if column != "category" and not numpy.array_equal(cached.column(column), rows.column(column)):
            yield f"the cache of {name} says otherwise about '{column}'"
    if [cached.categories[code] for code in cached.column("category").tolist()] != [
        rows.categories[code] for code in rows.column("category").tolist()
    ]:
        yield f"the cache of {name} says otherwise about 'category'"
    if not numpy.array_equal(cached.vectors, rows.vectors):
        yield f"the cache of {name} holds other vectors"


def _parts(shelf: Shelf) -> Iterator[tuple[str, bytes | memoryview]]:
    """The contents of a shelf's files."""
    yield "vectors", numpy.ascontiguousarray(shelf.vectors, "<f4").data.cast("B")
    for name in COLUMNS:
        buffer = BytesIO()
        numpy.save(buffer, shelf.column(name), allow_pickle=False)
        yield name, buffer.getvalue()
    if shelf.indexes:
        yield "indexed", shelf.indexed.tobytes()
    for judgement, index in shelf.indexes.items():
        yield f"index-{'correct' if judgement else 'incorrect'}", index.dump()


def _read(folder: Path, manifest: dict[str, Any], census: Census) -> Kept:
    if manifest["format"] != FORMAT:
        raise _Doubtful(f"format {manifest['format']}")
    made_from = Census(**manifest["census"])
    if not same_store(made_from, census) or made_from.count > census.count or made_from.last > census.last:
        raise _Doubtful("made from another store, or from a later state of this one")
    shelves = {}
    for page in manifest["shelves"]:
        rows, dimension = int(page["rows"]), int(page["dimension"])
        content = {part: _checked(folder, entry) for part, entry in page["files"].items()}
        columns = {name: numpy.load(BytesIO(content[name]), allow_pickle=False) for name in COLUMNS}
        for name, kind in COLUMNS.items():
            if columns[name].dtype != kind or columns[name].shape != (rows,):
                raise _Doubtful(f"the column '{name}' has another shape")
        vectors = numpy.frombuffer(content["vectors"], "<f4").astype(numpy.float32, copy=False)
        shelf = Shelf(dimension)
        shelf.fill(columns, vectors.reshape(rows, dimension), [str(name) for name in page["categories"]])
        if "indexed" in content:
            indexed = numpy.frombuffer(content["indexed"], numpy.bool_)
            if len(indexed) != rows:
                raise _Doubtful("the indexes are of another size")
            indexes = {
                judgement: Nearest.parse(bytes(content[f"index-{name}"]), dimension)
                for judgement, name in ((True, "correct"), (False, "incorrect"))
            }
            shelf.use(indexes, indexed)
        shelves[bool(page["pair"]), bool(page["captioned"])] = shelf
    return Kept(int(manifest["revision"]), int(manifest["last"]), shelves)


def _checked(folder: Path, entry: dict[str, Any]) -> bytearray:
    # A file's name comes from a file: no path of it is followed.
    path = folder / Path(entry["file"]).name
    content = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        file.readinto(content)
    if len(content) != entry["bytes"] or zlib.crc32(content) != entry["crc32"]:
        raise _Doubtful(f"{path.name} is damaged")
    return content


def _write(path: Path, content: bytes | memoryview) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _name(scope: str) -> str:
    """Scopes may name people; file names do not."""
    return hashlib.blake2b(scope.encode("utf-8", "replace"), digest_size=8).hexdigest()
