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
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

from mia.config import MemorySettings
from mia.embeddings.base import Embedder
from mia.errors import ConfigError, ModelError, RecordError, StoreError
from mia.events import StageFinished
from mia.memory import present, score
from mia.memory.bank import Bank, Shelf
from mia.memory.compress import CATEGORIES, Compressor
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.store.base import MemoryStore, MemoryVectors, Writing, storable
from mia.types import (
    Episode,
    Memory,
    MemoryKind,
    Outcome,
    Provenance,
    Question,
    Recall,
    RecalledMemory,
    StopReason,
    Verdict,
    new_id,
)

NEAR_DUPLICATE = 0.9999
"""Similarity from which two questions of the same words count as the same."""
PLAN_PAIRS = 2
"""Plan pairs that a recall shows at most."""

# An embedder reads the first few hundred words; a text of ten megabytes is not to keep it busy for minutes.
_EMBEDDED_CHARACTERS = 8_000
# An execution that ended so, without an answer, says nothing about the path.
_BROKEN_OFF = (StopReason.MODEL_FAILED, StopReason.UNREACHABLE, StopReason.BUDGET, StopReason.RUN_BUDGET)

_WORD = re.compile(r"\w+")

Judgement = Literal["correct", "incorrect"]


@dataclass(frozen=True)
class Found:
    """A memory that a user searched for, and how similar its question is."""

    memory: Memory
    similarity: float


@dataclass(frozen=True)
class _Lesson:
    """A memory about to be stored."""

    memory: Memory
    vectors: MemoryVectors
    within_judgement: bool = False
    """Look for near-duplicates of the same judgement only, so that a question's negative survives its positive."""


class MemoryManager:
    """The memory strategy of MIA. Without a model, workflows are written by rules and categories stay "others"."""

    def __init__(
        self, store: MemoryStore, embedder: Embedder, settings: MemorySettings, model: ChatModel | None = None
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._settings = settings
        self._weights = score.Weights(settings.similarity_weight, settings.value_weight, settings.frequency_weight)
        self._compressor = Compressor(model, categories=settings.categories)
        self._bank = Bank(settings.scope)

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
        ledger: Ledger | None = None,
    ) -> Recall:
        """The few past workflows that matter, or the most similar plan pairs. Raises StoreError.

        With categories on and a ledger, memories of other categories are left out; "others" goes with all.
        """
        begun = time.perf_counter()
        category = await self._compressor.categorise(question, ledger) if ledger is not None else "others"
        recall = await asyncio.to_thread(self._recall, question, kind, skip, category)
        return recall.evolve(seconds=time.perf_counter() - begun)

    async def remember(self, group: Sequence[Episode], ledger: Ledger) -> tuple[Memory, ...]:
        """Compress and store the episodes of one question; idempotent by episode id. Raises StoreError.

        Of several episodes the shortest correct one and the first incorrect one are kept, and their plans as a pair
        where there are both. Unjudged episodes, and those that broke off before an answer, give no memory. While the
        embedder cannot be asked they are only kept, and a later call for the same episodes makes their memories.
        """
        if len({episode.question.id for episode in group}) > 1:
            raise ValueError("a group holds the episodes of one question")
        if self._settings.frozen or not group:
            return ()
        ids = [episode.id for episode in group]
        done = await asyncio.to_thread(self._store.absorbed, ids)
        fresh = [episode for episode in group if episode.id not in done]
        if fresh:
            # Kept first: a lesson needs a model and an embedder, and may come later or never.
            await asyncio.to_thread(self._store.transaction, lambda writing: _save(writing, fresh, absorbed=False))
            begun = time.perf_counter()
            try:
                lessons = await self._draw_lessons(fresh, ledger)
            except ModelError as error:
                ledger.on_event(
                    StageFinished(
                        question_id=ledger.question_id,
                        stage="remember",
                        seconds=time.perf_counter() - begun,
                        summary=f"kept, and not yet learnt from: {error.got}",
                        ok=False,
                    )
                )
                return ()
            await asyncio.to_thread(self._store.transaction, lambda writing: self._absorb(writing, fresh, lessons))
        return await asyncio.to_thread(self._store.memories_of, ids)

    async def credit(self, group: str, shown: frozenset[str], verdict: Verdict) -> int:
        """uses+1, and wins+1 if correct, for the memories shown; once per group, a later verdict replaces the earlier.

        Unjudged credits nothing. Returns how many memories were credited. Raises StoreError.
        """
        if self._settings.frozen or verdict.outcome is Outcome.UNJUDGED:
            return 0
        scope = self._settings.scope
        return await asyncio.to_thread(
            self._store.transaction, lambda writing: writing.credit(scope, group, shown, verdict)
        )

    async def close(self) -> None:
        """Close the store."""
        await asyncio.to_thread(self._store.close)

    # ── for people ────────────────────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        question: str,
        workflow: str,
        judgement: Judgement,
        *,
        caption: str = "",
        category: str = "others",
        plan: str = "",
    ) -> Memory:
        """Store what a user knows. Returns what the store now holds for it: an older near-duplicate, if the rules keep
        that one. Raises RecordError, ConfigError (frozen), StoreError."""
        if self._settings.frozen:
            raise ConfigError(
                "the memory is frozen: it recalls, and takes nothing in.", hint="set memory.frozen = false"
            )
        question, workflow = storable(question).strip(), storable(workflow).strip()
        if not question or not workflow:
            raise RecordError(f"a memory without a {'workflow' if question else 'question'}.", wanted="some text")
        if judgement not in ("correct", "incorrect"):
            raise RecordError(f"no judgement: '{judgement}'.", wanted="correct or incorrect")
        if category not in CATEGORIES:
            raise RecordError(f"no category: '{category}'.", wanted=", ".join(CATEGORIES))
        now = time.time()
        memory = Memory(
            id=new_id("mem"),
            scope=self._settings.scope,
            question=question,
            caption=storable(caption).strip(),
            category=category,
            workflow=workflow,
            plan=storable(plan).strip(),
            judgement=judgement,
            provenance=Provenance(origin="user"),
            created_at=now,
            updated_at=now,
        )
        lesson = _Lesson(memory, self._embed(memory.question, memory.caption))
        (id,) = self._store.transaction(lambda writing: self._store_lessons(writing, [lesson]))
        return self._store.memories([id])[id]

    def list(self, *, limit: int = 50, offset: int = 0) -> tuple[Memory, ...]:
        """What is in sight, newest first. Raises StoreError."""
        return self._store.list_memories(self._settings.scope, limit=limit, offset=offset)

    def show(self, reference: str) -> Memory:
        """By id or unambiguous beginning of one. Raises RecordError, StoreError."""
        return self._store.memory(reference)

    def search(self, text: str, *, k: int = 10) -> tuple[Found, ...]:
        """The k workflows whose questions are most similar to a text, whatever their judgement, with no floor.
        Raises StoreError."""
        if not self._store.space():
            return ()
        vectors = self._embed(storable(text), "")
        scored: list[tuple[float, str]] = []
        for captioned in (False, True):
            with self._bank.shelf(self._store, MemoryKind.WORKFLOW, captioned=captioned) as shelf:
                similarities = shelf.similarities(vectors.question, None)
                scored += zip((-similarities).tolist(), shelf.ids, strict=True)
        best = sorted(scored)[:k]
        memories = self._store.memories([id for _, id in best])
        return tuple(Found(memories[id], -distance) for distance, id in best)

    # ── recall ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _recall(self, question: Question, kind: MemoryKind, skip: frozenset[str], category: str) -> Recall:
        pairs = kind is MemoryKind.PLAN_PAIR
        wanted = PLAN_PAIRS if pairs else self._settings.k_positive + self._settings.k_negative
        if not self._store.space():
            # Nothing is stored: the embedder, which may take seconds to load, is left alone.
            return Recall(kind=kind, wanted=wanted)
        vectors = self._embed(storable(question.text), storable(question.caption))
        with self._bank.shelf(self._store, kind, captioned=vectors.caption is not None) as shelf:
            considered, ranked = self._rank(shelf, vectors, pairs, skip, category)
        memories = self._store.memories([recalled.memory_id for recalled in ranked])
        ranked = [recalled.evolve(question=memories[recalled.memory_id].question) for recalled in ranked]
        shown = [recalled for recalled in ranked if not recalled.passed_over]
        texts = [memories[recalled.memory_id] for recalled in shown]
        return Recall(
            kind=kind,
            for_planner=present.for_planner(texts),
            for_executor=present.for_executor(texts),
            shown=tuple(shown),
            passed_over=tuple(recalled for recalled in ranked if recalled.passed_over),
            considered=considered,
            wanted=wanted,
        )

    def _rank(
        self, shelf: Shelf, vectors: MemoryVectors, pairs: bool, skip: frozenset[str], category: str
    ) -> tuple[int, Sequence[RecalledMemory]]:
        """How many were considered, and the ranked ones, still without their questions."""
        similarities = shelf.similarities(vectors.question, vectors.caption)
        columns, ids = shelf.columns, shelf.ids
        if category != "others":
            own = numpy.flatnonzero(numpy.isin(columns["category"], [category, "others"]))
            similarities, columns, ids = similarities[own], columns[own], [ids[index] for index in own]
        candidates = score.Candidates(ids, columns["correct"], columns["created_at"], similarities)
        if pairs:
            scores = score.score_by_similarity(candidates)
            sizes = [(True, PLAN_PAIRS)]
        else:
            scores = score.score(candidates, columns["uses"], columns["wins"], self._weights)
            sizes = [(True, self._settings.k_positive), (False, self._settings.k_negative)]
        ranked = [
            RecalledMemory(
                memory_id=ids[place.index],
                judgement="correct" if correct else "incorrect",
                question="",
                rank=place.rank,
                score=float(scores.total[place.index]),
                parts={name: float(values[place.index]) for name, values in scores.parts.items()},
                passed_over=place.passed_over,
            )
            for correct, k in sizes
            for place in score.select(candidates, scores, correct=correct, k=k, floor=self._settings.floor, skip=skip)
        ]
        return len(candidates), ranked

    # ── remember ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _draw_lessons(self, episodes: Sequence[Episode], ledger: Ledger) -> Sequence[_Lesson]:
        """What is worth storing of a group; the model and the embedder are asked here, before any lock is taken."""
        telling = [episode for episode in episodes if _is_telling(episode)]
        right = [episode for episode in telling if _is_correct(episode)]
        wrong = [episode for episode in telling if not _is_correct(episode)]
        # Of the right ones the shortest path; `min` takes the first of equals.
        chosen = [min(right, key=lambda episode: len(episode.steps))] if right else []
        chosen += wrong[:1]
        if not chosen:
            return []
        question = chosen[0].question
        vectors = await asyncio.to_thread(self._embed, storable(question.text), storable(question.caption))
        category = await self._compressor.categorise(question, ledger)
        both = len(chosen) == 2
        lessons = []
        for episode in chosen:
            compressed = await self._compressor.compress(episode, ledger)
            memory = self._memory(episode, category, workflow=compressed.workflow, by=compressed.by)
            lessons.append(_Lesson(memory, vectors, within_judgement=both))
        if both:
            good, bad = (lesson.memory.plan for lesson in lessons)
            if good and bad and good != bad:
                lessons.append(_Lesson(self._memory(chosen[0], category, incorrect_plan=bad), vectors))
        return lessons

    def _memory(
        self, episode: Episode, category: str, *, workflow: str = "", by: str = "", incorrect_plan: str = ""
    ) -> Memory:
        """The memory of an episode: a workflow, or with `incorrect_plan` a plan pair."""
        now = time.time()
        assert episode.verdict is not None
        return Memory(
            id=new_id("mem"),
            scope=self._settings.scope,
            kind=MemoryKind.PLAN_PAIR if incorrect_plan else MemoryKind.WORKFLOW,
            question=episode.question.text,
            caption=episode.question.caption,
            category=category,
            workflow=workflow,
            plan=_followed_plan(episode),
            incorrect_plan=incorrect_plan,
            judgement="correct" if _is_correct(episode) else "incorrect",
            reviews=() if incorrect_plan else episode.verdict.reviews,
            provenance=Provenance(
                episode_id=episode.id,
                leaned_on=tuple(shown.memory_id for shown in episode.recall.shown) if episode.recall else (),
                compressed_by=by,
            ),
            created_at=now,
            updated_at=now,
        )

    def _absorb(self, writing: Writing, episodes: Sequence[Episode], lessons: Sequence[_Lesson]) -> None:
        """The whole group in one transaction. What another process absorbed since we looked is left as it is."""
        done = writing.absorbed([episode.id for episode in episodes])
        self._store_lessons(writing, [one for one in lessons if one.memory.provenance.episode_id not in done])
        for episode in episodes:
            writing.save_episode(episode, absorbed=_is_judged(episode))

    def _store_lessons(self, writing: Writing, lessons: Sequence[_Lesson]) -> Sequence[str]:
        """Insert each, replacing or keeping its near-duplicate; the ids of what the store now holds for each."""
        # All decisions before the first write: the bank must see committed rows only, or a rollback would leave ghosts.
        duplicates = [self._near_duplicate(writing, lesson) for lesson in lessons]
        held = []
        for lesson, duplicate in zip(lessons, duplicates, strict=True):
            if duplicate is not None and not _gives_way(duplicate, lesson.memory):
                held.append(duplicate.id)
                continue
            writing.insert(lesson.memory, lesson.vectors, replaces=duplicate.id if duplicate else "")
            held.append(lesson.memory.id)
        return held

    def _near_duplicate(self, writing: Writing, lesson: _Lesson) -> Memory | None:
        """The memory that a new one would double: of its own judgement first, then, if asked for, of the other."""
        memory, vectors = lesson.memory, lesson.vectors
        with self._bank.shelf(writing, memory.kind, captioned=vectors.caption is not None) as shelf:
            similarities = shelf.similarities(vectors.question, vectors.caption)
            near = {
                shelf.ids[index]: similarities[index] for index in numpy.flatnonzero(similarities >= NEAR_DUPLICATE)
            }
        # An embedder that is blind to the order of words, or to the end of a long text, calls different questions the
        # same; so the words must agree too.
        doubles = [
            one for one in self._store.memories(near).values() if _words(one.question) == _words(memory.question)
        ]
        alike = [one for one in doubles if one.judgement == memory.judgement]
        pool = alike if alike or lesson.within_judgement else doubles
        return min(pool, key=lambda one: (-near[one.id], one.id), default=None)

    def _embed(self, question: str, caption: str) -> MemoryVectors:
        """The vectors of a question. Raises StoreError if the store holds those of another embedder."""
        space, stored = self._embedder.space, self._store.space()
        if stored and stored != space:
            name = next((name for name in ("minilm", "hashing") if name in stored.lower()), "openai")
            raise StoreError(
                f"the memory '{self._store.location}' was made with the embedder '{stored}'; this one is '{space}'.",
                wanted="the same embedder for all memories of a store: vectors of two cannot be compared",
                hint=f"MIA_MEMORY__EMBEDDER={name}, or another file with memory.path",
            )
        texts = [question, caption] if caption else [question]
        rows = score.unit_rows(self._embedder.embed([text[:_EMBEDDED_CHARACTERS] for text in texts]))
        return MemoryVectors(space, rows[0], rows[1] if caption else None)


def _words(text: str) -> Sequence[str]:
    return _WORD.findall(text.casefold())


def _gives_way(old: Memory, new: Memory) -> bool:
    """Whether a near-duplicate is replaced. A plan pair is: the newer one shows the plans that are written now."""
    if old.kind is MemoryKind.PLAN_PAIR or old.judgement == "incorrect":
        return True
    return new.judgement == "correct" and len(new.workflow) < len(old.workflow)


def _is_judged(episode: Episode) -> bool:
    return episode.verdict is not None and episode.verdict.outcome is not Outcome.UNJUDGED


def _is_correct(episode: Episode) -> bool:
    return episode.verdict is not None and episode.verdict.correct


def _is_telling(episode: Episode) -> bool:
    """Whether a memory can be made of it: judged, with a path that was not broken off from outside."""
    broken_off = episode.stop is not None and episode.stop.reason in _BROKEN_OFF and episode.answer is None
    return _is_judged(episode) and bool(episode.steps) and not broken_off


def _followed_plan(episode: Episode) -> str:
    """The plan of an episode with its supplementary ones."""
    plans = [attempt.plan.text.strip() for attempt in episode.attempts if attempt.plan is not None]
    return "\n\nSupplementary plan:\n".join(plans)


def _save(writing: Writing, episodes: Sequence[Episode], *, absorbed: bool) -> None:
    for episode in episodes:
        writing.save_episode(episode, absorbed=absorbed)
