"""The vectors of one scope in memory, as matrices: a cache beside the rows of the store, never the truth.

Before each use it asks the store what changed since the last revision it saw, which costs one small query when nothing
did; so it sees what any process committed before. A shelf holds the memories of one kind and modality, since only those
are ever compared. Rows never leave a shelf: what is forgotten is marked, and what was purged shows in a new epoch of
the store, upon which everything is loaded anew.

Up to `THRESHOLD` memories a search is exact. Above, approximate indexes (one per judgement) find the nearest, and what
they do not hold is searched exactly beside them. They are built by a thread in the background; until they are there, a
search is exact and slower, and nothing waits. What they find is measured exactly, so a similarity is always the true
one; and where they find too little, since most of what they hold may not be shown, the search is exact.

A large bank is kept on the disk between processes (`cache.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from mia.embeddings.base import Vectors
from mia.errors import StoreError
from mia.memory import score
from mia.memory.compress import OTHERS
from mia.memory.nearest import Nearest
from mia.store.base import Changes, MemoryStore, Rows

THRESHOLD = 20_000
"""Rows of a shelf from which approximate indexes are used. Measured on two cores, 384 dimensions: exact search of 10k
takes 0.15 ms, of 20k 0.7 ms, of 100k 4.5 ms; an index takes 0.15, 0.2 and 0.5 ms."""
TAIL = 1_000
"""Rows that an index may lack before it is brought up to date in the background."""
CHUNK = 8
"""Rows that are added at a time to an index in use: a search never waits longer than for these (2 ms)."""
MOST_HIDDEN = 0.2
"""Share of the rows in an index that may be out of sight before it is built anew."""
WORTH_KEEPING = 2_000
"""Changed rows from which a bank is kept on the disk."""
WORTH_KEEPING_SHARE = 0.05
"""And of a large bank, the share of its rows."""

COLUMNS: Mapping[str, str] = {
    "sequence": "i8",
    "correct": "?",
    "active": "?",
    "uses": "i8",
    "wins": "i8",
    "created_at": "f8",
    "expires_at": "f8",
    "category": "i2",
    "indexed": "?",
}
"""What a shelf knows of each memory, and its type. `category` is a place in `Shelf.categories`; `indexed`: it is in the
approximate index of its judgement."""

Places = NDArray[numpy.intp]
Choice = NDArray[numpy.bool_]

_MOST_ASKED = 8
"""An index is asked for at most so many times the number wanted, to make up for what may not be shown."""
_SPARE = 4
"""The list of those that won most is so many times as long as wanted, for the same reason."""
_KEYS = ((False, False), (False, True), (True, False), (True, True))
_LOG = logging.getLogger("mia.memory")


@dataclass(frozen=True)
class Pool:
    """The candidates of a search."""

    places: Places
    """Into the shelf's columns, in ascending order."""
    similarity: score.Numbers
    considered: int
    """How many could have been in it."""


class Shelf:
    """Memories of one kind and modality, in columns that grow by half; a row keeps its place."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.categories: list[str] = []
        """The names behind the column `category`."""
        self.indexes: dict[bool, Nearest] = {}
        """By whether the memories are correct; empty until they are built."""
        self._count = 0
        self._columns: dict[str, NDArray[Any]] = {name: numpy.zeros(0, kind) for name, kind in COLUMNS.items()}
        self._vectors: Vectors = numpy.zeros((0, dimension), numpy.float32)
        self._expires = False
        # What follows from the columns, until they change.
        self._valued: dict[tuple[bool, int], Places] = {}
        self._missing: Places | None = None
        self._wants_indexes: bool | None = None

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> NDArray[Any]:
        """One of `COLUMNS`, shape (rows,)."""
        return self._columns[name][: self._count]

    @property
    def vectors(self) -> Vectors:
        """Shape (rows, dimension); with captions, question and caption joined (`score.joined`)."""
        return self._vectors[: self._count]

    # ── filling ───────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, rows: Rows, own: Choice, vectors: Vectors) -> None:
        """Take over the own ones of these rows; `vectors` are those of the new ones."""
        new, changed = own & rows.new, own & ~rows.new
        places = numpy.searchsorted(self.column("sequence"), rows.sequence[changed])
        self._make_room(self._count + len(vectors))
        added = slice(self._count, self._count + len(vectors))
        for name in COLUMNS:
            if name == "indexed":
                continue
            values = self._codes(rows.category) if name == "category" else getattr(rows, name)
            self._columns[name][places] = values[changed]
            self._columns[name][added] = values[new]
        if len(vectors):
            self._vectors[added] = vectors
        self._count = added.stop
        self._changed()

    def fill(self, columns: dict[str, NDArray[Any]], vectors: Vectors, categories: list[str]) -> None:
        """Begin with what was kept. Arrays may have room at their end: `columns["sequence"]` has none."""
        self._count = len(columns["sequence"])
        self._columns, self._vectors, self.categories = columns, vectors, categories
        self._changed()

    def frozen(self) -> Shelf:
        """As it is now, whatever is applied to the shelf later; it shares the vectors and indexes."""
        copy = Shelf(self.dimension)
        columns = {name: self.column(name).copy() for name in COLUMNS}
        # Rows never change their places or vectors.
        copy.fill(columns, self.vectors, list(self.categories))
        copy.indexes = self.indexes
        return copy

    def use(self, indexes: dict[bool, Nearest], indexed: Choice) -> None:
        """Search by these indexes from now on; `indexed`: of each of the first rows, whether it is in them."""
        self.indexes = indexes
        self._columns["indexed"][:] = False
        self._columns["indexed"][: len(indexed)] = indexed
        self._changed()

    def extend_indexes(self) -> int:
        """Add the next few rows to the indexes; returns how many."""
        places = self._unindexed()[:CHUNK]
        correct = self._columns["correct"][places]
        for judgement, index in self.indexes.items():
            own = places[correct == judgement]
            index.add(own, self._vectors[own])
        self._columns["indexed"][places] = True
        self._missing = self._unindexed()[len(places) :]
        self._wants_indexes = None
        return len(places)

    @property
    def wants_indexes(self) -> bool:
        """Whether there is work for the background."""
        if self._wants_indexes is None:
            self._wants_indexes = self._count >= THRESHOLD and (self.wants_building or len(self._unindexed()) > TAIL)
        return self._wants_indexes

    @property
    def wants_building(self) -> bool:
        """Whether the work is to build indexes anew: there are none, or too much of them is out of sight."""
        if not self.indexes:
            return True
        indexed = self.column("indexed")
        hidden = int(numpy.count_nonzero(indexed & ~self.eligible(time.time())))
        return hidden > MOST_HIDDEN * int(numpy.count_nonzero(indexed))

    def _unindexed(self) -> Places:
        """Active rows that are in no index, in order."""
        if self._missing is None:
            self._missing = numpy.flatnonzero(self.column("active") & ~self.column("indexed"))
        return self._missing

    def _changed(self) -> None:
        self._expires = bool(numpy.isfinite(self.column("expires_at")).any())
        self._valued.clear()
        self._missing = self._wants_indexes = None

    # ── searching ─────────────────────────────────────────────────────────────────────────────────────────────────

    def eligible(self, now: float, category: str | None = None) -> Choice:
        """Of every row, whether it may be shown: active, not expired, of the category or of none."""
        may: Choice = self.column("active")
        if self._expires:
            may = may & (self.column("expires_at") > now)
        if category is not None:
            wanted = [code for code, name in enumerate(self.categories) if name in (category, OTHERS)]
            may = may & numpy.isin(self.column("category"), wanted)
        return may

    def pools(
        self, vectors: Vectors, *, category: str | None, now: float, nearest: int, valued: int, exact: bool
    ) -> list[Pool]:
        """The candidates for each question: of each judgement the `nearest` most similar and the `valued` that won most
        (`score.value`), the newest first among equals. `exact`: everything that may be shown.

        `vectors`: of shape (questions, dimension). Each pool is, to the last bit, what it would be if its question were
        asked alone; the rows are read once for all.
        """
        may = self.eligible(now, category)
        considered = int(numpy.count_nonzero(may))
        if exact or considered <= nearest:
            places = numpy.flatnonzero(may)
            return [Pool(places, similarity, considered) for similarity in self._similarities(vectors, places)]
        judgements = {judgement: may & (self.column("correct") == judgement) for judgement in (True, False)}
        similar = [[self._search(vector, nearest, judgement, may) for judgement in judgements] for vector in vectors]
        # Those that no index answers.
        whole = [number for number, found in enumerate(similar) if any(places is None for places in found)]
        everywhere = dict(zip(whole, self._everywhere(vectors[whole], may), strict=True)) if whole else {}
        own = {judgement: numpy.flatnonzero(choice) for judgement, choice in judgements.items()} if whole else {}
        best_valued = [self._best_valued(judgement, valued, may) for judgement in judgements] if valued else []
        pools = []
        for number, vector in enumerate(vectors):
            found = list(best_valued)
            for judgement, indexed in zip(judgements, similar[number], strict=True):
                found.append(indexed if indexed is not None else _best(everywhere[number], own[judgement], nearest))
            places = numpy.unique(numpy.concatenate(found))
            similarity = everywhere[number][places] if number in everywhere else self._similarities(vector, places)
            pools.append(Pool(places, similarity, considered))
        return pools

    def most_similar(self, vector: Vectors, k: int, *, now: float) -> tuple[Places, score.Numbers]:
        """The k most similar that may be shown, best first. The vector is a question's; of memories with captions, only
        the questions are compared."""
        may = self.eligible(now)
        if not may.any():
            return numpy.zeros(0, numpy.intp), numpy.zeros(0)
        found: list[Places | None] = [None]
        if len(vector) == self.dimension:
            found = [self._search(vector, k, judgement, may) for judgement in (True, False)]
        indexed = [places for places in found if places is not None]
        if len(indexed) == len(found):
            places = numpy.concatenate(indexed)
            similarity = self._similarities(vector, places)
        else:
            (everything,) = self._everywhere(vector[None], may)
            places = _best(everything, numpy.flatnonzero(may), k)
            similarity = everything[places]
        best = numpy.lexsort((-places, -similarity))[:k]
        return places[best], similarity[best]

    def _similarities(self, vectors: Vectors, places: Places) -> score.Numbers:
        """Of the rows at these places to one vector, or to each of several (`score.cosines`)."""
        if not len(places):
            return numpy.zeros((*vectors.shape[:-1], 0))
        return score.cosines(self.vectors if len(places) == self._count else self._vectors[places], vectors)

    def _everywhere(self, vectors: Vectors, may: Choice) -> score.Numbers:
        """The similarity of every row that may be shown to each of the vectors, shape (vectors, rows); other rows have
        any. Vectors that are shorter than the rows are compared with their questions."""
        length = vectors.shape[1]
        questions = self.vectors[:, :length]
        if length < self.dimension:
            vectors = vectors / numpy.float32(score.QUESTION_SHARE**0.5)
        places = numpy.flatnonzero(may)
        # Rows that lie apart are copied first, which takes several times as long as to measure them.
        if len(places) > self._count // 8:
            return score.cosines(questions, vectors)
        everything = numpy.zeros((len(vectors), self._count))
        everything[:, places] = score.cosines(questions[places], vectors)
        return everything

    def _search(self, vector: Vectors, count: int, judgement: bool, may: Choice) -> Places | None:
        """The `count` nearest of one judgement, by the index and all that it does not hold. None: there is no index, or
        too little of what it finds may be shown."""
        if not self.indexes:
            return None
        index = self.indexes[judgement]
        found = index.search(vector, count)
        shown = found[may[found]]
        if len(shown) < min(count, len(index)):
            # The share around the question, which may be another than that of the whole.
            share = len(shown) / max(1, len(found))
            asked = int(1.5 * count / share) if share else len(index)
            if min(asked, len(index)) > _MOST_ASKED * count:
                return None
            found = index.search(vector, asked)
            shown = found[may[found]]
            if len(shown) < count and asked < len(index):
                return None
        missing = self._unindexed()
        missing = missing[may[missing] & (self._columns["correct"][missing] == judgement)]
        if not len(missing):
            return shown[:count]
        # Disjoint: what came back into sight is in the index still, or is missing.
        places = numpy.concatenate([shown[:count], missing])
        return places[_best(self._similarities(vector, places), numpy.arange(len(places)), count)]

    def _best_valued(self, judgement: bool, count: int, may: Choice) -> Places:
        """Those that won most. All are gone through only after a change, or where few of the best may be shown."""
        key = judgement, count
        if key not in self._valued:
            own = self.column("active") & (self.column("correct") == judgement)
            self._valued[key] = self._by_value(own, _SPARE * count)
        listed = self._valued[key]
        best = listed[may[listed]][:count]
        if len(best) < count and len(listed) == _SPARE * count:
            best = self._by_value(may & (self.column("correct") == judgement), count)
        return best

    def _by_value(self, own: Choice, count: int) -> Places:
        """The best `count` of the own ones, best first."""
        value = score.value(self.column("uses"), self.column("wins"))
        places = _best(value, numpy.flatnonzero(own), count)
        return places[numpy.lexsort((-places, -value[places]))]

    def _codes(self, names: NDArray[numpy.str_]) -> NDArray[numpy.int16]:
        """The numbers of categories; new names get new ones."""
        distinct, inverse = numpy.unique(names, return_inverse=True)
        for name in distinct.tolist():
            if name not in self.categories:
                self.categories.append(name)
        codes = numpy.array([self.categories.index(name) for name in distinct.tolist()], numpy.int16)
        return codes[inverse]

    def _make_room(self, count: int) -> None:
        for name, column in self._columns.items():
            if count > len(column):
                self._columns[name] = _enlarged(column, (_roomy(count, len(column)),), self._count)
        if count > len(self._vectors):
            shape = (_roomy(count, len(self._vectors)), self.dimension)
            self._vectors = _enlarged(self._vectors, shape, self._count)


class Bank:
    """The shelves of exactly one scope. Thread-safe: a shelf is used while `refreshed` is held."""

    def __init__(self, scope: str, *, indexes: bool = True) -> None:
        """`indexes`: whether approximate indexes may be built."""
        self.scope = scope
        self.revision = 0
        self.epoch = -1
        """-1: nothing has been loaded."""
        self.known = 0
        """The highest sequence number seen."""
        self.shelves: dict[tuple[bool, bool], Shelf] = {}
        """By whether they hold plan pairs, and whether with captions."""
        self.unsaved = 0
        """Rows that changed or were indexed since the bank was kept on the disk."""
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._stop = threading.Event()
        self._builds = indexes

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
        """End the work in the background, and keep a large bank on the disk; calling it twice is harmless."""
        self._stop.set()
        # An index that is still being added to cannot be written down.
        if self.settled(timeout=30):
            self._keep(store)

    # ── following the store ───────────────────────────────────────────────────────────────────────────────────────

    def _refresh(self, store: MemoryStore) -> None:
        changes = store.changes(self.scope, self.revision, known=self.known)
        if self.epoch not in (-1, changes.epoch):
            self._forget()
            changes = store.changes(self.scope, 0)
        self._apply(changes)
        if (
            self._worker is None
            and self._builds
            and not self._stop.is_set()
            and any(shelf.wants_indexes for shelf in self._indexable())
        ):
            self._worker = threading.Thread(target=self._work, args=(store,), name="mia-memory-index", daemon=True)
            self._worker.start()

    def _load(self, store: MemoryStore) -> None:
        """Begin with what was kept on the disk, if it agrees with the rows."""
        from mia.memory import cache

        before = store.census(self.scope)
        kept = cache.load(store, self.scope, before)
        if kept is None:
            return
        self.revision, self.epoch, self.known, self.shelves = kept.revision, kept.epoch, kept.last, kept.shelves
        changes = store.changes(self.scope, self.revision, known=self.known)
        if changes.epoch == self.epoch:
            self._apply(changes)
        # Others may be writing: the number of rows was what it was before or after.
        if not before.count <= len(self) <= store.census(self.scope).count:
            _LOG.debug("the vector cache of %s is not used: it has %d rows", store.location, len(self))
            self._forget()

    def _forget(self) -> None:
        self.revision, self.epoch, self.known, self.shelves, self.unsaved = 0, -1, 0, {}, 0

    def _apply(self, changes: Changes) -> None:
        try:
            for key in _KEYS if len(changes.rows) else ():
                self._apply_to(key, changes.rows)
        except BaseException:
            # Half of it would be applied twice the next time: begin anew. It is Ctrl-C, or memory ran out.
            self._forget()
            raise
        self.revision, self.epoch = changes.revision, changes.epoch
        if len(changes.rows):
            self.known = max(self.known, int(changes.rows.sequence[-1]))
        self.unsaved += len(changes.rows)

    def _apply_to(self, key: tuple[bool, bool], rows: Rows) -> None:
        pair, captioned = key
        own = (rows.pair == pair) & (rows.captioned == captioned)
        if not own.any():
            return
        vectors = rows.questions[own[rows.new]]
        if captioned and len(vectors):
            # Captions come for the captioned rows alone.
            vectors = score.joined(vectors, rows.captions[own[rows.new & rows.captioned]])
        if key not in self.shelves:
            self.shelves[key] = Shelf(vectors.shape[1])
        self.shelves[key].apply(rows, own, vectors)

    # ── in the background ─────────────────────────────────────────────────────────────────────────────────────────

    def _indexable(self) -> list[Shelf]:
        # Plan pairs are of one judgement, and few.
        return [shelf for (pair, _), shelf in self.shelves.items() if not pair]

    def _work(self, store: MemoryStore) -> None:
        """Build indexes, bring them up to date, keep them. Only this thread changes an index."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    shelf = next((one for one in self._indexable() if one.wants_indexes), None)
                    if shelf is None:
                        break
                    epoch, builds = self.epoch, shelf.wants_building
                if builds:
                    self._build(shelf, epoch)
                else:
                    self._extend(shelf)
            if not self._stop.is_set():
                self._keep(store)
        except (ImportError, RuntimeError) as error:
            # The library is not there, or cannot do it: everything stays exact.
            _LOG.debug("no approximate index: %s", error)
            self._builds = False
        finally:
            self._worker = None

    def _extend(self, shelf: Shelf) -> None:
        added = 1
        while added and not self._stop.is_set():
            with self._lock:
                added = shelf.extend_indexes()
                self.unsaved += added
            # A lock is not handed to whoever waits for it unless there is a pause.
            time.sleep(0.001)

    def _build(self, shelf: Shelf, epoch: int) -> None:
        """Two new indexes of what may be shown now; the shelf is searched without them meanwhile."""
        with self._lock:
            rows = shelf.frozen()
        chosen = rows.eligible(time.time())
        indexes = {judgement: Nearest(rows.dimension) for judgement in (True, False)}
        for judgement, index in indexes.items():
            places = numpy.flatnonzero(chosen & (rows.column("correct") == judgement))
            for start in range(0, len(places), 1_000):
                if self._stop.is_set():
                    return
                chunk = places[start : start + 1_000]
                index.add(chunk, rows.vectors[chunk])
        with self._lock:
            if self.epoch == epoch:
                shelf.use(indexes, chosen)
                self.unsaved += len(chosen)

    def _keep(self, store: MemoryStore) -> None:
        """Write the bank down, if enough of it has changed. Searches go on meanwhile."""
        from mia.memory import cache

        with self._lock:
            unsaved = self.unsaved
            if unsaved < max(WORTH_KEEPING, WORTH_KEEPING_SHARE * len(self)):
                return
            shelves = {key: shelf.frozen() for key, shelf in self.shelves.items()}
            kept = cache.Kept(self.revision, self.epoch, self.known, shelves)
        try:
            if cache.save(store, self.scope, kept):
                with self._lock:
                    self.unsaved = max(0, self.unsaved - unsaved)
        except (OSError, StoreError) as error:
            _LOG.debug("the vector cache of %s is not kept: %s", store.location, error)


class Banks:
    """The banks of one store, held by whoever reads them: what many scopes see of a level above them is in memory once.
    Thread-safe."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._held: dict[str, tuple[Bank, int]] = {}
        """By scope, with how many hold it."""
        self._lock = threading.Lock()

    def hold(self, scope: str) -> Bank:
        """The bank of a scope, until it is released."""
        with self._lock:
            bank, holders = self._held.get(scope) or (Bank(scope), 0)
            self._held[scope] = bank, holders + 1
            return bank

    def release(self, scope: str) -> None:
        """Whoever held it needs it no more; the last one closes it."""
        with self._lock:
            bank, holders = self._held.pop(scope)
            if holders > 1:
                self._held[scope] = bank, holders - 1
                return
        bank.close(self._store)


def _best(values: score.Numbers, places: Places, count: int) -> Places:
    """Of the places, which ascend, those of the highest `count` values, in no order; among equals the last."""
    if len(places) <= count:
        return places
    values = values[places]
    least = numpy.partition(values, len(places) - count)[len(places) - count]
    above, equal = numpy.flatnonzero(values > least), numpy.flatnonzero(values == least)
    best: Places = places[numpy.concatenate([above, equal[len(equal) - (count - len(above)) :]])]
    return best


def _roomy(count: int, room: int) -> int:
    """The new length of an array of length `room` that must hold `count`: rarely moved, and soon not for the first
    row that comes after a load."""
    return max(64, room * 3 // 2, count * 9 // 8)


def _enlarged(array: NDArray[Any], shape: tuple[int, ...], count: int) -> NDArray[Any]:
    # Zeros are not touched by the system until they are used.
    larger = numpy.zeros(shape, array.dtype)
    larger[:count] = array[:count]
    return larger
