"""The app: every door of one service on one port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware

import mia
from mia.errors import MiaError
from mia.redaction import Redactor
from mia.service import chat, compat, dashboard, embeddings, problems
from mia.service.api import adapters, asks, episodes, health, jobs, memories, queue, recall
from mia.service.auth import Gate
from mia.service.context import refuse_unknown_parameters
from mia.service.core import Service
from mia.service.dashboard.trouble import ErrorPages
from mia.service.mcp import door as mcp
from mia.service.metrics import Metrics
from mia.service.middleware import Envelope, Guard, Limits
from mia.service.recalls import Recalls
from mia.service.sessions import Sessions


def create_app(service: Service) -> FastAPI:
    """The app of a service, which it starts and closes. Raises ConfigError for tokens that cannot be read."""
    gate = Gate(service.config)
    sessions, metrics = Sessions(gate), Metrics()
    settings = service.config.serve

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
        except MiaError as error:
            # The server that starts us would tell it as a traceback.
            app.state.trouble = error
            raise
        try:
            async with mcp_door.open():
                yield
        finally:
            await service.close()

    app = FastAPI(
        title="MIA",
        version=mia.__version__,
        description="A research agent that learns from its own past.",
        lifespan=lifespan,
        # Their pages load scripts from elsewhere; the dashboard has one of its own.
        docs_url=None,
        redoc_url=None,
        # FastAPI's own would hold what stands in URLs and tracebacks; ours are made in tracing.py.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        middleware=[
            Middleware(ErrorPages),
            Middleware(Envelope, metrics, Redactor(service.config.memory.redact)),
            Middleware(Guard, settings, gate, sessions),
            Middleware(Limits, settings),
        ],
    )
    app.state.service, app.state.metrics = service, metrics
    app.state.gate, app.state.sessions = gate, sessions
    app.state.recalls, app.state.trouble = Recalls(service), None
    problems.install(app)
    if settings.traces:
        from mia.service import tracing

        tracing.install(service)
    for router in (
        asks.router,
        recall.router,
        jobs.router,
        episodes.router,
        memories.router,
        queue.router,
        adapters.router,
    ):
        app.include_router(router, dependencies=[Depends(refuse_unknown_parameters)])
    # Clients of these were written for others, and may send more.
    for router in (health.router, chat.router, embeddings.router, compat.router):
        app.include_router(router)
    dashboard.install(app)
    mcp_door = mcp.install(app, service)
    return app
