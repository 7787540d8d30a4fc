"""ReAct logs (question, then thought, action, observation again and again) as episodes.

`search` and `lookup` become calls of our tools, any other tool a call of its own name; the first `finish` ends the run.
What the old environment said of the answer ("Answer is CORRECT"), the `reflections` and the reference answer (`gold`)
are never read: `correct` alone becomes the verdict.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from mia.errors import RecordError
from mia.memory.exchange.runs import Run, Turn
from mia.prompt import defuse
from mia.types import Question, Record, ToolCall


class _Step(Record):
    model_config = ConfigDict(extra="ignore")

    thought: str = ""
    action: str = ""
    tool: str | None = None
    tool_input: str | None = None
    observation: str | None = None


class _Log(Record):
    model_config = ConfigDict(extra="ignore")

    question: str = Field(pattern=r"\S")
    correct: bool | None = None
    final: str | None = None
    steps: tuple[_Step, ...]


def read_react(value: Any) -> Run:
    """One line of a log. Raises RecordError or ValidationError, saying what is wrong with it."""
    if not isinstance(value, dict):
        raise RecordError("it is no JSON object")
    log = _Log.model_validate(value)
    if not log.steps:
        raise RecordError("it has no steps")
    finish = next((index for index, step in enumerate(log.steps) if step.tool == "finish"), None)
    steps = log.steps if finish is None else log.steps[: finish + 1]
    answer = (log.final or (steps[-1].tool_input if finish is not None else None) or "").strip()
    return Run(
        question=Question.of(log.question),
        turns=tuple(map(_turn, steps)),
        answer=answer,
        finished=finish is not None or bool(answer),
        correct=log.correct,
    )


def _turn(step: _Step) -> Turn:
    # Some thoughts run on into the answer: they end at their `</think>`.
    thought = defuse(step.thought.partition("</think>")[0].strip())
    text = "\n".join(filter(None, (thought, defuse(step.action))))
    if step.tool is None or step.tool_input is None or step.tool == "finish":
        return Turn(text=text, thinking=thought)
    arguments: dict[str, dict[str, Any]] = {
        "search": {"query_list": [step.tool_input]},
        "lookup": {"term": step.tool_input},
    }
    return Turn(
        text=text,
        thinking=thought,
        call=ToolCall(name=step.tool, arguments=arguments.get(step.tool, {"input": step.tool_input})),
        observation=None if step.observation is None else defuse(step.observation),
    )
