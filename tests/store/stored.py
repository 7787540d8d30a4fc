"""Memories and episodes for tests of the store, and how to put them in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from mia.embeddings.base import Vectors
from mia.store.base import MemoryVectors
from mia.store.sqlite import SqliteStore
from mia.types import (
    Episode,
    Memory,
    MemoryState,
    Outcome,
    Provenance,
    Question,
    Recall,
    RecalledMemory,
    Verdict,
    new_id,
)

SPACE = "test/2"
RIGHT, WRONG, NONE, UNKNOWN = Outcome.CORRECT, Outcome.INCORRECT, Outcome.NOT_ATTEMPTED, Outcome.UNJUDGED


def vector(*numbers: float) -> Vectors:
    return numpy.array(numbers, dtype=numpy.float32)


def a_memory(question: str = "Who found Titan?", **fields: object) -> Memory:
    base = Memory(
        id=new_id("mem"), question=question, workflow="1. look", judgement="correct", created_at=1, updated_at=1
    )
    return base.evolve(**fields)


def insert(
    store: SqliteStore,
    memory: Memory | None = None,
    *,
    replaces: str = "",
    space: str = SPACE,
    question: Vectors | None = None,
) -> Memory:
    memory = memory or a_memory()
    caption = vector(0, 1) if memory.caption else None
    vectors = MemoryVectors(space, vector(1, 0) if question is None else question, caption)
    store.transaction(lambda writing: writing.insert(memory, vectors, replaces=replaces))
    return memory


def made_of(episode: Episode, **fields: object) -> Memory:
    return a_memory(episode.question.text, **{"provenance": Provenance(episode_id=episode.id), **fields})


def an_episode(
    id: str, *, run: str = "", question: str = "Who found Titan?", shown: Sequence[Memory] = (), **fields: object
) -> Episode:
    """With `shown`, one whose recall quotes these memories."""
    texts = " ".join(f"{memory.question}: {memory.workflow}" for memory in shown)
    recall = Recall(
        for_planner=f"planner: {texts}",
        for_executor=f"executor: {texts}",
        shown=tuple(
            RecalledMemory(
                memory_id=memory.id, judgement=memory.judgement, question=memory.question, rank=1, score=1.0, parts={}
            )
            for memory in shown
        ),
    )
    base = Episode(id=id, question=Question.of(question), run=run, started_at=1.5, recall=recall if shown else None)
    return base.evolve(**fields)


def verdict(outcome: Outcome) -> Verdict:
    return Verdict(outcome=outcome, judge="reference")


def credit(
    store: SqliteStore, group: str, shown: set[str], outcome: Outcome, scopes: Sequence[str] = ("default",)
) -> int:
    return store.transaction(lambda writing: writing.credit(scopes, group, shown, verdict(outcome)))


def counts(store: SqliteStore, memory: Memory) -> tuple[int, int]:
    found = store.memory(memory.id)
    return found.uses, found.wins


def set_state(store: SqliteStore, state: MemoryState, *memories: Memory, action: str = "") -> tuple[str, ...]:
    named = action or {"forgotten": "forget", "active": "restore", "quarantined": "quarantine"}[state.value]
    ids = [memory.id for memory in memories]
    return store.transaction(lambda writing: writing.set_state(ids, state, action=named))


def set_expiry(store: SqliteStore, at: float | None, *memories: Memory) -> tuple[str, ...]:
    return store.transaction(lambda writing: writing.set_expiry([memory.id for memory in memories], at))
