"""`/v1/queue`: what waits to be stored, and what waits for a model."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from fastapi import APIRouter

from mia.memory.retrying import Retried
from mia.models.ledger import Ledger
from mia.service.api.reach import Limit, Reach
from mia.service.context import ThePrincipal, TheService
from mia.service.durable import Pending
from mia.service.problems import NotFound
from mia.service.schemas import PROBLEMS, Reply
from mia.store.base import Waiting
from mia.team import budget

router = APIRouter(prefix="/v1/queue", tags=["queue"], responses=PROBLEMS)


class AcceptedReply(Reply):
    """An answer, or what a user knows, that the memory does not hold yet."""

    id: str
    """Of an episode, or a receipt."""
    kind: str
    """absorb (an episode) or add (what a user knows)."""
    scope: str
    question: str
    attempts: int
    error: str
    """What went wrong last time; empty: its turn has not come."""
    retry_at: float
    """No earlier than this it is tried again; 0: at once."""

    @classmethod
    def of(cls, one: Pending) -> AcceptedReply:
        question = one.content["question"]
        return cls(
            id=one.id,
            kind=one.kind,
            scope=one.scope,
            question=question["text"] if one.kind == "absorb" else question,
            attempts=one.attempts,
            error=one.error,
            retry_at=one.retry_at,
        )


class WaitingReply(Reply):
    """Something in the memory that a model or the embedder has still to finish."""

    task: str
    """remember, compress or categorise."""
    subject: str
    """The id of an episode or a memory."""
    scope: str
    error: str
    """What went wrong last time."""
    attempts: int
    since: float
    retry_at: float | None
    """No earlier than this it is tried again, by itself; each time it fails the wait doubles, up to a day. None: it was
    given up, for it cannot succeed as things are (a text that is too long for the model's window); `POST
    /v1/queue/retry` tries it all the same, e.g. with another model."""

    @classmethod
    def of(cls, one: Waiting) -> WaitingReply:
        return cls(**{**asdict(one), "retry_at": None if one.given_up else one.retry_at})


class QueueReply(Reply):
    accepted: list[AcceptedReply]
    accepted_total: int
    waiting: list[WaitingReply]
    waiting_total: int


class RetriedReply(Reply):
    accepted: int
    """Tried again at once, in the background."""
    done: int
    failed: int
    dropped: int
    """Taken out of the queue undone: their subject is gone, or another has taken its place."""


class DroppedReply(Reply):
    dropped: bool


@router.get("", response_model=QueueReply, summary="What waits, the longest waiting first")
async def show(service: TheService, reach: Reach, limit: Limit = 100) -> QueueReply:
    """`accepted` is on the disk, and will be brought into the memory; `waiting` is in the memory, and a model or the
    embedder could not be asked."""
    queue = await service.queue(reach, limit)
    return QueueReply(
        accepted=[AcceptedReply.of(one) for one in queue.accepted],
        accepted_total=queue.accepted_total,
        waiting=[WaitingReply.of(one) for one in queue.waiting[:limit]],
        waiting_total=len(queue.waiting),
    )


@router.post("/retry", response_model=RetriedReply, summary="Try it again now")
async def retry(service: TheService, reach: Reach) -> RetriedReply:
    """Asks the models for all that waits for them, and comes back when they have answered."""
    accepted = await service.hasten(reach)
    total = Retried()
    # Each scope has a queue of its own.
    for scope in sorted({one.scope for one in await asyncio.to_thread(service.store.queue, reach)}):
        ledger = Ledger("queue", budget=budget(service.config.budget.run))
        total += await service.memory(scope).retry(ledger)
    return RetriedReply(accepted=accepted, done=total.done, failed=total.failed, dropped=total.dropped)


@router.delete("/{id}", response_model=DroppedReply, summary="Give something up")
async def drop(id: str, service: TheService, principal: ThePrincipal) -> DroppedReply:
    """Something accepted that cannot be stored is not tried any more, and is gone."""
    found = await asyncio.to_thread(service.durable.pending_one, id)
    if found is None or not principal.may_see(found.scope):
        raise NotFound(f"nothing waits as '{id[:100]}'.", hint="GET /v1/queue lists what does")
    await asyncio.to_thread(service.durable.absorbed, [id])
    return DroppedReply(dropped=True)
