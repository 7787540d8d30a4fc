"""Rewards, clause by clause of the specification (mia.md, section 5)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.config import LearnSettings
from mia.errors import ConfigError
from mia.learn.reward_services import CustomReward, HttpReward
from mia.learn.rewards import (
    ExecutorReward,
    PlannerReward,
    UnsupervisedReward,
    balanced,
    build_reward,
    executor_accuracy,
    executor_form,
    executor_total,
    incomplete,
    names_tool,
    planner_form,
    planner_total,
    right_decision,
    thinking_balanced,
    tool_share,
    unsupervised_total,
)
from mia.learn.rollouts import Dropped, Reward, Said
from mia.types import (
    Answer,
    Attempt,
    Episode,
    Failure,
    Observation,
    Outcome,
    Plan,
    Question,
    Reflection,
    Role,
    Step,
    Stop,
    StopReason,
    Task,
    ToolCall,
    Trace,
    Verdict,
)

TOOLS = frozenset(("search", "web_image_to_image_search", "fetch"))
TASK = Task(question=Question.of("Who?", id="q"), references=("Ann",))
SEARCH = '<tool_call>{"name": "search", "arguments": {"query_list": ["who"]}}</tool_call>'
IMAGE = '<tool_call>{"name": "web_image_to_image_search", "arguments": {"img_idx": "0"}}</tool_call>'
ANSWER = "<think>so</think>\n<answer>Ann</answer>"


def call(name: str, arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def step(text: str, *, tool_call: ToolCall | None = None, found: str = "", error: str = "") -> Step:
    observation = Observation(text=found, ok=not error, error=error) if found or error else None
    return Step(index=0, text=text, tool_call=tool_call, observation=observation)


def steps(*texts: str) -> list[Step]:
    return [step(text) for text in texts]


def verdict(outcome: Outcome | None, **more: Any) -> Verdict | None:
    return None if outcome is None else Verdict(outcome=outcome, judge="reference", **more)


RIGHT, WRONG = Outcome.CORRECT, Outcome.INCORRECT


def attempt(
    outcome: Outcome | None,
    *texts: str,
    answer: str = "Ann",
    reflection: str = "",
    plan: bool = True,
    stop: StopReason = StopReason.ANSWERED,
) -> Attempt:
    replan = {"yes": True, "no": False}.get(reflection.rpartition("</think>")[2].strip())
    return Attempt(
        plan=Plan(text="1. search") if plan else None,
        trace=Trace(steps=tuple(steps(*texts)), stop=Stop(reason=stop, sentence="It stopped.")),
        answer=Answer(text=answer) if answer else None,
        reflection=Reflection(replan=replan, text=reflection) if reflection else None,
        verdict=verdict(outcome),
    )


def episode(*attempts: Attempt, **more: Any) -> Episode:
    reported = next((one for one in reversed(attempts) if one.answer is not None), attempts[-1] if attempts else None)
    return Episode(
        id="ep",
        question=TASK.question,
        started_at=0.0,
        attempts=attempts,
        **{"answer": reported and reported.answer, "verdict": reported and reported.verdict} | more,
    )


# ── sums ──────────────────────────────────────────────────────────────────────────────────────────────────────────

unit = st.floats(0, 1)


@given(unit, unit, unit, unit)
def test_the_weights_are_those_of_the_paper(a: float, b: float, c: float, d: float) -> None:
    assert executor_total(a, b, c) == pytest.approx(0.7 * a + 0.2 * b + 0.1 * c)
    assert planner_total(a, b, c, d) == pytest.approx(0.7 * a + 0.2 * b + 0.05 * c + 0.05 * d)
    assert unsupervised_total(a, b) == pytest.approx(0.9 * a + 0.1 * b)
    for total in (executor_total(1, 1, 1), planner_total(1, 1, 1, 1), unsupervised_total(1, 1)):
        assert math.isclose(total, 1.0)


@pytest.mark.parametrize(
    ("correct", "replanned", "length", "default", "paper"),
    [
        (True, False, 3, 1.0, 1.2),
        (True, True, 3, 1.0, 1.0),
        (True, False, 100, 1.0, 1.2),
        (True, False, 101, 1.0, 0.0),
        (True, True, 101, 1.0, 0.0),
        (False, False, 3, 0.0, 0.0),
        (False, True, 101, 0.0, 0.0),
    ],
)
def test_accuracy(correct: bool, replanned: bool, length: int, default: float, paper: float) -> None:
    answer = "x" * length
    assert executor_accuracy(correct, replanned=replanned, answer=answer) == default
    assert executor_accuracy(correct, replanned=replanned, answer=answer, preset="paper") == paper


# ── tags ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", True),
        ("no tags <thin> </ think> <thinking>", True),
        ("<think>a</think>b", True),
        ("<think>a</think> <think>b</think>", True),
        ("<think>a", False),
        ("a</think>", False),
        ("</think><think>", False),
        ("<think><think>a</think>", False),
        ("<think>a</think></think>", False),
    ],
)
def test_balanced(text: str, whole: bool) -> None:
    assert balanced(text, "think") is whole
    assert balanced(text.replace("think>", "answer>"), "answer") is whole


@given(st.lists(st.sampled_from(["<think>", "</think>", "x", "<answer>"]), max_size=12))
def test_balanced_is_what_peeling_pairs_finds(parts: list[str]) -> None:
    peeled = [part for part in parts if "think" in part]
    while True:
        pairs = [at for at in range(len(peeled) - 1) if peeled[at : at + 2] == ["<think>", "</think>"]]
        if not pairs:
            break
        del peeled[pairs[0] : pairs[0] + 2]
    assert balanced("".join(parts), "think") is (not peeled)


def test_a_template_may_open_the_thinking() -> None:
    assert not thinking_balanced("so</think>no")
    assert thinking_balanced("so</think>no", opened=True)
    assert thinking_balanced("<think>so</think>no", opened=True), "some servers repeat the tag"
    assert not thinking_balanced("so", opened=True)


# ── the Executor's tools ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"<think>x</think>{SEARCH}", True),
        (SEARCH, True),
        (call("search", {"wrong": 1}), True),
        (call("search", ["no object"]), True),
        ('<tool_call>{"name": "search"}</tool_call>', True),
        (call("fetch", {}), True),
        (f"{SEARCH}{SEARCH}", True),
        (f"{SEARCH} and more", True),
        (f"<tool_call>broken</tool_call>{SEARCH}", True),
        (call("browse", {"query_list": ["who"]}), False),
        ('<tool_call>{"name": ["search"], "arguments": {}}</tool_call>', False),
        ("<tool_call>search</tool_call>", False),
        ('<tool_call>{"name": "search", "arguments": {}', False),
        ('<tool_call>["search"]</tool_call>', False),
        (f"<tool_call>{'[' * 100_000}</tool_call>", False),
        (f"<think>I could write {SEARCH}</think><answer>Ann</answer>", False),
        (f"<think>never closed {SEARCH}", False),
        ("search", False),
        ("", False),
    ],
)
def test_which_turn_names_a_tool(text: str, named: bool) -> None:
    assert names_tool(step(text), TOOLS) is named


def test_a_native_call_names_a_tool() -> None:
    assert names_tool(step("", tool_call=ToolCall(name="search", arguments={"no": 1})), TOOLS)
    assert not names_tool(step("", tool_call=ToolCall(name="browse", arguments={})), TOOLS)


def test_what_a_tool_returned_is_no_call() -> None:
    assert not names_tool(step("<think>x</think>", found=SEARCH), TOOLS)


@pytest.mark.parametrize(
    ("segments", "share"),
    [
        ([[SEARCH, ANSWER]], 1.0),
        ([[ANSWER]], 0.0),
        ([[]], 0.0),
        ([[SEARCH, SEARCH, ANSWER], [ANSWER]], 0.5),
        ([[ANSWER], [SEARCH, ANSWER]], 0.5),
        ([[SEARCH, ANSWER], [call("fetch", 1), ANSWER]], 1.0),
        ([[SEARCH], [ANSWER], [ANSWER]], 1 / 3),
        ([], 0.0),
    ],
)
def test_the_share_of_segments_with_a_call(segments: list[list[str]], share: float) -> None:
    assert tool_share([steps(*texts) for texts in segments], TOOLS) == pytest.approx(share)


# ── the Executor's form ───────────────────────────────────────────────────────────────────────────────────────────

GOOD_FORM = [
    [f"<think>a</think>{SEARCH}", ANSWER],
    [ANSWER],
    ["<answer>Ann</answer>"],
    [SEARCH, "<answer>Ann</answer>"],
    ["<think>a</think><answer>Bo</answer><answer>Ann</answer>"],
    ["<think>a</think>words that call and answer nothing", ANSWER],
    ["<think>a</think><answer>Bo</answer>", f"<think>b</think>{SEARCH}", ANSWER],
    [IMAGE, ANSWER],
    [IMAGE, SEARCH, call("search", {"query_list": ["a", "b"]}), ANSWER],
    [call("fetch", {"anything": 1}), ANSWER],
]
BAD_FORM = [
    [],
    ["<think>a</think>"],
    [f"<think>a</think>{SEARCH}"],
    ["<think>a", ANSWER],
    ["a</think>", ANSWER],
    ["<think>a", "b</think><answer>Ann</answer>"],
    ["<think>a</think><answer>Ann"],
    ["<think>a</think>Ann</answer>"],
    ["<think>a</think><answer>Ann</answer></answer>"],
    ["<think>a</think></answer>Ann<answer>"],
    ["<think><answer>Ann</answer></think>"],
    ["<answer>Ann</answer>", "<think>changed my mind</think>"],
    ["<think>an <answer> comes</think><answer>Ann</answer>"],
    [call("search", {}), ANSWER],
    [call("search", {"query_list": []}), ANSWER],
    [call("search", {"query_list": "who"}), ANSWER],
    [call("search", {"query_list": [""]}), ANSWER],
    [call("search", {"query_list": ["who", "  "]}), ANSWER],
    [call("search", {"query_list": ["who", 1]}), ANSWER],
    [call("search", {"query_list": ["who"], "k": 3}), ANSWER],
    [call("search", {"query": "who"}), ANSWER],
    [call("search", ["who"]), ANSWER],
    [call("browse", {"query_list": ["who"]}), ANSWER],
    [call("web_image_to_image_search", {"img_idx": 0}), ANSWER],
    [call("web_image_to_image_search", {"img_idx": "1"}), ANSWER],
    [call("web_image_to_image_search", {"img_idx": "0", "k": 1}), ANSWER],
    [call("web_image_to_image_search", {}), ANSWER],
    [IMAGE, SEARCH, IMAGE, ANSWER],
    ["<tool_call>broken</tool_call>", ANSWER],
    ["<tool_call>", ANSWER],
    [SEARCH + SEARCH, ANSWER],
    [SEARCH + "more", ANSWER],
    [f"{SEARCH}<answer>Ann</answer>"],
]


@pytest.mark.parametrize("texts", GOOD_FORM)
def test_good_form(texts: list[str]) -> None:
    assert executor_form(steps(*texts), TOOLS)


@pytest.mark.parametrize("texts", BAD_FORM)
def test_bad_form(texts: list[str]) -> None:
    assert not executor_form(steps(*texts), TOOLS)


def test_a_tool_with_rules_of_its_own_says_what_is_legal() -> None:
    fetch, search = (
        step(call(name, arguments), tool_call=ToolCall(name=name, arguments=arguments), error="bad_arguments")
        for name, arguments in (("fetch", {"nowhere": 1}), ("search", {"query_list": ["x" * 9_000]}))
    )
    assert not executor_form([fetch, step(ANSWER)], TOOLS)
    # The specification says which searches are legal: the limits of our own tool do not count.
    assert executor_form([search, step(ANSWER)], TOOLS)
    down = step(call("fetch", {}), tool_call=ToolCall(name="fetch", arguments={}), error="tool_failed")
    assert executor_form([down, step(ANSWER)], TOOLS)


def test_what_a_tool_returned_does_not_count_for_form() -> None:
    torn = step(f"<think>a</think>{SEARCH}", found="<think> </answer> <tool_call>broken</tool_call>")
    assert executor_form([torn, step(ANSWER)], TOOLS)
    given = step(f"<think>a</think>{SEARCH}", found="<answer>Ann</answer>")
    assert not executor_form([given], TOOLS)


def test_the_form_of_native_calls() -> None:
    legal = step("", tool_call=ToolCall(name="search", arguments={"query_list": ["who"]}), found="Ann")
    illegal = step("", tool_call=ToolCall(name="search", arguments={"query": "who"}), error="bad_arguments")
    torn = step('{"query_list"', error="malformed")
    image = step("", tool_call=ToolCall(name="web_image_to_image_search", arguments={"img_idx": "0"}))
    last = step("<answer>Ann</answer>")
    assert executor_form([legal, image, last], TOOLS, native=True)
    for bad in ([illegal, last], [torn, last], [image, image, last], [legal]):
        assert not executor_form(bad, TOOLS, native=True)


# ── the Executor's reward ─────────────────────────────────────────────────────────────────────────────────────────


async def executor_reward(one: Episode, **settings: Any) -> Reward | Dropped:
    return await ExecutorReward(TOOLS, **settings)(TASK, one, ())


@pytest.mark.parametrize(
    ("attempts", "accuracy", "tool", "form"),
    [
        ([attempt(RIGHT, SEARCH, ANSWER)], 1, 1, 1),
        ([attempt(WRONG, SEARCH, ANSWER)], 0, 1, 1),
        ([attempt(RIGHT, ANSWER)], 1, 0, 1),
        ([attempt(RIGHT, call("search", {}), ANSWER)], 1, 1, 0),
        ([attempt(WRONG, SEARCH, ANSWER), attempt(RIGHT, ANSWER)], 1, 0.5, 1),
        ([attempt(WRONG, ANSWER), attempt(RIGHT, SEARCH, ANSWER)], 1, 0.5, 1),
        ([attempt(WRONG, SEARCH, ANSWER), attempt(WRONG, SEARCH, ANSWER)], 0, 1, 1),
        ([attempt(Outcome.NOT_ATTEMPTED, SEARCH, answer="")], 0, 1, 0),
        # The reported answer is the last that there is.
        ([attempt(RIGHT, SEARCH, ANSWER), attempt(Outcome.NOT_ATTEMPTED, SEARCH, answer="")], 1, 1, 1),
        ([attempt(RIGHT, SEARCH, ANSWER, plan=False)], 1, 1, 1),
    ],
)
async def test_the_executors_reward(attempts: list[Attempt], accuracy: float, tool: float, form: float) -> None:
    rewarded = await executor_reward(episode(*attempts))
    assert isinstance(rewarded, Reward)
    assert rewarded.parts == {"accuracy": accuracy, "tool": tool, "format": form}
    assert rewarded.total == pytest.approx(0.7 * accuracy + 0.2 * tool + 0.1 * form)


async def test_the_paper_pays_for_an_answer_without_a_replan() -> None:
    for attempts, total in (
        ([attempt(RIGHT, SEARCH, ANSWER)], 0.7 * 1.2 + 0.3),
        ([attempt(WRONG, SEARCH, ANSWER), attempt(RIGHT, SEARCH, ANSWER)], 1.0),
        ([attempt(RIGHT, SEARCH, ANSWER, answer="Ann" * 34)], 0.3),
    ):
        rewarded = await executor_reward(episode(*attempts), preset="paper")
        assert isinstance(rewarded, Reward)
        assert rewarded.total == pytest.approx(total)


# ── the Planner ───────────────────────────────────────────────────────────────────────────────────────────────────


def said(**turns: str) -> list[Said]:
    return [Said(purpose, text) for purpose, text in turns.items()]


@pytest.mark.parametrize(
    ("turns", "good"),
    [
        ({"plan": "1. search", "reflect": "no"}, True),
        ({"plan": "<think>a</think>1. search", "reflect": "<think>b</think>\nYes"}, True),
        ({"plan": "1. search", "reflect": "yes", "replan": "<think>a</think>2. search"}, True),
        ({"plan": "<think>1. search", "reflect": "no"}, False),
        ({"plan": "1. search", "reflect": "<think>no"}, False),
        ({"plan": "1. search", "reflect": "</think>no"}, False),
        ({"plan": "1. search", "reflect": "yes", "replan": "a</think>2. search"}, False),
        ({"plan": "1. search", "reflect": "no."}, False),
        ({"plan": "1. search", "reflect": "**yes**"}, False),
        ({"plan": "1. search", "reflect": "yes, replan"}, False),
        ({"plan": "1. search", "reflect": "yes no"}, False),
        ({"plan": "1. search", "reflect": ""}, False),
        # Not of this conversation.
        ({"plan": "1. search", "reflect": "no", "choose": "<think>"}, True),
    ],
)
def test_the_planners_form(turns: dict[str, str], good: bool) -> None:
    assert planner_form(said(**turns)) is good


@pytest.mark.parametrize(
    ("outcome", "reflection", "right"),
    [
        (RIGHT, "no", True),
        (RIGHT, "yes", False),
        (WRONG, "yes", True),
        (WRONG, "no", False),
        (Outcome.NOT_ATTEMPTED, "yes", True),
        (Outcome.NOT_ATTEMPTED, "no", False),
        (RIGHT, "perhaps", False),
        (WRONG, "perhaps", False),
        (RIGHT, "", False),
        (WRONG, "", False),
    ],
)
def test_the_decision(outcome: Outcome, reflection: str, right: bool) -> None:
    assert right_decision(attempt(outcome, reflection=reflection)) is right


WHOLE: Sequence[Sequence[Attempt]] = (
    [attempt(RIGHT, reflection="no")],
    [attempt(WRONG, reflection="perhaps")],
    [attempt(WRONG, reflection="yes"), attempt(RIGHT)],
    [attempt(WRONG, reflection="yes"), attempt(WRONG, reflection="no")],
    [attempt(WRONG, reflection="yes"), attempt(WRONG, reflection="yes"), attempt(RIGHT)],
)
TORN: Sequence[Sequence[Attempt]] = (
    [],
    [attempt(RIGHT, plan=False)],
    [attempt(RIGHT)],
    [attempt(WRONG, reflection="yes")],
    [attempt(WRONG, reflection="yes"), attempt(WRONG, reflection="yes")],
)


def test_what_a_whole_conversation_is() -> None:
    assert [incomplete(attempts, said(plan="1.", reflect="no")) for attempts in WHOLE] == [""] * len(WHOLE)
    assert all(incomplete(attempts, said(plan="1.")) for attempts in TORN)
    for purpose in ("plan", "reflect", "replan"):
        assert incomplete(WHOLE[2], [Said(purpose, "1.", cut=True)]) == f"the {purpose} was cut off"
    assert not incomplete(WHOLE[2], [Said("choose", "1.", cut=True)])


@pytest.mark.parametrize("final", [RIGHT, WRONG, Outcome.NOT_ATTEMPTED])
@pytest.mark.parametrize("first", [RIGHT, WRONG])
async def test_the_planners_reward_after_a_replan(first: Outcome, final: Outcome) -> None:
    answer = "" if final is Outcome.NOT_ATTEMPTED else "Ann"
    whole = episode(attempt(first, reflection="yes"), attempt(final, answer=answer))
    # Without a second answer, the first one is reported.
    right = (final if answer else first) is RIGHT
    for form, reflect in ((1, "yes"), (0, "Yes!")):
        rewarded = await PlannerReward()(TASK, whole, said(plan="1.", reflect=reflect, replan="2."))
        assert isinstance(rewarded, Reward)
        decision = first is WRONG
        assert rewarded.total == pytest.approx(0.7 * right + 0.2 * (first is RIGHT) + 0.05 * form + 0.05 * decision)
        parts = {"final": right, "first": first is RIGHT, "format": form, "decision": decision, "complete": 1}
        assert rewarded.parts == parts


@pytest.mark.parametrize(("outcome", "total"), [(RIGHT, 1.0), (WRONG, 0.05)])
async def test_without_a_replan_the_first_answer_is_the_last(outcome: Outcome, total: float) -> None:
    rewarded = await PlannerReward()(TASK, episode(attempt(outcome, reflection="no")), said(plan="1.", reflect="no"))
    assert isinstance(rewarded, Reward)
    assert rewarded.total == pytest.approx(total)


@pytest.mark.parametrize("reward", [PlannerReward(), UnsupervisedReward()])
async def test_an_incomplete_conversation_is_worth_nothing(reward: PlannerReward | UnsupervisedReward) -> None:
    cases = [(attempts, False) for attempts in TORN if attempts] + [(attempts, True) for attempts in WHOLE]
    for attempts, cut in cases:
        rewarded = await reward(TASK, episode(*attempts), [Said("plan", "1.", cut=cut)])
        assert isinstance(rewarded, Reward)
        assert (rewarded.total, rewarded.parts["complete"]) == (0.0, 0.0)


@pytest.mark.parametrize(("outcome", "reflect"), list(product((RIGHT, WRONG), ("no", "no!"))))
async def test_the_unsupervised_reward(outcome: Outcome, reflect: str) -> None:
    one = episode(attempt(outcome, reflection="no"))
    rewarded = await UnsupervisedReward()(TASK, one, said(plan="1.", reflect=reflect))
    assert isinstance(rewarded, Reward)
    assert rewarded.total == pytest.approx(0.9 * (outcome is RIGHT) + 0.1 * (reflect == "no"))


# ── no reward ─────────────────────────────────────────────────────────────────────────────────────────────────────

REWARDS = [ExecutorReward(TOOLS), PlannerReward(), UnsupervisedReward()]
whole_attempt = attempt(RIGHT, SEARCH, ANSWER, reflection="yes")


def failed(stage: str, error: str) -> Failure:
    return Failure(stage=stage, error=error, message="", at=0.0)


LOST = {
    "unheard": episode(whole_attempt, attempt(Outcome.UNJUDGED, answer="", stop=StopReason.UNREACHABLE)),
    "the run's budget": episode(attempt(Outcome.UNJUDGED, answer="", stop=StopReason.RUN_BUDGET)),
    "a judge that is down": episode(attempt(Outcome.UNJUDGED, SEARCH, ANSWER, reflection="no")),
    "a judge that was down once": episode(attempt(Outcome.UNJUDGED, SEARCH, reflection="yes"), attempt(RIGHT, ANSWER)),
    "no judge": episode(attempt(None, SEARCH, ANSWER, reflection="no")),
    "containment": episode(
        whole_attempt.evolve(verdict=Verdict(outcome=RIGHT, judge="llm", fallback="ModelUnavailable: …"))
    ),
    "a Planner that is down": episode(whole_attempt, failures=(failed("replan", "ModelUnavailable"),)),
    "an Executor that broke": episode(whole_attempt, failures=(failed("execute", "ModelError"),)),
    "nothing": episode(),
}


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: type(reward).__name__)
@pytest.mark.parametrize("why", LOST)
async def test_an_outage_drops_the_sample(reward: ExecutorReward, why: str) -> None:
    dropped = await reward(TASK, LOST[why], said(plan="1.", reflect="no"))
    assert isinstance(dropped, Dropped)
    assert dropped.group == "q"
    assert dropped.why


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: type(reward).__name__)
@pytest.mark.parametrize(
    "failure",
    [
        failed("replan", "ModelReplyError"),
        failed("reflect", "ContextOverflow"),
        failed("execute", "ModelReplyError"),
        failed("execute", "BudgetExceeded"),
        failed("recall", "StoreError"),
    ],
    ids=lambda failure: f"{failure.stage} {failure.error}",
)
async def test_what_a_model_did_itself_is_rewarded(reward: ExecutorReward, failure: Failure) -> None:
    one = episode(attempt(Outcome.NOT_ATTEMPTED, SEARCH, answer="", stop=StopReason.MODEL_FAILED), failures=(failure,))
    rewarded = await reward(TASK, one, said(plan="1."))
    assert isinstance(rewarded, Reward)
    assert rewarded.total == pytest.approx(0.2 if isinstance(reward, ExecutorReward) else 0.0)


async def test_only_the_planner_needs_every_verdict() -> None:
    one = episode(attempt(None, SEARCH, ANSWER, reflection="yes"), attempt(RIGHT, SEARCH, ANSWER))
    turns = said(plan="1.", reflect="yes", replan="2.")
    assert isinstance(await PlannerReward()(TASK, one, turns), Dropped)
    for reward in (ExecutorReward(TOOLS), UnsupervisedReward()):
        rewarded = await reward(TASK, one, turns)
        assert isinstance(rewarded, Reward)
        assert rewarded.total == pytest.approx(1.0)


async def test_two_of_three_reviewers_are_a_judgement() -> None:
    reviewed = Verdict(outcome=RIGHT, judge="peer", fallback="decided on 2 of 3 reviews")
    one = episode(attempt(RIGHT, reflection="no").evolve(verdict=reviewed))
    assert isinstance(await UnsupervisedReward()(TASK, one, said(plan="1.", reflect="no")), Reward)


# ── which reward ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_settings_name_the_reward() -> None:
    paper = LearnSettings(preset="paper")
    assert build_reward(paper, Role.EXECUTOR, ["search"]) == ExecutorReward(frozenset(("search",)), "paper")
    assert build_reward(LearnSettings(supervised=False), Role.EXECUTOR, TOOLS) == ExecutorReward(TOOLS)
    assert build_reward(LearnSettings(), Role.PLANNER) == PlannerReward()
    assert build_reward(LearnSettings(supervised=False), Role.PLANNER, opened=True) == UnsupervisedReward(opened=True)
    assert isinstance(build_reward(LearnSettings(reward="math:isfinite"), Role.PLANNER), CustomReward)
    assert isinstance(build_reward(LearnSettings(reward="http://127.0.0.1:1"), Role.EXECUTOR), HttpReward)
    with pytest.raises(ConfigError, match="judge"):
        build_reward(LearnSettings(), Role.JUDGE)
