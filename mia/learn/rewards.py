"""What a rollout is worth (mia.md, section 5): pure arithmetic over an episode, and what the learner wrote in it.

    Executor      0.7 · accuracy + 0.2 · tool + 0.1 · format
    Planner       0.7 · accuracy of the reported answer + 0.2 · of the first + 0.05 · format + 0.05 · decision
    unsupervised  0.9 · accuracy by peer review + 0.1 · the Planner's format

Correctness is the judge's alone: the verdicts in the episode are read, and no reference is. Where a verdict is missing,
or a model could not be asked, there is no reward (`Dropped`): an outage is never a zero. Only text that the learner
wrote is looked at, never what a tool returned.

The tags mean the same in both styles of prompts: the compact one asks for `<think>` and `<answer>` too. A reply
without thinking is balanced. Over native function calls the calls are those of the endpoint, and the tags are looked
for in the text beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mia.agents.protocol import read_reply
from mia.config import LearnSettings
from mia.errors import ConfigError
from mia.learn.rollouts import Dropped, Reward, RewardFunction, Said
from mia.prompt import split_thinking
from mia.types import Attempt, Episode, Outcome, Role, Step, Task, ToolCall

PAPER_UNAIDED = 1.2
"""Accuracy, as the paper's code has it, of an answer that was right without a replan."""
PAPER_LONGEST = 100
"""Characters beyond which an answer is worth nothing there."""
PLANNER_PURPOSES = ("plan", "reflect", "replan")
"""The turns of the Planner's conversation; a choice among plans is a conversation of its own."""

Preset = Literal["default", "paper"]

_USELESS = frozenset(("ModelReplyError", "ContextOverflow"))
_HEARD = {
    "plan": _USELESS,
    "reflect": _USELESS,
    "replan": _USELESS,
    # Where it was not the question's own budget, the stop says that the model was not heard.
    "execute": _USELESS | {"BudgetExceeded"},
}
"""Stage → errors of a model that was heard, and wrote what is of no use. Any other means that it could not be asked."""


# ── arithmetic ────────────────────────────────────────────────────────────────────────────────────────────────────


def executor_total(accuracy: float, tool: float, form: float) -> float:
    return 0.7 * accuracy + 0.2 * tool + 0.1 * form


def planner_total(final: float, first: float, form: float, decision: float) -> float:
    return 0.7 * final + 0.2 * first + 0.05 * form + 0.05 * decision


def unsupervised_total(accuracy: float, form: float) -> float:
    return 0.9 * accuracy + 0.1 * form


def executor_accuracy(correct: bool, *, replanned: bool, answer: str, preset: Preset = "default") -> float:
    """0 or 1. Preset "paper": 1.2 for an answer that was right without a replan, 0 for one over 100 characters."""
    if not correct or (preset == "paper" and len(answer) > PAPER_LONGEST):
        return 0.0
    return PAPER_UNAIDED if preset == "paper" and not replanned else 1.0


def balanced(text: str, tag: str) -> bool:
    """Whether every `<tag>` is closed, and every `</tag>` opened before it. No tags at all are balanced."""
    depth = 0
    for mark in re.findall(rf"</?{tag}>", text):
        depth += -1 if mark.startswith("</") else 1
        if depth < 0:
            return False
    return depth == 0


def thinking_balanced(reply: str, *, opened: bool = False) -> bool:
    """`balanced` for the thinking of one reply. `opened`: the chat template has written the first `<think>`."""
    if opened and not reply.lstrip().startswith("<think>"):
        reply = "<think>" + reply
    return balanced(reply, "think")


# ── the Executor ──────────────────────────────────────────────────────────────────────────────────────────────────


def names_tool(step: Step, tools: Collection[str]) -> bool:
    """Whether a turn holds a call that can be parsed and names a known tool, whatever its arguments.

    Written calls are JSON objects between `<tool_call>` tags, behind the thinking. A turn that the protocol refuses,
    e.g. for two calls, may hold one all the same.
    """
    if step.tool_call is not None and step.tool_call.name in tools:
        return True
    return any(_names_tool(block, tools) for block in _written(step).split("<tool_call>")[1:])


def tool_share(segments: Sequence[Sequence[Step]], tools: Collection[str]) -> float:
    """Share of the plan segments (one for each plan that was followed) with a call that `names_tool`."""
    if not segments:
        return 0.0
    return sum(any(names_tool(step, tools) for step in segment) for segment in segments) / len(segments)


def executor_form(steps: Sequence[Step], tools: Collection[str], *, native: bool = False, opened: bool = False) -> bool:
    """Whether all that the Executor wrote for a question has the right form:

    - `<think>` is balanced in each of its turns (`thinking_balanced`);
    - `<answer>` is too, and at least one pair of it stands after the last `</think>` of all;
    - there are only legal calls: read by the protocol (one in a turn, nothing behind it), of a known tool, with legal
      arguments (`legal_arguments`; a tool other than the two searches says itself whether it takes them), and at most
      one image search.

    `native`: calls come from the endpoint; of those that it could not read, the refusal in the step is all we know.
    """
    texts = [step.text for step in steps]
    if not all(thinking_balanced(text, opened=opened) and balanced(text, "answer") for text in texts):
        return False
    # Where one is opened it is closed too, being balanced.
    if "<answer>" not in "\n".join(texts).rpartition("</think>")[2]:
        return False
    calls = [call for step in steps for call in _calls(step, native=native)]
    if not all(call is not None and call.name in tools and legal_arguments(call) for call in calls):
        return False
    if any(_refused(step) for step in steps):
        return False
    return sum(call is not None and call.name == "web_image_to_image_search" for call in calls) <= 1


def legal_arguments(call: ToolCall) -> bool:
    """`search` takes exactly `query_list`, strings that are not blank, at least one; the image search exactly
    `img_idx: "0"`. Of other tools nothing is known here."""
    if call.name == "search":
        queries = call.arguments.get("query_list")
        if call.arguments.keys() != {"query_list"} or not isinstance(queries, list) or not queries:
            return False
        return all(isinstance(query, str) and query.strip() for query in queries)
    return call.name != "web_image_to_image_search" or call.arguments == {"img_idx": "0"}


def _refused(step: Step) -> bool:
    """Whether a tool other than the two searches, whose rules are above, did not take its arguments."""
    call, observation = step.tool_call, step.observation
    if call is None or call.name in ("search", "web_image_to_image_search"):
        return False
    return observation is not None and observation.error == "bad_arguments"


def _written(step: Step) -> str:
    """A turn without its thinking; empty where thinking never ended."""
    parts = split_thinking(step.text)
    return parts[1] if parts else ""


def _calls(step: Step, *, native: bool) -> list[ToolCall | None]:
    """The calls of a turn, of which a text turn has one at most; None for one that cannot be read."""
    if native:
        refused = step.observation is not None and step.observation.error == "malformed"
        return [step.tool_call] if step.tool_call is not None or refused else []
    return [read_reply(step.text).call] if "<tool_call>" in _written(step) else []


def _names_tool(block: str, tools: Collection[str]) -> bool:
    """`block`: what follows a `<tool_call>`."""
    content, closing, _ = block.partition("</tool_call>")
    try:
        call = json.loads(content) if closing else None
    except (ValueError, RecursionError):
        return False
    name = call.get("name") if isinstance(call, dict) else None
    return isinstance(name, str) and name in tools


# ── the Planner ───────────────────────────────────────────────────────────────────────────────────────────────────


def planner_form(said: Sequence[Said], *, opened: bool = False) -> bool:
    """Whether `<think>` is balanced in plan, reflection and replan, and each reflection is, behind its thinking, the
    one word yes or no."""
    turns = [one for one in said if one.purpose in PLANNER_PURPOSES]
    if not all(thinking_balanced(one.text, opened=opened) for one in turns):
        return False
    return all(_is_yes_or_no(one.text) for one in turns if one.purpose == "reflect")


def right_decision(first: Attempt) -> bool:
    """Whether the Planner said `no` when the first answer was right, `yes` when it was wrong; anything else is not."""
    wanted = first.reflection.replan if first.reflection is not None else None
    right = first.verdict is not None and first.verdict.correct
    return wanted is not None and wanted is not right


def incomplete(attempts: Sequence[Attempt], said: Sequence[Said]) -> str:
    """Which turn the Planner's conversation lacks, or where it was cut off; empty if it is whole.

    It needs a plan, a reflection on the first execution, and after each reflection that says yes a supplementary plan
    that was followed. That `said` lacks a turn means nothing: another model may have written a cold start's plan.
    """
    cut = [one.purpose for one in said if one.cut and one.purpose in PLANNER_PURPOSES]
    if cut:
        return f"the {cut[0]} was cut off"
    if not attempts or attempts[0].plan is None:
        return "there is no plan"
    if attempts[0].reflection is None:
        return "there is no reflection"
    last = attempts[-1].reflection
    if last is not None and last.replan:
        return "there is no supplementary plan"
    return ""


def _is_yes_or_no(reply: str) -> bool:
    parts = split_thinking(reply)
    return parts is not None and parts[1].lower() in ("yes", "no")


# ── no reward ────────────────────────────────────────────────────────────────────────────────────────────────────


def unheard(episode: Episode) -> str:
    """Which model could not be asked, so that nothing can be learnt from an episode; empty if all were heard."""
    if not episode.attempts:
        return "nothing was executed"
    for failure in episode.failures:
        if failure.error not in _HEARD.get(failure.stage, (failure.error,)):
            return f"a model was not heard ({failure.stage}): {failure.error}"
    for number, attempt in enumerate(episode.attempts, start=1):
        if attempt.trace.stop.reason.unheard:
            return f"execution {number} was not heard: {attempt.trace.stop.sentence}"
    return ""


def unjudged(episode: Episode, *, every: bool) -> str:
    """Why the verdicts of an episode cannot be learnt from; empty if they can.

    `every`: all attempts need a verdict, else the reported one alone. A verdict by containment that stood in for a
    model's counts as none: it is given to right answers only, so that learning from it would be biased.
    """
    for number, attempt in enumerate(episode.attempts, start=1):
        verdict = attempt.verdict
        if verdict is None and every:
            return f"attempt {number} was not judged"
        if verdict is not None and verdict.outcome is Outcome.UNJUDGED:
            return f"attempt {number} could not be judged: {verdict.reason or verdict.fallback}"
        if verdict is not None and verdict.judge == "llm" and verdict.fallback:
            return f"attempt {number} was not judged by its judge: {verdict.fallback}"
    return "the answer was not judged" if episode.verdict is None else ""


def _correct(episode: Episode) -> bool:
    return episode.verdict is not None and episode.verdict.correct


# ── reward functions ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ExecutorReward:
    """0.7 · accuracy + 0.2 · tool + 0.1 · format, of an episode whose Executor was the learner."""

    tools: frozenset[str]
    """The names of the tools that it knows."""
    preset: Preset = "default"
    native: bool = False
    """Its calls are the endpoint's own function calls."""
    opened: bool = False
    """Its chat template opens the thinking."""

    async def __call__(self, task: Task, outcome: Episode, said: Sequence[Said]) -> Reward | Dropped:
        if why := unheard(outcome) or unjudged(outcome, every=False):
            return Dropped(task.question.id, why)
        answered = [attempt.answer.text for attempt in outcome.attempts if attempt.answer is not None]
        parts = {
            "accuracy": executor_accuracy(
                _correct(outcome),
                replanned=len(outcome.attempts) > 1,
                answer=answered[-1] if answered else "",
                preset=self.preset,
            ),
            "tool": tool_share([attempt.trace.steps for attempt in outcome.attempts], self.tools),
            "format": float(executor_form(outcome.steps, self.tools, native=self.native, opened=self.opened)),
        }
        return Reward(executor_total(parts["accuracy"], parts["tool"], parts["format"]), parts)


@dataclass(frozen=True)
class PlannerReward:
    """0.7 · final + 0.2 · first + 0.05 · format + 0.05 · decision, of an episode whose Planner was the learner and in
    which each attempt was judged (`line.judge = "each"`, `line.replan = "reflect"`). An incomplete conversation is
    worth 0."""

    opened: bool = False
    """Its chat template opens the thinking."""

    async def __call__(self, task: Task, outcome: Episode, said: Sequence[Said]) -> Reward | Dropped:
        if why := unheard(outcome) or unjudged(outcome, every=True):
            return Dropped(task.question.id, why)
        first = outcome.attempts[0]
        parts = {
            "final": float(_correct(outcome)),
            "first": float(first.verdict is not None and first.verdict.correct),
            "format": float(planner_form(said, opened=self.opened)),
            "decision": float(right_decision(first)),
        }
        total = planner_total(parts["final"], parts["first"], parts["format"], parts["decision"])
        return _unless_incomplete(total, parts, outcome, said)


@dataclass(frozen=True)
class UnsupervisedReward:
    """0.9 · accuracy + 0.1 · format, of an episode whose Planner was the learner and whose reported answer was peer
    reviewed. An incomplete conversation is worth 0."""

    opened: bool = False
    """Its chat template opens the thinking."""

    async def __call__(self, task: Task, outcome: Episode, said: Sequence[Said]) -> Reward | Dropped:
        if why := unheard(outcome) or unjudged(outcome, every=False):
            return Dropped(task.question.id, why)
        parts = {
            "accuracy": float(_correct(outcome)),
            "format": float(planner_form(said, opened=self.opened)),
        }
        return _unless_incomplete(unsupervised_total(parts["accuracy"], parts["format"]), parts, outcome, said)


def build_reward(
    settings: LearnSettings,
    role: Role,
    tools: Collection[str] = (),
    *,
    native: bool = False,
    opened: bool = False,
) -> RewardFunction[Episode]:
    """The reward that the settings name, for a role that learns. `tools`: what the Executor may call; `native` and
    `opened`: as for the rewards.

    The Executor's own reward takes any judge's verdicts, so that `supervised` changes nothing there. Raises ConfigError
    for a role that does not learn, and for a function or an address that is none.
    """
    if role not in (Role.EXECUTOR, Role.PLANNER):
        raise ConfigError(f"there is no reward for the {role.value}.", wanted="the role executor or planner")
    from mia.learn.reward_services import CustomReward, HttpReward

    if "://" in settings.reward:
        return HttpReward(settings.reward)
    if settings.reward:
        return CustomReward.load(settings.reward)
    if role is Role.EXECUTOR:
        return ExecutorReward(frozenset(tools), settings.preset, native=native, opened=opened)
    return PlannerReward(opened=opened) if settings.supervised else UnsupervisedReward(opened=opened)


def _unless_incomplete(total: float, parts: Mapping[str, float], episode: Episode, said: Sequence[Said]) -> Reward:
    whole = not incomplete(episode.attempts, said)
    return Reward(total if whole else 0.0, {**parts, "complete": float(whole)})
