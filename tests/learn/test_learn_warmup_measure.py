"""Measured abilities: the teacher has all of them, and who says the same to everything has what that happens to be."""

from __future__ import annotations

import math
import random

import pytest

from mia.learn.warmup.measure import ABILITIES, QUESTIONS_PER_WORLD, Share, measure
from mia.models.base import ChatReply, ChatRequest, estimate_usage
from mia.statistics import wilson
from mia.types import Role
from mia.world.facts import World
from mia.world.seeds import VALIDATION
from mia.world.teacher import Teacher

WORLDS = [World.make(seed) for seed in VALIDATION[:8]]
FOLLOWS, UNKNOWN, REMEMBERS, KEPT, REFLECTS, REPLANS, COMPRESSES, JUDGES, MISSES = ABILITIES


class Says:
    """A model that says one thing per role, whatever it is asked."""

    name = "says"
    context_window = 100_000
    max_tokens = 1_000
    price = None

    def __init__(self, **replies: str) -> None:
        self.replies = {Role(name): reply for name, reply in replies.items()}

    async def complete(self, request: ChatRequest) -> ChatReply:
        text = self.replies.get(request.role, "")
        return ChatReply(text, usage=estimate_usage(request, text, None), model=self.name)

    async def close(self) -> None:
        """Nothing to let go of."""


async def test_the_teacher_can_do_all_of_it() -> None:
    told: list[tuple[int, int]] = []
    shares = await measure(Teacher(random.Random(0)), WORLDS, on_case=lambda done, total: told.append((done, total)))
    assert list(shares) == list(ABILITIES)
    for name, share in shares.items():
        assert share.right == share.of, name
        assert share.of >= (1 if name in (KEPT, MISSES) else 8), name
    assert shares[FOLLOWS].of == QUESTIONS_PER_WORLD * len(WORLDS)
    # The cases of a part are cases of the whole too.
    cases = sum(share.of for name, share in shares.items() if name not in (KEPT, MISSES))
    assert told == [(done, cases) for done in range(1, cases + 1)]


async def test_who_always_says_unknown_is_right_in_wrong_sources_alone() -> None:
    says = Says(
        executor="<think>no</think>\n<answer>unknown</answer>", planner="yes", manager="", judge="Verdict: CORRECT"
    )
    shares = await measure(says, WORLDS)
    assert shares[FOLLOWS].right == 0
    assert shares[UNKNOWN].right == shares[UNKNOWN].of
    # It was asked only what it did not answer: "yes" is right each time, and no plan.
    assert shares[REFLECTS].right == shares[REFLECTS].of
    assert shares[REMEMBERS].right == shares[REPLANS].right == 0


@pytest.mark.parametrize(
    "reply", ["", "<think>", "<answer>Kavori</answer>", "<tool_call>{}</tool_call>", "\ud800", "no" * 1_000]
)
async def test_replies_that_mean_nothing_are_wrong_and_break_nothing(reply: str) -> None:
    shares = await measure(Says(executor=reply, planner=reply, manager=reply, judge=reply), WORLDS[:2])
    assert {name: share.right for name, share in shares.items()} == dict.fromkeys(ABILITIES, 0)


class Believes(Teacher):
    """The teacher, but for a judge who finds everything right."""

    def reply(self, request: ChatRequest) -> str:
        if request.role is not Role.JUDGE:
            return super().reply(request)
        return "Verdict: CORRECT\nReason: fine" if request.purpose == "chair" else "Score: 9\nReason: fine"


class Repeats(Teacher):
    """The teacher, but for a Planner whose supplementary plan is its first one."""

    def reply(self, request: ChatRequest) -> str:
        if request.purpose == "replan":
            return request.messages[2].content
        return super().reply(request)


async def test_one_who_errs_in_one_role_loses_that_share_alone() -> None:
    for erring, ability in ((Believes, JUDGES), (Repeats, REPLANS)):
        shares = await measure(erring(random.Random(0)), WORLDS)
        right = {name for name, share in shares.items() if share.right == share.of}
        assert set(ABILITIES) - right - {KEPT, MISSES} == {ability}
    # A judge who believes everything is right where the answer is.
    shares = await measure(Believes(random.Random(0)), WORLDS)
    assert 0.1 < shares[JUDGES].value < 0.9


async def test_worlds_and_seed_decide_the_cases_and_concurrency_does_not() -> None:
    model = Believes(random.Random(0))
    one = await measure(model, WORLDS[:3])
    assert await measure(model, WORLDS[:3], concurrency=1) == one
    assert await measure(model, WORLDS[:3], seed=1) != one
    assert await measure(model, []) == dict.fromkeys(ABILITIES, Share(0, 0))


async def test_shifted_worlds_can_be_measured_too() -> None:
    shares = await measure(Teacher(random.Random(0)), [World.make(VALIDATION[0], shifted=True)])
    assert all(share.right == share.of for share in shares.values())


def test_a_share_has_its_interval() -> None:
    assert Share(9, 10).value == 0.9
    assert Share(9, 10).interval == wilson(9, 10)
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval is None
