"""Going back: the changes since a moment are undone, the newest first, as new changes.

The audit keeps of every change what was before and after. To undo one is to set what was before; of a credit, to take
its verdict out of the counts and put the earlier one back, which leaves alone what other scopes counted meanwhile. What
is undone is written down like any other change, so a rollback can be rolled back.

Not undone are those that concern no choice of anybody: repairs, and another embedder. A purge and an erasure cannot be.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from typing import Any

from mia.errors import StoreError
from mia.store import audit
from mia.store.base import Change, Rollback
from mia.store.conditions import below
from mia.store.rows import json_list
from mia.types import MemoryState

ACTION = "roll back"
_FIELDS = ("state", "replaced_by", "category", "expires_at")
"""What a change may set in a memory, apart from its counts."""
_OUT_OF_SIGHT = {"state": MemoryState.FORGOTTEN.value, "replaced_by": ""}
_FOR_GOOD = ("purge", "erase")
_NOBODYS_CHOICE = ("repair", "reembed")


def rollback(connection: sqlite3.Connection, to: float | int, scope: str | None) -> Rollback:
    """Within the open transaction. Raises StoreError if the counts of a memory do not agree with the audit."""
    last = to if isinstance(to, int) else _last_until(connection, to)
    where, values = below(scope)
    since = connection.execute(
        f"SELECT {audit.COLUMNS} FROM audit WHERE sequence > ? AND {where} ORDER BY sequence DESC", (last, *values)
    ).fetchall()
    now = time.time()
    undone: list[Change] = []
    removed: set[str] = set()
    added: set[str] = set()
    for row in since:
        change = audit.change(row)
        if change.action in _NOBODYS_CHOICE:
            continue
        if change.action in _FOR_GOOD:
            removed.add(change.memory_id)
        elif audit.is_credit(change):
            undone += _take_back(connection, change, now)
        elif change.action == "add":
            added.add(change.memory_id)
            undone += _set(connection, change, _OUT_OF_SIGHT, now)
        else:
            undone += _set(connection, change, change.before, now)
    return Rollback(to=last, changes=tuple(undone), lost=tuple(sorted(removed - added - {""})))


def _last_until(connection: sqlite3.Connection, at: float) -> int:
    """The last change made at or before a time. Where the clock jumped, the later one: less is undone."""
    row = connection.execute("SELECT max(sequence) FROM audit WHERE at <= ?", (at,)).fetchone()
    return int(row[0] or 0)


def _set(connection: sqlite3.Connection, change: Change, fields: Any, now: float) -> list[Change]:
    """Set the fields of the memory that a change concerned; nothing if it is gone or has them already."""
    fields = {name: fields[name] for name in _FIELDS if name in fields}
    if not fields:
        return []
    row = connection.execute(
        f"SELECT sequence, scope, {', '.join(fields)} FROM memories WHERE id = ?", (change.memory_id,)
    ).fetchone()
    if row is None:
        return []
    after = {name: value for name, value in fields.items() if row[name] != value}
    if not after:
        return []
    assignments = ", ".join(f"{name} = ?" for name in after)
    connection.execute(
        f"UPDATE memories SET {assignments}, updated_at = ? WHERE sequence = ?",
        (*after.values(), now, row["sequence"]),
    )
    return [
        audit.append(
            connection,
            ACTION,
            at=now,
            scope=row["scope"],
            memory_id=change.memory_id,
            memories=[row["sequence"]],
            reason=f"{change.action}, change {change.sequence}",
            before={name: row[name] for name in after},
            after=after,
        )
    ]


def _take_back(connection: sqlite3.Connection, change: Change, now: float) -> list[Change]:
    """Put back the verdict that a credit replaced, or none; an empty list if nothing it touched is there any more."""
    uses: Counter[str] = Counter()
    wins: Counter[str] = Counter()
    for verdict, sign in ((change.before, 1), (change.after, -1)):
        for id in verdict.get("memory_ids", ()):
            uses[id] += sign
            wins[id] += sign * verdict["correct"]
    sequences, counts = [], {}
    for id in uses:
        try:
            (row,) = connection.execute(
                "UPDATE memories SET uses = uses + ?, wins = wins + ?, updated_at = ? WHERE id = ? "
                "RETURNING sequence, uses, wins",
                (uses[id], wins[id], now, id),
            ).fetchall() or (None,)
        except sqlite3.IntegrityError as error:
            raise StoreError(
                f"the counts of the memory '{id}' do not agree with the audit; nothing was rolled back.",
                hint="mia memory check --repair",
            ) from error
        if row is not None:
            sequences.append(row["sequence"])
            counts[id] = [row["uses"], row["wins"]]
    group = (change.scope, change.reason)
    # An erased group has lost its name, and its record with it; its counts are still known.
    if change.reason and change.before:
        verdict = change.before
        connection.execute(
            "INSERT OR REPLACE INTO credits VALUES (?, ?, ?, ?, ?, ?)",
            (*group, verdict["correct"], verdict["judge"], json_list(verdict["memory_ids"]), now),
        )
    elif change.reason:
        connection.execute("DELETE FROM credits WHERE scope = ? AND question_group = ?", group)
    undone = {name: value for name, value in change.after.items() if name != "counts"}
    restored = {name: value for name, value in change.before.items() if name != "counts"}
    return [
        audit.append(
            connection,
            ACTION,
            at=now,
            scope=change.scope,
            memories=sequences,
            reason=change.reason,
            before=undone,
            after={**restored, "counts": counts},
        )
    ]
