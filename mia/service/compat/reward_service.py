"""The reference's reward service: ground truths by question, and the Planner's reward of a conversation.

A ground truth goes to the judge and nowhere else: no answer, error, log, prompt of an agent or episode holds one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, StringConstraints

from mia.errors import JudgeError
from mia.judges.base import Judge
from mia.judges.reference import ReferenceJudge
from mia.learn.rewards import incomplete, planner_form, planner_total, right_decision
from mia.learn.rollouts import Said
from mia.prompt import split_thinking
from mia.service.compat import wire
from mia.service.compat.context import TheCompatibility, held, ledger_of
from mia.service.context import TheScope, TheService
from mia.service.core import Service
from mia.service.schemas import PROBLEMS
from mia.types import Answer, Attempt, Outcome, Plan, Question, Reflection, Stop, StopReason, Task, Trace, Verdict

router = APIRouter(tags=["reference: reward service"], responses=PROBLEMS)

_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")
"""What decoding leaves at the end of a turn."""
_STOP = Stop(reason=StopReason.ANSWERED, sentence="The client sent what it executed.")


def _first(value: Any) -> str:
    """The reference's rule: of a list, the first item."""
    while isinstance(value, list):
        value = value[0] if value else ""
    if value is None or isinstance(value, dict):
        return ""
    return str(value).strip()[:10_000]


class TruthEntry(wire.Sent):
    data_id: wire.GivenId
    ground_truth: (
        Annotated[str, StringConstraints(max_length=10_000)]
        | int
        | float
        | bool
        | Annotated[list[str | int | float | bool], Field(max_length=100)]
        | None
    ) = None
    """Of a list, the first counts."""


class TruthEntries(wire.Sent):
    entries: Annotated[list[TruthEntry], Field(max_length=100_000)]


class TruthsRegistered(wire.Given):
    status: str = "ok"
    registered: int
    total: int


Turn = Annotated[str, StringConstraints(max_length=1_000_000)]


class RewardInfo(wire.Sent):
    data_id: wire.DataId = ""
    messages: Annotated[list[Turn], Field(max_length=100)] = []
    """[plan, trace, reflection], and with a replan [… request, replan, trace]."""
    question: Annotated[str, StringConstraints(max_length=100_000)] = ""


class RewardBody(RewardInfo):
    data_source: Annotated[str, StringConstraints(max_length=1_000)] = ""
    extra_info: RewardInfo | None = None


class RewardAnswer(wire.Given):
    score: float
    judgement: str
    """correct or incorrect."""
    format_score: float = 0.0
    decision_score: float = 0.0
    is_answer1_correct: bool = False
    is_answer2_correct: bool = False
    data_source: str = ""
    data_id: str = ""
    error: str | None = None
    """Why there is no reward."""


@router.post("/register_gts", response_model=TruthsRegistered, summary="Register ground truths")
async def register_gts(
    body: TruthEntries | TruthEntry, compatibility: TheCompatibility, scope: TheScope
) -> TruthsRegistered:
    """On the disk before it is acknowledged."""
    entries = body.entries if isinstance(body, TruthEntries) else [body]
    truths = {entry.data_id: _first(entry.ground_truth) for entry in entries}
    total = await asyncio.to_thread(compatibility.registry.register_truths, scope, truths)
    return TruthsRegistered(registered=len(entries), total=total)


@router.post(
    "/compute_gt_reward",
    response_model=RewardAnswer,
    response_model_exclude_none=True,
    summary="The Planner's reward of a conversation",
)
async def compute_gt_reward(
    request: Request, body: RewardBody, service: TheService, compatibility: TheCompatibility, scope: TheScope
) -> RewardAnswer | Response:
    """0.7 · the reported answer is right + 0.2 · the first is + 0.05 · format + 0.05 · decision; 0 for a conversation
    that is not whole. A judge that cannot be heard is an error (502), and no zero."""
    info = body.extra_info or RewardInfo()
    data_id = body.data_id or info.data_id
    messages = [_said(one) for one in info.messages or body.messages]
    question = info.question or body.question or "(the question was not sent)"
    if not data_id:
        return _nothing("missing_data_id", body, data_id)
    truth = await asyncio.to_thread(compatibility.registry.truth, scope, data_id)
    if not truth:
        return _nothing("unknown_data_id_or_empty_gt", body, data_id)
    if len(messages) not in (3, 6):
        return _nothing("bad_message_len", body, data_id)
    task = Task(question=Question.of(question, id=data_id), references=(truth,))
    return await held(request, _reward(service, scope, task, messages, body.data_source))


async def _reward(service: Service, scope: str, task: Task, messages: Sequence[str], data_source: str) -> RewardAnswer:
    """Raises JudgeError, ModelError."""
    judge = _judge(service, scope)
    traces = [messages[index] for index in (1, 5) if index < len(messages)]
    attempts = [
        Attempt(plan=Plan(text=plan), trace=Trace(stop=_STOP), answer=_answer(trace))
        for plan, trace in zip((messages[0], messages[-2]), traces, strict=False)
    ]
    ledger = ledger_of(service, task.question)
    verdicts = [await _heard(judge.judge(task, attempt, ledger)) for attempt in attempts]
    attempts[0] = attempts[0].evolve(verdict=verdicts[0], reflection=_reflection(messages[2]))
    said = [Said("plan", messages[0]), Said("reflect", messages[2])]
    if len(messages) == 6:
        said.append(Said("replan", messages[4]))
    first, final = verdicts[0].correct, verdicts[-1].correct
    form, decision = float(planner_form(said)), float(right_decision(attempts[0]))
    missing = incomplete(attempts, said)
    return RewardAnswer(
        score=0.0 if missing else planner_total(float(final), float(first), form, decision),
        judgement="correct" if final else "incorrect",
        format_score=form,
        decision_score=decision,
        is_answer1_correct=first,
        is_answer2_correct=final,
        data_source=data_source,
        data_id=task.question.id,
        error=f"incomplete: {missing}" if missing else None,
    )


async def _heard(work: Awaitable[Verdict]) -> Verdict:
    """A judge's outage is never the model's zero. Raises JudgeError."""
    verdict = await work
    if verdict.outcome is Outcome.UNJUDGED:
        raise JudgeError("the judge could not be heard.", hint="mia doctor")
    return verdict


def _judge(service: Service, scope: str) -> Judge:
    """One that compares with the reference, whatever judges the server's own answers."""
    judge = service.team(scope).judge
    return judge if judge is not None and service.config.judge.kind == "llm" else ReferenceJudge()


def _nothing(error: str, body: RewardBody, data_id: str) -> RewardAnswer:
    return RewardAnswer(score=0.0, judgement="incorrect", error=error, data_source=body.data_source, data_id=data_id)


def _said(message: str) -> str:
    message = message.rstrip()
    while end := next((one for one in _ENDS if message.endswith(one)), ""):
        message = message.removesuffix(end).rstrip()
    return message


def _answer(trace: str) -> Answer | None:
    text = wire.answer_in(trace)
    return Answer(text=text) if text else None


def _reflection(text: str) -> Reflection:
    parts = split_thinking(text)
    word = parts[1].lower() if parts else ""
    return Reflection(replan={"yes": True, "no": False}.get(word), text=text)
