"""`/mcp` in the app. The package of the protocol, a quarter of what a server loads at its start, waits for who asks."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mia.service.core import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

PATH = "/mcp"


class Door:
    """The app behind `/mcp`. `open` it while the app runs."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._wanted = asyncio.Event()
        self._app: asyncio.Future[ASGIApp] | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """What is under way at the end is cancelled."""
        self._wanted.clear()
        self._app = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(self._serve(self._app))
        try:
            yield
        finally:
            self._app.cancel()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving

    async def _serve(self, app: asyncio.Future[ASGIApp]) -> None:
        # A task of its own, since what is opened here must be closed by the same task, and no request lives that long.
        await self._wanted.wait()
        from mia.service.mcp.server import serving

        async with serving(self._service) as opened:
            app.set_result(opened)
            await asyncio.Event().wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._app is not None, "the app is not running"
        if not self._app.done():
            # It takes a second, in which others are answered.
            await asyncio.to_thread(importlib.import_module, "mia.service.mcp.server")
            self._wanted.set()
        # Whoever hangs up takes it from nobody else.
        await (await asyncio.shield(self._app))(scope, receive, send)


class _Known(Route):
    """A route that tells which it is, as FastAPI's do: for the metrics."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return match, {**found, "route": self} if match is not Match.NONE else found


def install(app: FastAPI, service: Service) -> Door:
    """Put the door into an app."""
    door = Door(service)
    # Only POST: without sessions there is no stream to open and none to end.
    app.router.routes.append(_Known(PATH, door, methods=["POST"], include_in_schema=False))
    return door
