"""Recalls for many at a time: texts that arrive together are embedded together, and so are recalls of one scope.

    text → vector (of the last ones, it is known) → recall → JSON

An embedder takes many texts at once in a fraction of the time of one after the other; and for ten recalls the vectors
of the memory are read once, the store is asked once, and a thread is handed over once. Nobody waits for company: a
batch is what came while the last one was worked on.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy
from numpy.typing import NDArray

from mia.embeddings.base import Vectors, unit_rows
from mia.errors import MiaError, ModelError, ModelUnavailable, RecordError
from mia.memory.manager import MemoryManager
from mia.memory.questions import Vectorizer
from mia.memory.recalling import Asked
from mia.service.core import Service
from mia.service.together import Together
from mia.store.base import MemoryVectors
from mia.types import MemoryKind

MOST_TEXTS = 64
"""Embedded at a time."""
MOST_RECALLS = 16
"""Made at a time, for one scope."""
KNOWN_TEXTS = 4096
"""Whose vectors are kept."""
KNOWN_LENGTH = 2000
"""Longer texts are not asked twice."""

_NOTHING = MemoryVectors("", numpy.zeros(0, numpy.float32))
"""To compare with a store that holds nothing."""


@dataclass(frozen=True)
class Wanted:
    """What to recall for: a text, or the vectors of one."""

    text: str = ""
    caption: str = ""
    question_vector: NDArray[numpy.float64] | None = None
    """Shape (dimension,), of any length; None: the text is embedded."""
    caption_vector: NDArray[numpy.float64] | None = None
    space: str = ""
    """Which embedding space the vectors are of; empty: that of the store."""
    kind: MemoryKind = MemoryKind.WORKFLOW
    skip: frozenset[str] = frozenset()
    k_positive: int | None = None
    """Memories of correct answers; None: as the settings say."""
    k_negative: int | None = None
    floor: float | None = None
    """Nothing less similar is shown; None: as the settings say."""
    begun: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class _Ready:
    """What is wanted, its text as it would be stored, and the vectors of the text, if the store holds anything to
    compare them with."""

    wanted: Wanted
    heard: tuple[str, str]
    vectors: MemoryVectors | None


class Recalls:
    """The recalls of one service. Belongs to its event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._vectorizer = Vectorizer(service.store, service.embedder)
        self._known: OrderedDict[tuple[str, str], MemoryVectors] = OrderedDict()
        self._texts: Together[tuple[str, str], MemoryVectors | None] = Together(self._embed, most=MOST_TEXTS)
        self._lanes: dict[str, Together[_Ready, bytes]] = {}
        """Of the scopes that are recalled from at this moment: one that loads its memories holds up no other."""

    async def recall(self, scope: str, wanted: Wanted) -> bytes:
        """A `Recall` as JSON. Raises RecordError for vectors that are not comparable with the store's, StoreError,
        ModelError (the embedder's)."""
        manager = self._service.memory(scope)
        heard = manager.heard(wanted.text, wanted.caption)
        vectors = await self._vectors(heard) if wanted.question_vector is None else None
        lane = self._lanes.get(scope)
        if lane is None:
            lane = self._lanes[scope] = Together(partial(self._recall, manager), most=MOST_RECALLS)
        try:
            return await lane(_Ready(wanted, heard, vectors))
        finally:
            if lane.idle:
                # A manager that is used no more can be let go of.
                self._lanes.pop(scope, None)

    async def _vectors(self, pair: tuple[str, str]) -> MemoryVectors | None:
        known = self._known.get(pair)
        if known is not None:
            self._known.move_to_end(pair)
            return known
        vectors = await self._texts(pair)
        if vectors is not None and sum(map(len, pair)) <= KNOWN_LENGTH:
            self._known[pair] = vectors
            while len(self._known) > KNOWN_TEXTS:
                self._known.popitem(last=False)
        return vectors

    # ── in threads ────────────────────────────────────────────────────────────────────────────────────────────────

    def _embed(self, pairs: Sequence[tuple[str, str]]) -> Sequence[MemoryVectors | Exception | None]:
        if not self._service.store.space():
            # Nothing is stored, and the embedder may take seconds to load.
            return [None] * len(pairs)
        try:
            return self._vectorizer.many(pairs)
        except ModelUnavailable:
            raise
        except ModelError as error:
            if len(pairs) == 1:
                return [error]
            # One text that an endpoint refuses must not take the others with it.
            return [one for pair in pairs for one in self._embed([pair])]

    def _recall(self, manager: MemoryManager, batch: Sequence[_Ready]) -> Sequence[bytes | Exception]:
        results: list[bytes | Exception | None] = [None] * len(batch)
        asked: dict[int, Asked] = {}
        try:
            space = self._service.store.space()
            for place, ready in enumerate(batch):
                try:
                    asked[place] = self._asked(manager, ready, space)
                except MiaError as error:
                    results[place] = error
            recalls = manager.recall_many(list(asked.values()))
        except MiaError as error:
            if len(batch) == 1:
                return [error]
            # Some were embedded before the memory went over to another embedder, and some after.
            return [one for ready in batch for one in self._recall(manager, [ready])]
        for place, recall in zip(asked, recalls, strict=True):
            recall = recall.evolve(seconds=time.perf_counter() - batch[place].wanted.begun)
            results[place] = recall.model_dump_json().encode()
        return [one for one in results if one is not None]

    def _asked(self, manager: MemoryManager, ready: _Ready, space: str) -> Asked:
        """`space`: the store's; empty while nothing is stored. Raises RecordError, ModelError (the embedder's)."""
        wanted, vectors = ready.wanted, ready.vectors
        settings = self._service.config.memory
        if wanted.question_vector is not None and space:
            vectors = self._given(wanted, space)
        elif vectors is None:
            # Nothing was stored yet when it was its turn to be embedded.
            vectors = self._vectorizer.vectors(*ready.heard) if space else _NOTHING
        return Asked(
            vectors,
            ready.heard[0],
            wanted.kind,
            wanted.skip,
            k=(
                settings.k_positive if wanted.k_positive is None else wanted.k_positive,
                settings.k_negative if wanted.k_negative is None else wanted.k_negative,
            ),
            floor=wanted.floor,
        )

    def _given(self, wanted: Wanted, space: str) -> MemoryVectors:
        """The vectors that came with a request. Raises RecordError."""
        assert wanted.question_vector is not None
        if wanted.space and wanted.space != space:
            raise RecordError(
                "the vectors are of another embedding space than the memory's.",
                wanted=f"vectors of '{space}'",
                hint="send the text as `question` instead",
            )
        # The last part of the name of a space of ours is its dimension; an embedder may have to ask an endpoint for it.
        last = space.rpartition("/")[2]
        dimension = int(last) if last.isdecimal() else self._service.embedder.dimension
        for name, vector in (("question_vector", wanted.question_vector), ("caption_vector", wanted.caption_vector)):
            if vector is not None and len(vector) != dimension:
                raise RecordError(
                    f"{name} has {len(vector)} dimensions.", wanted=f"{dimension}, as the space '{space}' has"
                )
        return MemoryVectors(
            space,
            _unit(wanted.question_vector),
            _unit(wanted.caption_vector) if wanted.caption_vector is not None else None,
        )


def _unit(vector: NDArray[numpy.float64]) -> Vectors:
    row: Vectors = unit_rows(vector)[0]
    return row
