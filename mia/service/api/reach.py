"""How far a list looks, how much of it is told at a time, and how alike a memory must be to be shown."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query

from mia.config import MemorySettings
from mia.service.context import ThePrincipal, TheScope

MOST = 1_000
"""Entries on one page."""
_FURTHEST = 10**12
RELATED: float = MemorySettings.model_fields["floor"].default
"""Memories less similar than this are of hardly any use (docs/memory.md)."""


def _reach(
    principal: ThePrincipal,
    scope: TheScope,
    all_scopes: Annotated[bool, Query(description="Those of everybody; only for a token without a scope.")] = False,
) -> str | None:
    """Raises Forbidden."""
    if all_scopes:
        principal.require_admin("look into all scopes")
        return None
    return scope


Reach = Annotated[str | None, Depends(_reach)]
"""A scope and all below it; None: everything."""
Limit = Annotated[int, Query(ge=1, le=MOST, description="How many at most.")]
Offset = Annotated[int, Query(ge=0, le=_FURTHEST, description="How many to pass over.")]
Sequence = Annotated[int | None, Query(ge=1, le=_FURTHEST, description="Only those before this number.")]


def floor_for_agents(settings: MemorySettings, given: float | None) -> float | None:
    """The similarity below which other agents are shown nothing; None: as the settings say.

    Theirs where they name one, else `memory.floor`. Where that lets everything through, as in the offline world, whose
    questions are all of a kind, it is `RELATED`: other agents ask about anything.
    """
    if given is not None:
        return given
    return RELATED if settings.floor <= 0 and settings.score != "paper" else None
