"""`/status`: whether all is well, what runs here, and with which settings (secrets masked)."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request, Response

import mia
from mia.errors import StoreError
from mia.service.context import ThePrincipal, TheService
from mia.service.core import Service
from mia.service.dashboard.rendering import PageRoute, page
from mia.types import Role

router = APIRouter(prefix="/status", include_in_schema=False, route_class=PageRoute)

_PACKAGES = (
    "fastapi",
    "uvicorn",
    "starlette",
    "pydantic",
    "mcp",
    "openai",
    "numpy",
    "tantivy",
    "torch",
    "transformers",
)


@router.get("")
async def show(request: Request, service: TheService, principal: ThePrincipal) -> Response:
    checks = await _checks(service)
    fine = all(said == "ok" for _, said in checks)
    statistics = await asyncio.to_thread(service.store.statistics, principal.scope) if fine else None
    return page(
        request,
        "status.html",
        fine=fine,
        checks=checks,
        statistics=statistics,
        up=time.time() - service.started_at,
        models=[(role.value, service.models.of(role).name) for role in Role],
        space=statistics.space if statistics is not None else "",
        versions=await asyncio.to_thread(_versions),
        # How the server is set up is for who runs it.
        settings=_flat(service.config.resolved()) if principal.is_admin else None,
        location=service.store.location if principal.is_admin else "",
    )


async def _checks(service: Service) -> list[tuple[str, str]]:
    """Name and "ok", or what is wrong."""
    found = []
    for name, look in (("memory", service.store.space), ("durable queue", service.durable.pending_count)):
        try:
            await asyncio.to_thread(look)
            found.append((name, "ok"))
        except StoreError as error:
            found.append((name, error.got))
    return found


def _versions() -> list[tuple[str, str]]:
    """Of what is installed; nothing is imported for it."""
    found = [("mia", mia.__version__), ("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and their values, section by section."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
            found.append((f"{prefix}{name}", shown))
    return found
