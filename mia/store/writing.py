"""One open transaction on the SQLite store: every change of a memory leaves a row in the audit, in the same commit."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mia.errors import RecordError, StoreError
from mia.redaction import Redactor
from mia.store import erasing, rows
from mia.store.base import NEVER, Changes, MemoryVectors, Task, storable
from mia.store.rows import LIST, json_list, json_object
from mia.types import Episode, Memory, MemoryKind, MemoryState, Outcome, Verdict

_AUDIT = (
    "INSERT INTO audit (at, action, memories, memory_id, scope, reason, before, after) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_EPISODE = (
    "INSERT INTO episodes (id, question_id, run, created_at, json, absorbed, scope, lessons) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET json = excluded.json, "
    "absorbed = max(absorbed, excluded.absorbed), "
    "lessons = CASE excluded.lessons WHEN '[]' THEN lessons ELSE excluded.lessons END"
)
_COUNT = (
    "UPDATE memories SET uses = uses + ?, wins = wins + ?, updated_at = ? "
    f"WHERE id IN {LIST} AND scope IN {LIST} RETURNING sequence, id, uses, wins"
)
_INSERT_MEMORY = f"INSERT INTO memories VALUES (NULL{', ?' * 15})"
_INSERT_TEXTS = f"INSERT INTO texts VALUES (?{', ?' * 9})"


class SqliteWriting:
    """What `SqliteStore.transaction` hands to its work."""

    def __init__(self, connection: sqlite3.Connection, redactor: Redactor) -> None:
        self._connection = connection
        self._redactor = redactor
        self._space = ""

    # ── reading what this transaction sees ────────────────────────────────────────────────────────────────────────

    def space(self) -> str:
        return rows.space(self._connection)

    def changes(self, scope: str, since: int, *, known: int = 0) -> Changes:
        return rows.changes(self._connection, scope, since, known)

    def alike(self, scope: str, kind: MemoryKind, question: str) -> Sequence[tuple[Memory, MemoryVectors]]:
        return rows.alike(self._connection, scope, kind, question)

    def absorbed(self, episode_ids: Collection[str]) -> frozenset[str]:
        return rows.absorbed(self._connection, episode_ids)

    def kept(self, episode_ids: Collection[str]) -> frozenset[str]:
        return rows.kept(self._connection, episode_ids)

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def save_episode(self, episode: Episode, *, scope: str, absorbed: bool, lessons: Sequence[str] = ()) -> None:
        episode = self._redactor.model(episode)
        row = (
            episode.id,
            episode.question.id,
            episode.run,
            episode.started_at,
            erasing.without_erased(self._connection, episode),
            absorbed,
            scope,
            json_list(lessons),
        )
        self._connection.execute(_EPISODE, rows.storable_row(row))

    def insert(self, memory: Memory, vectors: MemoryVectors, *, replaces: str = "", reason: str = "") -> None:
        self._claim_space(vectors.space)
        own, texts = rows.memory_rows(memory)
        sequence = self._insert(own, texts, vectors)
        standing = f'{{"state": "{own[6]}", "uses": {memory.uses}, "wins": {memory.wins}}}'
        added = (time.time(), "add", f"[{sequence}]", own[0], own[1], self._clean(reason), "{}", standing)
        self._connection.execute(_AUDIT, added)
        if replaces:
            self._change(
                "replace",
                [replaces],
                {"state": MemoryState.REPLACED.value, "replaced_by": own[0]},
                reason or f"a near-duplicate: {own[0]}",
            )

    def credit(self, scopes: Collection[str], group: str, shown: Collection[str], verdict: Verdict) -> int:
        if verdict.outcome is Outcome.UNJUDGED:
            return 0
        scopes = [storable(scope) for scope in scopes]
        home, group, judge = scopes[0], self._clean(group), self._clean(verdict.judge)
        won, now = int(verdict.correct), time.time()
        earlier = self._connection.execute(
            "SELECT correct, judge, memory_ids FROM credits WHERE scope = ? AND question_group = ?", (home, group)
        ).fetchone()
        before: dict[str, Any] = {}
        if earlier is not None:
            ids = json.loads(earlier["memory_ids"])
            if earlier["correct"] == won and set(ids) == self._known(shown, scopes):
                return len(ids)
            taken_back = self._count(ids, scopes, -1, -earlier["correct"], now)
            before = {"correct": earlier["correct"], "judge": earlier["judge"], "memory_ids": ids}
        counted = self._count(shown, scopes, 1, won, now)
        if earlier is None:
            if not counted:
                return 0
            taken_back = []
        ids = [row["id"] for row in counted]
        # A memory that is in both stands in the later one as it is now.
        changed = {row["sequence"]: row for row in (*taken_back, *counted)}
        standing = {row["id"]: [row["uses"], row["wins"]] for row in changed.values()}
        after = {"correct": won, "judge": judge, "memory_ids": ids, "counts": standing}
        execute = self._connection.execute
        audit = (now, "credit", str(list(changed)), "", home, group, json_object(before) if before else "{}")
        execute(_AUDIT, (*audit, json_object(after)))
        execute(
            "INSERT OR REPLACE INTO credits VALUES (?, ?, ?, ?, ?, ?)", (home, group, won, judge, json_list(ids), now)
        )
        return len(ids)

    def set_state(self, ids: Collection[str], state: MemoryState, *, action: str, reason: str = "") -> tuple[str, ...]:
        return self._change(action, ids, {"state": state.value, "replaced_by": ""}, reason)

    def set_category(self, id: str, category: str) -> None:
        self._change("categorise", [id], {"category": storable(category)}, "")

    def set_expiry(self, ids: Collection[str], at: float | None, *, reason: str = "") -> tuple[str, ...]:
        return self._change("expire", ids, {"expires_at": at}, reason)

    def evict(self, scope: str, most: int) -> tuple[str, ...]:
        (active,) = self._connection.execute(
            "SELECT count(*) FROM memories WHERE scope = ? AND state = 'active'", (storable(scope),)
        ).fetchone()
        if active <= most:
            return ()
        kept = -(-most * 99 // 100)
        # One trial at birth was none; among the others a win rate shrunk towards one half, as Laplace has it.
        found = self._connection.execute(
            "SELECT id FROM memories WHERE scope = ? AND state = 'active' "
            "ORDER BY coalesce(expires_at <= ?, 0) DESC, CAST(wins AS REAL) / (max(uses - 1, 0) + 2), sequence LIMIT ?",
            (storable(scope), time.time(), active - kept),
        )
        return self._change(
            "forget",
            [row["id"] for row in found],
            {"state": MemoryState.FORGOTTEN.value, "replaced_by": ""},
            "quota",
        )

    def enqueue(self, task: Task, subject: str, *, scope: str, error: str, delay: float) -> None:
        now = time.time()
        self._connection.execute(
            "INSERT INTO queue (task, subject, scope, error, attempts, since, retry_at) VALUES (?, ?, ?, ?, 1, ?, ?) "
            "ON CONFLICT (task, subject) DO UPDATE SET error = excluded.error, attempts = attempts + 1, "
            "retry_at = excluded.retry_at",
            (task.value, storable(subject), storable(scope), self._clean(error), now, min(now + delay, NEVER)),
        )

    def dequeue(self, task: Task, subjects: Collection[str]) -> None:
        self._connection.execute(
            f"DELETE FROM queue WHERE task = ? AND subject IN {LIST}", (task.value, json_list(subjects))
        )

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _clean(self, text: str) -> str:
        """Free text from outside, as it may be stored."""
        return self._redactor(storable(text))

    def _change(self, action: str, ids: Collection[str], fields: Mapping[str, Any], reason: str) -> tuple[str, ...]:
        """Set columns of memories, with one audit row for each that it really changes; their ids."""
        names = ", ".join(fields)
        found = self._connection.execute(
            f"SELECT sequence, id, scope, {names} FROM memories WHERE id IN {LIST} ORDER BY sequence", (json_list(ids),)
        ).fetchall()
        now, after, changed, reason = time.time(), json_object(fields), [], self._clean(reason)
        for row in found:
            before = {name: row[name] for name in fields}
            if before == dict(fields):
                continue
            changed.append(row)
            self._connection.execute(
                _AUDIT,
                (
                    now,
                    action,
                    f"[{row['sequence']}]",
                    row["id"],
                    row["scope"],
                    reason,
                    json_object(before),
                    after,
                ),
            )
        assignments = ", ".join(f"{name} = ?" for name in fields)
        self._connection.executemany(
            f"UPDATE memories SET {assignments}, updated_at = ? WHERE sequence = ?",
            [(*fields.values(), now, row["sequence"]) for row in changed],
        )
        return tuple(row["id"] for row in changed)

    def _insert(self, own: tuple[Any, ...], texts: tuple[Any, ...], vectors: MemoryVectors) -> int:
        """The new row's sequence number."""
        try:
            sequence = self._connection.execute(_INSERT_MEMORY, own).lastrowid
        except sqlite3.IntegrityError as error:
            # Anything else that the table refuses is a bug of ours.
            if "memories.id" not in str(error):
                raise
            raise RecordError(f"there is a memory '{own[0]}' already.", wanted="an id of its own") from error
        assert sequence is not None
        caption = None if vectors.caption is None else rows.blob(vectors.caption)
        self._connection.execute(_INSERT_TEXTS, (sequence, *texts, rows.blob(vectors.question), caption))
        return sequence

    def _known(self, ids: Collection[str], scopes: Sequence[str]) -> set[str]:
        """Those that are in the store, and in these scopes."""
        found = self._connection.execute(
            f"SELECT id FROM memories WHERE id IN {LIST} AND scope IN {LIST}", (json_list(ids), json_list(scopes))
        )
        return {row["id"] for row in found}

    def _count(
        self, ids: Collection[str], scopes: Sequence[str], uses: int, wins: int, now: float
    ) -> Sequence[sqlite3.Row]:
        """Add to the counts of memories; the rows as they are now."""
        return self._connection.execute(_COUNT, (uses, wins, now, json_list(ids), json_list(scopes))).fetchall()

    def _claim_space(self, space: str) -> None:
        """The first vector names the space of the store; none of another is let in."""
        if space == self._space:
            return
        stored = self.space()
        if stored and stored != space:
            raise StoreError(
                f"a vector of the space '{space}' came to a memory of the space '{stored}'.",
                hint="mia memory reembed, to change the embedder of a store",
            )
        if not stored:
            self._connection.execute("INSERT INTO meta (name, value) VALUES ('space', ?)", (space,))
        self._space = space
