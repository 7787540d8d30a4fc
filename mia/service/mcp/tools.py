"""What an agent can do with MIA: research, recall, remember, give feedback.

A tool is one entry of `TOOLS`: what it takes and gives as records (their JSON Schemas are what the agent is told), and
a function that does it as the one who called, in his scope.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, StringConstraints

from mia.errors import ModelUnavailable
from mia.events import StageFinished, StageStarted, StepFinished
from mia.memory.compress import CATEGORIES, OTHERS
from mia.service.api.reach import floor_for_agents
from mia.service.auth import Principal
from mia.service.core import Service
from mia.service.live import ReaderTooSlow, Subscription
from mia.service.problems import NotFound
from mia.service.schemas import AskReply, Body, Id, Reply, Text
from mia.types import Episode, MemoryState, Outcome, Question, Task, Verdict

DOOR = "mcp"
USER = "user"
"""The judge of a verdict that came as feedback."""

Line = Annotated[str, StringConstraints(max_length=2_000, strip_whitespace=True)]


@dataclass(frozen=True)
class Caller:
    """Who calls, in whose scope, and how he is told of progress."""

    service: Service
    principal: Principal
    scope: str
    """Where he asks and remembers."""
    sees: str | None
    """What he is shown in lists: this scope and all below it; None: everything."""
    answered: Callable[[Episode], None]
    """Counts an answer."""
    progress: Callable[[int, str], Awaitable[None]]
    """Tells him the number of a stage, and what happens."""


# ── research ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Research(Body):
    question: Text
    """One self-contained question. It should say what kind of answer is wanted (a name, a number, a date)."""


async def research(caller: Caller, asked: Research) -> AskReply:
    """Raises ModelUnavailable where no model could be asked."""
    task = Task(question=Question.of(asked.question))
    service = caller.service
    begun = service.live.begin(caller.scope, task.question, DOOR)
    with begun.subscribe() as reader:
        work = asyncio.create_task(service.ask(task, caller.scope, door=DOOR, ask=begun))
        try:
            await _tell(reader, caller)
            episode = await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
    if episode.answer is None and episode.stop is not None and episode.stop.reason.unheard:
        raise ModelUnavailable(
            f"the model could not be asked: {episode.stop.sentence}",
            hint="ask again later; `recall` works without a model",
        )
    caller.answered(episode)
    return AskReply.of(episode)


async def _tell(reader: Subscription, caller: Caller) -> None:
    """The stages as they happen, to their end."""
    number = 0
    try:
        while (event := await reader.next()) is not None:
            if isinstance(event, StageStarted):
                said = f"{event.stage} …"
            elif isinstance(event, StageFinished):
                said = f"{event.stage}: {event.summary}"
            elif isinstance(event, StepFinished) and event.step.tool_call is not None:
                said = f"step {event.step.index + 1}: {event.step.tool_call.name}"
            else:
                continue
            number += 1
            await caller.progress(number, said)
    except ReaderTooSlow:
        # He is told no more; the answer comes all the same.
        return


# ── recall ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class RecallAsk(Body):
    text: Text
    """The question or task at hand, in words as it would be asked."""
    floor: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Similarity below which nothing is shown; left out: what is worth a look."""


class Workflow(Reply):
    """One way that was tried before, for a question like this one."""

    id: str
    judgement: Literal["correct", "incorrect"]
    """"correct": it led to the right answer. "incorrect": it did not; avoid it."""
    question: str
    """The question that it was tried for."""
    workflow: str
    score: float
    parts: dict[str, float]
    """How the score came about."""
    uses: int
    wins: int
    """Times it was shown and the answer came out right."""


class Recalled(Reply):
    memories: tuple[Workflow, ...]
    """The best first; empty: nothing like this was tried before."""
    considered: int
    """Memories that were looked at."""
    floor: float | None
    """The similarity below which nothing is shown."""


async def recall(caller: Caller, asked: RecallAsk) -> Recalled:
    """Raises StoreError, ModelError (the embedder's)."""
    floor = floor_for_agents(caller.service.config.memory, asked.floor)
    found = await caller.service.memory(caller.scope).recall(Question.of(asked.text), floor=floor)
    memories = await asyncio.to_thread(caller.service.store.memories, [one.memory_id for one in found.shown])
    return Recalled(
        memories=tuple(
            Workflow(
                id=memory.id,
                judgement=memory.judgement,
                question=memory.question,
                workflow=memory.workflow,
                score=one.score,
                parts=one.parts,
                uses=memory.uses,
                wins=memory.wins,
            )
            for one in sorted(found.shown, key=lambda one: -one.score)
            # Another process may have purged one since.
            if (memory := memories.get(one.memory_id)) is not None
        ),
        considered=found.considered,
        floor=found.floor,
    )


# ── remember ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Remember(Body):
    question: Text
    """What was asked."""
    workflow: Text
    """What was done, as numbered steps `purpose (input → output)`."""
    judgement: Literal["correct", "incorrect"]
    """Whether it led to the right answer. What failed is worth remembering too."""
    caption: Line = ""
    """What the images of the question show, if it had any."""
    category: Annotated[str, Field(max_length=40, json_schema_extra={"enum": list(CATEGORIES)})] = OTHERS


class Remembered(Reply):
    """It is on the disk."""

    memory_id: str
    state: MemoryState
    """"quarantined": it reads like an attempt to give orders, and a person has to look at it."""
    workflow: str
    """What the memory now holds for the question: a shorter near-duplicate may have been kept instead."""


async def remember(caller: Caller, told: Remember) -> Remembered:
    """Raises RecordError, ConfigError (frozen), StoreError, ModelError (the embedder's)."""
    memory = await caller.service.remember(
        caller.scope, told.question, told.workflow, told.judgement, caption=told.caption, category=told.category
    )
    return Remembered(memory_id=memory.id, state=memory.state, workflow=memory.workflow)


# ── feedback ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Feedback(Body):
    episode_id: Id
    """As `research` gave it."""
    correct: bool
    """Whether the answer was right."""
    reason: Line = ""
    """Why, in a sentence; without the right answer in it."""


class FeedbackTaken(Reply):
    episode_id: str
    outcome: Outcome
    credited: int
    """Memories whose record changed, because they were shown for this answer."""
    memories: tuple[str, ...]
    """Ids of what is remembered because of this answer."""


async def feedback(caller: Caller, given: Feedback) -> FeedbackTaken:
    """Raises NotFound, ConfigError (frozen), StoreError."""
    found = await caller.service.episode(given.episode_id)
    if found is None or not caller.principal.may_see(found[1]):
        raise NotFound(
            f"no episode '{given.episode_id[:100]}'.", hint="the episode_id that `research` gave; or mia://episodes"
        )
    outcome = Outcome.CORRECT if given.correct else Outcome.INCORRECT
    settled = await caller.service.feedback(given.episode_id, Verdict(outcome=outcome, judge=USER, reason=given.reason))
    return FeedbackTaken(
        episode_id=settled.episode.id,
        outcome=outcome,
        credited=settled.credited,
        memories=tuple(memory.id for memory in settled.memories),
    )


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────────────────

Taken = TypeVar("Taken", bound=Body)


@dataclass(frozen=True)
class AgentTool(Generic[Taken]):
    """One tool, as an agent is told of it."""

    name: str
    title: str
    description: str
    takes: type[Taken]
    gives: type[Reply]
    run: Callable[[Caller, Taken], Awaitable[Reply]]
    changes: bool
    """Whether it changes what is remembered."""


TOOLS: tuple[AgentTool[Any], ...] = (
    AgentTool(
        "research",
        "Research a question",
        "Answer a question by research: recall what worked before, plan, search, reflect, judge. Takes from seconds to "
        "minutes. Gives the answer with citations (quotes that were checked against the sources), a verdict, and an "
        "episode id for `feedback`. `answer` is null where none was found or it is not well enough supported.",
        Research,
        AskReply,
        research,
        changes=True,
    ),
    AgentTool(
        "recall",
        "Recall what worked before",
        "Find the few earlier workflows that matter for a question or task: ways that led to a right answer, and ways "
        "that did not. Call it before you begin something that may have been tried before.",
        RecallAsk,
        Recalled,
        recall,
        changes=False,
    ),
    AgentTool(
        "remember",
        "Remember a workflow",
        "Keep what was tried for a question, step by step, and whether it led to the right answer. On the disk when it "
        "returns. Call it when you know how something came out.",
        Remember,
        Remembered,
        remember,
        changes=True,
    ),
    AgentTool(
        "feedback",
        "Judge an answer",
        "Say whether an answer of `research` was right. The memories that it was built on gain or lose by it, and what "
        "was learnt from it is corrected.",
        Feedback,
        FeedbackTaken,
        feedback,
        changes=True,
    ),
)
"""What an agent can do, beside `read_document` (`reading.py`)."""
