"""Conditions of SQL that several questions share, each with its values."""

from __future__ import annotations

from collections.abc import Collection

from mia.store.base import storable
from mia.store.rows import LIST, json_list
from mia.types import MemoryState

Condition = tuple[str, tuple[object, ...]]


def below(scope: str | None) -> Condition:
    """A scope and all below it (None: all)."""
    if scope is None:
        return "TRUE", ()
    scope = storable(scope)
    # "0" follows "/" in the order of letters: everything that begins with "scope/" lies between the two.
    return "(scope = ? OR (scope >= ? AND scope < ?))", (scope, f"{scope}/", f"{scope}0")


def within(scope: str | None, states: Collection[MemoryState]) -> Condition:
    """Memories of a scope and all below it, in one of the states."""
    where, values = below(scope)
    return f"{where} AND state IN {LIST}", (*values, json_list(state.value for state in states))
