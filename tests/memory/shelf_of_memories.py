"""Memories with vectors for tests of bank and cache: clustered, as those of real questions are."""

from __future__ import annotations

import numpy

from mia.embeddings.base import Vectors
from mia.memory.score import unit_rows
from mia.store.base import MemoryVectors
from mia.store.sqlite import SqliteStore
from mia.types import Memory, MemoryKind

SPACE = "test/32"
DIMENSION = 32


def clustered(count: int, seed: int = 0) -> Vectors:
    """Unit vectors around fifty centres."""
    generator = numpy.random.default_rng(seed)
    centres = numpy.random.default_rng(99).standard_normal((50, DIMENSION))
    noise = 0.4 * generator.standard_normal((count, DIMENSION))
    return unit_rows((centres[generator.integers(0, 50, count)] + noise).astype(numpy.float32))


def memory(number: int, *, caption: str = "", kind: MemoryKind = MemoryKind.WORKFLOW, scope: str = "default") -> Memory:
    return Memory(
        id=f"mem-{number:06d}",
        scope=scope,
        kind=kind,
        question=f"Question {number}?",
        caption=caption,
        workflow="1. look (a → b)",
        judgement="correct" if number % 3 else "incorrect",
        created_at=float(number),
        updated_at=float(number),
    )


def insert(
    store: SqliteStore,
    count: int,
    *,
    start: int = 0,
    caption: str = "",
    kind: MemoryKind = MemoryKind.WORKFLOW,
    scope: str = "default",
) -> list[str]:
    """The ids of new memories."""
    vectors = clustered(2 * count, seed=start + 1)
    memories = [memory(start + at, caption=caption, kind=kind, scope=scope) for at in range(count)]

    def write(writing: object) -> None:
        for at, one in enumerate(memories):
            about = vectors[count + at] if caption else None
            writing.insert(one, MemoryVectors(SPACE, vectors[at], about))  # type: ignore[attr-defined]

    store.transaction(write)
    return [one.id for one in memories]
