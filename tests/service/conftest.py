"""A service in this process, and a client that speaks to it without a socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `service` is not installed")

from fastapi import APIRouter, FastAPI
from service_team import make_service
from starlette.routing import BaseRoute
from starlette.testclient import TestClient

from mia.service.app import create_app


@pytest.fixture(scope="session", autouse=True)
def _routes_read_once() -> Iterator[None]:
    """FastAPI reads the signatures behind all routes at an app's first request, for a tenth of a second. Nearly every
    test here makes an app, and the routers are the same in all of them: what was read for the first serves the others.
    """
    include = FastAPI.include_router
    read: dict[tuple[int, str], tuple[APIRouter, list[BaseRoute]]] = {}

    def include_what_was_read(self: FastAPI, router: APIRouter, **options: Any) -> None:
        before = len(self.router.routes)
        include(self, router, **options)
        new = router, self.router.routes[before:]
        _, self.router.routes[before:] = read.setdefault((id(router), repr(options)), new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastAPI, "include_router", include_what_was_read)
        yield


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(make_service(tmp_path / "home")), raise_server_exceptions=False) as client:
        yield client
