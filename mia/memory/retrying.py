"""The queue: what a model or an embedder could not do is done later, and can be seen until then.

An episode of which no memory could be made is remembered anew, with the others of its question; a workflow that rules
wrote is written again from its episode and takes the place of the first; a memory without a category gets one. What
fails again waits longer, up to a day. An entry whose subject is gone, or no longer in sight, is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mia.config import MemorySettings
from mia.errors import ModelError, RecordError
from mia.memory import guard
from mia.memory.compress import Compressor
from mia.memory.lessons import Lessons, store_lessons
from mia.memory.questions import Vectorizer
from mia.models.ledger import Ledger
from mia.store.base import MemoryStore, Task, Waiting, Writing
from mia.types import Episode, Memory, MemoryState, new_id

FIRST_DELAY = 60.0
"""Seconds before the second try; doubled each time."""
LONGEST_DELAY = 86_400.0


@dataclass(frozen=True)
class Retried:
    """What became of the queue."""

    done: int = 0
    failed: int = 0
    dropped: int = 0
    """Their subject is gone."""

    def __add__(self, other: Retried) -> Retried:
        return Retried(self.done + other.done, self.failed + other.failed, self.dropped + other.dropped)


def delay(attempts: int) -> float:
    """Seconds to wait after so many failures."""
    return min(FIRST_DELAY * 2.0 ** min(attempts, 32), LONGEST_DELAY)


def due(waiting: Sequence[Waiting], now: float) -> Sequence[Waiting]:
    """Those whose time has come; also where the clock was put back since they were put off."""
    return [one for one in waiting if one.retry_at <= now or one.retry_at > now + LONGEST_DELAY]


class Retrier:
    """Works off entries of the queue."""

    def __init__(
        self,
        store: MemoryStore,
        settings: MemorySettings,
        compressor: Compressor,
        lessons: Lessons,
        vectorizer: Vectorizer,
    ) -> None:
        self._store = store
        self._settings = settings
        self._compressor = compressor
        self._lessons = lessons
        self._vectorizer = vectorizer

    def possible(self, entries: Sequence[Waiting]) -> Sequence[Waiting]:
        """Those that can be tried at all: without a model, nothing is written or sorted anew."""
        return [one for one in entries if one.task is Task.REMEMBER or self._compressor.has_model]

    async def retry(
        self, entries: Sequence[Waiting], ledger: Ledger, on_progress: Callable[[int, int], None] | None = None
    ) -> Retried:
        """Work off these entries, which belong to the manager's scope; after each, `on_progress(done, total)`. Raises
        StoreError."""
        total = Retried()
        for count, entry in enumerate(entries, start=1):
            if not self.possible([entry]):
                total += Retried(failed=1)
                continue
            if entry.task is Task.REMEMBER:
                total += await self._remember(entry, ledger)
            elif entry.task is Task.COMPRESS:
                total += await self._compress(entry, ledger)
            else:
                total += await self._categorise(entry, ledger)
            if on_progress is not None:
                on_progress(count, len(entries))
        return total

    async def _remember(self, entry: Waiting, ledger: Ledger) -> Retried:
        episode = await self._episode(entry.subject)
        done = await asyncio.to_thread(self._store.absorbed, [entry.subject])
        if episode is None or done:
            return await self._drop(entry)
        question = self._lessons.question([episode])
        try:
            vectors = (
                await asyncio.to_thread(self._vectorizer.vectors, question.text, question.caption) if question else None
            )
        except ModelError as error:
            return await self._put_off(entry, error.got)
        lessons = await self._lessons.draw([episode], vectors, ledger) if vectors is not None else []

        def absorb(writing: Writing) -> None:
            if not writing.absorbed([episode.id]):
                held = store_lessons(writing, lessons, replace_below=self._settings.replace_below)
                made = [lesson.memory.id for lesson in lessons if lesson.memory.id in held]
                writing.save_episode(episode, scope=entry.scope, absorbed=True, lessons=made)
            writing.dequeue(entry.task, [entry.subject])

        await asyncio.to_thread(self._store.transaction, absorb)
        return Retried(done=1)

    async def _compress(self, entry: Waiting, ledger: Ledger) -> Retried:
        memory = await self._memory(entry.subject)
        episode = await self._episode(memory.provenance.episode_id) if memory is not None else None
        if memory is None or episode is None:
            return await self._drop(entry)
        compressed = await self._compressor.compress(episode, ledger)
        if compressed.error or guard.junk(memory.question, compressed.workflow):
            return await self._put_off(entry, compressed.error or "what the model wrote is no workflow")
        vectors = await asyncio.to_thread(self._vectorizer.vectors, memory.question, memory.caption)
        now = time.time()
        # Another text: it begins its own statistics, as whatever replaces another does.
        rewritten = memory.evolve(
            id=new_id("mem"),
            workflow=compressed.workflow,
            provenance=memory.provenance.evolve(compressed_by=compressed.by),
            uses=1,
            wins=1,
            created_at=now,
            updated_at=now,
        )

        unsorted = [
            one
            for one in await asyncio.to_thread(self._store.queue)
            if one.task is Task.CATEGORISE and one.subject == memory.id
        ]

        def replace(writing: Writing) -> None:
            writing.dequeue(entry.task, [memory.id])
            # Meanwhile a better run may have taken its place.
            if memory.id in {one.id for one, _ in writing.alike(memory.scope, memory.kind, memory.question)}:
                writing.insert(rewritten, vectors, replaces=memory.id, reason="written again by the model")
                for other in unsorted:
                    writing.dequeue(other.task, [memory.id])
                    writing.enqueue(other.task, rewritten.id, scope=other.scope, error=other.error, delay=0)

        await asyncio.to_thread(self._store.transaction, replace)
        return Retried(done=1)

    async def _categorise(self, entry: Waiting, ledger: Ledger) -> Retried:
        memory = await self._memory(entry.subject)
        episode = await self._episode(memory.provenance.episode_id) if memory is not None else None
        if memory is None or episode is None:
            return await self._drop(entry)
        category = await self._compressor.categorise(episode.question, ledger)
        if category.error:
            return await self._put_off(entry, category.error)

        def sort(writing: Writing) -> None:
            writing.set_category(memory.id, category.name)
            writing.dequeue(entry.task, [entry.subject])

        await asyncio.to_thread(self._store.transaction, sort)
        return Retried(done=1)

    async def _memory(self, id: str) -> Memory | None:
        """The memory, if it is still in sight."""
        memory = (await asyncio.to_thread(self._store.memories, [id])).get(id)
        return memory if memory is not None and memory.state is MemoryState.ACTIVE else None

    async def _episode(self, id: str) -> Episode | None:
        try:
            return await asyncio.to_thread(self._store.load_episode, id) if id else None
        except RecordError:
            return None

    async def _put_off(self, entry: Waiting, error: str) -> Retried:
        await asyncio.to_thread(
            self._store.transaction,
            lambda writing: writing.enqueue(
                entry.task, entry.subject, scope=entry.scope, error=error, delay=delay(entry.attempts)
            ),
        )
        return Retried(failed=1)

    async def _drop(self, entry: Waiting) -> Retried:
        await asyncio.to_thread(self._store.transaction, lambda writing: writing.dequeue(entry.task, [entry.subject]))
        return Retried(dropped=1)
