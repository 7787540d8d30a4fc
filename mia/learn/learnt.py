"""What a Planner has learnt, taken apart: one ability at a time, on worlds that it has not seen.

The mediocre teacher of the warm-up knows the favourite sources of few relations and learns nothing from memories of
wrong answers (`mia.world.teacher`). So what reinforcement adds is known by construction, and can be asked for piece by
piece: the other favourites, the use of such memories, when to replan and how.

Cases are made once, before any Planner is asked: two Planners that answer the same cases are compared in pairs. What
was done in a case was done by an Executor that stays the same, along a route that is given. All of it is read and
written by `mia.world.language`, and the Planner is asked through its own methods.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from mia.agents.executor import Executor
from mia.agents.planner import Planner, Reflected
from mia.errors import ContextOverflow, ModelReplyError, ModelUnavailable
from mia.learn.sources import side_by_side
from mia.learn.warmup.dialogues import STYLE
from mia.learn.warmup.past import Past
from mia.memory import present
from mia.models.base import ChatModel, ChatReply, ChatRequest, Price, estimate_usage
from mia.models.ledger import Ledger
from mia.tools.search import SearchTool
from mia.transcript import render_attempts
from mia.types import Attempt, Memory, Message, Plan, Question, Recall
from mia.world import preset
from mia.world.engine import WorldEngine
from mia.world.facts import FAVOURITE, World
from mia.world.language import (
    PARAPHRASES,
    SOURCES,
    UNKNOWN,
    Chain,
    Query,
    Route,
    RouteStep,
    Try,
    read_plan,
    read_question,
    read_trajectory,
    read_workflow,
    write_plan,
    write_question,
    write_workflow,
)
from mia.world.questions import chains
from mia.world.teacher import KNOWN, routes_in_memory

MEASURES = {
    "favourite, one that the teacher knew": "the first plan looks a relation, of which no memory tells, up there",
    "favourite, one of the others": "the same, for relations whose favourite the warm-up withheld",
    "route of a right answer": "for every relation of the question that such a memory found, the plan takes its route",
    "told that the favourite has nothing": "the plan looks the relation up, and not where that memory failed",
    "  not told": "the same question and memories without that one",
    "  use of it": "the difference, in pairs",
    "  kept away": "of the plans that would go there when not told, those that go elsewhere when told",
    "told that another source has nothing": "the plan looks the relation up, and not where that memory failed",
    "  not told so": "the same question and memories without that one",
    "  use of this": "the difference, in pairs",
    "  kept away from it": "of the plans that would go there when not told, those that go elsewhere when told",
    "yes after unknown": "the Planner asks for a replan",
    "yes after a wrong name": "the same; nothing in the trajectory shows that it is wrong",
    "no after a right answer": "the Planner leaves it",
    "replan in a new source": "the hop that found nothing, in a source that was not tried",
    "replan at the favourite, teacher knew": "the favourite, where that is not the one that was tried",
    "replan at the favourite, others": "the same, for relations whose favourite the warm-up withheld",
}
"""What is measured, and what counts for it."""
(
    _FAVOURITE_KNOWN,
    _FAVOURITE_OTHER,
    _ROUTE,
    _TOLD_FAVOURITE,
    _UNTOLD_FAVOURITE,
    _USE_FAVOURITE,
    _KEPT_FAVOURITE,
    _TOLD_OTHER,
    _UNTOLD_OTHER,
    _USE_OTHER,
    _KEPT_OTHER,
    _YES_UNKNOWN,
    _YES_WRONG,
    _NO_RIGHT,
    _NEW_SOURCE,
    _REPLAN_KNOWN,
    _REPLAN_OTHER,
) = MEASURES

QUESTIONS = 16
"""First plans in each world."""
FAILURES = 6
"""Memories of wrong answers in each world and of each kind: the favourite has nothing, another source has nothing."""
ATTEMPTS = 8
"""Questions in each world that are answered along given routes: the right one, one that finds nothing, and one that
believes what is wrong."""
_SECOND_FAILURE = 0.5
"""Memories of wrong answers that tell of two sources."""
_FIRST_SEED = 1_000
"""Of questions: beyond those that streams are asked with."""

Mark = tuple[str, float]
"""Of `MEASURES`, and 1 for yes, 0 for no; a difference is between -1 and 1."""
Findings = dict[str, dict[int, list[float]]]
"""Of each of `MEASURES`: the world's seed → marks. A world without a case is left out."""


class Case(Protocol):
    """Something to ask a Planner."""

    @property
    def world(self) -> int:
        """The seed of its world."""
        ...

    async def ask(self, planner: Planner) -> list[Mark]:
        """Raises ModelError, but not for replies that cannot be read: they are wrong."""
        ...


@dataclass(frozen=True)
class FirstPlan:
    """A question with memories that tell of some of its relations."""

    world: int
    question: Question
    memories: str
    """As the Planner reads them."""
    untold: tuple[str, ...]
    """Relations of the question of which no memory says anything."""
    routes: Mapping[str, Route]
    """Relation of the question → how a memory of a right answer found it."""

    async def ask(self, planner: Planner) -> list[Mark]:
        written = await _plan(planner, self.question, self.memories)
        marks = [
            (
                _FAVOURITE_KNOWN if relation in KNOWN else _FAVOURITE_OTHER,
                float(_source(written, relation) == FAVOURITE[relation]),
            )
            for relation in self.untold
        ]
        if self.routes:
            marks.append((_ROUTE, float(all(_takes(written, route) for route in self.routes.values()))))
        return marks


@dataclass(frozen=True)
class FailureRecalled:
    """A question with a memory of a wrong answer, which failed at one of its relations and of which no memory tells
    more."""

    world: int
    question: Question
    memories: str
    others: str
    """Without that memory."""
    relation: str
    failed: tuple[str, ...]
    """Sources that had nothing, as that memory tells."""

    async def ask(self, planner: Planner) -> list[Mark]:
        told = _source(await _plan(planner, self.question, self.memories), self.relation)
        untold = _source(await _plan(planner, self.question, self.others), self.relation)
        with_it, without = (float(source not in ("", *self.failed)) for source in (told, untold))
        if FAVOURITE[self.relation] in self.failed:
            names = (_TOLD_FAVOURITE, _UNTOLD_FAVOURITE, _USE_FAVOURITE, _KEPT_FAVOURITE)
        else:
            names = (_TOLD_OTHER, _UNTOLD_OTHER, _USE_OTHER, _KEPT_OTHER)
        marks = list(zip(names, (with_it, without, with_it - without), strict=False))
        return [*marks, (names[3], with_it)] if untold in self.failed else marks


@dataclass(frozen=True)
class Attempted:
    """A question that was answered along a given route, and what the Planner says to that."""

    world: int
    question: Question
    memories: str
    attempt: Attempt
    came: Literal["right", "wrong", "unknown"]
    """What the answer is."""
    failed: RouteStep | None
    """The step that found nothing, where that is why the answer is unknown."""

    async def ask(self, planner: Planner) -> list[Mark]:
        # Every Planner goes on from this plan, and where a replan is looked at, from a yes: the cases stay the same.
        assert self.attempt.plan is not None
        following = planner.asking(_Says(self.attempt.plan.text))
        planned = await following.plan(self.question, Recall(for_planner=self.memories), "", _ledger())
        shown = planner.show(planned.messages, self.attempt.trace.steps, self.attempt.answer)
        said = await self._reflect(planner, shown)
        if self.came == "right":
            return [(_NO_RIGHT, float(said is False))]
        marks = [(_YES_WRONG if self.came == "wrong" else _YES_UNKNOWN, float(said is True))]
        if self.failed is not None:
            wanted = await planner.asking(_Says("yes")).reflect(shown, _ledger())
            marks += await self._replan(planner, wanted, self.failed)
        return marks

    async def _reflect(self, planner: Planner, shown: tuple[Message, ...]) -> bool | None:
        try:
            return (await planner.reflect(shown, _ledger())).reflection.replan
        except (ModelReplyError, ContextOverflow):
            return None

    async def _replan(self, planner: Planner, wanted: Reflected, failed: RouteStep) -> list[Mark]:
        try:
            written = read_plan((await planner.replan(wanted.messages, _ledger())).plan.text)
        except (ModelReplyError, ContextOverflow):
            written = ()
        source, favourite = _source(written, failed.relation), FAVOURITE[failed.relation]
        marks = [(_NEW_SOURCE, float(source not in ("", failed.source)))]
        if failed.source != favourite:
            marks.append((_REPLAN_KNOWN if failed.relation in KNOWN else _REPLAN_OTHER, float(source == favourite)))
        return marks


class _Says:
    """A model that says one thing: so that a conversation goes as it is given."""

    name = "says"
    context_window = 100_000
    max_tokens = 1_000
    price: Price | None = None

    def __init__(self, text: str) -> None:
        self._text = text

    async def complete(self, request: ChatRequest) -> ChatReply:
        return ChatReply(self._text, usage=estimate_usage(request, self._text, None), model=self.name)

    async def close(self) -> None:
        """Nothing to let go of."""


def _ledger() -> Ledger:
    return Ledger("learnt")


async def _plan(planner: Planner, question: Question, memories: str) -> Route:
    """The first plan; without a step where it cannot be read."""
    try:
        planned = await planner.plan(question, Recall(for_planner=memories), "", _ledger())
    except (ModelReplyError, ContextOverflow):
        return ()
    return read_plan(planned.plan.text)


def _source(written: Route, relation: str) -> str:
    """Where a plan looks a relation up first; empty if it does not."""
    return next((step.source for step in written if step.relation == relation), "")


def _takes(written: Route, route: Route) -> bool:
    """Whether a plan takes this route, its steps one after the other."""
    size = len(route)
    return any(written[start : start + size] == route for start in range(len(written) - size + 1))


# ── making cases ──────────────────────────────────────────────────────────────────────────────────────────────────


async def make_cases(
    worlds: Sequence[World],
    executor: ChatModel,
    *,
    seed: int = 0,
    on_world: Callable[[int, int], None] = lambda done, total: None,
) -> list[Case]:
    """The cases of all worlds: their seeds and `seed` decide them, and the Executor's model what came of attempts.

    `on_world`: told how many of how many worlds are ready. Raises ModelError.
    """
    done = 0

    async def make(world: World) -> list[Case]:
        nonlocal done
        made = await _Maker(world, executor, seed).all()
        done += 1
        on_world(done, len(worlds))
        return made

    return [case for made in await side_by_side(make(world) for world in worlds) for case in made]


class _Maker:
    """Makes the cases of one world; all that chance decides, before anybody is asked."""

    def __init__(self, world: World, executor: ChatModel, seed: int) -> None:
        self._world = world
        self._chance = random.Random(f"learnt {world.seed} {world.shifted} {seed}")
        self._past = Past(world, self._chance)
        # A relation that is asked for twice has no one place in a plan.
        self._chains = (
            chain for chain in chains(world, _FIRST_SEED + seed) if len(set(chain.relations)) == len(chain.relations)
        )
        self._executor = Executor(
            executor, [SearchTool(WorldEngine(world), preset.PASSAGES)], preset.page(Path()).executor, style=STYLE
        )

    async def all(self) -> list[Case]:
        plans = list(self._first_plans())
        failures = [*self._failures(self._favourites_without()), *self._failures(self._others_without())]
        return [*plans, *failures, *await side_by_side(list(self._attempts()))]

    def _question(self, chain: Chain) -> Question:
        return Question(id="learnt", text=write_question(chain, self._chance.randrange(PARAPHRASES)))

    # ── first plans ───────────────────────────────────────────────────────────────────────────────────────────────

    def _first_plans(self) -> Iterator[FirstPlan]:
        for chain in islice(self._chains, QUESTIONS):
            recalled = self._past.recalled(chain)
            memories = present.for_planner(recalled)
            told = frozenset[str]().union(*map(_told_of, recalled))
            routes = routes_in_memory(memories)
            yield FirstPlan(
                self._world.seed,
                self._question(chain),
                memories,
                untold=tuple(relation for relation in chain.relations if relation not in told),
                routes={relation: routes[relation] for relation in chain.relations if relation in routes},
            )

    # ── memories of wrong answers ─────────────────────────────────────────────────────────────────────────────────

    def _empty(self, relation: str) -> list[str]:
        """The sources that have nothing about a relation."""
        kept = self._world.keeping[relation]
        return [source for source in SOURCES if source not in (kept.source, kept.patchy)]

    def _favourites_without(self) -> list[tuple[str, str]]:
        """(relation, its favourite), where that has nothing."""
        found = [(name, favourite) for name, favourite in FAVOURITE.items() if favourite in self._empty(name)]
        self._chance.shuffle(found)
        return found

    def _others_without(self) -> list[tuple[str, str]]:
        """(relation, a source that has nothing and is not its favourite)."""
        found = [
            (name, self._chance.choice([source for source in self._empty(name) if source != favourite]))
            for name, favourite in FAVOURITE.items()
        ]
        self._chance.shuffle(found)
        return found

    def _failures(self, pairs: Sequence[tuple[str, str]]) -> Iterator[FailureRecalled]:
        """`pairs`: relation and source, which stays what is asked about where a second source fails too."""
        for relation, source in pairs[:FAILURES]:
            failed = [source]
            if self._chance.random() < _SECOND_FAILURE:
                left = [name for name in self._empty(relation) if name not in (source, FAVOURITE[relation])]
                failed.insert(self._chance.randrange(2), self._chance.choice(left))
            chain = self._asking(relation)
            others = [
                memory
                for memory in self._past.recalled(chain)
                if memory.judgement == "correct" and relation not in _told_of(memory)
            ]
            failure = self._failure(self._asking(relation), relation, failed)
            yield FailureRecalled(
                self._world.seed,
                self._question(chain),
                present.for_planner([*others, failure]),
                present.for_planner(others),
                relation,
                tuple(failed),
            )

    def _asking(self, relation: str) -> Chain:
        return next(chain for chain in self._chains if relation in chain.relations)

    def _failure(self, chain: Chain, relation: str, failed: Sequence[str]) -> Memory:
        """What is left of a search that came as far as this relation, and found it in none of these sources."""
        steps = [
            step for other in chain.relations[: chain.relations.index(relation)] for step in self._world.route(other)
        ]
        tries, at = [], chain.entity
        for step in steps:
            query = Query(step, at)
            outcome = self._world.look_up(query)
            tries.append(Try(query, outcome))
            at = outcome.what
        for source in failed:
            query = Query(RouteStep(relation, source), at)
            tries.append(Try(query, self._world.look_up(query)))
        return Memory(
            id=f"mem-{self._chance.getrandbits(80):020x}",
            question=self._question(chain).text,
            workflow=write_workflow(tries),
            judgement="incorrect",
            created_at=0.0,
            updated_at=0.0,
        )

    # ── attempts ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _attempts(self) -> Iterator[Coroutine[Any, Any, Attempted]]:
        for chain in islice(self._chains, ATTEMPTS):
            question = self._question(chain)
            recalled = self._past.recalled(chain)
            yield self._attempt(chain, question, recalled, self._world.oracle(chain), None)
            relation = self._chance.choice(chain.relations)
            failed = RouteStep(relation, self._chance.choice(self._empty(relation)))
            # Where a memory told of the relation, a replan could follow that instead of the favourites.
            silent = [memory for memory in recalled if relation not in _told_of(memory)]
            yield self._attempt(chain, question, silent, self._by(chain, failed), failed)
            if rumours := self._false(chain):
                believed = self._chance.choice(rumours)
                yield self._attempt(chain, question, recalled, self._by(chain, believed), None)

    def _by(self, chain: Chain, other: RouteStep) -> Route:
        """The oracle's route, but for one relation."""
        pieces = [(other,) if name == other.relation else self._world.route(name) for name in chain.relations]
        return tuple(step for piece in pieces for step in piece)

    def _false(self, chain: Chain) -> list[RouteStep]:
        """The steps that would believe something wrong."""
        world = self._world
        found = []
        for number, relation in enumerate(chain.relations):
            at = world.answer(Chain(chain.entity, chain.relations[:number]))
            if world.rumours[relation][at] != world.facts[relation][at]:
                found.append(RouteStep(relation, world.keeping[relation].patchy))
        return found

    async def _attempt(
        self, chain: Chain, question: Question, recalled: Sequence[Memory], route: Route, failed: RouteStep | None
    ) -> Attempted:
        plan = Plan(text=write_plan(route))
        execution = await self._executor.execute(question, plan, "", _ledger())
        if execution.trace.stop.reason.unheard:
            raise ModelUnavailable(f"the Executor could not be asked: {execution.trace.stop.sentence}")
        attempt = Attempt(plan=plan, trace=execution.trace, answer=execution.answer)
        said = execution.answer.text if execution.answer else ""
        came: Literal["right", "wrong", "unknown"] = "wrong"
        if said in ("", UNKNOWN):
            came = "unknown"
        elif said == self._world.answer(chain):
            came = "right"
        return Attempted(
            self._world.seed,
            question,
            present.for_planner(recalled),
            attempt,
            came,
            failed if came == "unknown" and _last_step(attempt) == failed else None,
        )


def _last_step(attempt: Attempt) -> RouteStep | None:
    """That was searched for."""
    tries = read_trajectory(render_attempts([attempt]))
    return tries[-1].query.step if tries else None


def _told_of(memory: Memory) -> frozenset[str]:
    """The relations that a memory says anything of, be it that they were asked for."""
    chain = read_question(memory.question)
    steps = [one.query.step for one in read_workflow(memory.workflow)]
    kept_by = [one.outcome.what for one in read_workflow(memory.workflow) if one.outcome.kind == "kept"]
    return frozenset(
        [
            *(chain.relations if chain else ()),
            *(step.relation for step in steps),
            *(step.via for step in steps),
            *kept_by,
        ]
    )


# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def examine(
    model: ChatModel, cases: Sequence[Case], *, on_case: Callable[[int, int], None] = lambda done, total: None
) -> Findings:
    """What this Planner does in each case; it should be greedy, for comparisons in pairs.

    `on_case`: told how many of how many are done. Raises ModelError if the model cannot be asked.
    """
    planner = Planner(model, style=STYLE)
    done = 0

    async def ask(case: Case) -> list[Mark]:
        nonlocal done
        marks = await case.ask(planner)
        done += 1
        on_case(done, len(cases))
        return marks

    findings: Findings = {name: {} for name in MEASURES}
    for case, marks in zip(cases, await side_by_side(map(ask, cases)), strict=True):
        for name, mark in marks:
            findings[name].setdefault(case.world, []).append(mark)
    return findings
