"""How memories from outside get into a store: redacted, looked at, told apart from what is there, embedded, inserted.

Always true: nothing in the store is overwritten; the same file again changes nothing; secrets stay outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mia.config import MemorySettings
from mia.embeddings.base import Embedder
from mia.errors import ConfigError, RecordError
from mia.memory import guard
from mia.memory.exchange.base import Tally
from mia.memory.lessons import Lesson, store_lessons
from mia.memory.questions import Vectorizer
from mia.redaction import Redactor
from mia.scope import check_scope
from mia.store.base import MemoryStore, MemoryVectors, Writing
from mia.types import Memory, MemoryState

LONGEST_ID = 200
_MOST_USES = 2**53
"""What every reader of JSON can count."""
_LIFE = ("state", "replaced_by", "uses", "wins", "category", "expires_at", "updated_at")
"""What happens to a memory after it was made. The rest of it never changes."""


@dataclass(frozen=True)
class Arrival:
    """A memory on its way in, and where it was read."""

    memory: Memory
    line: int
    file: str = ""
    vectors: MemoryVectors | None = None
    """None: to be embedded."""
    replaces: str = ""
    """The id of the memory whose edited text this is."""
    reason: str = "import"
    """For the audit."""
    by_hand: bool = False
    """It has no id of its own: the rules for near-duplicates decide whether it is kept."""
    suspicion: str = ""
    given: Memory | None = None
    """As it was read; None: it is as it was read."""


class Arrivals:
    """Takes memories into one store, a batch at a time."""

    def __init__(self, store: MemoryStore, settings: MemorySettings, embedder: Embedder | None, tally: Tally) -> None:
        """Raises ConfigError if the memory is frozen."""
        if settings.frozen:
            raise ConfigError(
                "the memory is frozen: it recalls, and takes nothing in.", hint="set memory.frozen = false"
            )
        self.redactor = Redactor(settings.redact)
        self._store = store
        self._settings = settings
        self._embedder = embedder
        self._tally = tally

    def take(self, batch: Sequence[Arrival], space: str = "") -> None:
        """Store what can be stored of a batch in one transaction, and count it. `space`: the embedding space that an
        empty store is about to get; empty: the embedder's. Raises StoreError, ModelError (the embedder's)."""
        fresh = self._embedded(self._unknown([self._cleared(one) for one in batch]), self._store.space() or space)
        if not fresh:
            return
        held = self._store.transaction(lambda writing: self._store_all(writing, fresh))
        # Another process may have brought the same one at this moment.
        taken = [one for one, id in zip(fresh, held, strict=True) if id is None]
        self._unknown(taken)
        for arrival, id in zip(fresh, held, strict=True):
            if id == arrival.memory.id:
                self._tally.added += 1
                self._tally.replaced += bool(arrival.replaces)
                self._tally.quarantined += bool(arrival.suspicion)
            elif id is not None:
                reason = f"{id}, of the same question, stays: a correct memory gives way only to a shorter correct one"
                self._tally.refuse(arrival.line, reason, arrival.file)

    def _unknown(self, batch: Sequence[Arrival]) -> list[Arrival]:
        """Those whose id is free; of the others it is told whether they are known or refused."""
        stored = self._store.memories({one.memory.id for one in batch})
        fresh = []
        for one in batch:
            there = stored.get(one.memory.id)
            if there is None:
                stored[one.memory.id] = one.memory
                fresh.append(one)
            elif is_same(one.memory, there) or is_same(one.given or one.memory, there):
                self._tally.known += 1
            else:
                reason = f"there is a memory '{one.memory.id}' with other content; nothing is overwritten"
                if is_same(one.memory.model_copy(update={"scope": there.scope}), there):
                    reason = f"the memory '{one.memory.id}' is in the scope '{there.scope}' already"
                self._tally.refuse(one.line, reason, one.file)
        return fresh

    def _cleared(self, arrival: Arrival) -> Arrival:
        """Redacted, and out of sight if it reads like orders."""
        memory, vectors = self.redactor.model(arrival.memory), arrival.vectors
        if (memory.question, memory.caption) != (arrival.memory.question, arrival.memory.caption):
            vectors = None
        suspicion = ""
        if self._settings.quarantine and memory.state is MemoryState.ACTIVE:
            suspicion = guard.suspicion_of(memory)
        arrival = replace(arrival, given=arrival.memory)
        if not suspicion:
            return replace(arrival, memory=memory, vectors=vectors)
        # What nobody has looked at pushes nothing aside.
        memory = memory.model_copy(update={"state": MemoryState.QUARANTINED})
        return replace(arrival, memory=memory, vectors=vectors, replaces="", suspicion=suspicion)

    def _embedded(self, batch: Sequence[Arrival], space: str) -> list[Arrival]:
        """With vectors; those that can get none are refused."""
        bare = [one for one in batch if one.vectors is None]
        if not bare:
            return list(batch)
        made: dict[int, MemoryVectors] = {}
        if self._embedder is None or (space and space != self._embedder.space):
            other = f"; this embedder is '{self._embedder.space}'" if self._embedder is not None else ""
            wanted = f"the embedder '{space}'" if space else "an embedder"
            for one in bare:
                self._tally.refuse(one.line, f"its text has no vectors that fit, and needs {wanted}{other}", one.file)
        else:
            asked = [(one.memory.question, one.memory.caption) for one in bare]
            vectors = Vectorizer(self._store, self._embedder).many(asked)
            made = {id(one): vector for one, vector in zip(bare, vectors, strict=True)}
        return [
            one if one.vectors is not None else replace(one, vectors=made[id(one)])
            for one in batch
            if one.vectors is not None or id(one) in made
        ]

    def _store_all(self, writing: Writing, fresh: Sequence[Arrival]) -> list[str | None]:
        """What is held for each; every scope that something came to is held to the quota."""
        held = [self._insert(writing, one) for one in fresh]
        if self._settings.quota:
            for scope in sorted({one.memory.scope for one in fresh}):
                writing.evict(scope, self._settings.quota)
        return held

    def _insert(self, writing: Writing, arrival: Arrival) -> str | None:
        """The id of the memory that is held for it; None if its own is taken meanwhile."""
        memory, vectors = arrival.memory, arrival.vectors
        assert vectors is not None
        try:
            if arrival.by_hand:
                lesson = Lesson(memory, vectors, suspicion=arrival.suspicion)
                return store_lessons(writing, [lesson], replace_below=self._settings.replace_below)[0]
            writing.insert(memory, vectors, replaces=arrival.replaces, reason=arrival.suspicion or arrival.reason)
        except RecordError:
            return None
        return memory.id


def is_same(one: Memory, stored: Memory) -> bool:
    """Whether two records of an id tell of the same memory, whatever happened to it since."""
    return one == stored or one.model_copy(update={name: getattr(stored, name) for name in _LIFE}) == stored


def problem_with(memory: Memory) -> str:
    """Why a record cannot be a memory of a store, though its fields are there; empty if it can."""
    if not (0 < len(memory.id) <= LONGEST_ID and memory.id.isprintable()) or " " in memory.id:
        return f"its id is not a word of up to {LONGEST_ID} letters"
    if not memory.question.strip():
        return "its question is empty"
    if not 0 <= memory.wins <= memory.uses <= _MOST_USES:
        return f"it won {memory.wins} of {memory.uses}"
    if not all(map(math.isfinite, (memory.created_at, memory.updated_at, memory.expires_at or 0.0))):
        return "one of its times is no moment"
    if memory.replaced_by and memory.state is not MemoryState.REPLACED:
        return f"it is replaced by '{memory.replaced_by}', and its state is '{memory.state}'"
    try:
        check_scope(memory.scope)
    except ConfigError as error:
        return error.got
    return ""
