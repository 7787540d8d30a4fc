"""The app: every door of one service on one port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.middleware import Middleware

import mia
from mia.redaction import Redactor
from mia.service import problems
from mia.service.api import adapters, asks, episodes, health, jobs, memories
from mia.service.auth import Gate
from mia.service.core import Service
from mia.service.metrics import Metrics
from mia.service.middleware import Envelope, Guard, Limits
from mia.service.sessions import Sessions


def create_app(service: Service) -> FastAPI:
    """The app of a service, which it starts and closes. Raises ConfigError for tokens that cannot be read."""
    gate = Gate(service.config)
    sessions, metrics = Sessions(gate), Metrics()
    settings = service.config.serve

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
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
        middleware=[
            Middleware(Envelope, metrics, Redactor(service.config.memory.redact)),
            Middleware(Guard, settings, gate, sessions),
            Middleware(Limits, settings),
        ],
    )
    app.state.service, app.state.metrics = service, metrics
    app.state.gate, app.state.sessions = gate, sessions
    problems.install(app)
    for router in (asks.router, jobs.router, episodes.router, memories.router, adapters.router, health.router):
        app.include_router(router)
    return app
