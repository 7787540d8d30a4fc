"""Dialogues to learn from: a teacher plays every role in training worlds, through the very agents of the line.

Nothing here writes a prompt. Planner, Executor, Manager and Judge ask the teacher as they would ask any model, in the
compact style, and what they asked is kept: so the model is trained on exactly what it will be sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import ExecutorSettings, LineSettings
from mia.episode import answer
from mia.judges.llm import LlmJudge
from mia.judges.peer import PeerJudge
from mia.memory import present
from mia.memory.compress import Compressor
from mia.models.base import ChatReply, ChatRequest
from mia.models.ledger import Ledger
from mia.team import Team
from mia.tools.search import SearchTool
from mia.types import (
    Answer,
    Attempt,
    Memory,
    MemoryKind,
    Message,
    Plan,
    Provenance,
    Question,
    Recall,
    Review,
    Role,
    Task,
    Verdict,
)
from mia.world.engine import WorldEngine
from mia.world.facts import World
from mia.world.language import (
    PARAPHRASES,
    RELATION,
    RELATIONS,
    SOURCES,
    UNKNOWN,
    Chain,
    Query,
    RouteStep,
    Try,
    write_plan,
    write_question,
    write_workflow,
)
from mia.world.questions import chains
from mia.world.teacher import Teacher

PASSAGES = 2
"""Passages per query, as the embedded model is served."""
STYLE = "compact"
_UNDER_WAY = 8
"""Dialogues that may go on: the last ones."""
_TASKS_PER_WORLD = 8
_PAST = 16
"""Questions that a world's made-up past holds."""


@dataclass(frozen=True)
class Turn:
    """One message; `learned`: it is the teacher's own, and counts."""

    message: Message
    learned: bool = False


@dataclass(frozen=True)
class Dialogue:
    role: Role
    turns: tuple[Turn, ...]


class Recorder:
    """The teacher, with every dialogue kept. A call that goes on from the last one of its dialogue extends it."""

    name = "teacher"
    context_window = Teacher.context_window
    max_tokens = Teacher.max_tokens
    price = Teacher.price

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.dialogues: list[Dialogue] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        reply = await self._teacher.complete(request)
        known: tuple[Turn, ...] = ()
        for dialogue in reversed(self.dialogues[-_UNDER_WAY:]):
            said = tuple(turn.message for turn in dialogue.turns)
            if dialogue.role is request.role and request.messages[: len(said)] == said:
                self.dialogues.remove(dialogue)
                known = dialogue.turns
                break
        asked = tuple(Turn(message) for message in request.messages[len(known) :])
        said_now = Turn(Message(role="assistant", content=reply.text), learned=True)
        self.dialogues.append(Dialogue(request.role, (*known, *asked, said_now)))
        return reply

    async def close(self) -> None:
        """Nothing to let go of."""


@dataclass(frozen=True)
class _Past:
    """A memory that recalls what it was given."""

    memories: tuple[Memory, ...]
    prompts: dict[str, str]

    async def recall(
        self,
        question: Question,
        *,
        kind: MemoryKind = MemoryKind.WORKFLOW,
        skip: frozenset[str] = frozenset(),
        ledger: Ledger | None = None,
    ) -> Recall:
        return Recall(for_planner=present.for_planner(self.memories), for_executor=present.for_executor(self.memories))

    async def remember(self, group: Sequence[object], ledger: Ledger) -> tuple[Memory, ...]:
        return ()

    async def credit(self, group: str, shown: frozenset[str], verdict: Verdict) -> int:
        return 0

    async def close(self) -> None:
        """Nothing to let go of."""


def dialogues(world: World, seed: int) -> list[Dialogue]:
    """The dialogues of some questions in one world; the same arguments give the same dialogues."""
    return asyncio.run(_Lesson(world, random.Random(f"lesson {world.seed} {seed}")).give())


class _Lesson:
    """One world's dialogues under way."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._recorder = Recorder(Teacher(chance))
        self._tool = SearchTool(WorldEngine(world), PASSAGES)
        self._stream = chains(world, chance.randrange(1 << 30))
        self._past = [self._remember(next(self._stream)) for _ in range(_PAST)]

    async def give(self) -> list[Dialogue]:
        for _ in range(_TASKS_PER_WORLD):
            chain = next(self._stream)
            await self._whole_line(chain)
            for _ in range(2):
                await self._planned(self._deep())
            if self._chance.random() < 0.5:
                await self._unplanned(next(self._stream))
        return self._recorder.dialogues

    def _deep(self) -> Chain:
        """A chain; of two, the longer one: long walks need the most practice."""
        return max(next(self._stream), next(self._stream), key=lambda chain: len(chain.relations))

    def _task(self, chain: Chain) -> Task:
        text = write_question(chain, self._chance.randrange(PARAPHRASES))
        return Task(question=Question(id="lesson", text=text), references=(self._world.answer(chain),))

    def _executor(self, calls: int = 40) -> Executor:
        return Executor(self._recorder, [self._tool], ExecutorSettings(max_calls=calls), style=STYLE)

    async def _whole_line(self, chain: Chain) -> None:
        """Recall, plan, execute, reflect, replan; then the Manager's workflow and the Judge's reviews."""
        team = Team(
            executor=self._executor(),
            planner=Planner(self._recorder, style=STYLE),
            memory=_Past(tuple(self._recalled(chain)), {}),
            line=LineSettings(max_reflections=self._chance.choice((1, 2, 3))),
        )
        task = self._task(chain)
        episode = await answer(task, team, Ledger("lesson"))
        if self._chance.random() < 0.6:
            await Compressor(self._recorder, style=STYLE).compress(episode, Ledger("lesson"))
        steps = tuple(step for attempt in episode.attempts for step in attempt.trace.steps)
        last = episode.attempts[-1]
        if last.answer is not None and self._chance.random() < 0.4:
            await self._judged(chain, task, last.evolve(trace=last.trace.evolve(steps=steps)))

    async def _planned(self, chain: Chain) -> None:
        """The Executor with a plan that is right but for a hop, often."""
        route = list(self._world.oracle(chain))
        if self._chance.random() < 0.5:
            wrong = self._chance.randrange(len(route))
            other = route[wrong]
            route[wrong] = RouteStep(other.relation, self._chance.choice(SOURCES), other.via)
            if other.via and self._chance.random() < 0.5:
                # As one who does not know that it is kept under another entity.
                route[wrong - 1 : wrong + 1] = [
                    RouteStep(other.relation, self._chance.choice((other.source, *SOURCES)))
                ]
        task = self._task(chain)
        plan = Plan(text=write_plan(route))
        execution = await self._executor().execute(task.question, plan, "", Ledger("lesson"))
        if execution.answer is not None and self._chance.random() < 0.2:
            await self._judged(chain, task, Attempt(plan=plan, trace=execution.trace, answer=execution.answer))

    async def _unplanned(self, chain: Chain) -> None:
        """The Executor alone; at times it must answer before it is done."""
        calls = self._chance.randrange(2, 8) if self._chance.random() < 0.4 else 40
        task = self._task(chain)
        memories = present.for_executor(self._recalled(chain)) if self._chance.random() < 0.2 else ""
        await self._executor(calls).execute(task.question, None, memories, Ledger("lesson"))

    async def _judged(self, chain: Chain, task: Task, attempt: Attempt) -> None:
        """Reviewed as it is, or with something wrong about it."""
        if self._chance.random() < 0.5:
            task, attempt = self._spoil(chain, task, attempt)
        if self._chance.random() < 0.7:
            await PeerJudge(self._recorder, style=STYLE).judge(task, attempt, Ledger("lesson"))
        else:
            await LlmJudge(self._recorder, style=STYLE).judge(task, attempt, Ledger("lesson"))

    def _spoil(self, chain: Chain, task: Task, attempt: Attempt) -> tuple[Task, Attempt]:
        """Another answer, or another question."""
        kind: Literal["answer", "longer", "other"] = self._chance.choice(("answer", "answer", "longer", "other"))
        if kind == "answer":
            seen = [
                passage.title
                for step in attempt.trace.steps
                if step.observation is not None
                for passage in step.observation.passages
            ]
            anybody = [name for names in self._world.entities.values() for name in names]
            wrong = self._chance.choice([*seen, self._chance.choice(anybody), UNKNOWN])
            return task, attempt.evolve(answer=Answer(text=wrong))
        relations = list(chain.relations)
        at = self._chance.randrange(len(relations))
        if kind == "longer":
            ways = [other.name for other in RELATIONS if other.subject == RELATION[relations[-1]].object]
            relations.append(self._chance.choice(ways))
        else:
            wanted = RELATION[relations[at]]
            ways = [other.name for other in RELATIONS if other.subject == wanted.subject and other.name != wanted.name]
            relations[at] = self._chance.choice(ways)
        text = write_question(Chain(chain.entity, tuple(relations)), self._chance.randrange(PARAPHRASES))
        return task.evolve(question=task.question.evolve(text=text)), attempt

    # ── a past that never was ─────────────────────────────────────────────────────────────────────────────────────

    def _recalled(self, chain: Chain) -> list[Memory]:
        """Up to three memories of correct answers and one of an incorrect one; most of them share a relation."""
        near = [memory for memory in self._past if set(chain.relations) & set(memory.question.split("|")[1].split())]
        chosen: list[Memory] = []
        for judgement, most in (("correct", 3), ("incorrect", 1)):
            wanted = self._chance.randint(0, most)
            around = near if self._chance.random() < 0.8 else self._past
            pool = [memory for memory in around if memory.judgement == judgement]
            chosen += self._chance.sample(pool, min(wanted, len(pool)))
        return [memory.evolve(question=memory.question.split("|")[0]) for memory in chosen]

    def _remember(self, chain: Chain) -> Memory:
        """What is left of a search by somebody who knows half of the true sources."""
        tries, at, found = [], chain.entity, True
        for relation in chain.relations:
            entity = at
            for step in self._tries(relation):
                query = Query(step, entity)
                outcome = self._world.look_up(query)
                tries.append(Try(query, outcome))
                if outcome.kind == "found":
                    entity = outcome.what
                    if step.relation == relation:
                        break
            else:
                found = False
                break
            at = entity
        right = found and at == self._world.answer(chain)
        text = write_question(chain, self._chance.randrange(PARAPHRASES))
        leaned = ("mem-00000000000000000000",) if self._chance.random() < 0.3 else ()
        return Memory(
            id=f"mem-{self._chance.getrandbits(80):020x}",
            # What it asks about stays beside it until it is chosen.
            question=f"{text}|{' '.join(chain.relations)}",
            workflow=write_workflow(tries),
            judgement="correct" if right else "incorrect",
            reviews=self._reviews() if self._chance.random() < 0.15 else (),
            provenance=Provenance(leaned_on=leaned),
            created_at=0.0,
            updated_at=0.0,
        )

    def _tries(self, relation: str) -> Iterator[RouteStep]:
        """Steps to one relation, until it is found or hope is lost: wrong sources first, at times."""
        route = self._world.route(relation)
        if self._chance.random() < 0.45:
            yield RouteStep(relation, self._chance.choice(SOURCES))
            if self._chance.random() < 0.3:
                return
        if len(route) == 2 and self._chance.random() < 0.7:
            yield RouteStep(relation, route[-1].source)
        yield from route

    def _reviews(self) -> tuple[Review, ...]:
        good = self._chance.random() < 0.6
        return (
            Review(
                reviewer="reasoning",
                score=9 if good else 2,
                reason="every step was taken" if good else "a step is missing",
            ),
            Review(
                reviewer="sourcing",
                score=9 if good else 2,
                reason="the answer was found" if good else "the answer was not found",
            ),
            Review(reviewer="validity", score=9, reason="it names an answer"),
        )
