"""The Memory Manager: compresses what was tried, keeps it, and finds the few earlier workflows that matter.

What it promises: a memory that `remember`, `credit` or `add` has returned is on the disk and seen by every process; the
same episode remembered twice, or the same group credited twice, changes nothing; a memory below the similarity floor is
never shown; no error text and no reference answer ever becomes a memory (nobody hands it one). Near-duplicates follow
one rule: an incorrect memory gives way to a newer one, a correct memory only to a correct one with a shorter workflow.

Whoever replaces another starts its own statistics (uses = wins = 1): the counts belong to the text that was shown, and
stay with it, out of sight, for late credit.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal

from mia.config import MemorySettings
from mia.embeddings.base import Embedder
from mia.errors import ConfigError, ContextOverflow, ModelError, RecordError
from mia.events import StageFinished
from mia.memory import guard
from mia.memory.bank import Banks
from mia.memory.compress import CATEGORIES, OTHERS, Compressor
from mia.memory.lessons import Lesson, Lessons, Origin, is_judged, store_lessons
from mia.memory.questions import Vectorizer
from mia.memory.recalling import Asked, Found, Recaller
from mia.memory.retrying import Retried, Retrier
from mia.memory.waiting import delay, due
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.prompt import PromptStyle
from mia.redaction import Redactor
from mia.scope import lineage
from mia.store.base import MemoryStore, MemoryVectors, Task, Waiting, Writing, storable
from mia.types import Episode, Memory, MemoryKind, MemoryState, Outcome, Question, Recall, Verdict

RETRIED = 2
"""Entries of the queue that are worked off at a time, by the clock or after an episode as long as the model answers."""

UNDER_WAY = 600.0
"""Seconds after which an episode whose remembering was broken off is taken up again."""

Judgement = Literal["correct", "incorrect"]
Stale = Mapping[str, Collection[str]]
"""Episode → what was learnt from it under another verdict."""


class MemoryManager:
    """The memory strategy of MIA. Without a model, workflows are written by rules and categories stay "others"."""

    def __init__(
        self,
        store: MemoryStore,
        embedder: Embedder,
        settings: MemorySettings,
        model: ChatModel | None = None,
        *,
        style: PromptStyle = "full",
        banks: Banks | None = None,
    ) -> None:
        """`banks`: of the store, where managers of several scopes are to share them."""
        self._store = store
        self._settings = settings
        self._redactor = Redactor(settings.redact)
        self._compressor = Compressor(model, categories=settings.categories, style=style)
        self._vectorizer = Vectorizer(store, embedder)
        self._lessons = Lessons(self._compressor, settings)
        self._recaller = Recaller(store, settings, banks)
        self._retrier = Retrier(store, self._compressor, self._lessons, self._learn_again)
        self._retrying = False
        """Some of the queue is worked off at this moment."""
        self._remembering: Counter[str] = Counter()
        """Episodes that are learnt from at this moment; that they wait in the queue is for the case of a death."""

    @property
    def store(self) -> MemoryStore:
        """Where it all is: audit, queue, statistics, forgetting, export."""
        return self._store

    @property
    def scope(self) -> str:
        """Where what is learnt goes."""
        return self._settings.scope

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        return self._compressor.prompts

    # ── the three verbs of the line ───────────────────────────────────────────────────────────────────────────────

    async def recall(
        self,
        question: Question,
        *,
        kind: MemoryKind = MemoryKind.WORKFLOW,
        skip: frozenset[str] = frozenset(),
        floor: float | None = None,
        ledger: Ledger | None = None,
    ) -> Recall:
        """The few past workflows that matter, or the most similar plan pairs. Raises StoreError, ModelError (the
        embedder's).

        `floor`: nothing less similar is shown, instead of what the settings say. With categories on and a ledger,
        memories of other categories are left out; "others" goes with all.
        """
        begun = time.perf_counter()
        category = (await self._compressor.categorise(question, ledger)).name if ledger is not None else OTHERS
        recall = await asyncio.to_thread(
            self.recall_now, question.text, question.caption, kind=kind, skip=skip, category=category, floor=floor
        )
        return recall.evolve(seconds=time.perf_counter() - begun)

    def recall_now(
        self,
        text: str,
        caption: str = "",
        *,
        vectors: MemoryVectors | None = None,
        kind: MemoryKind = MemoryKind.WORKFLOW,
        skip: Collection[str] = frozenset(),
        category: str = OTHERS,
        k: tuple[int, int] | None = None,
        floor: float | None = None,
    ) -> Recall:
        """`recall`, for callers that are not async, or have embedded the question themselves: then `vectors` are those
        of `heard(text, caption)`, and the text may be empty. `k`: so many memories of correct and of incorrect answers,
        and `floor`, instead of what the settings say. Raises StoreError, ModelError (the embedder's)."""
        if not self._store.space():
            # Nothing is stored: the embedder, which may take seconds to load, is left alone.
            return Recall(kind=kind, wanted=self._recaller.wanted(kind, k))
        text, caption = self.heard(text, caption)
        if vectors is None:
            vectors = self._vectorizer.vectors(text, caption)
        return self._recaller.recall(vectors, question=text, kind=kind, skip=skip, category=category, k=k, floor=floor)

    def recall_many(self, asked: Sequence[Asked]) -> Sequence[Recall]:
        """`recall_now` for questions that are embedded and `heard`: all see the memory at one moment, and each gets
        what it would get alone. Raises StoreError, for all of them."""
        if not self._store.space():
            return [Recall(kind=one.kind, wanted=self._recaller.wanted(one.kind, one.k)) for one in asked]
        return self._recaller.recall_many(asked)

    def heard(self, text: str, caption: str = "") -> tuple[str, str]:
        """Question and caption as they would be stored, and so are embedded: a blacked out key makes two questions no
        less alike."""
        return self._redactor(storable(text)), self._redactor(storable(caption))

    async def remember(self, group: Sequence[Episode], ledger: Ledger) -> tuple[Memory, ...]:
        """Compress and store the episodes of one question; idempotent by episode id. Raises StoreError.

        What becomes of them is told in `lessons.py`. While the embedder cannot be asked they are only kept, and wait in
        the queue; so does what the model could not write. Returns what is in sight because of them.
        """
        if len({episode.question.id for episode in group}) > 1:
            raise ValueError("a group holds the episodes of one question")
        if self._settings.frozen or not group:
            return ()
        await self._remember([group], ledger, origin="episode")
        ids = [episode.id for episode in group]
        return await asyncio.to_thread(self._store.memories_of, ids)

    async def credit(self, group: str, shown: frozenset[str], verdict: Verdict) -> int:
        """uses+1, and wins+1 if correct, for the memories shown; once per group, a later verdict replaces the earlier.

        Unjudged credits nothing. Returns how many memories were credited. Raises StoreError.
        """
        if self._settings.frozen or verdict.outcome is Outcome.UNJUDGED:
            return 0
        scopes = lineage(self._settings.scope)
        return await asyncio.to_thread(
            self._store.transaction, lambda writing: writing.credit(scopes, group, shown, verdict)
        )

    async def close(self) -> None:
        """Keep the caches and close the store."""
        await asyncio.to_thread(self.close_now)

    # ── many at once, and what was left over ──────────────────────────────────────────────────────────────────────

    async def remember_many(
        self, groups: Sequence[Sequence[Episode]], ledger: Ledger, *, origin: Origin = "episode"
    ) -> int:
        """Like `remember` for many groups of episodes: embedded together, and stored in one transaction. Returns how
        many memories the store holds now for them. Raises StoreError, ConfigError (frozen)."""
        self._refuse_frozen()
        return await self._remember(groups, ledger, origin=origin)

    async def retry_due(self, ledger: Ledger) -> Retried:
        """Work off a few entries of the scope's queue whose time has come; none while another call does, or where the
        memory is frozen. Raises StoreError."""
        if self._retrying or self._settings.frozen:
            return Retried()
        self._retrying = True
        try:
            waiting = [one for one in await self._queue() if not self._remembering[one.subject]]
            entries = due(self._retrier.possible(waiting), time.time())[:RETRIED]
            return await self._retrier.retry(entries, ledger)
        finally:
            self._retrying = False

    async def retry(self, ledger: Ledger, *, on_progress: Callable[[int, int], None] | None = None) -> Retried:
        """Work off the whole queue of the scope, due or not. Raises StoreError, ConfigError (frozen)."""
        self._refuse_frozen()
        return await self._retrier.retry(await self._queue(), ledger, on_progress)

    # ── for people ────────────────────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        question: str,
        workflow: str,
        judgement: Judgement,
        *,
        caption: str = "",
        category: str = OTHERS,
        plan: str = "",
    ) -> Memory:
        """Store what a user knows. Returns what the store now holds for it: an older near-duplicate, if the rules keep
        that one. Raises RecordError, ConfigError (frozen), StoreError, ModelError (the embedder's)."""
        question, workflow, caption, plan = self.check(
            question, workflow, judgement, caption=caption, category=category, plan=plan
        )
        lesson = self._lessons.by_hand(
            question,
            workflow,
            judgement,
            self._vectorizer.vectors(question, caption),
            caption=caption,
            category=category,
            plan=plan,
        )
        (id,) = self._store.transaction(lambda writing: self._keep(writing, [lesson]))
        self.make_room()
        return self._store.memories([id])[id]

    def check(
        self,
        question: str,
        workflow: str,
        judgement: str,
        *,
        caption: str = "",
        category: str = OTHERS,
        plan: str = "",
    ) -> tuple[str, str, str, str]:
        """Whether `add` would take this, without storing anything. Returns question, workflow, caption and plan as they
        would be stored. Raises RecordError, ConfigError (frozen)."""
        self._refuse_frozen()
        question, workflow, caption, plan = (
            self._redactor(storable(text).strip()) for text in (question, workflow, caption, plan)
        )
        if not question or not workflow:
            raise RecordError(f"a memory without a {'workflow' if question else 'question'}.", wanted="some text")
        if judgement not in ("correct", "incorrect"):
            raise RecordError(f"no judgement: '{judgement}'.", wanted="correct or incorrect")
        if category not in CATEGORIES:
            raise RecordError(f"no category: '{category}'.", wanted=", ".join(CATEGORIES))
        if junk := guard.junk(question, workflow):
            raise RecordError(f"this is no workflow: {junk}.", wanted="what was tried and found, step by step")
        return question, workflow, caption, plan

    def list(self, *, limit: int = 50, offset: int = 0) -> tuple[Memory, ...]:
        """What is in sight in the scope and below it, newest first. Raises StoreError."""
        return self._store.list_memories(self._settings.scope, limit=limit, offset=offset)

    def show(self, reference: str) -> Memory:
        """By id or unambiguous beginning of one. Raises RecordError, StoreError."""
        return self._store.memory(reference)

    def search(self, text: str, *, k: int = 10) -> tuple[Found, ...]:
        """The k workflows whose questions are most similar to a text, whatever their judgement, with no floor.
        Raises StoreError, ModelError (the embedder's)."""
        if not self._store.space() or not text.strip():
            return ()
        return self._recaller.search(self._vectorizer.vectors(storable(text)), k)

    def forget(self, ids: Iterable[str], *, reason: str = "") -> tuple[str, ...]:
        """Put memories out of sight; `restore` undoes it. Returns the ids of those that it changed. Raises StoreError,
        ConfigError (frozen)."""
        return self._set_state(ids, MemoryState.FORGOTTEN, "forget", reason)

    def quarantine(self, ids: Iterable[str], *, reason: str = "") -> tuple[str, ...]:
        """Put memories out of sight until somebody has looked at them; `restore` undoes it. Like `forget`."""
        return self._set_state(ids, MemoryState.QUARANTINED, "quarantine", reason)

    def restore(self, ids: Iterable[str], *, reason: str = "") -> tuple[str, ...]:
        """Bring forgotten, quarantined, replaced or expired memories back into sight. Like `forget`."""
        ids = tuple(ids)
        restored = self._set_state(ids, MemoryState.ACTIVE, "restore", reason)
        now = time.time()
        expired = [id for id, memory in self._store.memories(ids).items() if memory.expired(now)]
        if expired:
            self._store.transaction(lambda writing: writing.set_expiry(expired, None, reason=reason))
        return tuple(dict.fromkeys((*restored, *expired)))

    def expire(self, ids: Iterable[str], at: float | None, *, reason: str = "") -> tuple[str, ...]:
        """Let memories run out at a time (seconds since the epoch; None: never). Like `forget`."""
        self._refuse_frozen()
        chosen = tuple(ids)
        return self._store.transaction(lambda writing: writing.set_expiry(chosen, at, reason=reason))

    def release(self) -> None:
        """Keep the caches, and leave the store open: for who holds one store for many scopes."""
        self._recaller.close()

    def close_now(self) -> None:
        """`close`, for callers that are not async."""
        try:
            self._recaller.close()
        finally:
            self._store.close()

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _remember(self, groups: Sequence[Sequence[Episode]], ledger: Ledger, *, origin: Origin) -> int:
        """How many memories are held for the groups."""
        begun = time.perf_counter()
        fresh, stale = await asyncio.to_thread(self._fresh, groups)
        if not fresh:
            return 0
        ids = [episode.id for group in fresh for episode in group]
        self._remembering.update(ids)
        try:
            # Kept first, and in the queue: a lesson needs a model and an embedder, and may come later or never.
            await asyncio.to_thread(self._store.transaction, lambda writing: self._save(writing, fresh, stale))
            lessons = await self._learn(fresh, ledger, origin, stale)
        except ModelError as error:
            trouble, seconds = error.got, delay(0, hopeless=isinstance(error, ContextOverflow))
            await asyncio.to_thread(
                self._store.transaction, lambda writing: self._put_off(writing, fresh, trouble, seconds)
            )
            _tell(ledger, begun, f"kept, and not yet learnt from: {trouble}")
            return 0
        finally:
            self._remembering.subtract(ids)
            self._remembering += Counter()
        for lesson in lessons:
            if lesson.suspicion:
                _tell(ledger, begun, f"{lesson.memory.id} is quarantined: {lesson.suspicion}")
        if not any(lesson.waiting for lesson in lessons):
            # Only while the model answers.
            await self.retry_due(ledger)
        return len(lessons)

    def _fresh(self, groups: Sequence[Sequence[Episode]]) -> tuple[Sequence[Sequence[Episode]], Stale]:
        """What is still to be learnt, redacted: what was not absorbed, and what was absorbed under another verdict."""
        ids = [episode.id for group in groups for episode in group]
        done = self._store.absorbed(ids)
        known = self._store.episodes(done) if done else {}
        stale = {
            episode.id: tuple(memory.id for memory in self._store.memories_of([episode.id]))
            for group in groups
            for episode in group
            if episode.id in known and _verdict_changed(known[episode.id], episode)
        }
        fresh = [
            [self._redactor.model(one) for one in group if one.id not in done or one.id in stale] for group in groups
        ]
        return [group for group in fresh if group], stale

    async def _learn(
        self, groups: Sequence[Sequence[Episode]], ledger: Ledger, origin: Origin, stale: Stale
    ) -> Sequence[Lesson]:
        """Draw the lessons of groups that are kept, and store them. Raises ModelError."""
        lessons = await self._draw(groups, ledger, origin)
        await asyncio.to_thread(self._store.transaction, lambda writing: self._absorb(writing, groups, lessons, stale))
        await asyncio.to_thread(self.make_room)
        return [lesson for group in lessons for lesson in group]

    async def _learn_again(self, group: Sequence[Episode], ledger: Ledger) -> None:
        imported = all(one.verdict is not None and one.verdict.judge == "import" for one in group)
        await self._learn([group], ledger, "import" if imported else "episode", {})

    async def _draw(
        self, groups: Sequence[Sequence[Episode]], ledger: Ledger, origin: Origin
    ) -> Sequence[Sequence[Lesson]]:
        """The lessons of each group; model and embedder are asked here, before any lock is taken. Raises ModelError."""
        questions = [self._lessons.question(group) for group in groups]
        asked = [(storable(one.text), storable(one.caption)) for one in questions if one is not None]
        vectors = iter(await asyncio.to_thread(self._vectorizer.many, asked)) if asked else iter(())
        return [
            await self._lessons.draw(group, next(vectors), ledger, origin=origin) if question is not None else ()
            for group, question in zip(groups, questions, strict=True)
        ]

    def _save(self, writing: Writing, groups: Sequence[Sequence[Episode]], stale: Stale) -> None:
        """Keep the episodes, and put into the queue what a death in the middle would leave unlearnt. An episode with
        another verdict is there already, and is saved together with what is learnt under it."""
        for group in groups:
            telling = self._lessons.question(group) is not None
            for episode in (one for one in group if one.id not in stale):
                writing.save_episode(episode, scope=self._settings.scope, absorbed=False)
                if telling and is_judged(episode):
                    self._enqueue(writing, episode, "not finished yet", UNDER_WAY)

    def _put_off(self, writing: Writing, groups: Sequence[Sequence[Episode]], error: str, seconds: float) -> None:
        for group in groups:
            if self._lessons.question(group) is not None:
                for episode in filter(is_judged, group):
                    writing.dequeue(Task.REMEMBER, [episode.id])
                    self._enqueue(writing, episode, error, seconds)

    def _enqueue(self, writing: Writing, episode: Episode, error: str, seconds: float) -> None:
        writing.enqueue(Task.REMEMBER, episode.id, scope=self._settings.scope, error=error, delay=seconds)

    def _absorb(
        self,
        writing: Writing,
        groups: Sequence[Sequence[Episode]],
        lessons: Sequence[Sequence[Lesson]],
        stale: Stale,
    ) -> None:
        """All groups in one transaction. What another process absorbed since we looked is left as it is, and what was
        erased since stays erased."""
        there = writing.kept([episode.id for group in groups for episode in group])
        for whole, drawn in zip(groups, lessons, strict=True):
            group = [episode for episode in whole if episode.id in there]
            ids = [episode.id for episode in group]
            # What was learnt under another verdict makes room for what is learnt under this one.
            outdated = [memory_id for id in ids for memory_id in stale.get(id, ())]
            writing.set_state(outdated, MemoryState.FORGOTTEN, action="forget", reason="its verdict changed")
            done = writing.absorbed(ids) - stale.keys()
            made_of = set(ids) - done
            drawn = [lesson for lesson in drawn if lesson.memory.provenance.episode_id in made_of]
            held = self._keep(writing, drawn)
            for episode in group:
                made = [
                    lesson.memory.id
                    for id, lesson in zip(held, drawn, strict=True)
                    if id == lesson.memory.id and lesson.memory.provenance.episode_id == episode.id
                ]
                writing.save_episode(episode, scope=self._settings.scope, absorbed=is_judged(episode), lessons=made)
            writing.dequeue(Task.REMEMBER, [episode.id for episode in whole])

    def _keep(self, writing: Writing, lessons: Sequence[Lesson]) -> Sequence[str]:
        return store_lessons(writing, lessons, replace_below=self._settings.replace_below)

    def make_room(self) -> None:
        """Hold the scope to its quota. Raises StoreError."""
        most, scope = self._settings.quota, self._settings.scope
        if most and self._recaller.count() > most:
            self._store.transaction(lambda writing: writing.evict(scope, most))

    async def _queue(self) -> Sequence[Waiting]:
        """Of exactly this scope: what is below belongs to others."""
        scope = self._settings.scope
        return [one for one in await asyncio.to_thread(self._store.queue, scope) if one.scope == scope]

    def _set_state(self, ids: Iterable[str], state: MemoryState, action: str, reason: str) -> tuple[str, ...]:
        self._refuse_frozen()
        chosen = tuple(ids)
        return self._store.transaction(
            lambda writing: writing.set_state(chosen, state, action=action, reason=self._redactor(reason))
        )

    def _refuse_frozen(self) -> None:
        if self._settings.frozen:
            raise ConfigError(
                "the memory is frozen: it recalls, and takes nothing in.", hint="set memory.frozen = false"
            )


def _verdict_changed(old: Episode, new: Episode) -> bool:
    """Whether an episode that was learnt from comes again with the other verdict; one without any says nothing."""
    return is_judged(new) and is_judged(old) and _is_correct(new) != _is_correct(old)


def _is_correct(episode: Episode) -> bool:
    return episode.verdict is not None and episode.verdict.correct


def _tell(ledger: Ledger, begun: float, summary: str) -> None:
    """An event about what did not go as planned."""
    ledger.on_event(
        StageFinished(
            question_id=ledger.question_id,
            stage="remember",
            seconds=time.perf_counter() - begun,
            summary=summary,
            ok=False,
        )
    )
