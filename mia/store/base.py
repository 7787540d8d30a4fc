"""What a memory store is: rows, vectors and statistics that change together or not at all.

Writing happens inside `MemoryStore.transaction`, which runs one piece of work to the end or leaves no trace of it; when
it returns, the work is on the disk, and every process that asks afterwards sees it. Reads see what is committed.

A store never forgets on its own: a memory that another one replaces stays, marked, so that late credit and lineage
still find it. It knows nothing of similarity: it counts its changes (`revision`) and hands out the vectors that changed
since, and whoever searches keeps a matrix of them.

The methods are sync: a call is a few pages of a local file, and takes microseconds or waits for the disk. Async callers
go through a thread, since a commit waits for the disk and for other writers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mia.embeddings.base import Vectors
from mia.types import Episode, Memory, MemoryKind, Verdict

T = TypeVar("T")

_SURROGATE = re.compile("[\ud800-\udfff]")


def storable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot write, as U+FFFD. All else, NUL included, is kept."""
    return _SURROGATE.sub("\ufffd", text)


@dataclass(frozen=True)
class MemoryVectors:
    """The vectors of one memory, each of shape (dimension,)."""

    space: str
    question: Vectors
    caption: Vectors | None = None
    """None where the memory has no caption."""


@dataclass(frozen=True)
class VectorRow:
    """What a search needs to know of one memory, without its texts."""

    id: str
    kind: MemoryKind
    correct: bool
    category: str
    uses: int
    wins: int
    created_at: float
    replaced: bool
    """It is no longer shown."""
    question: Vectors
    caption: Vectors | None


@dataclass(frozen=True)
class Changes:
    """The memories that were added, credited or replaced since a revision."""

    revision: int
    rows: tuple[VectorRow, ...]


class Reading(Protocol):
    """What can be asked."""

    def space(self) -> str:
        """The embedding space of the stored vectors; empty while there are none."""
        ...

    def changes(self, scope: str, since: int) -> Changes:
        """What changed in a scope after revision `since` (0: everything), replaced memories included."""
        ...

    def absorbed(self, episode_ids: Collection[str]) -> frozenset[str]:
        """Those of the episodes whose lesson has been drawn."""
        ...


class Writing(Reading, Protocol):
    """One open transaction. Valid only inside the `work` it is passed to."""

    def save_episode(self, episode: Episode, *, absorbed: bool) -> None:
        """Insert or overwrite by id; an episode once absorbed stays absorbed."""
        ...

    def insert(self, memory: Memory, vectors: MemoryVectors, *, replaces: str = "") -> None:
        """Add a memory and, with `replaces`, take the one of that id out of sight. Raises StoreError if the vectors are
        of another space than the stored ones."""
        ...

    def credit(self, scope: str, group: str, shown: Collection[str], verdict: Verdict) -> int:
        """Count a verdict for the memories shown, after taking back what an earlier one for the group had counted.
        Returns how many of them are in the store."""
        ...


class MemoryStore(Reading, Protocol):
    """Keeps memories and episodes. Safe to use from many threads and processes. Every method raises StoreError."""

    @property
    def location(self) -> str:
        """For messages: a path, or an address without a password."""
        ...

    def transaction(self, work: Callable[[Writing], T]) -> T:
        """Run `work` alone among all writers; commit durably when it returns, undo everything when it raises."""
        ...

    def memory(self, reference: str) -> Memory:
        """By id or unambiguous beginning of one. Raises RecordError if there is none, or more than one."""
        ...

    def memories(self, ids: Collection[str]) -> dict[str, Memory]:
        """Those that exist, by id, replaced ones included."""
        ...

    def memories_of(self, episode_ids: Collection[str]) -> tuple[Memory, ...]:
        """What is in sight because of these episodes, oldest first."""
        ...

    def list_memories(self, scope: str, *, limit: int, offset: int = 0) -> tuple[Memory, ...]:
        """What is in sight in a scope, newest first."""
        ...

    def count_memories(self, scope: str | None = None) -> int:
        """How many are in sight in a scope, or in all."""
        ...

    def replaced_by(self, memory_id: str) -> str:
        """The id of the memory that replaced this one; empty if it is in sight."""
        ...

    def save_episode(self, episode: Episode) -> None:
        """Keep an episode; idempotent by id."""
        ...

    def load_episode(self, reference: str) -> Episode:
        """By id, unambiguous beginning of one, or "last". Raises RecordError if there is none, or more than one."""
        ...

    def list_episodes(self, *, run: str | None = None, limit: int) -> tuple[Episode, ...]:
        """The last saved first; of one run, or of all."""
        ...

    def count_episodes(self) -> int: ...

    def close(self) -> None:
        """Let go of the file; calling it twice is harmless."""
        ...
