"""`/v1/jobs`: batches of questions, answered in the background, whatever is restarted meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field, TypeAdapter, ValidationError

from mia import statistics
from mia.errors import RecordError
from mia.service.api.asks import task_of
from mia.service.api.reach import Limit, Offset, Reach
from mia.service.auth import Principal
from mia.service.context import ThePrincipal, TheScope, TheService
from mia.service.core import Service
from mia.service.durable import Job, JobState
from mia.service.invalid import faults
from mia.service.problems import NotFound
from mia.service.schemas import PROBLEMS, AskBody, Body, Id, References, Reply, Text
from mia.types import Task

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS)

MOST_QUESTIONS = 100_000
_LINES = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
_PAGE = 500


class JobQuestion(Body):
    """As in `POST /v1/ask`, without `stream`."""

    question: Text
    id: Id = ""
    references: References = []
    images: Annotated[list[str], Field(max_length=8)] = []
    caption: Annotated[str, Field(max_length=20_000)] = ""


class JobBody(Body):
    questions: Annotated[list[JobQuestion], Field(min_length=1, max_length=MOST_QUESTIONS)]


class JobReply(Reply):
    """How a job stands."""

    id: str
    scope: str
    state: JobState
    created_at: float
    finished_at: float | None
    total: int
    counts: dict[str, int]
    """Questions by state: queued, answered, failed, cancelled."""
    judged: int
    correct: int
    accuracy: float | None
    """The share of correct answers among the judged ones; None while none is."""
    accuracy_95: tuple[float, float] | None
    """Its Wilson interval."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """In US dollars; None where a price is not known."""
    waits: str
    """Why questions of it wait for their next try, e.g. for an endpoint that is down; empty: none does."""

    @classmethod
    def of(cls, job: Job) -> JobReply:
        accuracy = statistics.wilson(job.correct, job.judged)
        return cls(
            id=job.id,
            scope=job.scope,
            state=job.state,
            created_at=job.created_at,
            finished_at=job.finished_at,
            total=job.total,
            counts=dict(job.counts),
            judged=job.judged,
            correct=job.correct,
            accuracy=accuracy.estimate if accuracy else None,
            accuracy_95=(accuracy.low, accuracy.high) if accuracy else None,
            prompt_tokens=job.prompt_tokens,
            completion_tokens=job.completion_tokens,
            cost=job.cost,
            waits=job.waits,
        )


class JobsReply(Reply):
    jobs: list[JobReply]
    next: str | None
    """What `before` is for the next page; None: there is none."""


class ItemReply(Reply):
    """What came of one question."""

    number: int
    """Its place in the job, from 0."""
    question_id: str
    question: str
    state: Literal["queued", "answered", "failed", "cancelled"]
    episode_id: str
    """Empty: it was not asked yet, or erased."""
    outcome: str
    """Of the verdict; empty: none."""
    answer: str | None
    error: str
    """Why there is no answer; while it is queued, why the last try of it could not be put to the model."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class ResultsReply(Reply):
    job: JobReply
    results: list[ItemReply]
    next: int | None
    """What `offset` is for the next page; None: there is none."""


class DeletedReply(Reply):
    deleted: bool


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["questions"],
                    "properties": {
                        "questions": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": MOST_QUESTIONS,
                            "items": JobQuestion.model_json_schema(),
                        }
                    },
                }
            },
            _LINES[0]: {"schema": {"type": "string"}},
        },
    }
}
"""Of `submit`, which reads it itself, since it comes in two forms."""


@router.post(
    "",
    status_code=202,
    response_model=JobReply,
    summary="Submit a batch of questions",
    openapi_extra=_BODY,
)
async def submit(request: Request, service: TheService, scope: TheScope) -> JobReply:
    """JSON, `{"questions": [{"question": …, "references": […]}, …]}`; or, as `application/jsonl`, one such question a
    line. The job is on the disk when the reply comes, and goes on after a restart."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await request.body()
    tasks = await asyncio.to_thread(_lines if kind in _LINES else _questions, content)
    return JobReply.of(await service.submit(tasks, scope))


@router.get("", response_model=JobsReply, summary="List jobs, the newest first")
async def list_jobs(
    service: TheService,
    reach: Reach,
    limit: Limit = 50,
    before: Annotated[str, Query(max_length=200, description="Only jobs older than the one of this id.")] = "",
) -> JobsReply:
    found = await asyncio.to_thread(service.durable.jobs, scope=reach, limit=limit + 1, before=before)
    page = found[:limit]
    return JobsReply(jobs=[JobReply.of(job) for job in page], next=page[-1].id if len(found) > limit else None)


@router.get("/{id}", response_model=JobReply, summary="How a job stands")
async def show(id: str, service: TheService, principal: ThePrincipal) -> JobReply:
    return JobReply.of(await job_of(service, principal, id))


@router.post("/{id}/cancel", response_model=JobReply, summary="Cancel a job")
async def cancel(id: str, service: TheService, principal: ThePrincipal) -> JobReply:
    """What is being asked is broken off; what was answered stays. A job that is over is left as it is."""
    await job_of(service, principal, id)
    return JobReply.of(await service.cancel(id))


@router.post("/{id}/retry", response_model=JobReply, summary="Ask again what failed")
async def retry(id: str, service: TheService, principal: ThePrincipal) -> JobReply:
    """What could not be answered, or was cancelled, is asked again; what was answered stays."""
    await job_of(service, principal, id)
    return JobReply.of(await service.retry(id))


@router.delete("/{id}", response_model=DeletedReply, summary="Cancel and remove a job")
async def delete(id: str, service: TheService, principal: ThePrincipal) -> DeletedReply:
    """Its questions and answers are removed from the job; the episodes that came of it stay."""
    await job_of(service, principal, id)
    await service.forget_job(id)
    return DeletedReply(deleted=True)


@router.get(
    "/{id}/results",
    response_model=ResultsReply,
    responses={200: {"content": {_LINES[0]: {"schema": {"type": "string"}}}}},
    summary="What came of the questions",
)
async def results(
    id: str,
    service: TheService,
    principal: ThePrincipal,
    limit: Limit = 100,
    offset: Offset = 0,
    format: Annotated[Literal["json", "jsonl"], Query(description="jsonl: all of them, one a line.")] = "json",
) -> Any:
    """In the order of the questions; a page as JSON, or all as JSON Lines."""
    job = await job_of(service, principal, id)
    if format == "jsonl":
        headers = {"Content-Disposition": f'attachment; filename="{job.id}.jsonl"'}
        return StreamingResponse(_all_lines(service, id), media_type=_LINES[0], headers=headers)
    items = await asyncio.to_thread(service.durable.items, id, limit=limit, offset=offset)
    following = offset + len(items)
    return ResultsReply(
        job=JobReply.of(job),
        results=[ItemReply.model_validate(asdict(item)) for item in items],
        next=following if items and following < job.total else None,
    )


async def job_of(service: Service, principal: Principal, id: str) -> Job:
    """Raises NotFound, also for those that are not his to see."""
    try:
        job = await asyncio.to_thread(service.durable.job, id)
    except RecordError:
        job = None
    if job is None or not principal.may_see(job.scope):
        raise NotFound(f"no job '{id[:100]}'.", hint="GET /v1/jobs lists them")
    return job


async def _all_lines(service: Service, id: str) -> AsyncIterator[bytes]:
    offset = 0
    while items := await asyncio.to_thread(service.durable.items, id, limit=_PAGE, offset=offset):
        yield b"".join(json.dumps(asdict(item), ensure_ascii=False).encode() + b"\n" for item in items)
        offset += len(items)


# ── what comes in ─────────────────────────────────────────────────────────────────────────────────────────────────

_ONE = TypeAdapter(JobQuestion)


def _questions(content: bytes) -> list[Task]:
    """Raises RecordError."""
    try:
        body = JobBody.model_validate_json(content)
    except ValidationError as error:
        raise _refused(error, "the job") from None
    return [_task(question, f"question {number}") for number, question in enumerate(body.questions)]


def _lines(content: bytes) -> list[Task]:
    """Raises RecordError."""
    tasks: list[Task] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        if len(tasks) >= MOST_QUESTIONS:
            raise RecordError(f"the job has more than {MOST_QUESTIONS:,} questions.", wanted="several jobs")
        try:
            question = _ONE.validate_json(line)
        except ValidationError as error:
            raise _refused(error, f"line {number}") from None
        tasks.append(_task(question, f"line {number}"))
    return tasks


def _task(question: JobQuestion, place: str) -> Task:
    try:
        return task_of(AskBody(**question.model_dump()))
    except RecordError as error:
        raise RecordError(f"{place}: {error.got}", wanted=error.wanted) from error


def _refused(error: ValidationError, place: str) -> RecordError:
    first = faults([{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)])[0]
    form = '{"questions": [{"question": "…"}]}, or a line {"question": "…"} for each'
    return RecordError(f"{place}: {first.got}", wanted=first.wanted if first.place else form)
