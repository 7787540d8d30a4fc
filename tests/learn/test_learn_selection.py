"""Which answer is reported, and how a group is credited: every case of it, over many groups."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mia.agents.planner import Planner
from mia.errors import ModelUnavailable
from mia.learn.selection import RULES, accepted, best, by_rule, heard, majority
from mia.models.ledger import Ledger
from mia.models.scripted import Answer, ScriptedModel
from mia.types import Attempt, Episode, MemoryKind, Outcome, Plan, Question, Recall, Stop, StopReason, Trace, Verdict

QUESTION = Question.of("Where was Kavori born?")
ANSWERED = Stop(reason=StopReason.ANSWERED, sentence="It answered.")
SILENT = Stop(reason=StopReason.UNREACHABLE, sentence="Nobody was there.")
OUTCOMES = st.sampled_from([None, *Outcome])


def episode(outcome: Outcome | None = None, plan: str | None = "1. Look.", stop: Stop = ANSWERED) -> Episode:
    attempt = Attempt(plan=Plan(text=plan) if plan is not None else None, trace=Trace(stop=stop))
    verdict = Verdict(outcome=outcome, judge="reference") if outcome is not None else None
    return Episode(
        id=f"ep-{random.random()}", question=QUESTION, started_at=0.0, attempts=(attempt,), verdict=verdict, stop=stop
    )


def choosing(*answers: Answer) -> tuple[Planner, ScriptedModel]:
    model = ScriptedModel({"planner/choose": answers})
    return Planner(model), model


@given(st.lists(OUTCOMES, min_size=1, max_size=9))
def test_a_group_is_correct_where_more_than_half_of_the_judged_are(outcomes: Sequence[Outcome | None]) -> None:
    verdict = majority([episode(outcome) for outcome in outcomes])
    judged = [one for one in outcomes if one not in (None, Outcome.UNJUDGED)]
    right = judged.count(Outcome.CORRECT)
    if not judged:
        assert verdict.outcome is Outcome.UNJUDGED
    else:
        assert verdict.correct == (right > len(judged) - right)
        assert verdict.outcome in (Outcome.CORRECT, Outcome.INCORRECT)


def test_a_tie_is_a_failure() -> None:
    assert not majority([episode(Outcome.CORRECT), episode(Outcome.INCORRECT)]).correct
    assert not majority([episode(Outcome.CORRECT), episode(Outcome.NOT_ATTEMPTED)]).correct
    # Who could not be judged has no vote.
    assert majority([episode(Outcome.CORRECT), episode(Outcome.UNJUDGED)]).correct


def test_each_rule_takes_what_it_says() -> None:
    episodes = [episode(plan=plan) for plan in ("four", "fourteen words", "two", "other", "fourteen more ", "one")]
    chosen = by_rule(episodes, "seed")
    assert set(chosen) == set(RULES)
    assert chosen == by_rule(episodes, "seed")
    # Of equals, the first.
    assert (chosen["first"], chosen["shortest"], chosen["longest"]) == (0, 2, 1)
    drawn = Counter(by_rule(episodes, f"seed {number}")["random"] for number in range(600))
    assert set(drawn) == set(range(6))
    assert max(drawn.values()) < 2 * min(drawn.values())


def test_a_try_without_a_plan_or_without_a_hearing_is_passed_over() -> None:
    episodes = [episode(plan=None), episode(stop=SILENT), episode(plan="a plan"), episode(plan="a longer plan")]
    assert heard(episodes) == [0, 2, 3]
    for number in range(20):
        chosen = by_rule(episodes, str(number))
        assert (chosen["first"], chosen["shortest"], chosen["longest"]) == (2, 2, 3)
        assert chosen["random"] in (2, 3)
    # Where nothing better is there, something is taken all the same.
    assert by_rule([episode(stop=SILENT), episode(plan=None)], "")["first"] == 1
    assert by_rule([episode(stop=SILENT)], "")["random"] == 0


@given(st.lists(OUTCOMES, min_size=1, max_size=9), st.text(max_size=5))
def test_by_review_an_accepted_answer_is_reported_if_there_is_one(
    outcomes: Sequence[Outcome | None], seed: str
) -> None:
    index = accepted([episode(outcome) for outcome in outcomes], seed)
    assert (outcomes[index] is Outcome.CORRECT) == (Outcome.CORRECT in outcomes)
    assert index == accepted([episode(outcome) for outcome in outcomes], seed)


def test_the_accepted_one_is_drawn_at_random() -> None:
    right = [Outcome.INCORRECT, Outcome.CORRECT, Outcome.UNJUDGED, Outcome.CORRECT, Outcome.CORRECT]
    drawn = Counter(accepted([episode(one) for one in right], f"question {number}") for number in range(300))
    assert set(drawn) == {1, 3, 4}
    none = Counter(accepted([episode(Outcome.INCORRECT)] * 3, f"question {number}") for number in range(300))
    assert set(none) == {0, 1, 2}


async def test_a_model_chooses_among_the_plans_and_sees_no_verdict() -> None:
    planner, model = choosing(json.dumps({"index": 1}))
    episodes = [
        episode(Outcome.CORRECT, "1. Ask the archive."),
        episode(Outcome.CORRECT, "1. Ask the archive."),
        episode(Outcome.INCORRECT, "1. Ask the census."),
    ]
    pairs = Recall(kind=MemoryKind.PLAN_PAIR, for_planner="the archive worked before")
    assert await best(planner, episodes, pairs, Ledger("q")) == 2
    (request,) = model.requests
    said = request.messages[-1].content
    # Equal plans are shown once; the number that was chosen is of those shown.
    assert said.count("Ask the archive.") == 1
    assert "the archive worked before" in said
    assert not any(word in said.lower() for word in ("correct:", "incorrect", "verdict"))


async def test_a_choice_that_fails_takes_the_first_and_one_plan_needs_none() -> None:
    plans = [episode(plan="1. Ask the archive."), episode(plan="1. Ask the census.")]
    for answer in ("the second", json.dumps({"index": 7}), ModelUnavailable("down")):
        planner, model = choosing(answer)
        assert await best(planner, plans, None, Ledger("q")) == 0
        assert len(model.requests) == 1
    planner, model = choosing()
    assert await best(planner, [episode(plan=None), plans[1], plans[1]], None, Ledger("q")) == 1
    assert model.requests == []
