"""What happens while a question is answered, as it happens: typed events for terminal, stream and dashboard alike.

An event tells; it never decides. A listener is called in the line's own task and must return quickly; what it raises
is a bug and propagates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from mia.types import Record, Role, Step


class _Event(Record):
    question_id: str
    at: float = Field(default_factory=time.time)


class StageStarted(_Event):
    kind: Literal["stage_started"] = "stage_started"
    stage: str
    """recall, plan, execute, reflect, replan, judge, remember"""


class StageFinished(_Event):
    kind: Literal["stage_finished"] = "stage_finished"
    stage: str
    seconds: float
    summary: str
    """One line for people, e.g. "4 memories (2 correct, 2 incorrect)"."""
    ok: bool = True


class StepFinished(_Event):
    kind: Literal["step_finished"] = "step_finished"
    step: Step


class TextArrived(_Event):
    """A piece of a model's reply, where streaming is on."""

    kind: Literal["text_arrived"] = "text_arrived"
    role: Role
    delta: str


class Retrying(_Event):
    """A call to an endpoint failed and will be tried again."""

    kind: Literal["retrying"] = "retrying"
    role: Role
    attempt: int
    wait_seconds: float
    reason: str

    @property
    def when(self) -> str:
        """In words: "in 2.5 s", or "at once"."""
        return f"in {self.wait_seconds:.1f} s" if self.wait_seconds >= 0.05 else "at once"


Event = Annotated[StageStarted | StageFinished | StepFinished | TextArrived | Retrying, Field(discriminator="kind")]
OnEvent = Callable[[StageStarted | StageFinished | StepFinished | TextArrived | Retrying], None]


def ignore(event: object) -> None:
    """The listener that does nothing."""
