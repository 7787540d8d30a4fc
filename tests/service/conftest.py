"""A service in this process, and a client that speaks to it without a socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `service` is not installed")

from service_team import make_service
from starlette.testclient import TestClient

from mia.service.app import create_app


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(make_service(tmp_path / "home")), raise_server_exceptions=False) as client:
        yield client
