"""The reference's memory and Planner service: lists of items in, lists of answers in the same order out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response
from pydantic import Field, StringConstraints

from mia.memory import present
from mia.memory.manager import MemoryManager
from mia.models.ledger import Ledger
from mia.service.compat import exports, wire
from mia.service.compat.context import each, held, ledger_of, planner_of
from mia.service.context import TheScope, TheService
from mia.service.core import Service
from mia.service.schemas import PROBLEMS
from mia.team import Team
from mia.types import Episode, MemoryKind, Message, Question, Recall

router = APIRouter(tags=["reference: memory service"], responses=PROBLEMS)

PLANS = 4
"""Plans that `/best_plan` chooses among."""
ABSORBING_SECONDS = 120.0
"""How long `/batch_memory_save` waits for what it accepted to be in the memory; it is on the disk before."""

TopK = Annotated[int, Field(ge=0, le=50)]
PassNumber = Annotated[int, Field(ge=0, le=1_000)]


class MemoryItem(wire.Sent):
    data_id: wire.DataId = ""
    question: wire.Asked
    image_caption: wire.Caption = ""
    mem_top_k: TopK = 2
    """Memories of correct answers, and as many of incorrect ones."""
    pass_num: PassNumber = 0
    """So many of each are passed over."""


class MemoryAnswer(wire.Given):
    context: str
    pos_indices: list[str]
    neg_indices: list[str]


class PlanAnswer(wire.Given):
    plan: str
    messages: list[dict[str, Any]]
    pos_indices: list[str]
    neg_indices: list[str]


class BestPlanAnswer(PlanAnswer):
    selected_plan_number: int
    """From 1."""
    all_plans: list[str]


class JudgeReplanItem(wire.Sent):
    memory_indices: wire.Indices = []
    workflow: wire.Text
    past_messages: wire.WireMessages


class JudgeReplanAnswer(wire.Given):
    need_replan: Literal["yes", "no"]
    messages: list[dict[str, Any]]


class ReplanItem(wire.Sent):
    data_id: wire.DataId = ""
    question: wire.Asked
    past_messages: wire.WireMessages
    image_caption: wire.Caption = ""
    mem_top_k: TopK = 1
    pass_num: PassNumber = 0


class ReplanAnswer(wire.Given):
    replan: str
    messages: list[dict[str, Any]]
    pos_indices: list[str]
    neg_indices: list[str]


class ReplanTrainBody(wire.Sent):
    question: wire.Asked
    plan: Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
    trace: wire.Text = ""
    mem_context1: wire.Text = ""
    mem_context2: wire.Text = ""


class ReplanTrainAnswer(wire.Given):
    replan: Literal[True] = True
    content: str


class SaveItem(wire.Sent):
    data_id: wire.DataId = ""
    question: wire.Asked
    image_caption: wire.Caption = ""
    messages: wire.WireMessages
    plan: wire.Text = ""
    judgement: Annotated[str, StringConstraints(max_length=200)]
    """"correct"; anything else is incorrect."""
    used_memory_indices: wire.Indices = []
    evaluator_1_feedback: wire.Text | None = None
    evaluator_2_feedback: wire.Text | None = None
    evaluator_3_feedback: wire.Text | None = None


class SavePath(wire.Sent):
    save_path: Annotated[str, StringConstraints(min_length=1, max_length=4_096)]
    """Of a full path, the last component counts: a file in the export folder."""


class LoadPath(wire.Sent):
    load_path: Annotated[str, StringConstraints(min_length=1, max_length=4_096)]
    """The plain name of a file in the export folder."""


MemoryItems = Annotated[list[MemoryItem], Field(max_length=wire.MOST_ITEMS)]
ReplanItems = Annotated[list[ReplanItem], Field(max_length=wire.MOST_ITEMS)]


# ── recall ────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/memory", response_model=list[MemoryAnswer], summary="Recall for each question")
async def memory(items: MemoryItems, service: TheService, scope: TheScope) -> list[MemoryAnswer]:
    return await recalled(service, scope, items)


async def recalled(service: Service, scope: str, items: Sequence[MemoryItem]) -> list[MemoryAnswer]:
    """Raises StoreError, ModelError (the embedder's)."""
    team = service.team(scope)

    async def one(item: MemoryItem) -> MemoryAnswer:
        found = await recall_for(team, item.question, item.image_caption, item.mem_top_k, item.pass_num)
        positive, negative = indices(found)
        return MemoryAnswer(context=found.for_planner, pos_indices=positive, neg_indices=negative)

    return await each(items, one, at_once=service.config.run.concurrency)


async def recall_for(team: Team, question: str, caption: str, k: int, passed: int, *, said: str = "") -> Recall:
    """`k` memories of each judgement, after so many that are passed over; those whose text stands in `said` already are
    too. Raises StoreError, ModelError (the embedder's)."""
    memory = team.memory
    if not isinstance(memory, MemoryManager) or not k:
        return Recall()

    def look() -> Recall:
        skip: set[str] = set()
        if passed:
            skip = _ids(memory.recall_now(question, caption, k=(passed, passed)))
        found = memory.recall_now(question, caption, k=(k, k), skip=skip)
        while said and (twice := _ids(found) & _told(memory, _ids(found), said)):
            skip |= twice
            found = memory.recall_now(question, caption, k=(k, k), skip=skip)
        return found

    return await asyncio.to_thread(look)


def indices(recall: Recall) -> tuple[list[str], list[str]]:
    """Ids of the memories of correct, and of incorrect answers."""
    positive = [one.memory_id for one in recall.shown if one.judgement == "correct"]
    return positive, [one.memory_id for one in recall.shown if one.judgement == "incorrect"]


def _ids(recall: Recall) -> set[str]:
    return {one.memory_id for one in recall.shown}


def _told(memory: MemoryManager, ids: set[str], said: str) -> set[str]:
    known = memory.store.memories(ids)
    return {id for id, one in known.items() if present.for_planner([one]) in said}


# ── plans ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/plan", response_model=list[PlanAnswer], summary="Plan for each question")
async def plan(
    request: Request, items: MemoryItems, service: TheService, scope: TheScope
) -> list[PlanAnswer] | Response:
    return await held(request, planned(service, scope, items))


async def planned(service: Service, scope: str, items: Sequence[MemoryItem]) -> list[PlanAnswer]:
    """Raises ConfigError, StoreError, ModelError, BudgetExceeded."""
    team = service.team(scope)
    planner = planner_of(team)

    async def one(item: MemoryItem) -> PlanAnswer:
        question = Question.of(item.question, id=item.data_id, caption=item.image_caption)
        found = await recall_for(team, item.question, item.image_caption, item.mem_top_k, item.pass_num)
        made = await planner.plan(question, found, team.executor.describe_tools(), ledger_of(service, question))
        positive, negative = indices(found)
        return PlanAnswer(
            plan=made.plan.text, messages=wire.theirs(made.messages), pos_indices=positive, neg_indices=negative
        )

    return await each(items, one, at_once=service.config.run.concurrency)


@router.post("/best_plan", response_model=list[BestPlanAnswer], summary="Sample plans and choose one")
async def best_plan(
    request: Request, items: MemoryItems, service: TheService, scope: TheScope
) -> list[BestPlanAnswer] | Response:
    return await held(request, _best_planned(service, scope, items))


async def _best_planned(service: Service, scope: str, items: Sequence[MemoryItem]) -> list[BestPlanAnswer]:
    team = service.team(scope)
    planner = planner_of(team).sampling(PLANS)

    async def one(item: MemoryItem) -> BestPlanAnswer:
        question = Question.of(item.question, id=item.data_id, caption=item.image_caption)
        found = await recall_for(team, item.question, item.image_caption, item.mem_top_k, item.pass_num)
        pairs = await team.memory.recall(question, kind=MemoryKind.PLAN_PAIR) if team.memory is not None else None
        ledger = ledger_of(service, question)
        made = await planner.plan(question, found, team.executor.describe_tools(), ledger, pairs=pairs)
        positive, negative = indices(found)
        return BestPlanAnswer(
            plan=made.plan.text,
            messages=wire.theirs(made.messages),
            pos_indices=positive,
            neg_indices=negative,
            selected_plan_number=made.plan.chosen + 1,
            all_plans=list(made.plan.candidates),
        )

    return await each(items, one, at_once=service.config.run.concurrency)


@router.post("/judge_replan", response_model=list[JudgeReplanAnswer], summary="Whether to replan")
async def judge_replan(
    request: Request,
    items: Annotated[list[JudgeReplanItem], Field(max_length=wire.MOST_ITEMS)],
    service: TheService,
    scope: TheScope,
) -> list[JudgeReplanAnswer] | Response:
    """A Planner that answers neither yes nor no is taken for no."""
    planner = planner_of(service.team(scope))

    async def one(item: JudgeReplanItem) -> JudgeReplanAnswer:
        messages = wire.ours(item.past_messages)
        shown = planner.show(messages, *wire.read_trace(item.workflow))
        reflected = await planner.reflect(shown, _anonymous(service))
        return JudgeReplanAnswer(
            need_replan="yes" if reflected.reflection.replan else "no", messages=wire.theirs(reflected.messages)
        )

    return await held(request, each(items, one, at_once=service.config.run.concurrency))


@router.post("/replan", response_model=list[ReplanAnswer], summary="Supplementary plans")
async def replan(
    request: Request, items: ReplanItems, service: TheService, scope: TheScope
) -> list[ReplanAnswer] | Response:
    return await held(request, replanned(service, scope, items))


async def replanned(service: Service, scope: str, items: Sequence[ReplanItem]) -> list[ReplanAnswer]:
    """Raises ConfigError, RecordError, StoreError, ModelError, BudgetExceeded."""
    team = service.team(scope)
    planner = planner_of(team)

    async def one(item: ReplanItem) -> ReplanAnswer:
        messages = wire.ours(item.past_messages)
        said = "\n".join(message.content for message in messages)
        found = await recall_for(team, item.question, item.image_caption, item.mem_top_k, item.pass_num, said=said)
        question = Question.of(item.question, id=item.data_id, caption=item.image_caption)
        made = await planner.replan(messages, ledger_of(service, question), fresh=found)
        positive, negative = indices(found)
        return ReplanAnswer(
            replan=made.plan.text, messages=wire.theirs(made.messages), pos_indices=positive, neg_indices=negative
        )

    return await each(items, one, at_once=service.config.run.concurrency)


@router.post(
    "/replan_train", response_model=ReplanTrainAnswer, summary="A supplementary plan, for the Executor's training"
)
async def replan_train(
    request: Request, body: ReplanTrainBody, service: TheService, scope: TheScope
) -> ReplanTrainAnswer | Response:
    team = service.team(scope)
    planner = planner_of(team)

    async def work() -> ReplanTrainAnswer:
        question = Question.of(body.question)
        opening = planner.open(question, Recall(for_planner=body.mem_context1), team.executor.describe_tools())
        planned = (*opening, Message(role="assistant", content=body.plan))
        shown = planner.show(planned, *wire.read_trace(body.trace))
        fresh = Recall(for_planner=body.mem_context2)
        made = await planner.replan(shown, ledger_of(service, question), fresh=fresh)
        return ReplanTrainAnswer(content=made.plan.text)

    return await held(request, work())


def _anonymous(service: Service) -> Ledger:
    """For a request that names no question."""
    return ledger_of(service, Question.of("reflection"))


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────────


@router.post("/batch_memory_save", response_model=wire.Done, summary="Credit and remember finished runs")
async def batch_memory_save(
    items: Annotated[list[SaveItem], Field(max_length=wire.MOST_ITEMS)], service: TheService, scope: TheScope
) -> wire.Done:
    """On the disk before it is acknowledged; in the memory too, unless a model or the embedder is down."""

    def read(item: SaveItem) -> Episode:
        feedback = [item.evaluator_1_feedback, item.evaluator_2_feedback, item.evaluator_3_feedback]
        return wire.finished(
            data_id=item.data_id,
            question=item.question,
            caption=item.image_caption,
            plan=item.plan,
            messages=item.messages,
            used=item.used_memory_indices,
            verdict=wire.judged(item.judgement.strip().lower() == "correct", feedback if any(feedback) else ()),
            scope=scope,
            store=service.store,
        )

    episodes = await asyncio.to_thread(lambda: [read(item) for item in items])
    for episode in episodes:
        await service.accept(episode, scope)
    for episode in episodes:
        await service.absorbed(episode.id, ABSORBING_SECONDS)
    return wire.Done()


@router.post("/save_memory", response_model=wire.Done, summary="Write the memory into the export folder")
async def save_memory(body: SavePath, service: TheService, scope: TheScope) -> wire.Done:
    return await saved(service, scope, exports.last_name(body.save_path))


async def saved(service: Service, scope: str, name: str) -> wire.Done:
    """Raises RecordError, StoreError."""
    await asyncio.to_thread(exports.save, service.config, service.memory(scope), name)
    return wire.Done()


@router.post("/load_memory", response_model=wire.Done, summary="Take in a file of the export folder")
async def load_memory(body: LoadPath, service: TheService, scope: TheScope) -> wire.Done:
    name = exports.plain_name(body.load_path)
    await asyncio.to_thread(exports.load, service.config, service.memory(scope), service.embedder, name)
    return wire.Done()


@router.post("/clear_memory", response_model=wire.Cleared, summary="Forget what is in the scope")
async def clear_memory(service: TheService, scope: TheScope, body: Annotated[Any, Body()] = None) -> wire.Cleared:
    """Whatever the body is, and without one. It can be restored."""
    count = await asyncio.to_thread(exports.clear, service.memory(scope))
    return wire.Cleared(message=f"{count} memories forgotten; they can be restored.")
