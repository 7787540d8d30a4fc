"""The vectors of one scope in memory, as matrices: a cache beside the rows of the store, never the truth.

Before each use it asks the store what changed since the last revision it saw, which costs one small query when nothing
did; so it sees what any process committed before. A shelf holds the memories of one kind and modality, since only those
are ever compared. Rows never leave a shelf: what is forgotten is marked, and what was purged shows in a new epoch of
the store, upon which everything is loaded anew.

Up to `THRESHOLD` memories a search is exact. Above, approximate indexes (one per judgement) find the nearest, and what
they do not hold yet is searched exactly beside them. They are built by a thread in the background; until they are
there, a search is exact and slower, and nothing waits. What they find is measured exactly, so a similarity is always
the true one.

A large bank is kept on the disk between processes (`cache.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from mia.embeddings.base import Vectors
from mia.memory import score
from mia.memory.nearest import Nearest
from mia.store.base import Census, Changes, MemoryStore, Rows

THRESHOLD = 20_000
"""Rows of a shelf from which approximate indexes are used. Measured on two cores, 384 dimensions: exact search of 10k
takes 0.15 ms, of 20k 0.7 ms, of 100k 4.5 ms; an index takes 0.15, 0.2 and 0.5 ms."""
TAIL = 1_000
"""Rows that an index may lack before it is brought up to date in the background."""
CHUNK = 32
"""Rows that are added to an index in use at a time: a search never waits longer than for these (7 ms)."""
MOST_INACTIVE = 0.2
"""Share of rows in an index that may be out of sight before it is built anew."""
WORTH_KEEPING = 2_000
"""Changed rows from which a bank is kept on the disk."""

Places = NDArray[numpy.intp]


@dataclass(frozen=True)
class Pool:
    """The candidates of a search."""

    places: Places
    """Into the shelf's columns."""
    similarity: score.Numbers
    considered: int
    """How many could have been in it."""


class Shelf:
    """Memories of one kind and modality, in columns that grow by half; a row keeps its place."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._count = 0
        self._columns: dict[str, NDArray[Any]] = {name: numpy.zeros(0, kind) for name, kind in COLUMNS.items()}
        self._vectors: Vectors = numpy.zeros((0, dimension), numpy.float32)
        self.categories: list[str] = []
        """The names behind the column `category`."""
        self._indexes: dict[bool, Nearest] = {}
        self._indexed: NDArray[numpy.bool_] = numpy.zeros(0, bool)
        """Whether each row is in the indexes."""
        self._outside: Places = numpy.zeros(0, numpy.intp)
        """What is active and not in the indexes: new, or back in sight."""
        self._valued: dict[bool, Places] = {}
        self._expires = False

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> NDArray[Any]:
        """ "sequence", "correct", "active", "uses", "wins", "created_at", "expires_at" or "category"."""
        return self._columns[name][: self._count]

    @property
    def vectors(self) -> Vectors:
        """Shape (rows, dimension); with captions, question and caption joined (`score.joined`)."""
        return self._vectors[: self._count]

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def indexes(self) -> dict[bool, Nearest]:
        """By whether the memories are correct; empty until they are built."""
        return self._indexes

    @property
    def indexed(self) -> NDArray[numpy.bool_]:
        """Of each row, whether it is in the indexes."""
        return self._indexed[: self._count]

    @property
    def outside(self) -> int:
        """How many active memories the indexes lack."""
        return len(self._outside)

    # ── filling ───────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, rows: Rows, own: NDArray[numpy.bool_], vectors: Vectors) -> None:
        """Take over the own ones of these rows; `vectors` are those of the new ones."""
        self._valued.clear()
        new, changed = own & rows.new, own & ~rows.new
        places = numpy.searchsorted(self.column("sequence"), rows.sequence[changed])
        self._make_room(self._count + len(vectors))
        added = slice(self._count, self._count + len(vectors))
        for name in COLUMNS:
            values = self._codes(rows.category) if name == "category" else getattr(rows, name)
            self._columns[name][places] = values[changed]
            self._columns[name][added] = values[new]
        if len(vectors):
            self._vectors[added] = vectors
        self._count = added.stop
        self._find_outside()
        self._expires = bool(numpy.isfinite(self.column("expires_at")).any())

    def fill(self, columns: dict[str, NDArray[Any]], vectors: Vectors, categories: list[str]) -> None:
        """Begin with what was kept."""
        self._columns, self._vectors, self.categories = columns, vectors, categories
        self._count = len(vectors)
        self._indexed = numpy.zeros(self._count, bool)
        self._expires = bool(numpy.isfinite(self.column("expires_at")).any())

    def use(self, indexes: dict[bool, Nearest], indexed: NDArray[numpy.bool_]) -> None:
        """Search by these indexes from now on; `indexed`: which rows they hold, of all or of the first ones."""
        self._indexes = indexes
        self._indexed[:] = False
        self._indexed[: len(indexed)] = indexed
        self._find_outside()

    def extend_indexes(self) -> None:
        """Add the next few rows to the indexes."""
        places = self._outside[:CHUNK]
        correct = self._columns["correct"][places]
        for judgement, index in self._indexes.items():
            own = places[correct == judgement]
            index.add(own, self._vectors[own])
        self._indexed[places] = True
        self._outside = self._outside[CHUNK:]

    @property
    def wants_indexes(self) -> bool:
        """Whether there is work for the background."""
        if self._count < THRESHOLD:
            return False
        return not self._indexes or self.outside > TAIL or self.wants_rebuilding

    @property
    def wants_rebuilding(self) -> bool:
        """Whether too much of the indexes is out of sight."""
        indexed = int(numpy.count_nonzero(self.indexed))
        inactive = int(numpy.count_nonzero(self.indexed & ~self.column("active")))
        return inactive > MOST_INACTIVE * indexed

    def _find_outside(self) -> None:
        if self._indexes:
            self._outside = numpy.flatnonzero(self.column("active") & ~self.indexed)

    # ── searching ─────────────────────────────────────────────────────────────────────────────────────────────────

    def eligible(self, now: float, category: str | None = None) -> NDArray[numpy.bool_]:
        """Of every row, whether it may be shown: active, not expired, of the category or of none."""
        may: NDArray[numpy.bool_] = self.column("active")
        if self._expires:
            may = may & (self.column("expires_at") > now)
        if category is not None:
            wanted = [code for code, name in enumerate(self.categories) if name in (category, "others")]
            may = may & numpy.isin(self.column("category"), wanted)
        return may

    def pool(
        self, vector: Vectors, *, category: str | None, now: float, nearest: int, valued: int, exact: bool
    ) -> Pool:
        """The candidates for a question: of each judgement the `nearest` most similar and the `valued` that won most.

        `exact`: everything that may be shown. Categories are searched exactly.
        """
        may = self.eligible(now, category)
        considered = int(numpy.count_nonzero(may))
        if not considered:
            return Pool(numpy.zeros(0, numpy.intp), numpy.zeros(0), 0)
        if exact or considered <= nearest:
            places = numpy.flatnonzero(may)
            return Pool(places, self._similarities(vector, places), considered)
        correct, everything = self.column("correct"), None
        if self._indexes and category is None:
            found = [self._search(vector, nearest, judgement, may) for judgement in (True, False)]
        else:
            everything = score.cosines(self.vectors, vector)
            found = [_best(everything, may & (correct == judgement), nearest) for judgement in (True, False)]
        for judgement in (True, False) if valued else ():
            best = self._best_valued(judgement, valued)
            found.append(best[may[best]])
        places = numpy.unique(numpy.concatenate(found))
        similarity = self._similarities(vector, places) if everything is None else everything[places]
        return Pool(places, similarity, considered)

    def most_similar(self, vector: Vectors, k: int, *, now: float) -> tuple[Places, score.Numbers]:
        """The k most similar that may be shown, best first. The vector is a question's; of memories with captions, only
        the questions are compared."""
        if not self._count:
            return numpy.zeros(0, numpy.intp), numpy.zeros(0)
        may = self.eligible(now)
        if self._indexes and len(vector) == self._dimension:
            places = numpy.concatenate([self._search(vector, k, judgement, may) for judgement in (True, False)])
            similarity = self._similarities(vector, places)
        else:
            places = numpy.flatnonzero(may)
            if len(vector) == self._dimension:
                similarity = self._similarities(vector, places)
            else:
                questions = self._vectors[places, : len(vector)]
                similarity = score.cosines(questions, vector / numpy.float32(score.QUESTION_SHARE**0.5))
        best = numpy.argsort(-similarity, kind="stable")[:k]
        return places[best], similarity[best]

    def _similarities(self, vector: Vectors, places: Places) -> score.Numbers:
        rows = self.vectors if len(places) == self._count else self._vectors[places]
        return score.cosines(rows, vector)

    def _search(self, vector: Vectors, count: int, judgement: bool, may: NDArray[numpy.bool_]) -> Places:
        """Places of one judgement: the nearest in the index, and beside them the nearest that it does not hold."""
        # Those that are out of sight may still be in the index, and take places away.
        found = self._indexes[judgement].search(vector, count)
        if not may[found].all():
            found = self._indexes[judgement].search(vector, 2 * count)
        found = found[may[found]][:count]
        outside = self._outside[may[self._outside] & (self._columns["correct"][self._outside] == judgement)]
        if len(outside) > count:
            outside = outside[_best(self._similarities(vector, outside), numpy.ones(len(outside), bool), count)]
        return numpy.concatenate([found, outside])

    def _best_valued(self, judgement: bool, count: int) -> Places:
        """Of the active ones. Sorted out anew only after a change."""
        if judgement not in self._valued:
            own = self.column("active") & (self.column("correct") == judgement)
            value = score.value(self._columns["uses"][: self._count], self._columns["wins"][: self._count])
            self._valued[judgement] = _best(value, own, count)
        return self._valued[judgement]

    def _codes(self, names: NDArray[numpy.str_]) -> NDArray[numpy.int16]:
        """The numbers of categories; new names get new ones."""
        distinct, inverse = numpy.unique(names, return_inverse=True)
        for name in distinct.tolist():
            if name not in self.categories:
                self.categories.append(name)
        codes = numpy.array([self.categories.index(name) for name in distinct.tolist()], numpy.int16)
        return codes[inverse]

    def _make_room(self, count: int) -> None:
        if count <= len(self._vectors):
            return
        capacity = max(64, count, len(self._vectors) * 3 // 2)
        for name, column in self._columns.items():
            self._columns[name] = _enlarged(column, (capacity,), self._count)
        self._vectors = _enlarged(self._vectors, (capacity, self._dimension), self._count)
        self._indexed = _enlarged(self._indexed, (capacity,), self._count)


class Bank:
    """The shelves of exactly one scope. Thread-safe: a shelf is used while `refreshed` is held."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.revision = 0
        self.epoch = -1
        self.known = 0
        """The highest sequence number seen."""
        self.shelves: dict[tuple[bool, bool], Shelf] = {}
        """By whether they hold plan pairs, and whether with captions."""
        self.unsaved = 0
        """Rows that changed since the bank was kept on the disk."""
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._stop = threading.Event()
        self._without_indexes = False

    def __len__(self) -> int:
        return sum(len(shelf) for shelf in self.shelves.values())

    @contextmanager
    def refreshed(self, store: MemoryStore, *, kept: bool = True) -> Iterator[None]:
        """The shelves as the store is now; they do not change while this is held. `kept`: whether the first time may
        begin with what was kept on the disk. Raises StoreError."""
        with self._lock:
            if self.epoch < 0 and kept:
                self._load(store)
            self._refresh(store)
            yield

    def shelf(self, *, pair: bool, captioned: bool) -> Shelf:
        """One shelf; an empty one where there is nothing."""
        return self.shelves.get((pair, captioned)) or Shelf(0)

    def eligible(self, now: float) -> int:
        """Memories that may be shown."""
        return sum(int(numpy.count_nonzero(shelf.eligible(now))) for shelf in self.shelves.values())

    def settled(self, timeout: float) -> bool:
        """Wait for the work in the background; whether it is done."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout)
        return worker is None or not worker.is_alive()

    def close(self, store: MemoryStore) -> None:
        """End the work in the background, and keep a large bank on the disk."""
        self._stop.set()
        self.settled(timeout=30)
        with self._lock:
            self._keep(store)

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _refresh(self, store: MemoryStore) -> None:
        changes = store.changes(self.scope, self.revision, known=self.known)
        if self.epoch not in (-1, changes.epoch):
            self._forget()
            changes = store.changes(self.scope, 0)
        self._apply(changes)
        if self._worker is None and not self._without_indexes and any(one.wants_indexes for one in self._indexable()):
            self._worker = threading.Thread(target=self._work, args=(store,), name="mia-memory-index", daemon=True)
            self._worker.start()

    def _load(self, store: MemoryStore) -> None:
        """Begin with what was kept on the disk, if it agrees with the rows."""
        from mia.memory import cache

        before = store.census(self.scope)
        kept = cache.load(store, self.scope, before)
        if kept is None:
            return
        self.revision, self.epoch, self.known = kept.revision, before.epoch, kept.last
        self.shelves = kept.shelves
        changes = store.changes(self.scope, self.revision, known=self.known)
        if changes.epoch == self.epoch:
            self._apply(changes)
        # Others may be writing: the number of rows was what it was before or after.
        if not before.count <= len(self) <= store.census(self.scope).count:
            self._forget()

    def _forget(self) -> None:
        self.revision, self.epoch, self.known, self.shelves, self.unsaved = 0, -1, 0, {}, 0

    def _apply(self, changes: Changes) -> None:
        rows = changes.rows
        for key in _KEYS if len(rows) else ():
            pair, captioned = key
            own = (rows.pair == pair) & (rows.captioned == captioned)
            if own.any():
                vectors = rows.questions[own[rows.new]]
                if captioned and len(vectors):
                    # Captions come for the captioned rows alone.
                    vectors = score.joined(vectors, rows.captions[own[rows.new & rows.captioned]])
                if key not in self.shelves:
                    self.shelves[key] = Shelf(vectors.shape[1])
                self.shelves[key].apply(rows, own, vectors)
        self.revision, self.epoch = changes.revision, changes.epoch
        if len(rows):
            self.known = max(self.known, int(rows.sequence[-1]))
        self.unsaved += len(rows)

    def _indexable(self) -> list[Shelf]:
        # Plan pairs are of one judgement, and few.
        return [shelf for (pair, _), shelf in self.shelves.items() if not pair]

    def _work(self, store: MemoryStore) -> None:
        """In the background: build indexes, bring them up to date, keep them."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    shelf = next((one for one in self._indexable() if one.wants_indexes), None)
                    epoch = self.epoch
                    if shelf is None:
                        break
                    grows = bool(shelf.indexes) and not shelf.wants_rebuilding
                if grows:
                    self._extend(shelf)
                else:
                    self._build(shelf, epoch)
            with self._lock:
                if not self._stop.is_set():
                    self._keep(store)
        except ImportError:
            # Without the library everything stays exact.
            self._without_indexes = True
        finally:
            self._worker = None

    def _extend(self, shelf: Shelf) -> None:
        while not self._stop.is_set():
            with self._lock:
                if not shelf.outside:
                    return
                shelf.extend_indexes()
            # Whoever waits for the lock gets it.
            time.sleep(0)

    def _build(self, shelf: Shelf, epoch: int) -> None:
        """Two new indexes of what is active now; the shelf is searched without them meanwhile."""
        with self._lock:
            # Rows never change their places or vectors, so these may be read without the lock.
            vectors = shelf.vectors
            active = shelf.column("active").copy()
            correct = shelf.column("correct")
        indexes = {judgement: Nearest(shelf.dimension) for judgement in (True, False)}
        for judgement, index in indexes.items():
            places = numpy.flatnonzero(active & (correct == judgement))
            for start in range(0, len(places), 1_000):
                if self._stop.is_set():
                    return
                chunk = places[start : start + 1_000]
                index.add(chunk, vectors[chunk])
        with self._lock:
            if self.epoch == epoch:
                shelf.use(indexes, active)

    def _keep(self, store: MemoryStore) -> None:
        from mia.memory import cache

        if self.unsaved >= max(WORTH_KEEPING, len(self) // 20):
            # A disk that is full, or a folder that cannot be written, costs the next process some time.
            with suppress(OSError):
                cache.save(store, self)
                self.unsaved = 0


COLUMNS: dict[str, type[numpy.generic]] = {
    "sequence": numpy.int64,
    "correct": numpy.bool_,
    "active": numpy.bool_,
    "uses": numpy.int64,
    "wins": numpy.int64,
    "created_at": numpy.float64,
    "expires_at": numpy.float64,
    "category": numpy.int16,
}
"""What a shelf knows of each memory, and its type."""
_KEYS = ((False, False), (False, True), (True, False), (True, True))


def same_store(one: Census, other: Census) -> bool:
    """Whether what was handed out under one census is valid under the other."""
    return (one.store, one.space, one.epoch) == (other.store, other.space, other.epoch)


def _best(values: score.Numbers, own: NDArray[numpy.bool_], count: int) -> Places:
    """The places of the highest `count` of the own values, in no order."""
    places: Places = numpy.flatnonzero(own)
    if len(places) > count:
        places = places[numpy.argpartition(values[places], len(places) - count)[len(places) - count :]]
    return places


def _enlarged(array: NDArray[Any], shape: tuple[int, ...], count: int) -> NDArray[Any]:
    larger = numpy.zeros(shape, array.dtype)
    larger[:count] = array[:count]
    return larger
