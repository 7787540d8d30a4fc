"""What a memory store is: rows, vectors, statistics and audit that change together or not at all.

Writing happens inside `MemoryStore.transaction`, which runs one piece of work to the end or leaves no trace of it; when
it returns, the work is on the disk, and every process that asks afterwards sees it. Reads see what is committed.

A store never forgets on its own: a memory that is replaced, forgotten or quarantined stays, marked, and every change is
in the audit with what was before and after; so late credit and lineage find it, and a user can have it back. Only
`purge` and `erase` remove anything for good. The texts of a memory never change; its state, counts, category and
expiry do.

A store knows nothing of similarity: it counts its changes (`revision`) and hands out the vectors that changed since,
and whoever searches keeps matrices of them.

The methods are sync: a call is a few pages of a local file, and takes microseconds or waits for the disk. Async callers
go through a thread, since a commit waits for the disk and for other writers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy
from numpy.typing import NDArray

from mia.embeddings.base import Vectors
from mia.types import Episode, Memory, MemoryKind, MemoryState, Verdict

T = TypeVar("T")

NEVER = 253_402_300_799.0
"""The last second of the year 9999: when what was given up is tried again by itself."""
EMBEDDED_CHARACTERS = 8_000
"""Of a question or caption, so many characters are embedded."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_CLOSING = frozenset("?.!… 。？！؟")
_QUOTES = frozenset("\"'“”„‘’‚«»‹›「」『』")


def storable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot write, as U+FFFD. All else, NUL included, is kept."""
    # Most text is ASCII, and says so at no cost.
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _bare(text: str) -> str:
    """Without closing punctuation and quotes around the whole; a text of nothing else stays as it is."""
    start, end = 0, len(text)
    while True:
        while end > start and text[end - 1] in _CLOSING:
            end -= 1
        if end - start < 2 or text[start] not in _QUOTES or text[end - 1] not in _QUOTES:
            return text[start:end] or text
        start, end = start + 1, end - 1


def fingerprint(question: str) -> int:
    """A 63-bit hash of a question, which near-duplicates share.

    It is blind to case, to how much white space is where there is some, to the punctuation at the end (?.!…), and to
    quotes around the whole. Every other sign counts: "C" is not "C++", and "1 + 1" is not "1 - 1".
    """
    words = _bare(" ".join(question.casefold().split()))
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class MemoryVectors:
    """The vectors of one memory, each of shape (dimension,): of length 1, or zero for a text without content."""

    space: str
    question: Vectors
    caption: Vectors | None = None
    """None where the memory has no caption."""


@dataclass(frozen=True)
class Rows:
    """What a search needs to know of memories, column by column, in the order of `sequence`."""

    sequence: NDArray[numpy.int64]
    """The store's own number of a memory: unique, and growing in the order of arrival, whatever the clock did."""
    pair: NDArray[numpy.bool_]
    """It is a plan pair."""
    captioned: NDArray[numpy.bool_]
    correct: NDArray[numpy.bool_]
    active: NDArray[numpy.bool_]
    uses: NDArray[numpy.int64]
    wins: NDArray[numpy.int64]
    created_at: NDArray[numpy.float64]
    expires_at: NDArray[numpy.float64]
    """Infinite where it never expires."""
    category: NDArray[numpy.str_]
    new: NDArray[numpy.bool_]
    """Its vectors are handed out below; they never change under a number, so they are handed out once."""
    questions: Vectors
    """Shape (number of new rows, dimension)."""
    captions: Vectors
    """Shape (number of new rows that are captioned, dimension)."""

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True)
class Changes:
    """The memories of a scope that were added or changed since a revision."""

    revision: int
    epoch: int
    """Counts what invalidates all that was handed out: a purge, an erasure, another embedder."""
    rows: Rows


@dataclass(frozen=True)
class Census:
    """Cheap figures that a cache of one scope is compared with."""

    store: str
    """A random name, given to the store when it was made."""
    space: str
    epoch: int
    count: int
    """Rows of the scope, in whatever state."""
    last: int
    """The highest sequence number of the scope; 0 if it is empty."""


class Task(StrEnum):
    """What waits in the queue for a model."""

    REMEMBER = "remember"
    """The subject is an episode of which no memory could be made, since the embedder was down."""
    COMPRESS = "compress"
    """The subject is a memory whose workflow rules wrote, since the model could not."""
    CATEGORISE = "categorise"
    """The subject is a memory in "others", since the model could not say more."""


@dataclass(frozen=True)
class Waiting:
    """One entry of the queue."""

    task: Task
    subject: str
    """The id of an episode or a memory."""
    scope: str
    error: str
    """What went wrong last time."""
    attempts: int
    since: float
    retry_at: float
    """No earlier than this it is tried again."""

    @property
    def given_up(self) -> bool:
        """It cannot succeed as things are, and is tried only where somebody asks for it."""
        return self.retry_at >= NEVER


@dataclass(frozen=True)
class Change:
    """One entry of the audit: what happened to one memory."""

    sequence: int
    at: float
    action: str
    """add, replace, forget, restore, quarantine, expire, credit, categorise, roll back, purge, erase, repair,
    reembed."""
    memory_id: str
    """Empty for what concerns no single memory."""
    scope: str
    reason: str
    before: Mapping[str, Any]
    """The fields that changed, as they were; empty for a new memory."""
    after: Mapping[str, Any]
    """Of a credit: which verdict for which memories, and their counts [uses, wins] from then on."""


@dataclass(frozen=True)
class KeptEpisode:
    """An episode as the store keeps it."""

    episode: Episode
    scope: str
    absorbed: bool
    """Its lesson has been drawn."""
    lessons: tuple[str, ...] = ()
    """The memories that were made of it."""


@dataclass(frozen=True)
class Erased:
    """What was removed for good, so that copies elsewhere can be removed too."""

    memories: tuple[str, ...] = ()
    episodes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    """The runs of those episodes."""
    images: tuple[str, ...] = ()
    """SHA-256 of images that no episode holds any more."""
    copies: tuple[Path, ...] = ()
    """The places where copies of this store's episodes were written (`register_copy`)."""
    backups: tuple[Path, ...] = ()
    """Copies of the whole store, from before its schema was changed or it was repaired; they were removed."""


@dataclass(frozen=True)
class Rollback:
    """What a rollback did."""

    to: int
    """The audit's sequence number of the last change that stands."""
    changes: tuple[Change, ...]
    """What was written into the audit, in the order in which it was done: the newest changes were undone first."""
    lost: tuple[str, ...]
    """Ids of memories that were there at that moment and were purged or erased since: they cannot come back."""


@dataclass(frozen=True)
class Statistics:
    """What a scope and all below it hold."""

    states: Mapping[str, int]
    """How many memories are in each state; the counts down to `newest` are of the active ones."""
    expired: int
    """How many of the active ones are not shown any more."""
    judgements: Mapping[str, int]
    kinds: Mapping[str, int]
    categories: Mapping[str, int]
    origins: Mapping[str, int]
    uses: int
    wins: int
    oldest: float | None
    """When the oldest was made; None if there is none."""
    newest: float | None
    episodes: int
    queue: Mapping[str, int]
    """What waits for a model, by task."""
    changes: int
    """Entries of the audit."""
    space: str
    """The embedding space of the whole store; empty while it has no vectors."""
    database_bytes: int
    """Of the whole store, as are the two below."""
    log_bytes: int
    cache_bytes: int


class Reading(Protocol):
    """What can be asked."""

    def space(self) -> str:
        """The embedding space of the stored vectors; empty while there are none."""
        ...

    def changes(self, scope: str, since: int, *, known: int = 0) -> Changes:
        """What changed in exactly this scope after revision `since` (0: everything). Vectors come with those whose
        sequence is above `known`."""
        ...

    def alike(self, scope: str, kind: MemoryKind, question: str) -> Sequence[tuple[Memory, MemoryVectors]]:
        """The active memories of exactly this scope whose question has the same `fingerprint`, oldest first."""
        ...

    def absorbed(self, episode_ids: Collection[str]) -> frozenset[str]:
        """Those of the episodes whose lesson has been drawn."""
        ...

    def kept(self, episode_ids: Collection[str]) -> frozenset[str]:
        """Those of the episodes that are there, whatever was drawn from them."""
        ...


class Writing(Reading, Protocol):
    """One open transaction. Valid only inside the `work` it is passed to."""

    def save_episode(self, episode: Episode, *, scope: str, absorbed: bool, lessons: Sequence[str] = ()) -> None:
        """Insert or overwrite by id; an episode once absorbed stays absorbed. `lessons`: the memories made of it. What
        it was shown of memories that were erased since is left out."""
        ...

    def insert(self, memory: Memory, vectors: MemoryVectors, *, replaces: str = "", reason: str = "") -> None:
        """Add a memory and, with `replaces`, take the one of that id out of sight. Raises StoreError if the vectors are
        of another space than the stored ones, RecordError if the id is taken."""
        ...

    def credit(self, scopes: Collection[str], group: str, shown: Collection[str], verdict: Verdict) -> int:
        """Count a verdict for the memories shown, after taking back what an earlier one for the group had counted.
        Memories of other scopes are left alone. Returns how many of them are in the store. The group belongs to the
        first of the scopes."""
        ...

    def set_state(self, ids: Collection[str], state: MemoryState, *, action: str, reason: str = "") -> tuple[str, ...]:
        """Returns the ids of those that it changed; a memory that is in the state already is left alone."""
        ...

    def set_category(self, id: str, category: str) -> None: ...

    def set_expiry(self, ids: Collection[str], at: float | None, *, reason: str = "") -> tuple[str, ...]:
        """Returns the ids of those that it changed."""
        ...

    def evict(self, scope: str, most: int) -> tuple[str, ...]:
        """Where exactly this scope has more than `most` active memories, forget down to 99 % of it: the expired first,
        then those that won least for their trials, the oldest first among equals. Returns the ids of the forgotten."""
        ...

    def enqueue(self, task: Task, subject: str, *, scope: str, error: str, delay: float) -> None:
        """Put into the queue, or count one more attempt, to be retried after `delay` seconds; infinite: given up."""
        ...

    def dequeue(self, task: Task, subjects: Collection[str]) -> None:
        """Take out of the queue; what is not in it is no error."""
        ...


class MemoryStore(Reading, Protocol):
    """Keeps memories and episodes. Safe to use from many threads and processes. Every method raises StoreError."""

    @property
    def location(self) -> str:
        """For messages: a path, or an address without a password."""
        ...

    @property
    def cache(self) -> Path | None:
        """The folder for rebuildable caches beside the store; None: keep none."""
        ...

    def transaction(self, work: Callable[[Writing], T]) -> T:
        """Run `work` alone among all writers; commit durably when it returns, undo everything when it raises. What
        several threads hand in at once is committed together; so it may be undone and run again for another's sake,
        and must change nothing but the store."""
        ...

    def census(self, scope: str) -> Census:
        """Of exactly this scope."""
        ...

    def mark(self, revision: int) -> str:
        """What happened at a revision, as far as no other history has it: two stores, or a store and a copy of it that
        went another way, differ in it. Empty for a revision that is not there."""
        ...

    # ── memories

    def memory(self, reference: str) -> Memory:
        """By id or unambiguous beginning of one, in whatever state. Raises RecordError if there is none, or more than
        one."""
        ...

    def memories(self, ids: Collection[str]) -> dict[str, Memory]:
        """Those that exist, by id, in whatever state."""
        ...

    def numbered(self, sequences: Collection[int]) -> dict[int, Memory]:
        """Those that exist, by sequence number, in whatever state."""
        ...

    def named(self, sequences: Collection[int]) -> dict[int, tuple[str, str]]:
        """Id and question of those that exist, by sequence number."""
        ...

    def numbers(self, ids: Collection[str]) -> dict[str, int]:
        """The sequence numbers of those that exist."""
        ...

    def memories_of(self, episode_ids: Collection[str]) -> tuple[Memory, ...]:
        """What is active because of these episodes, oldest first."""
        ...

    def list_memories(
        self,
        scope: str | None,
        *,
        limit: int,
        offset: int = 0,
        states: Collection[MemoryState] = (MemoryState.ACTIVE,),
        judgement: str | None = None,
    ) -> tuple[Memory, ...]:
        """Of a scope and all below it (None: of all), newest first."""
        ...

    def count_memories(
        self, scope: str | None = None, *, states: Collection[MemoryState] = (MemoryState.ACTIVE,)
    ) -> int:
        """How many are in a scope and all below it (None: in all)."""
        ...

    def export(self, scope: str | None) -> Iterator[tuple[Memory, MemoryVectors]]:
        """Every memory of a scope and all below it (None: of all), in whatever state, oldest first."""
        ...

    # ── the queue and the audit

    def queue(self, scope: str | None = None) -> tuple[Waiting, ...]:
        """What waits for a model, the longest waiting first."""
        ...

    def audit(
        self, *, memory_id: str = "", scope: str | None = None, limit: int, before: int | None = None
    ) -> tuple[Change, ...]:
        """The newest changes first; `before`: only those with a smaller sequence."""
        ...

    def statistics(self, scope: str | None = None) -> Statistics:
        """What a scope and all below it hold (None: the whole store)."""
        ...

    # ── going back, and removing for good

    def rollback(self, to: float | int, *, scope: str | None = None) -> Rollback:
        """Make a scope and all below it (None: the whole store) what it was at a time, or after a change of the audit
        (an int: its sequence number). What was added since is forgotten; verdicts counted since are taken back. All of
        it is in the audit, and can be rolled back."""
        ...

    def purge(
        self,
        *,
        scope: str | None = None,
        before: float | None = None,
        ids: Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Erased:
        """Remove for good what is forgotten, replaced or expired, and has been since `before`: of a scope and all below
        it (None: of all), and of these ids only where they are given. What is quarantined goes only by id, and what is
        in sight never. A late verdict for a purged memory does not find it; the reasons that were given for its changes
        go with it. A dry run changes nothing, and returns what would go."""
        ...

    def erase(
        self,
        *,
        scope: str | None = None,
        memory_ids: Collection[str] = (),
        episode_ids: Collection[str] = (),
        question_ids: Collection[str] = (),
    ) -> Erased:
        """Remove for good, in whatever state, and from every file of the store: all of a scope and below it; these
        memories (not the episodes they were made of); these episodes, and all episodes of these questions, with the
        memories made of them. With them go credits, queue entries, what the audit says of them, and what other episodes
        were shown of the memories; what a model repeated of them in an answer or a plan stays. Counts that other
        memories owe to them stay. Without arguments it finishes an erasure that was cut short.

        Raises StoreError if the rows are gone and their traces on the disk could not be removed: called again, it
        finishes that."""
        ...

    def erased_at(self, scope: str) -> float:
        """When all of this scope, or of a level above it, was erased last, in seconds since the epoch; 0: never."""
        ...

    # ── episodes

    def save_episode(self, episode: Episode, *, scope: str = "default") -> None:
        """Keep an episode; idempotent by id."""
        ...

    def load_episode(self, reference: str, *, scope: str | None = None) -> Episode:
        """By id, unambiguous beginning of one, or "last"; these two look only into `scope` and all below it (None:
        everywhere), while a whole id is found wherever it is. Raises RecordError if there is none, or more than
        one."""
        ...

    def episodes(self, ids: Collection[str]) -> dict[str, Episode]:
        """Those that exist, by id: whole ids only, never a beginning of one nor "last"."""
        ...

    def kept_episode(self, id: str) -> KeptEpisode | None:
        """The episode of exactly this id, with whose it is; None if there is none."""
        ...

    def list_episodes(
        self, *, run: str | None = None, scope: str | None = None, before: str = "", limit: int
    ) -> tuple[Episode, ...]:
        """The last saved first: of one run or of all, of a scope and all below it (None: of all), and of those that
        were saved before the one of this id."""
        ...

    def count_episodes(self, scope: str | None = None) -> int:
        """How many are in a scope and all below it (None: in all)."""
        ...

    def export_episodes(self, scope: str | None) -> Iterator[KeptEpisode]:
        """Every episode of a scope and all below it (None: of all), the first saved first."""
        ...

    def register_copy(self, place: Path) -> None:
        """Remember a folder in which copies of this store's episodes are written, so that erasure finds them."""
        ...

    def close(self) -> None:
        """Let go of the file; calling it twice is harmless."""
        ...
