"""What a route asks of its request: the service, who asks, and for which scope."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from fastapi.dependencies.models import Dependant

from mia.errors import RecordError
from mia.service.auth import Principal
from mia.service.core import Service
from mia.service.problems import NotFound
from mia.types import Episode, Memory

T = TypeVar("T")


class ClientGone(Exception):
    """Whoever asked has hung up."""


# Async, though nothing waits: what is not is handed to a thread, which costs more than all of it.


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


async def _scope(
    request: Request,
    x_mia_scope: Annotated[
        str | None, Header(description="The scope: tenant/project/user. Left out: that of the token.", max_length=300)
    ] = None,
) -> str:
    """Raises Forbidden, ConfigError."""
    principal: Principal = request.state.principal
    service: Service = request.app.state.service
    return principal.choose(x_mia_scope, service.config.memory.scope)


async def refuse_unknown_parameters(request: Request) -> None:
    """A misspelt query parameter is never lost silently. Raises RecordError."""
    if not request.scope["query_string"]:
        return
    known = set(_parameters(request.scope["route"].dependant))
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        raise RecordError(
            f"the query parameter '{unknown[0][:100]}' is not known here.",
            wanted=", ".join(sorted(known)) or "none",
            hint="the scope is the header X-MIA-Scope" if unknown[0] == "scope" else "GET /docs",
        )


def _parameters(dependant: Dependant) -> Iterator[str]:
    """The query parameters of a route, and of all that it depends on."""
    yield from (one.alias for one in dependant.query_params)
    for other in dependant.dependencies:
        yield from _parameters(other)


TheService = Annotated[Service, Depends(_service)]
ThePrincipal = Annotated[Principal, Depends(_principal)]
TheScope = Annotated[str, Depends(_scope)]


async def episode_of(service: Service, principal: Principal, id: str) -> tuple[Episode, str]:
    """An episode and its scope. Raises NotFound, also for those that are not his to see."""
    found = await service.episode(id)
    if found is None or not principal.may_see(found[1]):
        raise NotFound(f"no episode '{id[:100]}'.", hint="GET /v1/episodes lists them")
    return found


async def memory_of(service: Service, principal: Principal, id: str) -> Memory:
    """A memory of exactly this id. Raises NotFound, also for those that are not his to see."""
    found = (await asyncio.to_thread(service.store.memories, [id])).get(id)
    if found is None or not principal.may_see(found.scope):
        raise NotFound(f"no memory '{id[:100]}'.", hint="GET /v1/memories lists them")
    return found


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work as long as somebody waits for it; when he hangs up it is cancelled. Raises ClientGone."""
    task = asyncio.create_task(work)
    watching = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((task, watching), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, watching):
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.gather(task, watching, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    """Returns when the client has gone. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
