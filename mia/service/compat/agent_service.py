"""The reference's agent service of test-time learning: the Executor runs a plan, and finished tries wait as candidates
until they are evaluated and consolidated.

`history_messages` begin behind the Executor's opening, as the reference's do; `/replan` writes that opening again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StringConstraints

from mia.agents.conversation import Messages
from mia.agents.executor import Execution
from mia.errors import ModelUnavailable, RecordError
from mia.learn.selection import accepted, best, by_rule, majority
from mia.memory.manager import MemoryManager
from mia.redaction import Redactor
from mia.service.compat import exports, wire
from mia.service.compat.context import Compatibility, TheCompatibility, held, ledger_of, planner_of
from mia.service.compat.memory_service import indices, recall_for, saved
from mia.service.compat.registry import Candidates
from mia.service.context import TheScope, TheService
from mia.service.core import Service
from mia.service.schemas import PROBLEMS
from mia.types import Episode, MemoryKind, Outcome, Plan, Question, new_id

router = APIRouter(tags=["reference: agent service"], responses=PROBLEMS)

Empty = Annotated[list[Any], Field(max_length=0)]
"""`[]`, with which the reference's trainer calls."""


class AgentMemoryBody(wire.Sent):
    data_id: wire.DataId = ""
    question: wire.Asked
    image_caption: wire.Caption = ""


class AgentMemoryAnswer(wire.Given):
    prompt: str
    indices: list[str]


class AgentPlanBody(wire.Sent):
    data_id: wire.GivenId
    question: wire.Asked
    plan: wire.Text = ""
    image_caption: wire.Caption = ""


class AgentReplanBody(AgentPlanBody):
    replan: Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
    messages: wire.WireMessages = []


class AgentPlanAnswer(wire.Given):
    prompt: str
    """The request to reflect, with the trace in it."""
    trace: str
    history_messages: list[dict[str, Any]]


class JudgementData(wire.Sent):
    is_correct: bool | Annotated[str, StringConstraints(max_length=200)] | None = None
    raw_verdict: wire.Text = ""
    evaluator_1_feedback: wire.Text = ""
    evaluator_2_feedback: wire.Text = ""
    evaluator_3_feedback: wire.Text = ""


class CandidateBody(wire.Sent):
    """Supervised with `judgement`; by peer review with `judgement_nogt` and `judgement_data`."""

    data_id: wire.GivenId
    question: wire.Asked
    plan: wire.Text = ""
    slow_plan: wire.Text = ""
    """A plan that was made without sampling; passed over, as its try is among the others where it was executed."""
    image_caption: wire.Caption = ""
    used_memory_indices: wire.Indices = []
    temp_messages: wire.WireMessages = []
    judgement: Annotated[str, StringConstraints(max_length=200)] | None = None
    judgement_nogt: bool | Annotated[str, StringConstraints(max_length=200)] | None = None
    judgement_data: JudgementData | None = None


class Evaluated(wire.Given):
    status: Literal["success"] = "success"
    processed_count: int
    message: str


class Consolidated(wire.Given):
    status: Literal["success"] = "success"
    saved_positives: int
    saved_negatives: int


# ── recall, execute, go on ────────────────────────────────────────────────────────────────────────────────────────


@router.post("/memory", response_model=AgentMemoryAnswer, summary="Recall for a question")
async def memory(body: AgentMemoryBody, service: TheService, scope: TheScope) -> AgentMemoryAnswer:
    return await recalled(service, scope, body)


async def recalled(service: Service, scope: str, body: AgentMemoryBody) -> AgentMemoryAnswer:
    """Raises StoreError, ModelError (the embedder's)."""
    found = await recall_for(service.team(scope), body.question, body.image_caption, 2, 0)
    positive, negative = indices(found)
    return AgentMemoryAnswer(prompt=found.for_planner, indices=[*positive, *negative])


@router.post("/plan", response_model=AgentPlanAnswer, summary="Execute a plan")
async def plan(
    request: Request, body: AgentPlanBody, service: TheService, compatibility: TheCompatibility, scope: TheScope
) -> AgentPlanAnswer | Response:
    return await held(request, executed(service, compatibility, scope, body))


async def executed(service: Service, compatibility: Compatibility, scope: str, body: AgentPlanBody) -> AgentPlanAnswer:
    """Raises ConfigError, StoreError, ModelUnavailable."""
    executor = service.team(scope).executor
    question = await _question(compatibility, scope, body)
    plan = _plan(body.plan)
    opening = executor.open(question, plan)
    execution = await executor.execute(question, plan, "", ledger_of(service, question))
    return _answer(service, scope, execution, opening)


@router.post("/replan", response_model=AgentPlanAnswer, summary="Go on under a supplementary plan")
async def replan(
    request: Request, body: AgentReplanBody, service: TheService, compatibility: TheCompatibility, scope: TheScope
) -> AgentPlanAnswer | Response:
    return await held(request, resumed(service, compatibility, scope, body))


async def resumed(service: Service, compatibility: Compatibility, scope: str, body: AgentReplanBody) -> AgentPlanAnswer:
    """`trace` is what came after the replan. Raises ConfigError, RecordError, StoreError, ModelUnavailable."""
    executor = service.team(scope).executor
    question = await _question(compatibility, scope, body)
    opening = executor.open(question, _plan(body.plan))
    messages = wire.ours(body.messages)
    begun = next((index for index, one in enumerate(messages) if one.role == "assistant"), len(messages))
    history = messages[begun:]
    execution = Execution(
        question=question,
        messages=(*opening, *history),
        steps=wire.steps_of(history),
        # One budget over both executions.
        calls=sum(one.role == "assistant" for one in history),
    )
    resumed = await executor.resume(execution, Plan(text=body.replan), ledger_of(service, question))
    return _answer(service, scope, resumed, opening)


async def _question(compatibility: Compatibility, scope: str, body: AgentPlanBody) -> Question:
    images = await asyncio.to_thread(compatibility.registry.images, scope, body.data_id)
    return Question.of(body.question, id=body.data_id, images=images, caption=body.image_caption)


def _plan(text: str) -> Plan | None:
    return Plan(text=text.strip()) if text.strip() else None


def _answer(service: Service, scope: str, execution: Execution, opening: Messages) -> AgentPlanAnswer:
    """Raises ModelUnavailable where the Executor was not heard."""
    if execution.stop.reason.unheard and execution.answer is None:
        raise ModelUnavailable(f"the model could not be asked: {execution.stop.sentence}", hint="mia doctor")
    planner = planner_of(service.team(scope))
    steps = execution.trace.steps
    return AgentPlanAnswer(
        prompt=planner.reflection_request(steps, execution.answer),
        trace=wire.written_trace(steps, execution.answer),
        history_messages=wire.theirs(execution.messages[len(opening) :]),
    )


# ── candidates ────────────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/memory_bank_save", response_model=wire.Done, summary="Keep a try of a question as a candidate")
async def memory_bank_save(
    body: CandidateBody, service: TheService, compatibility: TheCompatibility, scope: TheScope
) -> wire.Done:
    """On the disk before it is acknowledged. A `ground_truth` in the body is not read."""
    correct, feedback = _judgement(body)

    def keep() -> None:
        run = wire.finished(
            data_id=body.data_id,
            question=body.question,
            caption=body.image_caption,
            plan=body.plan,
            messages=body.temp_messages,
            used=body.used_memory_indices,
            verdict=wire.judged(correct, feedback),
            scope=scope,
            store=service.store,
        )
        # Tries of a question may well be alike to the letter, and each counts.
        episode = Redactor(service.config.memory.redact).model(run.evolve(id=new_id("ep")))
        compatibility.registry.keep_candidate(scope, body.data_id, episode)

    await asyncio.to_thread(keep)
    return wire.Done()


def _judgement(body: CandidateBody) -> tuple[bool, Sequence[str]]:
    """Whether it is correct, and what the reviewers wrote. Raises RecordError where nothing says it."""
    if body.judgement is not None:
        return _is_correct(body.judgement), ()
    data = body.judgement_data or JudgementData()
    given = body.judgement_nogt if body.judgement_nogt is not None else data.is_correct
    if given is None:
        raise RecordError("the candidate has no judgement.", wanted="judgement, or judgement_nogt")
    feedback = (data.evaluator_1_feedback, data.evaluator_2_feedback, data.evaluator_3_feedback)
    return _is_correct(given), feedback


def _is_correct(given: str | bool) -> bool:
    return given if isinstance(given, bool) else given.strip().lower() == "correct"


@router.post("/batch_evaluate", response_model=Evaluated, summary="Choose an answer for each question")
async def batch_evaluate(
    request: Request,
    service: TheService,
    compatibility: TheCompatibility,
    scope: TheScope,
    body: Empty | dict[str, Any] | None = None,
) -> Evaluated | Response:
    """The candidates stay. What was chosen, and whether it is correct, by each way of choosing, is kept, and written by
    `/save_memory`."""

    async def work() -> Evaluated:
        registry = compatibility.registry
        groups = await asyncio.to_thread(registry.candidates, scope)
        counts: dict[str, int] = {}
        for group in groups:
            page = await _evaluate(service, scope, group)
            await asyncio.to_thread(registry.keep_evaluation, scope, group.group, page)
            for way, chosen in page["chosen"].items():
                counts[way] = counts.get(way, 0) + (chosen["judgement"] == "correct")
        told = ", ".join(f"{way} {count}" for way, count in sorted(counts.items()))
        return Evaluated(
            processed_count=len(groups),
            message=f"{len(groups)} questions evaluated{f'; correct of them: {told}' if told else ''}.",
        )

    return await held(request, work())


async def _evaluate(service: Service, scope: str, group: Candidates) -> dict[str, Any]:
    """What each way of choosing takes. By peer review the verdict is nobody's secret; else a model chooses among the
    plans."""
    team, episodes = service.team(scope), group.episodes
    chosen = by_rule(episodes, group.group)
    if all(one.verdict is not None and one.verdict.judge == "peer" for one in episodes):
        chosen["accepted"] = accepted(episodes, group.group)
    else:
        question = episodes[0].question
        pairs = await team.memory.recall(question, kind=MemoryKind.PLAN_PAIR) if team.memory is not None else None
        chosen["best"] = await best(planner_of(team), episodes, pairs, ledger_of(service, question))
    return {
        "data_id": group.data_id,
        "question": episodes[0].question.text,
        "tries": len(episodes),
        "chosen": {
            way: {
                "episode_id": episodes[index].id,
                "judgement": _outcome(episodes[index]),
                "answer": answer.text if (answer := episodes[index].answer) is not None else None,
            }
            for way, index in chosen.items()
        },
    }


def _outcome(episode: Episode) -> str:
    return (episode.verdict.outcome if episode.verdict is not None else Outcome.UNJUDGED).value


@router.post("/consolidate_memories", response_model=Consolidated, summary="Bring the candidates into the memory")
async def consolidate_memories(
    service: TheService,
    compatibility: TheCompatibility,
    scope: TheScope,
    body: Empty | dict[str, Any] | None = None,
) -> Consolidated:
    """Of each question, the shortest correct try and an incorrect one, and their plans as a pair; the memories that its
    tries were shown are credited once, by the majority. What a death leaves is taken up by the next call."""
    registry, memory = compatibility.registry, service.memory(scope)
    async with compatibility.consolidating:
        positives = negatives = 0
        for group in await asyncio.to_thread(registry.candidates, scope):
            made = await _consolidate(service, memory, group)
            positives += made.count("correct")
            negatives += made.count("incorrect")
            await asyncio.to_thread(registry.remove_candidates, scope, group.sequences)
        return Consolidated(saved_positives=positives, saved_negatives=negatives)


async def _consolidate(service: Service, memory: MemoryManager, group: Candidates) -> list[str]:
    """The judgements of the workflows that came of it."""
    shown = {one.memory_id for episode in group.episodes if episode.recall for one in episode.recall.shown}
    # Under an episode's id, where feedback on it would look for what to take back.
    await memory.credit(group.episodes[0].id, frozenset(shown), majority(group.episodes))
    memories = await memory.remember(group.episodes, ledger_of(service, group.episodes[0].question))
    return [one.judgement for one in memories if one.kind is MemoryKind.WORKFLOW]


@router.post("/save_memory", response_model=wire.Done, summary="Write memory and evaluations into the export folder")
async def save_memory(
    service: TheService,
    compatibility: TheCompatibility,
    scope: TheScope,
    body: Empty | dict[str, Any] | None = None,
) -> wire.Done:
    return await saved_all(service, compatibility, scope)


async def saved_all(service: Service, compatibility: Compatibility, scope: str) -> wire.Done:
    """Raises StoreError."""
    pages = await asyncio.to_thread(compatibility.registry.evaluations, scope)
    await asyncio.to_thread(exports.save_pages, service.config, scope, exports.EVALUATIONS, pages)
    return await saved(service, scope, exports.DEFAULT_NAME)


@router.post("/clear_memory", response_model=wire.Cleared, summary="Forget what is in the scope")
async def clear_memory(
    service: TheService, scope: TheScope, body: Empty | dict[str, Any] | None = None
) -> wire.Cleared:
    """It can be restored. Candidates that wait stay."""
    count = await asyncio.to_thread(exports.clear, service.memory(scope))
    return wire.Cleared(message=f"{count} memories forgotten; they can be restored.")


@router.get("/hallo", summary="It answers")
async def hallo() -> dict[str, str]:
    return {"status": "ok"}
