"""Stores of many small memories for tests of the vector bank, without an embedder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from mia.embeddings.base import Vectors, unit_rows
from mia.memory.bank import Bank, Shelf
from mia.store.base import MemoryStore, MemoryVectors, Writing
from mia.types import Memory, Outcome, Verdict, new_id


def clustered(count: int, *, dimension: int = 24, seed: int = 0) -> Vectors:
    """Unit vectors around a few dozen centres, as questions lie around their topics."""
    generator = numpy.random.default_rng(seed)
    centres = numpy.random.default_rng(99).standard_normal((40, dimension))
    rows = centres[generator.integers(0, len(centres), count)] + 0.5 * generator.standard_normal((count, dimension))
    return unit_rows(rows.astype(numpy.float32))


def fill(store: MemoryStore, vectors: Vectors, *, captions: Vectors | None = None, **fields: object) -> list[str]:
    """One memory for each vector, every third of them incorrect; returns their ids."""
    memories = [
        Memory(
            id=new_id("mem"),
            question=f"question {number}",
            caption="" if captions is None else "seen",
            judgement="correct" if number % 3 else "incorrect",
            created_at=number,
            updated_at=number,
        ).evolve(**fields)
        for number in range(len(vectors))
    ]

    def insert(writing: Writing, numbers: Sequence[int]) -> None:
        for number in numbers:
            caption = None if captions is None else captions[number]
            writing.insert(memories[number], MemoryVectors(f"test/{vectors.shape[1]}", vectors[number], caption))

    for start in range(0, len(memories), 1_000):
        numbers = range(start, min(start + 1_000, len(memories)))
        store.transaction(lambda writing, numbers=numbers: insert(writing, numbers))
    return [memory.id for memory in memories]


def credit(store: MemoryStore, group: str, ids: Sequence[str], *, won: bool) -> None:
    verdict = Verdict(outcome=Outcome.CORRECT if won else Outcome.INCORRECT, judge="test")
    store.transaction(lambda writing: writing.credit(("default",), group, ids, verdict))


def contents(bank: Bank) -> dict[tuple[bool, bool], list[tuple[object, ...]]]:
    """Everything that a bank says of each row, whatever is in an index."""
    return {key: rows(shelf) for key, shelf in sorted(bank.shelves.items())}


def rows(shelf: Shelf) -> list[tuple[object, ...]]:
    names = ("sequence", "correct", "active", "uses", "wins", "created_at", "expires_at")
    categories = [shelf.categories[code] for code in shelf.column("category")]
    columns = [shelf.column(name).tolist() for name in names]
    return list(zip(*columns, categories, shelf.vectors.tolist(), strict=True))
