"""Whether it lives, whether it can work, and what it has counted."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request, Response

import mia
from mia.errors import StoreError
from mia.service.context import ThePrincipal, TheService
from mia.service.schemas import PROBLEMS, Reply

router = APIRouter(tags=["health"], responses=PROBLEMS)


class Alive(Reply):
    status: str
    version: str
    seconds: float
    """Since the start."""


class Ready(Reply):
    status: str
    """"ready", or "failing"."""
    checks: dict[str, str]
    """"ok" or "failing"."""


@router.get("/healthz", response_model=Alive, summary="The process lives")
async def healthz(service: TheService) -> Alive:
    return Alive(status="ok", version=mia.__version__, seconds=time.time() - service.started_at)


@router.get("/readyz", response_model=Ready, summary="The store can be read and written")
async def readyz(service: TheService, response: Response) -> Ready:
    checks = {"background": "ok" if service.is_working else "failing"}
    for name, look in (("memory", service.store.space), ("durable", service.durable.pending_count)):
        try:
            await asyncio.to_thread(look)
            checks[name] = "ok"
        except StoreError:
            # Asked without a token: where it lies, and what is wrong with it, the log and the dashboard tell.
            checks[name] = "failing"
    fine = all(one == "ok" for one in checks.values())
    response.status_code = 200 if fine else 503
    return Ready(status="ready" if fine else "failing", checks=checks)


@router.get("/metrics", summary="Counters, as Prometheus reads them", response_class=Response)
async def metrics(request: Request, service: TheService, principal: ThePrincipal) -> Response:
    principal.require_admin("read everybody's counters")
    found = request.app.state.metrics
    found.pending.set(await asyncio.to_thread(service.durable.pending_count))
    found.memories.set(await asyncio.to_thread(service.store.count_memories))
    found.asks.set(service.live.under_way)
    return Response(found.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
