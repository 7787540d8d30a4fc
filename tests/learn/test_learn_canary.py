"""The canary: who is kept, who is not, and what happens where nobody can say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory.past import episode

from mia.errors import JudgeError, LearnError
from mia.learn.canary import CanaryResult, Decision, Heard, Pair, decide, examine
from mia.types import Episode, Outcome, Question, StopReason, Task

TASKS = [Task(question=Question.of(f"Question {number}?"), references=("secret reference",)) for number in range(20)]


def answering(right: Callable[[str, int], Outcome]) -> Callable[[Task, str], object]:
    async def answer(task: Task, version: str) -> Episode:
        await asyncio.sleep(0)
        return episode(right(version, TASKS.index(task)), question=task.question)

    return answer


async def examined(right: Callable[[str, int], Outcome], *, margin: float = 0.05) -> CanaryResult:
    return await examine(TASKS, answering(right), "v1", "v2", margin=margin)  # type: ignore[arg-type]


def up_to(counts: dict[str, int]) -> Callable[[str, int], Outcome]:
    """So many right answers by each version."""
    return lambda version, number: Outcome.CORRECT if number < counts[version] else Outcome.INCORRECT


@pytest.mark.parametrize(
    ("candidate", "decision"),
    [(20, Decision.KEPT), (12, Decision.KEPT), (11, Decision.KEPT), (10, Decision.WORSE), (0, Decision.WORSE)],
)
async def test_worse_by_more_than_the_margin_is_not_kept(candidate: int, decision: Decision) -> None:
    """12 of 20 before; a margin of 0.05 is one question."""
    result = await examined(up_to({"v1": 12, "v2": candidate}))
    assert result.decision is decision
    assert result.kept is (decision is Decision.KEPT)
    assert result.judged == 20
    assert result.reason == f"{candidate} of 20 canary questions right, against 12 of the current version"
    assert result.difference is not None
    assert result.difference.estimate == pytest.approx((candidate - 12) / 20)
    assert "secret" not in result.model_dump_json(), "no reference leaves the judge"
    assert CanaryResult.model_validate_json(result.model_dump_json()) == result


async def test_pairs_that_nobody_judged_do_not_count() -> None:
    def right(version: str, number: int) -> Outcome:
        if number < 8:
            # Each is unjudged for one of the two only, and would be a loss of the candidate.
            return Outcome.UNJUDGED if (version == "v2") == bool(number % 2) else Outcome.CORRECT
        return Outcome.CORRECT if version == "v2" else Outcome.INCORRECT

    result = await examined(right)
    assert (result.judged, result.decision) == (12, Decision.KEPT)


async def test_a_canary_that_cannot_be_judged_keeps_the_current_version_and_says_so() -> None:
    def down(version: str, number: int) -> Outcome:
        if number > 8:
            raise JudgeError("the judge is down.")
        return Outcome.CORRECT

    result = await examined(down)
    assert (result.decision, result.kept, result.judged) == (Decision.UNJUDGED, False, 9)
    assert result.reason.startswith("only 9 of 20 canary questions could be judged, so the current version stays")
    assert "JudgeError: the judge is down." in result.reason


async def test_an_execution_that_was_not_heard_is_no_wrong_answer() -> None:
    async def answer(task: Task, version: str) -> Episode:
        unheard = version == "v2" and TASKS.index(task) < 5
        reason = StopReason.UNREACHABLE if unheard else StopReason.ANSWERED
        return episode(Outcome.INCORRECT if unheard else Outcome.CORRECT, question=task.question, reason=reason)

    result = await examine(TASKS, answer, "v1", "v2", margin=0.0)
    assert (result.decision, result.judged) == (Decision.KEPT, 15)


async def test_without_canary_questions_every_version_is_kept() -> None:
    result = await examine([], answering(up_to({})), "", "v1", margin=0.05)  # type: ignore[arg-type]
    assert (result.decision, result.kept, result.difference) == (Decision.UNEXAMINED, True, None)


async def test_each_question_is_put_to_both_and_not_too_many_at_once() -> None:
    asked: Counter[tuple[str, str]] = Counter()
    under_way, most = 0, 0

    async def answer(task: Task, version: str) -> Episode:
        nonlocal under_way, most
        asked[task.question.id, version] += 1
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return episode(question=task.question)

    await examine(TASKS, answer, "v1", "v2", margin=0.05, concurrency=3)
    assert set(asked) == {(task.question.id, version) for task in TASKS for version in ("v1", "v2")}
    assert set(asked.values()) == {1}
    assert most == 6


async def test_bugs_and_margins_that_mean_nothing_raise() -> None:
    async def broken(task: Task, version: str) -> Episode:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await examine(TASKS, broken, "v1", "v2", margin=0.05)
    for margin in (-0.1, 1.5, float("nan")):
        with pytest.raises(LearnError, match="margin"):
            await examine(TASKS, broken, "v1", "v2", margin=margin)


JUDGED = st.sampled_from([True, False, None])


@given(st.lists(st.tuples(JUDGED, JUDGED), min_size=1, max_size=40), st.integers(0, 100))
def test_the_decision_is_that_of_exact_counts(verdicts: list[tuple[bool | None, bool | None]], percent: int) -> None:
    pairs = [
        Pair(question_id=str(number), current=Heard(correct=one), candidate=Heard(correct=other))
        for number, (one, other) in enumerate(verdicts)
    ]
    judged = [(one, other) for one, other in verdicts if one is not None and other is not None]
    lost = sum(one and not other for one, other in judged) - sum(other and not one for one, other in judged)
    decision = decide(pairs, "v1", "v2", margin=percent / 100).decision
    if 2 * len(judged) < len(verdicts):
        assert decision is Decision.UNJUDGED
    else:
        assert (decision is Decision.WORSE) == (100 * lost > percent * len(judged))
