"""What is removed for good: memories that are out of sight (`purge`), and everything of somebody (`erase`).

Both work within an open transaction, and leave in the audit that a memory was there, without a word of it. An erasure
has a second half outside the transaction, which takes the traces off the disk: free pages, the write-ahead log, caches
and backups. What that half has to do is noted in the store by the first one, and crossed out when it is done.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mia.redaction import Redactor
from mia.scope import lineage
from mia.store import audit, rows
from mia.store.base import Erased, fingerprint, storable
from mia.store.conditions import below
from mia.store.rows import LIST, json_list
from mia.types import Episode, MemoryKind

ERASED = "[erased]"
"""What stands where the text of an erased memory stood in an episode that was shown it."""
_PENDING = "erasing"
"""In `meta`: what was erased and may still have traces on the disk."""

_SCOPE = "erased "
"""In `meta`, before the name of a scope: when all of it was erased last."""

_BACKUP = r"\.(v[0-9]+-backup|[0-9]{8}-[0-9]{6}-repair-backup)(\.unfinished)?(-wal|-shm|-journal)?"
"""How our copies are named after the store (`migrations.backup_name`, `SqliteStore.repair`), and SQLite's files beside
them."""


# ── purge ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def purge(
    connection: sqlite3.Connection, *, scope: str | None, before: float | None, ids: Collection[str] | None
) -> Erased:
    """Remove what is `purgeable`, and blank the reasons that were given for its changes."""
    now = time.time()
    found = purgeable(connection, scope=scope, before=before, ids=ids, now=now)
    if not found:
        return Erased()
    gone = [row["id"] for row in found]
    _remove_memories(connection, [row["sequence"] for row in found], gone)
    connection.execute(
        f"UPDATE audit SET reason = '' WHERE memory_id IN {LIST} AND action NOT IN ('roll back', 'repair')",
        (json_list(gone),),
    )
    for row in found:
        kept = ("state", "replaced_by", "category", "uses", "wins", "expires_at")
        audit.append(
            connection,
            "purge",
            at=now,
            scope=row["scope"],
            memory_id=row["id"],
            before={name: row[name] for name in kept},
        )
    _forget_numbers(connection, [row["sequence"] for row in found])
    _new_epoch(connection)
    return Erased(memories=tuple(gone))


def purgeable(
    connection: sqlite3.Connection,
    *,
    scope: str | None,
    before: float | None,
    ids: Collection[str] | None,
    now: float,
) -> list[sqlite3.Row]:
    """Memories that are forgotten, replaced or expired, and have been since `before` (None: no matter how long); with
    `ids`, of these only, and quarantined ones too."""
    where, values = below(scope)
    out_of_sight = "state IN ('forgotten', 'replaced') OR (state = 'active' AND expires_at <= ?)"
    values = (*values, now)
    if ids is not None:
        out_of_sight = f"({out_of_sight} OR state = 'quarantined') AND id IN {LIST}"
        values = (*values, json_list(ids))
    found = connection.execute(f"SELECT * FROM memories WHERE {where} AND ({out_of_sight})", values).fetchall()
    if before is not None:
        since = _out_of_sight_since(connection, found, now)
        found = [row for row in found if since[row["id"]] < before]
    return found


def _out_of_sight_since(connection: sqlite3.Connection, found: Sequence[sqlite3.Row], now: float) -> dict[str, float]:
    """When each memory went out of sight, by its id."""
    ids = json_list(row["id"] for row in found)
    states, expiries = (
        dict(
            connection.execute(
                # Of the bare columns beside max(), SQLite gives those of the same row: the latest such change.
                f"SELECT memory_id, at FROM (SELECT memory_id, at, max(sequence) FROM audit WHERE memory_id IN {LIST} "
                f"AND action <> 'add' AND json_type(after, ?) IS NOT NULL GROUP BY memory_id)",
                (ids, field),
            ).fetchall()
        )
        for field in ("$.state", "$.expires_at")
    )
    since = {}
    for row in found:
        moments = []
        if row["state"] != "active":
            # One that arrived so, from an import or an older schema, tells only when it was touched last.
            moments.append(states.get(row["id"], row["updated_at"]))
        if row["expires_at"] is not None and row["expires_at"] <= now:
            moments.append(max(row["expires_at"], expiries.get(row["id"], row["created_at"])))
        since[row["id"]] = min(moments)
    return since


# ── erase ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Selection:
    """What is to be erased."""

    scope: str | None = None
    """Everything of it and below it; None: of no scope."""
    memory_ids: Collection[str] = ()
    episode_ids: Collection[str] = ()
    question_ids: Collection[str] = ()

    def __bool__(self) -> bool:
        return self.scope is not None or bool(self.memory_ids or self.episode_ids or self.question_ids)

    @property
    def in_scope(self) -> tuple[str, tuple[object, ...]]:
        return below(self.scope) if self.scope is not None else ("FALSE", ())


def erase_rows(
    connection: sqlite3.Connection, selection: Selection, backups: Iterable[Path], redactor: Redactor
) -> Erased:
    """The first half: all rows, and the note of what is still to do. Returns what is to be cleaned up now, with what an
    erasure that was cut short left behind. `redactor`: that of the store, under whose words credits are kept."""
    erased = _join(pending(connection), Erased(backups=tuple(backups)))
    if selection:
        erased = _join(erased, _erase(connection, selection, redactor))
    note = {name: [str(value) for value in values] for name, values in dataclasses.asdict(erased).items()}
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (_PENDING, json.dumps(note)))
    return erased


def pending(connection: sqlite3.Connection) -> Erased:
    """What an erasure that was cut short has still to clean up; empty if there was none."""
    note = rows.meta(connection, _PENDING)
    if note is None:
        return Erased()
    fields = {name: tuple(values) for name, values in json.loads(note).items()}
    paths = {name: tuple(map(Path, fields[name])) for name in ("copies", "backups")}
    return Erased(**{**fields, **paths})


def is_pending(connection: sqlite3.Connection) -> bool:
    return rows.meta(connection, _PENDING) is not None


def backups(path: Path) -> list[Path]:
    """Copies of the store that were made before its schema was changed or it was repaired, finished or not; none that
    the user made and named himself."""
    ours = re.compile(re.escape(path.name) + _BACKUP)
    return sorted(file for file in path.parent.iterdir() if ours.fullmatch(file.name))


def remove_files(cache: Path, copies: Iterable[Path]) -> None:
    """Empty the cache folder, and remove these files. Raises OSError."""
    if cache.is_dir():
        for entry in cache.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    for copy in copies:
        copy.unlink(missing_ok=True)


def cross_out(connection: sqlite3.Connection) -> None:
    """The second half is done."""
    connection.execute("DELETE FROM meta WHERE name = ?", (_PENDING,))


def _erase(connection: sqlite3.Connection, selection: Selection, redactor: Redactor) -> Erased:
    now = time.time()
    in_scope, scope_values = selection.in_scope
    episodes = connection.execute(
        f"SELECT sequence, id, question_id, run, scope FROM episodes WHERE {in_scope} OR id IN {LIST} "
        f"OR question_id IN {LIST}",
        (*scope_values, json_list(selection.episode_ids), json_list(selection.question_ids)),
    ).fetchall()
    episode_ids = {row["id"] for row in episodes} | set(map(storable, selection.episode_ids))
    made_of_them = _pairs_with_plans_of(connection, [row["sequence"] for row in episodes])
    memories = connection.execute(
        f"SELECT sequence, id, scope FROM memories WHERE {in_scope} OR id IN {LIST} OR episode_id IN {LIST}",
        (*scope_values, json_list([*selection.memory_ids, *made_of_them]), json_list(episode_ids)),
    ).fetchall()
    # Traces of memories that were purged before go as well.
    names = {row["id"] for row in memories} | set(map(storable, selection.memory_ids))
    names |= {
        row["memory_id"]
        for row in connection.execute(f"SELECT DISTINCT memory_id FROM audit WHERE {in_scope}", scope_values)
        if row["memory_id"]
    }
    images = _images(connection, [row["sequence"] for row in episodes])

    _remove_memories(connection, [row["sequence"] for row in memories], names)
    connection.execute(
        f"DELETE FROM queue WHERE {in_scope} OR subject IN {LIST}", (*scope_values, json_list(episode_ids))
    )
    connection.execute(
        f"DELETE FROM episodes WHERE sequence IN {LIST}", (json_list(row["sequence"] for row in episodes),)
    )
    groups = set(map(redactor, _groups(connection, selection, episodes, episode_ids)))
    emptied = _erase_credits(connection, selection, groups, names)
    _erase_history(connection, selection, groups, emptied, names, [row["sequence"] for row in memories])
    _erase_mentions(connection, names)

    for row in memories:
        audit.append(connection, "erase", at=now, scope=row["scope"], memory_id=row["id"])
    if episodes:
        scope = selection.scope if selection.scope is not None else episodes[0]["scope"]
        audit.append(connection, "erase", at=now, scope=storable(scope), after={"episodes": len(episodes)})
    if selection.scope is not None:
        note = (_SCOPE + storable(selection.scope), now)
        connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", note)
    _new_epoch(connection)
    return Erased(
        memories=tuple(row["id"] for row in memories),
        episodes=tuple(row["id"] for row in episodes),
        runs=tuple(sorted({row["run"] for row in episodes} - {""})),
        images=tuple(sorted(image for image in images if not _is_held(connection, image))),
        copies=tuple(Path(row["place"]) for row in connection.execute("SELECT place FROM copies ORDER BY place")),
    )


def _pairs_with_plans_of(connection: sqlite3.Connection, episodes: Sequence[int]) -> set[str]:
    """Plan pairs that quote a plan of these episodes: a pair names only the episode of its correct plan as its own."""
    found = set()
    for (text,) in _values(connection, "json", episodes):
        episode = json.loads(text)
        plans = [(attempt.get("plan") or {}).get("text", "").strip() for attempt in episode.get("attempts", ())]
        pairs = connection.execute(
            "SELECT id, plan, incorrect_plan FROM memories JOIN texts USING (sequence) "
            "WHERE fingerprint = ? AND kind = ?",
            (fingerprint(episode["question"]["text"]), MemoryKind.PLAN_PAIR.value),
        )
        for pair in pairs:
            if any(plan and (plan in pair["plan"] or plan in pair["incorrect_plan"]) for plan in plans):
                found.add(pair["id"])
    return found


def _images(connection: sqlite3.Connection, episodes: Sequence[int]) -> set[str]:
    """The hashes of the images of these episodes."""
    found: set[str] = set()
    for (images,) in _values(connection, "json_extract(json, '$.question.images')", episodes):
        found.update(image["sha256"] for image in json.loads(images or "[]"))
    return found


def _is_held(connection: sqlite3.Connection, image: str) -> bool:
    """Whether an episode that is still there holds it."""
    held = "SELECT EXISTS (SELECT 1 FROM episodes WHERE instr(json, ?))"
    return bool(connection.execute(held, (image,)).fetchone()[0])


def _values(connection: sqlite3.Connection, expression: str, episodes: Sequence[int]) -> Iterator[sqlite3.Row]:
    return connection.execute(f"SELECT {expression} FROM episodes WHERE sequence IN {LIST}", (json_list(episodes),))


def _groups(
    connection: sqlite3.Connection, selection: Selection, episodes: Sequence[sqlite3.Row], episode_ids: Collection[str]
) -> set[str]:
    """The question groups that were of these episodes alone: a group is named after an episode or a question."""
    questions = {row["question_id"] for row in episodes}
    others = connection.execute(
        f"SELECT DISTINCT question_id FROM episodes WHERE question_id IN {LIST}", (json_list(questions),)
    )
    shared = {row["question_id"] for row in others}
    return {*episode_ids, *(questions - shared), *map(storable, selection.question_ids)}


def _erase_credits(
    connection: sqlite3.Connection, selection: Selection, groups: Collection[str], names: Collection[str]
) -> set[tuple[str, str]]:
    """Drop the records of these groups, and take the erased memories out of all others. Those that name no memory then
    go too; their scopes and groups are returned."""
    in_scope, values = selection.in_scope
    connection.execute(
        f"DELETE FROM credits WHERE {in_scope} OR question_group IN {LIST}", (*values, json_list(groups))
    )
    touched = connection.execute(
        "SELECT scope, question_group, memory_ids FROM credits "
        f"WHERE EXISTS (SELECT 1 FROM json_each(memory_ids) WHERE value IN {LIST})",
        (json_list(names),),
    ).fetchall()
    emptied = set()
    for row in touched:
        key = (row["scope"], row["question_group"])
        left = _without(json.loads(row["memory_ids"]), names)
        if left:
            statement = "UPDATE credits SET memory_ids = ? WHERE scope = ? AND question_group = ?"
            connection.execute(statement, (json_list(left), *key))
        else:
            connection.execute("DELETE FROM credits WHERE scope = ? AND question_group = ?", key)
            emptied.add(key)
    return emptied


def _erase_history(
    connection: sqlite3.Connection,
    selection: Selection,
    groups: Collection[str],
    emptied: Collection[tuple[str, str]],
    names: Collection[str],
    sequences: Collection[int],
) -> None:
    """Empty the audit of what it says of these memories and groups (`emptied`: those of one scope only). That something
    happened stays, and so do the counts of other memories."""
    in_scope, values = selection.in_scope
    connection.execute(
        "UPDATE audit SET reason = '', before = '{}', after = '{}', memories = '[]' "
        f"WHERE memory_id <> '' AND ({in_scope} OR memory_id IN {LIST})",
        (*values, json_list(names)),
    )
    shared = connection.execute(
        f"SELECT sequence, memories, scope, reason, before, after, {in_scope} AS ours FROM audit "
        f"WHERE memory_id = '' AND ({in_scope} OR reason IN {LIST} "
        f"OR EXISTS (SELECT 1 FROM json_each(before, '$.memory_ids') WHERE value IN {LIST}) "
        f"OR EXISTS (SELECT 1 FROM json_each(after, '$.memory_ids') WHERE value IN {LIST}))",
        (*values, *values, json_list([*groups, *(group for _, group in emptied)]), json_list(names), json_list(names)),
    ).fetchall()
    for row in shared:
        nameless = row["ours"] or row["reason"] in groups or (row["scope"], row["reason"]) in emptied
        connection.execute(
            "UPDATE audit SET memories = ?, reason = ?, before = ?, after = ? WHERE sequence = ?",
            (
                json.dumps(_without(json.loads(row["memories"]), sequences)),
                "" if nameless else row["reason"],
                *(
                    json.dumps(_without_memories(json.loads(row[field]), names), ensure_ascii=False)
                    for field in ("before", "after")
                ),
                row["sequence"],
            ),
        )


def _without_memories(verdict: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """One side of a credit's entry in the audit, without these memories."""
    kept = dict(verdict)
    if "memory_ids" in kept:
        kept["memory_ids"] = _without(kept["memory_ids"], names)
    if "counts" in kept:
        kept["counts"] = {id: counts for id, counts in kept["counts"].items() if id not in names}
    return kept


def _erase_mentions(connection: sqlite3.Connection, names: Collection[str]) -> None:
    """Of episodes that are left: what they were shown of these memories, and that they gave rise to them."""
    given_rise = connection.execute(
        f"SELECT sequence, lessons FROM episodes WHERE EXISTS (SELECT 1 FROM json_each(lessons) WHERE value IN {LIST})",
        (json_list(names),),
    ).fetchall()
    for row in given_rise:
        lessons = json_list(_without(json.loads(row["lessons"]), names))
        connection.execute("UPDATE episodes SET lessons = ? WHERE sequence = ?", (lessons, row["sequence"]))
    shown = " OR ".join(
        f"EXISTS (SELECT 1 FROM json_each(episodes.json, '$.recall.{place}') AS one "
        f"WHERE json_extract(one.value, '$.memory_id') IN {LIST})"
        for place in ("shown", "passed_over")
    )
    ids = json_list(names)
    touched = connection.execute(f"SELECT sequence FROM episodes WHERE {shown}", (ids, ids)).fetchall()
    for (sequence,) in touched:
        # One at a time: an episode may be large.
        (text,) = connection.execute("SELECT json FROM episodes WHERE sequence = ?", (sequence,)).fetchone()
        episode = json.loads(text)
        blot_out(episode["recall"], names)
        edited = json.dumps(episode, ensure_ascii=False)
        connection.execute("UPDATE episodes SET json = ? WHERE sequence = ?", (edited, sequence))


def erased_at(connection: sqlite3.Connection, scope: str) -> float:
    """When all of a scope, or of a level above it, was erased last; 0: never."""
    return max(float(rows.meta(connection, _SCOPE + storable(level)) or 0) for level in lineage(scope))


def without_erased(connection: sqlite3.Connection, episode: Episode) -> str:
    """An episode as JSON, without what it was shown of memories that were erased since: whoever answered while they
    were would bring them back."""
    content, recall = rows.to_json(episode), episode.recall
    named = {one.memory_id for one in (*recall.shown, *recall.passed_over)} if recall is not None else set()
    if not named:
        return content
    known = connection.execute(f"SELECT id FROM memories WHERE id IN {LIST}", (json_list(named),)).fetchall()
    missing = named - {row["id"] for row in known}
    if not missing:
        return content
    found = connection.execute(
        f"SELECT DISTINCT memory_id FROM audit WHERE action = 'erase' AND memory_id IN {LIST}", (json_list(missing),)
    ).fetchall()
    page = json.loads(content)
    blot_out(page["recall"], {row["memory_id"] for row in found})
    return storable(json.dumps(page, ensure_ascii=False))


def blot_out(recall: dict[str, Any], names: Collection[str]) -> bool:
    """What an episode was shown of these memories, in the JSON of its recall; whether there was anything."""
    touched = False
    for place in ("shown", "passed_over"):
        for recalled in recall.get(place, ()):
            if recalled["memory_id"] in names and recalled["question"] != ERASED:
                recalled["question"] = ERASED
                touched = True
                if place == "shown":
                    # The texts hold all that were shown; they cannot be told apart any more.
                    recall["for_planner"] = recall["for_executor"] = ERASED
    return touched


# ── both ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _remove_memories(connection: sqlite3.Connection, sequences: Collection[int], ids: Collection[str]) -> None:
    tables = connection.execute(
        # The last one is there while the store is embedded anew.
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name IN ('texts', 'memories', 'vectors_next')"
    ).fetchall()
    for (table,) in tables:
        connection.execute(f"DELETE FROM {table} WHERE sequence IN {LIST}", (json_list(sequences),))
    connection.execute(f"DELETE FROM queue WHERE subject IN {LIST}", (json_list(ids),))


def _forget_numbers(connection: sqlite3.Connection, sequences: Collection[int]) -> None:
    """Numbers above all that are left will be given to new memories: the history of the old ones must not be theirs."""
    (highest,) = connection.execute("SELECT coalesce(max(sequence), 0) FROM memories").fetchone()
    free = {sequence for sequence in sequences if sequence > highest}
    if not free:
        return
    touched = connection.execute(
        f"SELECT sequence, memories FROM audit WHERE EXISTS (SELECT 1 FROM json_each(memories) WHERE value IN {LIST})",
        (json_list(free),),
    ).fetchall()
    connection.executemany(
        "UPDATE audit SET memories = ? WHERE sequence = ?",
        [(json.dumps(_without(json.loads(row["memories"]), free)), row["sequence"]) for row in touched],
    )


def _new_epoch(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'")


def _without(values: Iterable[Any], unwanted: Collection[Any]) -> list[Any]:
    return [value for value in values if value not in unwanted]


def _join(one: Erased, other: Erased) -> Erased:
    """Both, each thing once."""
    return Erased(
        **{
            field.name: tuple(dict.fromkeys((*getattr(one, field.name), *getattr(other, field.name))))
            for field in dataclasses.fields(Erased)
        }
    )
