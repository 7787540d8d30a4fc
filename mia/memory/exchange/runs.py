"""A run of another agent, whatever its log looked like, and the episode it becomes.

The id of an episode follows from what happened in it and from its scope, the verdict left aside: the same run imported
again is the same episode, a run that was kept unjudged gets its verdict later, and each of two scopes learns from it.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass

from mia.types import (
    Answer,
    Attempt,
    Episode,
    Observation,
    Outcome,
    Question,
    Step,
    Stop,
    StopReason,
    ToolCall,
    Trace,
    Verdict,
)

JUDGE = "import"
"""Names the verdicts that came with a log."""


@dataclass(frozen=True)
class Turn:
    """One turn of the agent: what it wrote, the call in it, what came back."""

    text: str
    thinking: str = ""
    call: ToolCall | None = None
    observation: str | None = None


@dataclass(frozen=True)
class Run:
    """What a log tells of one run. It has no field for a reference answer."""

    question: Question
    turns: tuple[Turn, ...]
    answer: str
    """Empty if there was none."""
    finished: bool
    """It came to its own end."""
    correct: bool | None
    """None: the log does not say."""


def episode(run: Run, scope: str = "default") -> Episode:
    """The run as an episode of ours, for a scope; without a verdict where the log has none."""
    answer = Answer(text=run.answer) if run.answer else None
    stop = (
        Stop(reason=StopReason.ANSWERED, sentence="It answered." if answer else "It ended with an empty answer.")
        if run.finished
        else Stop(reason=StopReason.CALL_LIMIT, sentence="It stopped without an answer.")
    )
    steps = tuple(
        Step(
            index=index,
            text=turn.text,
            thinking=turn.thinking,
            tool_call=turn.call,
            observation=None if turn.observation is None else Observation(text=turn.observation),
        )
        for index, turn in enumerate(run.turns)
    )
    verdict = None
    if run.correct is not None:
        verdict = Verdict(outcome=Outcome.CORRECT if run.correct else Outcome.INCORRECT, judge=JUDGE)
    return Episode(
        id=_id(run, steps, scope),
        question=run.question,
        started_at=time.time(),
        attempts=(Attempt(trace=Trace(steps=steps, stop=stop), answer=answer),),
        answer=answer,
        verdict=verdict,
        stop=stop,
    )


def _id(run: Run, steps: tuple[Step, ...], scope: str) -> str:
    content = [scope, run.question.id, [step.model_dump(mode="json") for step in steps], run.answer]
    return "ep-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
