"""The vectors of one scope in memory (first form: exact, no cache on disk)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from mia.embeddings.base import Vectors
from mia.memory import score
from mia.store.base import MemoryStore, Rows


@dataclass(frozen=True)
class Pool:
    places: NDArray[numpy.intp]
    similarity: score.Numbers
    considered: int


class Shelf:
    def __init__(self) -> None:
        self.sequence: NDArray[numpy.int64] = numpy.zeros(0, numpy.int64)
        self.correct = self.active = numpy.zeros(0, bool)
        self.uses = self.wins = numpy.zeros(0, numpy.int64)
        self.created_at = self.expires_at = numpy.zeros(0)
        self.category = numpy.zeros(0, "U1")
        self.vectors: Vectors = numpy.zeros((0, 0), numpy.float32)

    def apply(self, rows: Rows, own: NDArray[numpy.bool_], vectors: Vectors) -> None:
        new = own & rows.new
        for name in ("sequence", "correct", "active", "uses", "wins", "created_at", "expires_at", "category"):
            old, came = getattr(self, name), getattr(rows, name)
            if name != "sequence":
                places = numpy.searchsorted(self.sequence, rows.sequence[own & ~rows.new])
                if name == "category":
                    old = old.astype(f"U{max(old.dtype.itemsize, came.dtype.itemsize) // 4}")
                old = old.copy()
                old[places] = came[own & ~rows.new]
                came = came[new]
                setattr(self, name, numpy.concatenate([old, came]))
        self.sequence = numpy.concatenate([self.sequence, rows.sequence[new]])
        if new.any():
            self.vectors = numpy.concatenate([self.vectors, vectors]) if len(self.vectors) else vectors

    def eligible(self, now: float, category: str | None = None) -> NDArray[numpy.bool_]:
        own = self.active & (self.expires_at > now)
        return own if category is None else own & numpy.isin(self.category, [category, "others"])

    def pool(
        self, vector: Vectors, *, category: str | None, now: float, nearest: int, valued: int, exact: bool
    ) -> Pool:
        places = numpy.flatnonzero(self.eligible(now, category))
        if not len(places):
            return Pool(places, numpy.zeros(0), 0)
        similarity = score.cosines(self.vectors[places], vector)
        return Pool(places, similarity, len(places))

    def most_similar(self, vector: Vectors, k: int, *, now: float) -> tuple[NDArray[numpy.intp], score.Numbers]:
        places = numpy.flatnonzero(self.eligible(now))
        if not len(places):
            return places, numpy.zeros(0)
        width = len(vector)
        similarity = score.cosines(self.vectors[places][:, :width], vector)
        if self.vectors.shape[1] > width:
            similarity = similarity / numpy.sqrt(score.QUESTION_SHARE)
        best = numpy.argsort(-similarity)[:k]
        return places[best], similarity[best]

    def vector(self, place: int) -> Vectors:
        return self.vectors[place]


class Bank:
    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._revision = self._epoch = self._known = 0
        self._shelves: dict[tuple[bool, bool], Shelf] = {}
        self._lock = threading.Lock()

    @contextmanager
    def refreshed(self, store: MemoryStore) -> Iterator[None]:
        with self._lock:
            changes = store.changes(self._scope, self._revision, known=self._known)
            if changes.epoch != self._epoch:
                self._shelves, self._known = {}, 0
                changes = store.changes(self._scope, 0)
            self._revision, self._epoch = changes.revision, changes.epoch
            rows = changes.rows
            for pair in (False, True):
                for captioned in (False, True):
                    own = (rows.pair == pair) & (rows.captioned == captioned)
                    if own.any():
                        questions = rows.questions[own[rows.new]]
                        vectors = questions
                        if captioned:
                            vectors = score.joined(questions, rows.captions[own[rows.new & rows.captioned]])
                        self.shelf(pair=pair, captioned=captioned).apply(rows, own, vectors)
            if len(rows):
                self._known = max(self._known, int(rows.sequence[-1]))
            yield

    def shelf(self, *, pair: bool, captioned: bool) -> Shelf:
        return self._shelves.setdefault((pair, captioned), Shelf())

    def eligible(self, now: float) -> int:
        return sum(int(shelf.eligible(now).sum()) for shelf in self._shelves.values())

    def close(self, store: MemoryStore) -> None:
        pass
