"""`/memories`: look for memories, see how they did and where they come from, put them out of sight and back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
from fastapi import APIRouter, Request, Response

from mia.memory.score import value
from mia.service.context import ThePrincipal, TheService, memory_of
from mia.service.dashboard.rendering import (
    Offset,
    PageRoute,
    ShortField,
    ShortQuery,
    by_htmx,
    page,
    see_other,
    slice_of,
)
from mia.types import Memory, MemoryState

router = APIRouter(prefix="/memories", include_in_schema=False, route_class=PageRoute)

PAGE = 25
FOUND = 50
CHANGES = 100
"""Of a memory's history."""

Chosen = Literal["active", "replaced", "forgotten", "quarantined", "all"]
Judged = Literal["", "correct", "incorrect"]


@dataclass(frozen=True)
class Row:
    """A memory in a list."""

    memory: Memory
    value: float
    """What its uses say it is worth, in (0, 1)."""
    similarity: float | None = None
    """To what was searched for."""


def rows(memories: Sequence[Memory], similarities: Sequence[float | None] = ()) -> list[Row]:
    counts = numpy.array([[one.uses, one.wins] for one in memories], numpy.int64).reshape(-1, 2)
    values = value(counts[:, 0], counts[:, 1]).tolist()
    return [
        Row(memory, worth, similarity)
        for memory, worth, similarity in zip(memories, values, similarities or [None] * len(memories), strict=True)
    ]


@router.get("")
async def list_(
    request: Request,
    service: TheService,
    principal: ThePrincipal,
    q: ShortQuery = "",
    judgement: Judged = "",
    state: Chosen = "active",
    offset: Offset = 0,
) -> Response:
    """The newest first; with `q`, those alike, which are in sight."""
    states = tuple(MemoryState) if state == "all" else (MemoryState(state),)
    if q.strip():
        scope = principal.scope if principal.scope is not None else service.config.memory.scope
        found = await asyncio.to_thread(service.memory(scope).search, q, k=FOUND)
        fitting = [
            one for one in found if principal.may_see(one.memory.scope) and judgement in ("", one.memory.judgement)
        ]
        shown, more = rows([one.memory for one in fitting], [one.similarity for one in fitting]), False
    else:
        listed = await asyncio.to_thread(
            service.store.list_memories,
            principal.scope,
            limit=PAGE + 1,
            offset=offset,
            states=states,
            judgement=judgement or None,
        )
        first, more = slice_of(listed, PAGE)
        shown = rows(first)
    count = await asyncio.to_thread(service.store.count_memories, principal.scope, states=states)
    return page(
        request,
        "_memories.html" if by_htmx(request) else "memories.html",
        rows=shown,
        more=more,
        count=count,
        q=q,
        judgement=judgement,
        state=state,
        offset=offset,
        next_offset=offset + PAGE,
        previous_offset=max(0, offset - PAGE),
    )


@router.get("/{id}")
async def show(request: Request, id: str, service: TheService, principal: ThePrincipal) -> Response:
    memory = await memory_of(service, principal, id)
    changes = await asyncio.to_thread(service.store.audit, memory_id=memory.id, limit=CHANGES)
    leaned_on = await asyncio.to_thread(service.store.memories, memory.provenance.leaned_on)
    named = [memory.provenance.episode_id] if memory.provenance.episode_id else []
    sources = await asyncio.to_thread(service.store.episodes, named)
    (row,) = rows([memory])
    return page(
        request,
        "memory.html",
        row=row,
        memory=memory,
        changes=changes,
        leaned_on=[one for one in leaned_on.values() if principal.may_see(one.scope)],
        source=sources.get(memory.provenance.episode_id),
    )


@router.post("/{id}/{action}")
async def change(
    request: Request,
    id: str,
    action: Literal["forget", "restore", "quarantine"],
    service: TheService,
    principal: ThePrincipal,
    reason: ShortField = "",
) -> Response:
    """Put it out of sight, or back; for htmx, its row as it is then."""
    memory = await memory_of(service, principal, id)
    manager = service.memory(memory.scope)
    act = {"forget": manager.forget, "restore": manager.restore, "quarantine": manager.quarantine}[action]
    await asyncio.to_thread(act, [memory.id], reason=reason.strip() or f"by {principal.name}, in the dashboard")
    if not by_htmx(request):
        return see_other(f"/memories/{memory.id}")
    (row,) = rows([await memory_of(service, principal, memory.id)])
    return page(request, "_memory_row.html", row=row)
