"""The vectors of one scope in memory, as matrices: a cache beside the rows of the store, never the truth.

Before each use it asks the store what changed since the last revision it saw, which costs one small query when nothing
did; so it sees what any process committed before. One shelf holds the memories of one kind and modality, since only
those are ever compared. Thread-safe: whoever uses a shelf holds the bank's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy
from numpy.typing import NDArray

from mia.embeddings.base import Vectors
from mia.memory.score import Numbers, cosines, similarity
from mia.store.base import Reading, VectorRow
from mia.types import MemoryKind

Scalar = TypeVar("Scalar", bound=numpy.generic)

_COLUMNS = numpy.dtype([("correct", "?"), ("uses", "i8"), ("wins", "i8"), ("created_at", "f8"), ("category", "U32")])


class Shelf:
    """Memories of one kind and modality, in columns that grow by doubling; what is removed is filled from the end."""

    def __init__(self, *, captioned: bool) -> None:
        self.ids: list[str] = []
        self._places: dict[str, int] = {}
        self._columns: NDArray[numpy.void] = numpy.zeros(0, _COLUMNS)
        # The first memory says how wide they are.
        self._questions: Vectors = numpy.zeros((0, 0), numpy.float32)
        self._captions: Vectors | None = numpy.zeros((0, 0), numpy.float32) if captioned else None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def columns(self) -> NDArray[numpy.void]:
        """The columns "correct", "uses", "wins", "created_at", "category", aligned with `ids`."""
        return self._columns[: len(self.ids)]

    def similarities(self, question: Vectors, caption: Vectors | None) -> Numbers:
        """To every memory, aligned with `ids`."""
        count = len(self.ids)
        if not count:
            return numpy.zeros(0)
        of_question = cosines(self._questions[:count], question)
        if self._captions is None or caption is None:
            return of_question
        return similarity(of_question, cosines(self._captions[:count], caption))

    def put(self, row: VectorRow) -> None:
        place = self._places.get(row.id)
        if place is None:
            place = len(self.ids)
            self._make_room(place + 1, row.question.size)
            self.ids.append(row.id)
            self._places[row.id] = place
        self._columns[place] = (row.correct, row.uses, row.wins, row.created_at, row.category)
        self._questions[place] = row.question
        if self._captions is not None and row.caption is not None:
            self._captions[place] = row.caption

    def remove(self, id: str) -> None:
        place = self._places.pop(id, None)
        if place is None:
            return
        last = len(self.ids) - 1
        moved = self.ids.pop()
        if place != last:
            self.ids[place] = moved
            self._places[moved] = place
            for array in (self._columns, self._questions, self._captions):
                if array is not None:
                    array[place] = array[last]

    def _make_room(self, count: int, dimension: int) -> None:
        if count <= len(self._columns):
            return
        capacity = max(64, 2 * len(self._columns), count)
        self._columns = _enlarged(self._columns, (capacity,))
        self._questions = _enlarged(self._questions, (capacity, dimension))
        if self._captions is not None:
            self._captions = _enlarged(self._captions, (capacity, dimension))


class Bank:
    """The shelves of one scope."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._revision = 0
        self._shelves: dict[tuple[MemoryKind, bool], Shelf] = {}
        self._lock = threading.Lock()

    @contextmanager
    def shelf(self, store: Reading, kind: MemoryKind, *, captioned: bool) -> Iterator[Shelf]:
        """One shelf as the store is now; it does not change while it is held. Raises StoreError."""
        with self._lock:
            changes = store.changes(self._scope, self._revision)
            self._apply(changes.rows)
            self._revision = changes.revision
            yield self._shelf(kind, captioned)

    def _apply(self, rows: Sequence[VectorRow]) -> None:
        for row in rows:
            shelf = self._shelf(row.kind, row.caption is not None)
            if row.replaced:
                shelf.remove(row.id)
            else:
                shelf.put(row)

    def _shelf(self, kind: MemoryKind, captioned: bool) -> Shelf:
        key = (kind, captioned)
        if key not in self._shelves:
            self._shelves[key] = Shelf(captioned=captioned)
        return self._shelves[key]


def _enlarged(array: NDArray[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
    larger: NDArray[Scalar] = numpy.zeros(shape, array.dtype)
    if len(array):
        larger[: len(array)] = array
    return larger
