"""The queue: what a model or an embedder could not do is done later, and can be seen until then.

An episode of which no memory could be made is remembered anew, with the others of its question that wait; a workflow
that rules wrote is written again from its episode and takes the place of the first; a memory without a category gets
one. What fails again waits longer (`waiting.py`), and so does what is out of sight; what can never succeed is given up,
and stays to be seen. An entry is dropped if its subject is gone, or if another has taken its place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mia.errors import ContextOverflow, ModelError
from mia.memory import guard
from mia.memory.compress import Compressor
from mia.memory.lessons import Lessons
from mia.memory.waiting import delay, seconds_left
from mia.models.ledger import Ledger
from mia.store.base import MemoryStore, Task, Waiting, Writing
from mia.types import Episode, Memory, MemoryState

Learn = Callable[[Sequence[Episode], Ledger], Awaitable[None]]


@dataclass(frozen=True)
class Retried:
    """What became of the queue."""

    done: int = 0
    failed: int = 0
    dropped: int = 0
    """Their subject is gone, or another has taken its place."""

    def __add__(self, other: Retried) -> Retried:
        return Retried(self.done + other.done, self.failed + other.failed, self.dropped + other.dropped)


class Retrier:
    """Works off entries of the queue."""

    def __init__(
        self,
        store: MemoryStore,
        compressor: Compressor,
        lessons: Lessons,
        learn: Learn,
    ) -> None:
        """`learn`: what the manager does with the episodes of a question that it has kept. Raises ModelError."""
        self._store = store
        self._compressor = compressor
        self._lessons = lessons
        self._learn = learn

    def possible(self, entries: Sequence[Waiting]) -> Sequence[Waiting]:
        """Those that can be tried at all: without a model, nothing is written or sorted anew."""
        return [one for one in entries if one.task is Task.REMEMBER or self._compressor.has_model]

    async def retry(
        self, entries: Sequence[Waiting], ledger: Ledger, on_progress: Callable[[int, int], None] | None = None
    ) -> Retried:
        """Work off these entries, which belong to the manager's scope; after each, `on_progress(done, total)`. Raises
        StoreError."""
        total = Retried()
        groups = [[entry] for entry in entries if entry.task is not Task.REMEMBER]
        groups += await self._by_question([entry for entry in entries if entry.task is Task.REMEMBER])
        done = 0
        for group in groups:
            total += await self._work_off(group, ledger)
            done += len(group)
            if on_progress is not None:
                on_progress(done, len(entries))
        return total

    async def _by_question(self, entries: Sequence[Waiting]) -> list[list[Waiting]]:
        """What is learnt of a question is chosen among all its episodes."""
        episodes = await asyncio.to_thread(self._store.episodes, [entry.subject for entry in entries])
        groups: dict[str, list[Waiting]] = {}
        for entry in entries:
            episode = episodes.get(entry.subject)
            groups.setdefault(episode.question.id if episode else f"gone {entry.subject}", []).append(entry)
        return list(groups.values())

    async def _work_off(self, group: Sequence[Waiting], ledger: Ledger) -> Retried:
        if not self.possible(group):
            return Retried(failed=len(group))
        task = group[0].task
        if task is Task.REMEMBER:
            return await self._remember(group, ledger)
        return await (self._compress if task is Task.COMPRESS else self._categorise)(group[0], ledger)

    async def _remember(self, group: Sequence[Waiting], ledger: Ledger) -> Retried:
        ids = [entry.subject for entry in group]
        absorbed = await asyncio.to_thread(self._store.absorbed, ids)
        kept = await asyncio.to_thread(self._store.episodes, [id for id in ids if id not in absorbed])
        gone = [entry for entry in group if entry.subject not in kept]
        for entry in gone:
            await self._drop(entry)
        if not kept:
            return Retried(dropped=len(gone))
        try:
            await self._learn([kept[id] for id in ids if id in kept], ledger)
        except ModelError as error:
            for entry in group:
                if entry.subject in kept:
                    await self._put_off(entry, error.got, hopeless=isinstance(error, ContextOverflow))
            return Retried(failed=len(kept), dropped=len(gone))
        return Retried(done=len(kept), dropped=len(gone))

    async def _compress(self, entry: Waiting, ledger: Ledger) -> Retried:
        memory, episode = await self._subject(entry)
        if memory is None or episode is None:
            return await self._drop(entry)
        if memory.state is not MemoryState.ACTIVE:
            return await self._put_off(entry, "it is out of sight")
        compressed = await self._compressor.compress(episode, ledger)
        if compressed.error or guard.junk(memory.question, compressed.workflow):
            error = compressed.error or "what the model wrote is no workflow"
            return await self._put_off(entry, error, hopeless=compressed.hopeless)
        siblings = [one.id for one in await asyncio.to_thread(self._store.memories_of, [episode.id])]
        unsorted = [
            one
            for one in await asyncio.to_thread(self._store.queue)
            if one.task is Task.CATEGORISE and one.subject == memory.id
        ]

        def rewrite(writing: Writing) -> None:
            writing.dequeue(entry.task, [memory.id])
            alike = writing.alike(memory.scope, memory.kind, memory.question)
            vectors = next((vectors for one, vectors in alike if one.id == memory.id), None)
            if vectors is None:
                # Meanwhile a better run has taken its place.
                return
            lesson = self._lessons.rewritten(memory, compressed, vectors)
            if lesson.suspicion:
                # What the rules wrote stays.
                return
            writing.insert(lesson.memory, vectors, replaces=memory.id, reason="written again by the model")
            lessons = [lesson.memory.id if id == memory.id else id for id in siblings]
            writing.save_episode(episode, scope=memory.scope, absorbed=True, lessons=lessons)
            for other in unsorted:
                writing.dequeue(other.task, [memory.id])
                seconds = seconds_left(other, time.time())
                writing.enqueue(other.task, lesson.memory.id, scope=other.scope, error=other.error, delay=seconds)

        await asyncio.to_thread(self._store.transaction, rewrite)
        return Retried(done=1)

    async def _categorise(self, entry: Waiting, ledger: Ledger) -> Retried:
        memory, episode = await self._subject(entry)
        if memory is None or episode is None:
            return await self._drop(entry)
        category = await self._compressor.categorise(episode.question, ledger)
        if category.error:
            return await self._put_off(entry, category.error, hopeless=category.hopeless)

        def sort(writing: Writing) -> None:
            writing.set_category(memory.id, category.name)
            writing.dequeue(entry.task, [entry.subject])

        await asyncio.to_thread(self._store.transaction, sort)
        return Retried(done=1)

    async def _subject(self, entry: Waiting) -> tuple[Memory | None, Episode | None]:
        """The memory, unless another has taken its place, and the episode that it was made of."""
        memory = (await asyncio.to_thread(self._store.memories, [entry.subject])).get(entry.subject)
        if memory is None or memory.state is MemoryState.REPLACED:
            return None, None
        id = memory.provenance.episode_id
        return memory, (await asyncio.to_thread(self._store.episodes, [id])).get(id)

    async def _put_off(self, entry: Waiting, error: str, *, hopeless: bool = False) -> Retried:
        seconds = delay(entry.attempts, hopeless=hopeless)
        await asyncio.to_thread(
            self._store.transaction,
            lambda writing: writing.enqueue(entry.task, entry.subject, scope=entry.scope, error=error, delay=seconds),
        )
        return Retried(failed=1)

    async def _drop(self, entry: Waiting) -> Retried:
        await asyncio.to_thread(self._store.transaction, lambda writing: writing.dequeue(entry.task, [entry.subject]))
        return Retried(dropped=1)
