"""`/status`: whether all is well, what runs here, and with which settings (secrets masked)."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request, Response

import mia
from mia.config import Config
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

_UNITS = {
    "seconds": "s",
    "tokens": "tokens",
    "context_window": "tokens",
    "calls": "calls",
    "money": "$",
    "mb": "MB",
    "days": "days",
    "half_life": "days",
    "per_minute": "a minute",
}
"""End of a setting's name → what its number counts."""


@dataclass(frozen=True)
class Setting:
    """One setting as a page shows it."""

    name: str
    value: str
    """Empty: it is not set."""
    unit: str
    changed: bool
    """Whether it is other than where nothing is set."""


@dataclass(frozen=True)
class Section:
    """The settings of one part."""

    name: str
    settings: tuple[Setting, ...]

    @property
    def changed(self) -> int:
        return sum(one.changed for one in self.settings)


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
        sections=_sections(service.config) if principal.is_admin else None,
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


def _sections(config: Config) -> list[Section]:
    """The settings in force, secrets masked, as the file of settings has them."""
    usual = dict(_flat(Config().resolved()))
    found: dict[str, list[Setting]] = {}
    for name, value in _flat(config.resolved()):
        section, _, rest = name.rpartition(".")
        shown = Setting(
            rest or name, _shown(value), _unit(rest or name, value), name not in usual or usual[name] != value
        )
        found.setdefault(section, []).append(shown)
    return [Section(name or "general", tuple(settings)) for name, settings in found.items()]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and their values, section by section; a section that is left out has no value of its own."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    """As it would stand in the file of settings; empty: it is not set."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _unit(name: str, value: Any) -> str:
    """Told by the end of the name, which every setting with a unit has."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    return next((unit for end, unit in _UNITS.items() if name == end or name.endswith(f"_{end}")), "")
