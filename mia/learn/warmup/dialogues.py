"""Dialogues to learn from: a teacher plays every role in training worlds, through the very agents of the line.

Nothing here writes a prompt. Planner, Executor, Manager and Judge ask the teacher as they would ask any model, in the
compact style, and what they asked is kept: so the model is trained on exactly what it will be sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import ExecutorSettings, LineSettings
from mia.episode import answer
from mia.judges.llm import LlmJudge
from mia.judges.peer import PeerJudge
from mia.learn.warmup.past import Past
from mia.memory import present
from mia.memory.compress import Compressor
from mia.models.base import ChatReply, ChatRequest
from mia.models.ledger import Ledger
from mia.prompt import PromptStyle
from mia.team import Team
from mia.tools.search import SearchTool
from mia.types import (
    Answer,
    Attempt,
    Episode,
    Memory,
    MemoryKind,
    Message,
    Plan,
    Question,
    Recall,
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
    RouteStep,
    write_plan,
    write_question,
)
from mia.world.questions import chains
from mia.world.teacher import Teacher

PASSAGES = 1
"""Passages per query, as the embedded model is served: one, for a small model is easily misled by more."""
STYLE: PromptStyle = "compact"
_UNDER_WAY = 8
"""Dialogues that may go on: the last ones."""
_TASKS_PER_WORLD = 8


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
class _Given:
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
        self._past = Past(world, chance)

    async def give(self) -> list[Dialogue]:
        for _ in range(_TASKS_PER_WORLD):
            await self._whole_line(self._chain())
            for _ in range(2):
                await self._plan(self._chain())
            for _ in range(3):
                await self._planned(self._chain())
            if self._chance.random() < 0.15:
                await self._unplanned(self._chain())
        return self._recorder.dialogues

    def _chain(self) -> Chain:
        """The next chain of the stream; at times one that takes more practice: the longest of a few, one with a
        relation that is kept under another entity, or one that takes a relation twice."""
        chains = [next(self._stream) for _ in range(4)]
        kind = self._chance.random()
        if kind < 0.3:
            return max(chains, key=lambda chain: sum(bool(self._world.keeping[name].via) for name in chain.relations))
        if kind < 0.45:
            return max(chains, key=_repeats)
        return max(chains, key=lambda chain: len(chain.relations)) if kind < 0.65 else chains[0]

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
            memory=_Given(tuple(self._past.recalled(chain)), {}),
            line=LineSettings(max_reflections=self._chance.choice((1, 2, 3))),
        )
        task = self._task(chain)
        episode = await answer(task, team, Ledger("lesson"))
        await self._compressed(task, episode.attempts)
        steps = tuple(step for attempt in episode.attempts for step in attempt.trace.steps)
        last = episode.attempts[-1]
        if last.answer is not None and self._chance.random() < 0.25:
            await self._judged(chain, task, last.evolve(trace=last.trace.evolve(steps=steps)))

    async def _plan(self, chain: Chain) -> None:
        """The Planner's first turn alone, with much to remember."""
        recall = Recall(for_planner=present.for_planner(self._past.recalled(chain)))
        planner = Planner(self._recorder, style=STYLE)
        await planner.plan(self._task(chain).question, recall, "", Ledger("lesson"))

    async def _planned(self, chain: Chain) -> None:
        """The Executor with a plan that is right but for a hop, often."""
        route = list(self._world.oracle(chain))
        if self._chance.random() < 0.5:
            # Where a relation comes twice, its two steps are to name two sources: each is looked up by its place.
            names = [step.relation for step in route]
            twice = [number for number, name in enumerate(names) if names.count(name) > 1]
            wrong = self._chance.choice(twice or range(len(route)))
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
        attempt = Attempt(plan=plan, trace=execution.trace, answer=execution.answer)
        if self._chance.random() < 0.3:
            await self._compressed(task, (attempt,))
        if attempt.answer is not None and self._chance.random() < 0.2:
            await self._judged(chain, task, attempt)

    async def _unplanned(self, chain: Chain) -> None:
        """The Executor alone; at times it must answer before it is done."""
        calls = self._chance.randrange(2, 8) if self._chance.random() < 0.4 else 40
        task = self._task(chain)
        memories = present.for_executor(self._past.recalled(chain)) if self._chance.random() < 0.2 else ""
        await self._executor(calls).execute(task.question, None, memories, Ledger("lesson"))

    async def _compressed(self, task: Task, attempts: tuple[Attempt, ...]) -> None:
        """The Manager's workflow of these attempts."""
        episode = Episode(id="ep-lesson", question=task.question, started_at=0.0, attempts=attempts)
        await Compressor(self._recorder, style=STYLE).compress(episode, Ledger("lesson"))

    async def _judged(self, chain: Chain, task: Task, attempt: Attempt) -> None:
        """Reviewed as it is, or with something wrong about it."""
        if self._chance.random() < 0.6:
            task, attempt = self._spoil(chain, task, attempt)
        if self._chance.random() < 0.85:
            await PeerJudge(self._recorder, style=STYLE).judge(task, attempt, Ledger("lesson"))
        else:
            await LlmJudge(self._recorder, style=STYLE).judge(task, attempt, Ledger("lesson"))

    def _spoil(self, chain: Chain, task: Task, attempt: Attempt) -> tuple[Task, Attempt]:
        """Another answer, or another question."""
        kind: Literal["answer", "longer", "other"] = self._chance.choice(("answer", "longer", "longer", "other"))
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


def _repeats(chain: Chain) -> int:
    return len(chain.relations) - len(set(chain.relations))
