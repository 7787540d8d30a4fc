"""The audit: every change of a memory, with what was before and after, in the order in which they were made."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from mia.store.base import Change, storable

COLUMNS = "sequence, at, action, memory_id, scope, reason, before, after"
"""What `change` takes."""


def change(row: Mapping[str, Any] | sqlite3.Row) -> Change:
    """From a row of `COLUMNS`."""
    fields = dict(row)
    return Change(**{**fields, "before": json.loads(fields["before"]), "after": json.loads(fields["after"])})


def append(
    connection: sqlite3.Connection,
    action: str,
    *,
    at: float,
    scope: str,
    memory_id: str = "",
    memories: Collection[int] = (),
    reason: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> Change:
    """Write one entry. `memories`: the sequence numbers of the memories that it concerns, for the caches that follow
    them."""
    before, after = dict(before or {}), dict(after or {})
    texts = [json.dumps(fields, ensure_ascii=False) for fields in (before, after)]
    sequence = connection.execute(
        "INSERT INTO audit (at, action, memories, memory_id, scope, reason, before, after) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (at, action, json.dumps(sorted(memories)), memory_id, scope, storable(reason), *texts),
    ).lastrowid
    assert sequence is not None
    return Change(sequence, at, action, memory_id, scope, storable(reason), before, after)


def is_credit(change: Change) -> bool:
    """Whether it moved counts by a verdict: a credit, or the taking back of one."""
    return not change.memory_id and ("memory_ids" in change.before or "memory_ids" in change.after)
