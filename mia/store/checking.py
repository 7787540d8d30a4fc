"""Is the store sound, from the file up to the counts; and what of it can be mended without losing anything.

A problem is data: what it is of, what is wrong, and whether `repair` can mend it. That is so where the right value can
be told from what else is in the store: hashes and flags from the texts, counts from the audit, an index from its table.
Each repair is in the audit, and a copy of the store as it was lies beside it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from pydantic import ValidationError

from mia.errors import RecordError
from mia.store import audit, erasing, rows
from mia.store.base import MemoryVectors, Task, fingerprint
from mia.store.rows import MEMORIES_WITH_VECTORS
from mia.types import MemoryState, load_episode

_UNIT_TOLERANCE = 1e-3
"""How far a vector's length may be from 1."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    kind: str
    """file, index, texts, record, vectors, fingerprint, caption, counts, credits, replaced_by, episode, lessons, queue,
    audit, erasure."""
    subject: str
    """An id or a path; of the queue, a task and an id."""
    sentence: str
    repairable: bool = False


@dataclass(frozen=True)
class Report:
    """What was looked at, and what is wrong with it."""

    problems: tuple[Problem, ...]
    memories: int = 0
    episodes: int = 0
    changes: int = 0

    @property
    def sound(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Repair:
    repaired: tuple[Problem, ...]
    left: Report
    """The store as it is now."""
    backup: Path | None
    """The copy of the store as it was; None if nothing had to be done."""


def examine(connection: sqlite3.Connection, location: str) -> Report:
    """Everything, in one open transaction."""
    problems = list(_file(connection, location))
    counts: dict[str, int] = {}
    if not any(problem.kind == "file" for problem in problems):
        try:
            for look in (_memories, _counts, _references, _episodes, _queue, _changes, _erasure):
                problems += look(connection)
            for table in ("memories", "episodes", "audit"):
                counts[table] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        except sqlite3.DatabaseError as error:
            problems.append(_unreadable(location, str(error)))
    return Report(tuple(problems), counts.get("memories", 0), counts.get("episodes", 0), counts.get("audit", 0))


def unreadable(location: str, sentence: str) -> Report:
    """Of a store that cannot be asked any more."""
    return Report((_unreadable(location, sentence),))


def mend(connection: sqlite3.Connection, problems: Iterable[Problem]) -> None:
    """Mend repairable problems within the open transaction, and write each into the audit."""
    standings: Mapping[str, tuple[int, int]] | None = None
    for kind, subject in dict.fromkeys((problem.kind, problem.subject) for problem in problems):
        if kind != "counts":
            _MENDS[kind](connection, subject)
            continue
        if standings is None:
            # Once for all of them: it takes the whole audit, and no repair changes what it says of counts.
            standings = _standings(connection)
        uses, wins = standings[subject]
        _set(connection, subject, {"uses": uses, "wins": wins}, "counts")


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _file(connection: sqlite3.Connection, location: str) -> Iterator[Problem]:
    try:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check (100)")]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    for sentence in found:
        if sentence == "ok":
            continue
        if "index" in sentence and ("missing from" in sentence or "wrong # of entries" in sentence):
            yield Problem("index", location, f"SQLite finds: {sentence}.", repairable=True)
        else:
            yield _unreadable(location, sentence)


def _unreadable(location: str, sentence: str) -> Problem:
    return Problem("file", location, f"the file is damaged ({sentence}); mia memory check --salvage saves the rest.")


def _memories(connection: sqlite3.Connection) -> Iterator[Problem]:
    for (id,) in connection.execute("SELECT id FROM memories WHERE sequence NOT IN (SELECT sequence FROM texts)"):
        yield Problem("texts", id, "its texts and vectors are not there.")
    orphans = "SELECT sequence FROM texts WHERE sequence NOT IN (SELECT sequence FROM memories)"
    for (sequence,) in connection.execute(orphans):
        yield Problem("texts", f"row {sequence}", "texts that belong to no memory.")
    widths = connection.execute(
        "SELECT length(question_vector) FROM texts GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
    ).fetchone()
    extra = MEMORIES_WITH_VECTORS.replace(" FROM ", ", fingerprint, captioned, episode_id FROM ", 1)
    for row in connection.execute(extra):
        id = row["id"]
        try:
            memory = rows.memory(row)
        except (ValidationError, ValueError) as error:
            yield Problem("record", id, f"it does not load as a memory: {_first_line(error)}.")
            continue
        trouble = _vector_trouble(row, widths[0])
        if trouble:
            yield Problem("vectors", id, f"{trouble}; mia memory reembed makes new vectors.")
        if row["fingerprint"] != fingerprint(memory.question):
            yield Problem("fingerprint", id, "its hash is not that of its question.", repairable=True)
        if bool(row["captioned"]) != bool(memory.caption):
            yield Problem("caption", id, "its flag contradicts its caption.", repairable=True)
        if row["episode_id"] != memory.provenance.episode_id:
            yield Problem("record", id, "it names two episodes as its own.")


def _vector_trouble(row: sqlite3.Row, width: int) -> str:
    """What is wrong with the vectors of a memory; empty if nothing is."""
    if (row["caption_vector"] is None) != (not row["caption"]):
        return "a caption without a vector, or a vector without a caption"
    for name in ("question_vector", "caption_vector"):
        content = row[name]
        if content is None:
            continue
        if len(content) != width or width % 4:
            return f"a vector of {len(content)} bytes among those of {width}"
        found: MemoryVectors = rows.memory_vectors("", content, None)
        length = float(numpy.linalg.norm(found.question.astype(numpy.float64)))
        if not numpy.isfinite(length):
            return "a vector with numbers that are not finite"
        if length and abs(length - 1) > _UNIT_TOLERANCE:
            return f"a vector of length {length:.4g}, not 1"
    return ""


def _standings(connection: sqlite3.Connection) -> Mapping[str, tuple[int, int]]:
    """The counts that each memory has by the audit, by its id."""
    standings: dict[str, tuple[int, int]] = {}
    found = connection.execute(
        "SELECT memory_id, after FROM audit WHERE json_valid(after) AND "
        "(action = 'add' OR (memory_id = '' AND action IN ('credit', 'roll back'))) ORDER BY sequence"
    )
    for id, text in found:
        after = json.loads(text)
        if id and "uses" in after:
            standings[id] = (after["uses"], after["wins"])
        for credited, (uses, wins) in after.get("counts", {}).items():
            standings[credited] = (uses, wins)
    return standings


def _counts(connection: sqlite3.Connection) -> Iterator[Problem]:
    standings = _standings(connection)
    added = {row[0] for row in connection.execute("SELECT memory_id FROM audit WHERE action = 'add'")}
    for id, uses, wins in connection.execute("SELECT id, uses, wins FROM memories ORDER BY sequence"):
        by_audit = standings.get(id)
        if by_audit is None or id not in added:
            yield Problem("audit", id, "nothing in the audit says how it came.")
        elif by_audit != (uses, wins):
            sentence = f"it has uses {uses} and wins {wins}; by the audit {by_audit[0]} and {by_audit[1]}."
            yield Problem("counts", id, sentence, repairable=True)


def _known(connection: sqlite3.Connection) -> set[str]:
    """The ids of memories that are there, or were and are purged."""
    found = connection.execute(
        "SELECT id FROM memories UNION SELECT memory_id FROM audit WHERE action IN ('purge', 'erase')"
    )
    return {row[0] for row in found}


def _references(connection: sqlite3.Connection) -> Iterator[Problem]:
    known = _known(connection)
    for scope, group, text in connection.execute("SELECT scope, question_group, memory_ids FROM credits"):
        try:
            unknown = sorted({*json.loads(text)} - known)
        except (ValueError, TypeError):
            yield Problem("credits", f"{scope} {group}", "its list of memories cannot be read.")
            continue
        if unknown:
            yield Problem("credits", f"{scope} {group}", f"it names memories that never were: {', '.join(unknown)}.")
    successors = dict(
        tuple(row) for row in connection.execute("SELECT id, replaced_by FROM memories WHERE state = 'replaced'")
    )
    for id, successor in successors.items():
        seen = {id}
        while successor in successors and successor not in seen:
            seen.add(successor)
            successor = successors[successor]
        if successor in seen:
            yield Problem("replaced_by", id, "what took its place leads back to it.")
        elif successor not in known:
            yield Problem("replaced_by", id, f"'{successor}', which took its place, never was.")
    for (id,) in connection.execute("SELECT id FROM memories WHERE state <> 'replaced' AND replaced_by <> ''"):
        yield Problem("replaced_by", id, f"something took its place, and it is not {MemoryState.REPLACED.value}.")


def _episodes(connection: sqlite3.Connection) -> Iterator[Problem]:
    known = _known(connection)
    for id, text, lessons in connection.execute("SELECT id, json, lessons FROM episodes"):
        try:
            if load_episode(text).id != id:
                yield Problem("episode", id, "it goes by another id inside.")
            unknown = sorted({*json.loads(lessons)} - known)
        except (RecordError, ValueError, TypeError) as error:
            yield Problem("episode", id, f"it does not load: {_first_line(error)}")
            continue
        if unknown:
            yield Problem("lessons", id, f"memories that it gave rise to never were: {', '.join(unknown)}.")


def _queue(connection: sqlite3.Connection) -> Iterator[Problem]:
    tasks = ", ".join(f"'{task.value}'" for task in Task)
    dangling = connection.execute(
        f"SELECT task, subject FROM queue WHERE task NOT IN ({tasks}) OR CASE task "
        f"WHEN '{Task.REMEMBER.value}' THEN subject NOT IN (SELECT id FROM episodes) "
        "ELSE subject NOT IN (SELECT id FROM memories) END"
    )
    for task, subject in dangling:
        yield Problem("queue", f"{task} {subject}", "it waits for a model, and is not there.", repairable=True)


def _changes(connection: sqlite3.Connection) -> Iterator[Problem]:
    torn = connection.execute(
        "SELECT sequence FROM audit WHERE NOT (json_valid(before) AND json_valid(after) AND json_valid(memories))"
    )
    for (sequence,) in torn:
        yield Problem("audit", f"change {sequence}", "what it says was before or after cannot be read.")


def _erasure(connection: sqlite3.Connection) -> Iterator[Problem]:
    if erasing.is_pending(connection):
        sentence = "an erasure was cut short: traces may be on the disk; `mia memory check --repair` finishes it."
        yield Problem("erasure", "", sentence)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


# ── mending ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _set(connection: sqlite3.Connection, id: str, fields: Mapping[str, Any], reason: str) -> None:
    row = connection.execute(
        f"SELECT sequence, scope, {', '.join(fields)} FROM memories WHERE id = ?", (id,)
    ).fetchone()
    assignments = ", ".join(f"{name} = ?" for name in fields)
    connection.execute(f"UPDATE memories SET {assignments} WHERE id = ?", (*fields.values(), id))
    audit.append(
        connection,
        "repair",
        at=time.time(),
        scope=row["scope"],
        memory_id=id,
        memories=[row["sequence"]],
        reason=reason,
        before={name: row[name] for name in fields},
        after=fields,
    )


def _text(connection: sqlite3.Connection, column: str, id: str) -> str:
    statement = f"SELECT {column} FROM texts JOIN memories USING (sequence) WHERE id = ?"
    return str(connection.execute(statement, (id,)).fetchone()[0])


def _mend_fingerprint(connection: sqlite3.Connection, id: str) -> None:
    _set(connection, id, {"fingerprint": fingerprint(_text(connection, "question", id))}, "fingerprint")


def _mend_caption(connection: sqlite3.Connection, id: str) -> None:
    _set(connection, id, {"captioned": int(bool(_text(connection, "caption", id)))}, "caption")


def _mend_queue(connection: sqlite3.Connection, subject: str) -> None:
    task, _, id = subject.partition(" ")
    row = connection.execute("SELECT * FROM queue WHERE task = ? AND subject = ?", (task, id)).fetchone()
    connection.execute("DELETE FROM queue WHERE task = ? AND subject = ?", (task, id))
    # Not what went wrong: it may quote a question, and no erasure would find it in here.
    before = {name: row[name] for name in row.keys() if name != "error"}  # noqa: SIM118 - a Row iterates its values
    audit.append(connection, "repair", at=time.time(), scope=row["scope"], reason="queue", before=before)


def _mend_index(connection: sqlite3.Connection, location: str) -> None:
    connection.execute("REINDEX")
    audit.append(connection, "repair", at=time.time(), scope="", reason="index")


_MENDS: Mapping[str, Callable[[sqlite3.Connection, str], None]] = {
    "fingerprint": _mend_fingerprint,
    "caption": _mend_caption,
    "queue": _mend_queue,
    "index": _mend_index,
}
