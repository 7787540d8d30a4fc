"""What a model can do of each role, one role at a time, on worlds that it has not seen.

Every figure is a share of cases in which the truth is known by construction. The model is asked through the agents of
the line, so any chat model can be measured: the embedded one, a larger one, or the teacher.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import ExecutorSettings
from mia.errors import JudgeError, ModelError
from mia.judges.peer import PeerJudge
from mia.learn.warmup.dialogues import PASSAGES, STYLE
from mia.learn.warmup.past import Past
from mia.memory import present
from mia.memory.compress import Compressor
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.statistics import Interval, wilson
from mia.tools.search import SearchTool
from mia.transcript import render_attempts
from mia.types import Answer, Attempt, Episode, Message, Outcome, Plan, Question, Recall, Stop, StopReason, Task
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
    read_plan,
    read_trajectory,
    write_plan,
    write_question,
    write_workflow,
)
from mia.world.questions import chains
from mia.world.teacher import all_routes_in_memory

QUESTIONS_PER_WORLD = 4


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    right: int
    of: int

    @property
    def value(self) -> float:
        return self.right / self.of if self.of else float("nan")

    @property
    def interval(self) -> Interval | None:
        """Wilson, 95 %."""
        return wilson(self.right, self.of)


ABILITIES = {
    "executor follows an oracle's plan": "the answer is the truth",
    "executor says unknown in a wrong source": "a hop of the plan names a source that has nothing",
    "planner writes the route found in memory": "for every relation that a memory of a correct answer found",
    "  of these, kept under another entity": "the route has two steps: to that entity, and under it",
    "planner reflects": "yes after unknown, no after an answer",
    "planner replans elsewhere": "the hop that failed, in a source that was not tried",
    "manager writes the workflow": "every search with its outcome, in order",
    "judge agrees with the truth": "where the trajectory decides it: no patchy source was believed",
    "  of these, a step is missing": "the question asks for one relation more than was searched for",
}


async def measure(
    model: ChatModel,
    worlds: Sequence[World],
    *,
    seed: int = 0,
    concurrency: int = 32,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Share]:
    """The share of each of `ABILITIES`; the worlds' seeds decide the cases. A reply that cannot be read is wrong.

    `on_case`: told how many of how many cases are done.
    """
    limit = asyncio.Semaphore(concurrency)
    results: dict[str, list[bool]] = {name: [] for name in ABILITIES}
    cases = [
        case for world in worlds for case in _Probes(model, world, random.Random(f"measure {world.seed} {seed}")).all()
    ]

    done = 0

    async def probe(names: Sequence[str], work: Callable[[], Awaitable[bool]]) -> None:
        nonlocal done
        async with limit:
            try:
                right = await work()
            except (ModelError, JudgeError):
                right = False
            for name in names:
                results[name].append(right)
            done += 1
            on_case(done, len(cases))

    async with asyncio.TaskGroup() as group:
        for names, work in cases:
            group.create_task(probe(names, work))
    return {name: Share(sum(answers), len(answers)) for name, answers in results.items()}


class _Probes:
    """The cases of one world."""

    def __init__(self, model: ChatModel, world: World, chance: random.Random) -> None:
        self._model = model
        self._world = world
        self._chance = chance
        self._executor = Executor(
            model, [SearchTool(WorldEngine(world), PASSAGES)], ExecutorSettings(max_calls=40), style=STYLE
        )
        self._planner = Planner(model, style=STYLE)
        self._past = Past(world, chance)

    def all(self) -> list[tuple[tuple[str, ...], Callable[[], Awaitable[bool]]]]:
        """(abilities, case): what chance decides is decided here, so that concurrency changes nothing."""
        found: list[tuple[tuple[str, ...], Callable[[], Awaitable[bool]]]] = []
        follows, unknown, remembers, remembers_kept, reflects, replans, compresses, judges, misses = ABILITIES
        for chain in islice(chains(self._world, 7), QUESTIONS_PER_WORLD):
            question = Question(id="measure", text=write_question(chain, self._chance.randrange(PARAPHRASES)))
            oracle = self._world.oracle(chain)
            found.append(((follows,), partial(self._follows, question, chain, oracle)))
            wrong = self._wrong(oracle)
            if wrong is not None:
                found.append(((unknown,), partial(self._unknown, question, wrong)))
                found.append(((replans,), partial(self._replans, question, chain, wrong)))
            recall = Recall(for_planner=present.for_planner(self._past.recalled(chain)))
            known = all_routes_in_memory(recall.for_planner)
            if told := set(chain.relations) & known.keys():
                kept = any(len(route) > 1 for relation in told for route in known[relation])
                names = (remembers, remembers_kept) if kept else (remembers,)
                found.append((names, partial(self._remembers, question, chain, recall)))
            route = wrong if wrong is not None and self._chance.random() < 0.5 else oracle
            found.append(((reflects,), partial(self._reflects, question, route)))
            found.append(((compresses,), partial(self._compresses, question, route)))
            spoilt = self._chance.choice(("", "", "answer", "question"))
            lie = self._chance.choice([name for names in self._world.entities.values() for name in names])
            ways = [other.name for other in RELATIONS if other.subject == RELATION[chain.relations[-1]].object]
            longer = Chain(chain.entity, (*chain.relations, self._chance.choice(ways)))
            other = write_question(longer, self._chance.randrange(PARAPHRASES)) if spoilt == "question" else ""
            said = lie if spoilt == "answer" else ""
            names = (judges, misses) if other else (judges,)
            found.append((names, partial(self._judges, question, chain, route, said, other)))
        return found

    def _wrong(self, oracle: Sequence[RouteStep]) -> tuple[RouteStep, ...] | None:
        """The route with one step, taken directly, in a source that has nothing about it."""
        direct = [number for number, step in enumerate(oracle) if not step.via and not _leads_on(oracle, number)]
        if not direct:
            return None
        number = self._chance.choice(direct)
        kept = self._world.keeping[oracle[number].relation]
        source = self._chance.choice([name for name in SOURCES if name not in (kept.source, kept.patchy)])
        return (*oracle[:number], RouteStep(oracle[number].relation, source), *oracle[number + 1 :])

    async def _attempt(self, question: Question, route: Sequence[RouteStep]) -> Attempt:
        plan = Plan(text=write_plan(route))
        execution = await self._executor.execute(question, plan, "", Ledger("measure"))
        return Attempt(plan=plan, trace=execution.trace, answer=execution.answer)

    async def _follows(self, question: Question, chain: Chain, route: Sequence[RouteStep]) -> bool:
        return _said(await self._attempt(question, route)) == self._world.answer(chain)

    async def _unknown(self, question: Question, route: Sequence[RouteStep]) -> bool:
        return _said(await self._attempt(question, route)) == UNKNOWN

    async def _remembers(self, question: Question, chain: Chain, recall: Recall) -> bool:
        known = all_routes_in_memory(recall.for_planner)
        planned = await self._planner.plan(question, recall, "", Ledger("measure"))
        written = read_plan(planned.plan.text)
        return all(
            any(_holds(written, route) for route in known[relation])
            for relation in chain.relations
            if relation in known
        )

    async def _reflects(self, question: Question, route: Sequence[RouteStep]) -> bool:
        attempt = await self._attempt(question, route)
        shown = await self._shown(question, attempt)
        reflected = await self._planner.reflect(shown, Ledger("measure"))
        return reflected.reflection.replan is (_said(attempt) in ("", UNKNOWN))

    async def _shown(self, question: Question, attempt: Attempt) -> tuple[Message, ...]:
        """The Planner's conversation as if it had planned this attempt."""
        planned = await self._planner.plan(question, Recall(), "", Ledger("measure"))
        assert attempt.plan is not None
        messages = (*planned.messages[:-1], Message(role="assistant", content=attempt.plan.text))
        return self._planner.show(messages, attempt.trace.steps, attempt.answer)

    async def _replans(self, question: Question, chain: Chain, route: Sequence[RouteStep]) -> bool:
        attempt = await self._attempt(question, route)
        shown = await self._shown(question, attempt)
        reflected = await self._planner.reflect(shown, Ledger("measure"))
        replanned = read_plan((await self._planner.replan(reflected.messages, Ledger("measure"))).plan.text)
        failed = next(step for step, right in zip(route, self._world.oracle(chain), strict=True) if step != right)
        return bool(replanned) and replanned[0].relation == failed.relation and replanned[0].source != failed.source

    async def _compresses(self, question: Question, route: Sequence[RouteStep]) -> bool:
        attempt = await self._attempt(question, route)
        episode = Episode(
            id="ep-measure",
            question=question,
            started_at=0.0,
            attempts=(attempt,),
            answer=attempt.answer,
            stop=Stop(reason=StopReason.ANSWERED, sentence=""),
        )
        compressed = await Compressor(self._model, style=STYLE).compress(episode, Ledger("measure"))
        return compressed.workflow == write_workflow(read_trajectory(render_attempts([attempt])))

    async def _judges(
        self, question: Question, chain: Chain, route: Sequence[RouteStep], answer: str, other: str
    ) -> bool:
        """`answer`: said instead of what was found. `other`: asked instead of what was searched for."""
        attempt = await self._attempt(question, route)
        if answer:
            attempt = attempt.evolve(answer=Answer(text=answer))
        right = _said(attempt) == self._world.answer(chain) and not other
        task = Task(question=question.evolve(text=other) if other else question)
        verdict = await PeerJudge(self._model, style=STYLE).judge(task, attempt, Ledger("measure"))
        return verdict.outcome is (Outcome.CORRECT if right else Outcome.INCORRECT)


def _said(attempt: Attempt) -> str:
    return attempt.answer.text if attempt.answer else ""


def _leads_on(route: Sequence[RouteStep], number: int) -> bool:
    """Whether a step only leads to the entity under which the next relation is kept."""
    return number + 1 < len(route) and route[number + 1].via == route[number].relation


def _holds(written: Sequence[RouteStep], route: Sequence[RouteStep]) -> bool:
    """Whether a plan takes this route, its steps one after the other."""
    size = len(route)
    return any(tuple(written[start : start + size]) == tuple(route) for start in range(len(written) - size + 1))
