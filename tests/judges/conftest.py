"""A model that answers by purpose, and attempts to be judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from mia.models.scripted import ScriptedModel
from mia.types import (
    Answer,
    Attempt,
    Citation,
    Observation,
    Plan,
    Question,
    Role,
    Step,
    Stop,
    StopReason,
    Task,
    ToolCall,
    Trace,
)


@pytest.fixture
def scripted() -> Callable[..., ScriptedModel]:
    """Makes a model from the replies of each purpose."""

    def make(replies: Mapping[str, Sequence[str | Exception]], context_window: int = 8000) -> ScriptedModel:
        answers = {f"{Role.JUDGE}/{purpose}": given for purpose, given in replies.items()}
        return ScriptedModel(answers, context_window=context_window, max_tokens=200)

    return make


@pytest.fixture
def shown() -> Callable[[ScriptedModel], str]:
    """Everything that a model was shown."""
    return lambda model: "\n".join(message.content for request in model.requests for message in request.messages)


def make_attempt(answer: str | None, observations: Sequence[str] = (), citations: Sequence[Citation] = ()) -> Attempt:
    steps = tuple(
        Step(
            index=index,
            text="…",
            thinking="Let me look.",
            tool_call=ToolCall(name="search", arguments={"query_list": ["Titan"]}),
            observation=Observation(text=text),
        )
        for index, text in enumerate(observations)
    )
    return Attempt(
        plan=Plan(text="1. Find who saw Titan first."),
        trace=Trace(steps=steps, stop=Stop(reason=StopReason.ANSWERED, sentence="It answered.")),
        answer=None if answer is None else Answer(text=answer, citations=tuple(citations)),
    )


@pytest.fixture
def attempt() -> Callable[..., Attempt]:
    return make_attempt


@pytest.fixture
def task() -> Callable[..., Task]:
    def make(*references: str, text: str = "Who discovered Titan?") -> Task:
        return Task(question=Question.of(text), references=references)

    return make
