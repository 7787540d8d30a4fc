"""`/queue`: what waits: jobs, answers that are not absorbed yet, and what the memory needs a model for."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from mia import statistics
from mia.errors import RecordError
from mia.service.auth import Principal
from mia.service.context import ThePrincipal, TheService
from mia.service.core import Service
from mia.service.dashboard.rendering import Offset, PageRoute, ShortField, page, see_other, slice_of
from mia.service.durable import Job, JobState
from mia.service.problems import NotFound
from mia.types import Question, Task

router = APIRouter(prefix="/queue", include_in_schema=False, route_class=PageRoute)

JOBS = 25
ITEMS = 50
WAITING = 50


@router.get("")
async def show(request: Request, service: TheService, principal: ThePrincipal) -> Response:
    jobs = await asyncio.to_thread(service.durable.jobs, scope=principal.scope, limit=JOBS)
    queue = await service.queue(principal.scope, WAITING)
    return page(
        request,
        "queue.html",
        jobs=[(job, statistics.wilson(job.correct, job.judged)) for job in jobs],
        under_way=any(is_open(job) for job in jobs),
        pending=queue.accepted,
        pending_count=queue.accepted_total,
        waiting=queue.waiting[:WAITING],
        waiting_count=len(queue.waiting),
    )


@router.post("/jobs")
async def submit(
    service: TheService,
    principal: ThePrincipal,
    questions: Annotated[str, Form(max_length=1_000_000)] = "",
    scope: ShortField = "",
) -> Response:
    """A question to each line."""
    chosen = principal.choose(scope.strip() or None, service.config.memory.scope)
    texts = [line.strip() for line in questions.splitlines() if line.strip()]
    if len(texts) > 10_000:
        raise RecordError(f"a job of {len(texts)} questions.", wanted="10,000 at most", hint="submit several")
    job = await service.submit([Task(question=Question.of(text)) for text in texts], chosen)
    return see_other(f"/queue/jobs/{job.id}")


@router.get("/jobs/{id}")
async def show_job(
    request: Request, id: str, service: TheService, principal: ThePrincipal, offset: Offset = 0
) -> Response:
    job = await _job(service, principal, id)
    items = await asyncio.to_thread(service.durable.items, job.id, limit=ITEMS + 1, offset=offset)
    shown, more = slice_of(items, ITEMS)
    return page(
        request,
        "job.html",
        job=job,
        items=shown,
        more=more,
        offset=offset,
        next_offset=offset + ITEMS,
        previous_offset=max(0, offset - ITEMS),
        accuracy=statistics.wilson(job.correct, job.judged),
        under_way=is_open(job),
    )


@router.post("/jobs/{id}/cancel")
async def cancel(id: str, service: TheService, principal: ThePrincipal) -> Response:
    job = await _job(service, principal, id)
    await service.cancel(job.id)
    return see_other(f"/queue/jobs/{job.id}")


def is_open(job: Job) -> bool:
    """Whether there is still something to answer."""
    return job.state in (JobState.QUEUED, JobState.RUNNING)


async def _job(service: Service, principal: Principal, id: str) -> Job:
    """Raises NotFound."""
    try:
        job = await asyncio.to_thread(service.durable.job, id)
    except RecordError:
        job = None
    if job is None or not principal.may_see(job.scope):
        raise NotFound(f"no job '{id[:100]}'.", hint="the page 'Queue' lists them")
    return job
