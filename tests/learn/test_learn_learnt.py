"""What a Planner has learnt, taken apart: shown with symbolic Planners of whom it is known what they know."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterable
from statistics import fmean

import pytest

from mia.errors import ModelUnavailable
from mia.learn.learnt import (
    ATTEMPTS,
    FAILURES,
    MEASURES,
    QUESTIONS,
    Attempted,
    Case,
    FailureRecalled,
    Findings,
    FirstPlan,
    examine,
    make_cases,
)
from mia.models.base import ChatReply, ChatRequest, estimate_usage
from mia.types import Role
from mia.world.facts import FAVOURITE, World
from mia.world.language import (
    SOURCES,
    Query,
    RouteStep,
    read_memories,
    read_plan,
    read_trajectory,
    write_plan,
)
from mia.world.seeds import VALIDATION
from mia.world.teacher import Teacher

WORLDS = [World.make(seed) for seed in VALIDATION[:4]]
NAMES = list(MEASURES)
FAVOURITE_KNOWN, FAVOURITE_OTHER, ROUTE = NAMES[:3]
TOLD, UNTOLD, USE, KEPT = NAMES[3:7]
TOLD_OTHER, UNTOLD_OTHER, USE_OTHER, KEPT_OTHER = NAMES[7:11]
YES_UNKNOWN, YES_WRONG, NO_RIGHT, NEW_SOURCE, REPLAN_KNOWN, REPLAN_OTHER = NAMES[11:]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return asyncio.run(make_cases(WORLDS, Teacher(random.Random(0))))


def shares(findings: Findings) -> dict[str, float]:
    """Over all worlds, of what had a case."""
    every = {name: [mark for marks in worlds.values() for mark in marks] for name, worlds in findings.items()}
    return {name: fmean(marks) for name, marks in every.items() if marks}


class Knows(Teacher):
    """The teacher, but for knowing all favourites, first and again."""

    def __init__(self) -> None:
        super().__init__(random.Random(0), favourites=FAVOURITE)

    def reply(self, request: ChatRequest) -> str:
        text = super().reply(request)
        if request.purpose != "replan":
            return text
        failed = read_trajectory(request.messages[3].content)[-1].query.step
        first, *rest = read_plan(text)
        if failed.source != FAVOURITE[first.relation]:
            first = RouteStep(first.relation, FAVOURITE[first.relation])
        return write_plan((first, *rest))


class Heeds(Knows):
    """One that besides learns from memories of wrong answers."""

    def reply(self, request: ChatRequest) -> str:
        text = super().reply(request)
        if request.role is not Role.PLANNER or request.purpose != "plan":
            return text
        failed = {
            (one.query.step.relation, one.query.step.source)
            for correct, tries in read_memories(request.messages[-1].content)
            for one in tries
            if not correct and one.outcome.kind == "nothing"
        }
        return write_plan([self._elsewhere(step, failed) for step in read_plan(text)])

    def _elsewhere(self, step: RouteStep, failed: Iterable[tuple[str, str]]) -> RouteStep:
        left = [source for source in SOURCES if (step.relation, source) not in failed]
        return step if step.source in left else RouteStep(step.relation, left[0])


class Says:
    """A model that says one thing, whatever it is asked."""

    name = "says"
    context_window = 100_000
    max_tokens = 1_000
    price = None

    def __init__(self, text: str) -> None:
        self.text = text

    async def complete(self, request: ChatRequest) -> ChatReply:
        return ChatReply(self.text, usage=estimate_usage(request, self.text, None), model=self.name)

    async def close(self) -> None:
        """Nothing to let go of."""


class Down(Says):
    async def complete(self, request: ChatRequest) -> ChatReply:
        raise ModelUnavailable("the machine is off.")


async def test_the_teacher_knows_what_it_was_made_to_know_and_heeds_no_failure(cases: list[Case]) -> None:
    found = shares(await examine(Teacher(random.Random(1)), cases))
    assert found[FAVOURITE_KNOWN] == found[ROUTE] == 1.0
    assert 0.05 < found[FAVOURITE_OTHER] < 0.35
    assert found[YES_UNKNOWN] == found[NO_RIGHT] == found[NEW_SOURCE] == 1.0
    assert found[YES_WRONG] == 0.0
    assert max(found[REPLAN_KNOWN], found[REPLAN_OTHER]) < 0.6


async def test_favourites_alone_are_told_from_the_use_of_failures(cases: list[Case]) -> None:
    knows, heeds = shares(await examine(Knows(), cases)), shares(await examine(Heeds(), cases))
    for name in (FAVOURITE_KNOWN, ROUTE, NEW_SOURCE, REPLAN_KNOWN, REPLAN_OTHER):
        assert knows[name] == heeds[name] == 1.0, name
    # Whoever goes by favourites alone goes where the memory failed, told or not.
    assert knows[FAVOURITE_OTHER] == 1.0
    assert knows[TOLD] == knows[UNTOLD] == knows[USE] == knows[KEPT] == 0.0
    assert knows[TOLD_OTHER] == knows[UNTOLD_OTHER] == 1.0
    assert heeds[TOLD] == heeds[USE] == heeds[KEPT] == 1.0
    assert heeds[UNTOLD] == 0.0
    # Another source is one where it would not have gone anyway.
    assert knows[USE_OTHER] == heeds[USE_OTHER] == 0.0
    assert KEPT_OTHER not in knows


async def test_cases_are_what_they_say(cases: list[Case]) -> None:
    worlds = {world.seed: world for world in WORLDS}
    plans = [case for case in cases if isinstance(case, FirstPlan)]
    failures = [case for case in cases if isinstance(case, FailureRecalled)]
    attempts = [case for case in cases if isinstance(case, Attempted)]
    assert len(plans) + len(failures) + len(attempts) == len(cases)
    assert len(plans) == QUESTIONS * len(WORLDS)
    assert FAILURES * len(WORLDS) < len(failures) <= 2 * FAILURES * len(WORLDS)
    assert 2 * ATTEMPTS * len(WORLDS) < len(attempts) <= 3 * ATTEMPTS * len(WORLDS)
    for plan in plans:
        assert not any(re.search(rf"\b{relation}\b", plan.memories) for relation in plan.untold)
        assert not plan.routes.keys() & set(plan.untold)
    for case in failures:
        world = worlds[case.world]
        subjects = world.facts[case.relation]
        for source in case.failed:
            assert {world.look_up(Query(RouteStep(case.relation, source), one)).kind for one in subjects} == {"nothing"}
        assert not re.search(rf"\b{case.relation}\b", case.others)
        assert case.memories.startswith(case.others)
        told = [
            (correct, one.query.step.source)
            for correct, tries in read_memories(case.memories)
            for one in tries
            if one.query.step.relation == case.relation
        ]
        assert told == [(False, source) for source in case.failed]
    came = {name: sum(case.came == name for case in attempts) for name in ("right", "wrong", "unknown")}
    assert came["right"] == came["unknown"] == ATTEMPTS * len(WORLDS)
    assert came["wrong"] > ATTEMPTS
    assert all((case.failed is not None) == (case.came == "unknown") for case in attempts)


async def test_worlds_and_seed_decide_the_cases(cases: list[Case]) -> None:
    findings = await examine(Knows(), cases)
    again = await make_cases(WORLDS[:2], Teacher(random.Random(5)))
    few = await examine(Knows(), again)
    kept = {
        name: {seed: marks for seed, marks in worlds.items() if seed in (VALIDATION[0], VALIDATION[1])}
        for name, worlds in findings.items()
    }
    assert few == kept
    other = await make_cases(WORLDS[:2], Teacher(random.Random(5)), seed=1)
    assert [case.question for case in other] != [case.question for case in again]  # type: ignore[attr-defined]


@pytest.mark.parametrize("reply", ["", "<think>", "plan", "<tool_call>{}</tool_call>"])
async def test_replies_that_mean_nothing_are_wrong_and_break_nothing(cases: list[Case], reply: str) -> None:
    found = shares(await examine(Says(reply), cases))
    assert set(found.values()) == {0.0}


async def test_who_always_says_yes_is_right_where_a_replan_is_wanted(cases: list[Case]) -> None:
    found = shares(await examine(Says("yes"), cases))
    assert {name for name, share in found.items() if share} == {YES_UNKNOWN, YES_WRONG}


async def test_a_model_that_cannot_be_asked_is_no_finding(cases: list[Case]) -> None:
    with pytest.raises(ModelUnavailable):
        await examine(Down(""), cases)
    with pytest.raises(ModelUnavailable):
        await make_cases(WORLDS[:1], Down(""))


async def test_what_is_under_way_is_told_and_shifted_worlds_can_be_measured() -> None:
    worlds, asked = list[tuple[int, int]](), list[tuple[int, int]]()
    shifted = [World.make(VALIDATION[0], shifted=True)]
    cases = await make_cases(shifted, Teacher(random.Random(0)), on_world=lambda *counts: worlds.append(counts))
    found = await examine(Heeds(), cases, on_case=lambda *counts: asked.append(counts))
    assert worlds == [(1, 1)]
    assert asked == [(number, len(cases)) for number in range(1, len(cases) + 1)]
    assert shares(found)[USE] == 1.0
    assert await examine(Heeds(), []) == {name: {} for name in MEASURES}
