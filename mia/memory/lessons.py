"""What one question leaves behind: which of its episodes become memories, and what they say.

Of several episodes of a question the shortest correct one that used a tool (else the shortest) and the first incorrect
one are kept, and their plans as a pair where there are both. Unjudged episodes, and those that broke off before an
answer, give no memory; nor does junk. What reads like orders to the agent is kept out of sight until somebody has
looked at it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mia.config import MemorySettings
from mia.memory import guard, score
from mia.memory.compress import Category, Compressed, Compressor
from mia.memory.waiting import delay
from mia.models.ledger import Ledger
from mia.store.base import MemoryVectors, Task, Writing
from mia.types import (
    Episode,
    Memory,
    MemoryKind,
    MemoryState,
    Outcome,
    Provenance,
    Question,
    StopReason,
    new_id,
)

NEAR_DUPLICATE = 0.9999
"""Similarity from which two questions of the same words count as the same."""

# An execution that ended so, without an answer, says nothing about the path.
_BROKEN_OFF = (StopReason.MODEL_FAILED, StopReason.UNREACHABLE, StopReason.BUDGET, StopReason.RUN_BUDGET)

Origin = Literal["episode", "user", "import"]


@dataclass(frozen=True)
class Lesson:
    """A memory about to be stored."""

    memory: Memory
    vectors: MemoryVectors
    within_judgement: bool = False
    """Look for near-duplicates of the same judgement only, so that a question's negative survives its positive."""
    suspicion: str = ""
    """Why it is quarantined."""
    waiting: tuple[tuple[Task, Compressed | Category], ...] = ()
    """What a model could not do for it, and what came of it instead, which says why."""
    guessed: bool = False
    """No tool was used: it says what was answered, and no way to it."""


class Lessons:
    """Draws lessons from episodes."""

    def __init__(self, compressor: Compressor, settings: MemorySettings) -> None:
        self._compressor = compressor
        self._settings = settings

    def question(self, episodes: Sequence[Episode]) -> Question | None:
        """What a group of episodes will be remembered by; None if there is nothing to remember."""
        chosen = _chosen(episodes)
        return chosen[0].question if chosen else None

    async def draw(
        self, episodes: Sequence[Episode], vectors: MemoryVectors, ledger: Ledger, *, origin: Origin = "episode"
    ) -> Sequence[Lesson]:
        """What is worth storing of the episodes of one question, whose vectors are given. A model that fails leaves its
        work waiting."""
        chosen = _chosen(episodes)
        if not chosen:
            return []
        category = await self._compressor.categorise(chosen[0].question, ledger)
        unsorted = [(Task.CATEGORISE, category)] if category.error else []
        lessons = []
        for episode in chosen:
            compressed = await self._compressor.compress(episode, ledger)
            if guard.junk(episode.question.text, compressed.workflow):
                continue
            unwritten = [(Task.COMPRESS, compressed)] if compressed.error else []
            memory = self._memory(
                episode, category.name, origin, workflow=compressed.workflow, compressed_by=compressed.by
            )
            lesson = self._lesson(memory, vectors, len(chosen) == 2, (*unwritten, *unsorted))
            lessons.append(replace(lesson, guessed=not _used_tools(episode)))
        if len(lessons) == 2:
            good, bad = (lesson.memory.plan for lesson in lessons)
            # Which of two plans was right is more than peer reviewers can say.
            sure = all(one.verdict is not None and one.verdict.judge != "peer" for one in chosen)
            if good and bad and good != bad and sure:
                pair = self._memory(chosen[0], category.name, origin, incorrect_plan=bad)
                lessons.append(self._lesson(pair, vectors, False, ()))
        return lessons

    def by_hand(
        self,
        question: str,
        workflow: str,
        judgement: Literal["correct", "incorrect"],
        vectors: MemoryVectors,
        *,
        caption: str,
        category: str,
        plan: str,
    ) -> Lesson:
        """What a user knows."""
        now = time.time()
        memory = Memory(
            id=new_id("mem"),
            scope=self._settings.scope,
            question=question,
            caption=caption,
            category=category,
            workflow=workflow,
            plan=plan,
            judgement=judgement,
            provenance=Provenance(origin="user"),
            expires_at=self._expiry(now),
            created_at=now,
            updated_at=now,
        )
        return self._lesson(memory, vectors, False, ())

    def rewritten(self, memory: Memory, compressed: Compressed, vectors: MemoryVectors) -> Lesson:
        """The same lesson with another workflow: another text, which begins its own statistics, and is looked at like
        any other."""
        now = time.time()
        provenance = memory.provenance.evolve(compressed_by=compressed.by)
        again = memory.evolve(
            id=new_id("mem"),
            workflow=compressed.workflow,
            provenance=provenance,
            uses=1,
            wins=1,
            created_at=now,
            updated_at=now,
        )
        return self._lesson(again, vectors, True, ())

    def _lesson(
        self,
        memory: Memory,
        vectors: MemoryVectors,
        within_judgement: bool,
        waiting: tuple[tuple[Task, Compressed | Category], ...],
    ) -> Lesson:
        suspicion = guard.suspicion_of(memory) if self._settings.quarantine else ""
        if suspicion:
            memory = memory.evolve(state=MemoryState.QUARANTINED)
        return Lesson(memory, vectors, within_judgement, suspicion, waiting)

    def _memory(
        self,
        episode: Episode,
        category: str,
        origin: Origin,
        *,
        workflow: str = "",
        compressed_by: str = "",
        incorrect_plan: str = "",
    ) -> Memory:
        """The memory of an episode: a workflow, or with `incorrect_plan` a plan pair."""
        assert episode.verdict is not None
        now = time.time()
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
            judgement="correct" if episode.verdict.correct else "incorrect",
            reviews=() if incorrect_plan else episode.verdict.reviews,
            provenance=Provenance(
                episode_id=episode.id,
                leaned_on=tuple(shown.memory_id for shown in episode.recall.shown) if episode.recall else (),
                compressed_by=compressed_by,
                origin=origin,
            ),
            expires_at=self._expiry(now),
            created_at=now,
            updated_at=now,
        )

    def _expiry(self, now: float) -> float | None:
        return now + self._settings.expire_days * 86_400 if self._settings.expire_days else None


def store_lessons(writing: Writing, lessons: Sequence[Lesson], *, replace_below: float = 1.0) -> Sequence[str]:
    """Insert each, replacing or keeping its near-duplicate; the ids of what the store now holds for each.

    Of a group, all near-duplicates are looked up before the first is written: a question's positive does not meet its
    own negative.
    """
    duplicates = [_near_duplicate(writing, lesson) for lesson in lessons]
    held = []
    for lesson, duplicate in zip(lessons, duplicates, strict=True):
        memory = lesson.memory
        if duplicate is not None and not _gives_way(duplicate, lesson, replace_below):
            held.append(duplicate.id)
            continue
        writing.insert(memory, lesson.vectors, replaces=duplicate.id if duplicate else "", reason=lesson.suspicion)
        for task, instead in lesson.waiting:
            seconds = delay(0, hopeless=instead.hopeless)
            writing.enqueue(task, memory.id, scope=memory.scope, error=instead.error, delay=seconds)
        held.append(memory.id)
    return held


def is_judged(episode: Episode) -> bool:
    return episode.verdict is not None and episode.verdict.outcome is not Outcome.UNJUDGED


def _near_duplicate(writing: Writing, lesson: Lesson) -> Memory | None:
    """The memory that a new one would double: of its own judgement first, then, if asked for, of the other."""
    memory, vectors = lesson.memory, lesson.vectors
    if memory.state is not MemoryState.ACTIVE:
        # What nobody has looked at pushes nothing aside.
        return None
    # An embedder that is blind to the order of words, or to the end of a long text, calls different questions the same;
    # so the words must agree too, which is also the faster thing to look up.
    doubles = [
        one
        for one, theirs in writing.alike(memory.scope, memory.kind, memory.question)
        if _similarity(vectors, theirs) >= NEAR_DUPLICATE
    ]
    alike = [one for one in doubles if one.judgement == memory.judgement]
    pool = alike if alike or lesson.within_judgement else doubles
    return pool[0] if pool else None


def _similarity(one: MemoryVectors, other: MemoryVectors) -> float:
    """0 between a question with a caption and one without."""
    if (one.caption is None) != (other.caption is None) or one.question.shape != other.question.shape:
        return 0.0
    question = float(one.question @ other.question)
    if one.caption is None or other.caption is None:
        return question
    return score.QUESTION_SHARE * question + (1 - score.QUESTION_SHARE) * float(one.caption @ other.caption)


def _gives_way(old: Memory, lesson: Lesson, replace_below: float) -> bool:
    """Whether a near-duplicate is replaced.

    An incorrect memory is by any, a correct one by a correct one that is shorter, and neither while it wins as often as
    `replace_below` (1: no matter). An expired one is, whatever it was. A plan pair is: the newer one shows the plans
    that are written now. What was found out with the help of memories does not take the place of what was found out
    unaided, nor a guess that of a search.
    """
    new = lesson.memory
    if old.expired(new.created_at):
        return True
    if old.kind is MemoryKind.PLAN_PAIR:
        return True
    if replace_below < 1 and old.uses and old.wins / old.uses >= replace_below:
        return False
    if old.judgement == "incorrect":
        return True
    if lesson.guessed or (new.provenance.leaned_on and not old.provenance.leaned_on):
        return False
    return new.judgement == "correct" and len(new.workflow) < len(old.workflow)


def _chosen(episodes: Sequence[Episode]) -> Sequence[Episode]:
    """The shortest correct one that used a tool, else the shortest; and the first incorrect one."""
    telling = [episode for episode in episodes if _is_telling(episode)]
    right = [episode for episode in telling if episode.verdict is not None and episode.verdict.correct]
    wrong = [episode for episode in telling if episode.verdict is not None and not episode.verdict.correct]
    # `min` takes the first of equals.
    best = [min(right, key=lambda episode: (not _used_tools(episode), len(episode.steps)))] if right else []
    return [*best, *wrong[:1]]


def _used_tools(episode: Episode) -> bool:
    return any(step.tool_call is not None for step in episode.steps)


def _is_telling(episode: Episode) -> bool:
    """Whether a memory can be made of it: judged, with a path that was not broken off from outside."""
    broken_off = episode.stop is not None and episode.stop.reason in _BROKEN_OFF and episode.answer is None
    return is_judged(episode) and bool(episode.steps) and not broken_off


def _followed_plan(episode: Episode) -> str:
    """The plan of an episode with its supplementary ones."""
    plans = [attempt.plan.text.strip() for attempt in episode.attempts if attempt.plan is not None]
    return "\n\nSupplementary plan:\n".join(plans)
