"""Rewards from elsewhere: a function of the user's own, and a reward service (mia.md, section 6).

    reward = "my_rewards:score"              def score(task, outcome, said) -> float | Reward | Dropped
    reward = "http://localhost:8801"         POST /compute_gt_reward

A source that cannot be asked, or whose answer cannot be used, gives no reward (`Dropped`, with the reason): never a
zero. What is wrong with the user's own code is raised.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mia.errors import ConfigError, LearnError, MiaError, ToolError
from mia.learn.rewards import unheard
from mia.learn.rollouts import Dropped, Reward, Said
from mia.prompt import defuse
from mia.search.http import JsonEndpoint, Patience
from mia.transcript import render_steps
from mia.types import Attempt, Episode, Task

PATH = "/compute_gt_reward"
SCORES = ("format_score", "decision_score", "is_answer1_correct", "is_answer2_correct")
"""What a service may tell of its score's parts."""
REPLAN_REQUEST = "Write the supplementary plan."
"""Stands in the messages for the Planner's own request, whose wording is no part of an episode."""


@dataclass(frozen=True)
class CustomReward:
    """A function of the user's: task, what the agent returned, what the learner wrote → a number, or a `Reward`, or
    `Dropped`. It may be async; a plain one runs in a thread, several at once."""

    function: Callable[[Task, Any, Sequence[Said]], Any]
    name: str
    """For errors."""

    @classmethod
    def load(cls, name: str) -> CustomReward:
        """`name`: "module:function"; modules of the working folder are found too. Raises ConfigError if there is no
        such function; what the module raises when it is imported passes through."""
        module_name, _, function_name = name.partition(":")
        if not module_name or not function_name:
            raise ConfigError(
                f"learn.reward is '{name}'.", wanted='"module:function", or an address', hint='"my_rewards:score"'
            )
        if os.getcwd() not in sys.path:
            # A program that pip installed does not look in the working folder. At the end, so as to hide nothing.
            sys.path.append(os.getcwd())
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"learn.reward is '{name}', and there is no module '{error.name}'.",
                hint="run in the folder that holds it, or install it",
            ) from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise ConfigError(f"learn.reward is '{name}', and '{module_name}' has no function '{function_name}'.")
        return cls(function, name)

    async def __call__(self, task: Task, outcome: Any, said: Sequence[Said]) -> Reward | Dropped:
        """An error of ours (`MiaError`), of a connection or of a file that the function raises drops the sample; any
        other passes through. Raises LearnError for a result that is no finite reward."""
        try:
            if inspect.iscoroutinefunction(self.function):
                result = await self.function(task, outcome, said)
            else:
                result = await asyncio.to_thread(self.function, task, outcome, said)
                if inspect.isawaitable(result):
                    result = await result
        except (MiaError, OSError) as error:
            what = error.got if isinstance(error, MiaError) else str(error)
            return Dropped(task.question.id, f"{self.name} could not tell ({type(error).__name__}): {what}")
        if isinstance(result, Dropped):
            return result
        reward = result if isinstance(result, Reward) else Reward(result)
        if not _is_number(reward.total):
            raise LearnError(
                f"{self.name} gave {result!r:.100} for '{task.question.id}'.",
                wanted="a finite number, a Reward of one, or Dropped",
            )
        return Reward(float(reward.total), reward.parts)


class HttpReward:
    """A reward service that knows the answers of the questions by their ids. Safe to use concurrently."""

    def __init__(self, url: str, *, patience: Patience = Patience(silent_seconds=120.0, seconds=300.0)) -> None:
        """`url`: of the service, or of its `/compute_gt_reward`. Raises ConfigError."""
        endpoint = JsonEndpoint("the reward service", url, setting="learn.reward", patience=patience)
        if endpoint.url.path == "/":
            endpoint.url = endpoint.url.copy_with(path=PATH)
        self._endpoint = endpoint

    async def __call__(self, task: Task, outcome: Episode, said: Sequence[Said]) -> Reward | Dropped:
        """What was not heard is not even asked about."""
        question = task.question
        if why := unheard(outcome):
            return Dropped(question.id, why)
        caption = outcome.question.caption
        extra_info = {
            "messages": conversation(outcome, said),
            "question": question.text,
            "image_caption": caption,
            "modality": "text-image" if caption else "text-only",
        }
        try:
            answer = await self._endpoint.ask("POST", body={"data_id": question.id, "extra_info": extra_info})
            return self._read(answer, question.id)
        except ToolError as error:
            return Dropped(question.id, error.got)

    async def close(self) -> None:
        await self._endpoint.close()

    def _read(self, answer: Any, question_id: str) -> Reward:
        """Raises ToolError for an answer that is no reward of this question."""
        if not isinstance(answer, dict):
            raise self._endpoint.unusable("no JSON object")
        if error := answer.get("error"):
            raise ToolError(f"the reward service has no reward for '{question_id}': {str(error)[:200]}")
        if str(told := answer.get("data_id", question_id)) != question_id:
            raise self._endpoint.unusable(f"asked about '{question_id}', it speaks of {told!r:.80}")
        score = answer.get("score")
        if score is None or not _is_number(score):
            raise self._endpoint.unusable(f"the score {score!r:.80}")
        parts = {name: answer[name] for name in SCORES if name in answer}
        return Reward(
            float(score), {name: float(value) for name, value in parts.items() if _is_number(value, flag=True)}
        )


def conversation(episode: Episode, said: Sequence[Said]) -> list[str]:
    """The Planner's conversation as a service reads it: [plan, trace, reflection], and with a replan [..., replan
    request, replan, trace] of the last execution. A turn that is missing is an empty string.

    The episode has an attempt. Turns of the learner are as it wrote them, thinking and all. A trace ends with its
    answer between `<answer>` tags.
    """
    first, *more = episode.attempts
    written = {one.purpose: one.text for one in reversed(said)}
    reflection = written.get("reflect") or (first.reflection.text if first.reflection else "")
    messages = [written.get("plan") or _plan(first), _trace(first), reflection]
    if more:
        replans = [one.text for one in said if one.purpose == "replan"]
        messages += [REPLAN_REQUEST, replans[-1] if replans else _plan(more[-1]), _trace(more[-1])]
    return messages


def _plan(attempt: Attempt) -> str:
    return attempt.plan.text if attempt.plan is not None else ""


def _trace(attempt: Attempt) -> str:
    rounds = render_steps(attempt.trace.steps)
    return f"{rounds}\n\n<answer>{defuse(attempt.answer.text)}</answer>" if attempt.answer is not None else rounds


def _is_number(value: Any, *, flag: bool = False) -> bool:
    """Whether it is a finite number; `flag`: or true or false."""
    if isinstance(value, bool):
        return flag
    return isinstance(value, int | float) and math.isfinite(value)
