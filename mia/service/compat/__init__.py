"""The reference's wire surface, so that its clients work unchanged (docs/compatibility.md).

The reference runs several services, each on a port of its own. Here all of them are on one port, and two of them share
paths: there the shape of the body tells them apart. A list of items is for the memory service, an object for the agent
service, and an empty list, where the agent service takes one, for it. Each service also stands under a prefix of its
own, where nothing is ambiguous.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from mia.service.compat import agent_service, images, memory_service, retrieve, reward_service, trainer, web_tools, wire
from mia.service.compat.agent_service import (
    AgentMemoryAnswer,
    AgentMemoryBody,
    AgentPlanAnswer,
    AgentPlanBody,
    AgentReplanBody,
    Empty,
)
from mia.service.compat.context import TheCompatibility, held, lifespan
from mia.service.compat.memory_service import (
    MemoryAnswer,
    MemoryItems,
    PlanAnswer,
    ReplanAnswer,
    ReplanItems,
    SavePath,
)
from mia.service.context import TheScope, TheService
from mia.service.schemas import PROBLEMS

__all__ = ["router"]

SERVICES = {
    "/memory-service": (memory_service.router,),
    "/agent-service": (agent_service.router, images.router),
    "/reward-service": (reward_service.router,),
    "/trainer": (trainer.router,),
}
"""Prefix → what stands under it."""

shared = APIRouter(tags=["reference: memory or agent service"], responses=PROBLEMS)


@shared.post("/memory", response_model=list[MemoryAnswer] | AgentMemoryAnswer, summary="Recall")
async def memory(
    body: MemoryItems | AgentMemoryBody, service: TheService, scope: TheScope
) -> list[MemoryAnswer] | AgentMemoryAnswer:
    if isinstance(body, AgentMemoryBody):
        return await agent_service.recalled(service, scope, body)
    return await memory_service.recalled(service, scope, body)


@shared.post(
    "/plan", response_model=list[PlanAnswer] | AgentPlanAnswer, summary="Plan for questions, or execute a plan"
)
async def plan(
    request: Request,
    body: MemoryItems | AgentPlanBody,
    service: TheService,
    compatibility: TheCompatibility,
    scope: TheScope,
) -> list[PlanAnswer] | AgentPlanAnswer | Response:
    if isinstance(body, AgentPlanBody):
        return await held(request, agent_service.executed(service, compatibility, scope, body))
    return await held(request, memory_service.planned(service, scope, body))


@shared.post(
    "/replan", response_model=list[ReplanAnswer] | AgentPlanAnswer, summary="Supplementary plans, or execute one"
)
async def replan(
    request: Request,
    body: ReplanItems | AgentReplanBody,
    service: TheService,
    compatibility: TheCompatibility,
    scope: TheScope,
) -> list[ReplanAnswer] | AgentPlanAnswer | Response:
    if isinstance(body, AgentReplanBody):
        return await held(request, agent_service.resumed(service, compatibility, scope, body))
    return await held(request, memory_service.replanned(service, scope, body))


@shared.post("/save_memory", response_model=wire.Done, summary="Write the memory into the export folder")
async def save_memory(
    service: TheService, compatibility: TheCompatibility, scope: TheScope, body: SavePath | Empty | None = None
) -> wire.Done:
    if isinstance(body, SavePath):
        return await memory_service.save_memory(body, service, scope)
    return await agent_service.saved_all(service, compatibility, scope)


@shared.post("/clear_memory", response_model=wire.Cleared, summary="Forget what is in the scope")
async def clear_memory(service: TheService, scope: TheScope, body: Annotated[Any, Body()] = None) -> wire.Cleared:
    return await memory_service.clear_memory(service, scope, body)


def _not_shared(routes: APIRouter) -> APIRouter:
    """The paths of a service that are its own."""
    own = APIRouter()
    taken = {route.path for route in shared.routes if isinstance(route, APIRoute)}
    own.routes.extend(one for one in routes.routes if not (isinstance(one, APIRoute) and one.path in taken))
    return own


router = APIRouter(lifespan=lifespan)
router.include_router(shared)
for prefix, routers in SERVICES.items():
    for one in routers:
        router.include_router(_not_shared(one))
        router.include_router(one, prefix=prefix)
for one in (retrieve.router, web_tools.router):
    router.include_router(one)
# Two services answer these alike.
router.add_api_route(
    "/reward-service/health", trainer.health, response_model=trainer.Health, tags=["reference: reward service"]
)
router.add_api_route("/memory-service/hallo", agent_service.hallo, tags=["reference: memory service"])
