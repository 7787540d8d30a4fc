"""How far a list looks, and how much of it is told at a time."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query

from mia.service.context import ThePrincipal, TheScope

MOST = 1_000
"""Entries on one page."""
_FURTHEST = 10**12


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
