"""What the routes of compatibility share: what is kept between calls, and how questions are put and waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response

from mia.agents.planner import Planner
from mia.config import Config
from mia.errors import ConfigError
from mia.models.ledger import Ledger
from mia.service.compat.registry import Registry
from mia.service.context import ClientGone, while_connected
from mia.service.core import Service
from mia.team import Team, budget
from mia.types import Question

T = TypeVar("T")
R = TypeVar("R")

FILE = "compat.db"
"""In `home`."""


class Compatibility:
    """Of one app."""

    def __init__(self, config: Config) -> None:
        self.registry = Registry(config.home / FILE)
        self.consolidating = asyncio.Lock()
        """One group of candidates goes into the memory once."""
        self.steps_told: int | None = None
        """Updates of the weights that the streaming trainer's client knows of; None: nobody asked yet."""


def _compatibility(request: Request) -> Compatibility:
    found: Compatibility = request.app.state.compatibility
    return found


TheCompatibility = Annotated[Compatibility, Depends(_compatibility)]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The routes' part of an app's life."""
    app.state.compatibility = Compatibility(app.state.service.config)
    try:
        yield
    finally:
        await asyncio.to_thread(app.state.compatibility.registry.close)


async def held(request: Request, work: Coroutine[Any, Any, T]) -> T | Response:
    """Do work that costs model calls as long as somebody waits for it."""
    try:
        return await while_connected(request, work)
    except ClientGone:
        return Response(status_code=499)


async def each(items: Sequence[T], work: Callable[[T], Awaitable[R]], *, at_once: int) -> list[R]:
    """In the order of the items. Raises the first error, and lets go of the others."""
    places = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with places:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def ledger_of(service: Service, question: Question) -> Ledger:
    return Ledger(question.id, budget=budget(service.config.budget.question))


def planner_of(team: Team) -> Planner:
    """Raises ConfigError where the server has none."""
    if team.planner is None:
        raise ConfigError("this server has no Planner.", hint="line.plan = true")
    return team.planner
