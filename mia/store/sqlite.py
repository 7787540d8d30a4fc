"""The store in one SQLite file: every write is a durable transaction, any number of processes share the file.

WAL with synchronous=FULL: when `transaction` returns, the bytes are on the disk, and a kill at any instant loses
nothing that was acknowledged. Writers queue for the write lock (BEGIN IMMEDIATE, then patience), so that "database is
locked" stays between SQLite and us. There are two connections, one that writes and one that reads, each behind a lock
of its own: a reader never waits for a writer's disk.

A file that is no database, belongs to another program, is damaged, or was made by a newer MIA is refused and left as
it is.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy

import mia
from mia.embeddings.base import Vectors
from mia.errors import RecordError, StoreError
from mia.store.base import Changes, MemoryVectors, VectorRow, Writing, storable
from mia.store.migrations import MIGRATIONS
from mia.types import Episode, Memory, MemoryKind, Outcome, Provenance, Verdict, load_episode

T = TypeVar("T")

APPLICATION_ID = 0x4D494131
"""Marks the file as ours ("MIA1")."""
BUSY_SECONDS = 5.0
"""How long SQLite itself waits, before we ask again."""
PATIENCE_SECONDS = 60.0
"""How long to wait for other processes before giving up."""

_MEMORY_COLUMNS = (
    "id, scope, kind, judgement, category, uses, wins, created_at, updated_at, "
    "question, caption, workflow, plan, incorrect_plan, reviews, provenance"
)
_LIST = "(SELECT value FROM json_each(?))"
"""An SQL list of any length as one value: JSON."""

# What SQLite's result codes mean to a user: the sentence and what to do.
_TROUBLE = {
    sqlite3.SQLITE_BUSY: ("is locked by another process", "end the process that holds it, and run the command again"),
    sqlite3.SQLITE_LOCKED: ("is locked by another process", "end the process that holds it, and run the command again"),
    sqlite3.SQLITE_FULL: (
        "cannot grow: the disk is full",
        "free some space and run it again; nothing was half written",
    ),
    sqlite3.SQLITE_READONLY: ("cannot be written: it is read-only", "make the file and its folder writable"),
    sqlite3.SQLITE_PERM: ("cannot be written: permission denied", "make the file and its folder writable"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "name a file in a folder that can be written, with memory.path"),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written",
        "check the disk: space, quota, connection; nothing was half written",
    ),
    sqlite3.SQLITE_CORRUPT: ("is damaged", "restore it from a copy, or name another file with memory.path"),
    sqlite3.SQLITE_NOTADB: ("is no SQLite database", "name another file with memory.path"),
    sqlite3.SQLITE_TOOBIG: ("cannot hold a text of this size", "shorten it; a gigabyte is the limit"),
    sqlite3.SQLITE_NOMEM: ("cannot be used: memory ran out", "close other programs and run it again"),
}


class SqliteStore:
    """Opens the file, makes it (and its folder) where there is none, and brings its schema up to date."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing_lock = threading.Lock()
        self._reading_lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder '{path.parent}' for the memory: {error.strerror}.") from error
        with self._explained():
            self._writer = _connect(path)
            try:
                _patiently(lambda: _prepare(self._writer, path))
                self._reader = _connect(path)
                self._reader.execute("PRAGMA query_only = ON")
            except BaseException:
                self._writer.close()
                raise

    @property
    def location(self) -> str:
        return str(self._path)

    def transaction(self, work: Callable[[Writing], T]) -> T:
        with self._writing_lock, self._explained(), _transaction(self._writer, "BEGIN IMMEDIATE"):
            return work(_SqliteWriting(self._writer))

    # ── memories ──────────────────────────────────────────────────────────────────────────────────────────────────

    def space(self) -> str:
        return self._read(_space)

    def changes(self, scope: str, since: int) -> Changes:
        return self._read(lambda connection: _changes(connection, scope, since))

    def absorbed(self, episode_ids: Collection[str]) -> frozenset[str]:
        return self._read(lambda connection: _absorbed(connection, episode_ids))

    def memory(self, reference: str) -> Memory:
        found = self._find("memories", _MEMORY_COLUMNS, reference)
        return _memory(self._one(found, "memory", reference, "mia memory list"))

    def memories(self, ids: Collection[str]) -> dict[str, Memory]:
        rows = self._select(f"SELECT {_MEMORY_COLUMNS} FROM memories WHERE id IN {_LIST}", _json_list(ids))
        return {row["id"]: _memory(row) for row in rows}

    def memories_of(self, episode_ids: Collection[str]) -> tuple[Memory, ...]:
        rows = self._select(
            f"SELECT {_MEMORY_COLUMNS} FROM memories WHERE episode_id IN {_LIST} AND replaced_by IS NULL "
            "ORDER BY sequence",
            _json_list(episode_ids),
        )
        return tuple(_memory(row) for row in rows)

    def list_memories(self, scope: str, *, limit: int, offset: int = 0) -> tuple[Memory, ...]:
        rows = self._select(
            f"SELECT {_MEMORY_COLUMNS} FROM memories WHERE scope = ? AND replaced_by IS NULL "
            "ORDER BY sequence DESC LIMIT ? OFFSET ?",
            storable(scope),
            limit,
            offset,
        )
        return tuple(_memory(row) for row in rows)

    def count_memories(self, scope: str | None = None) -> int:
        where, values = ("", ()) if scope is None else ("AND scope = ?", (storable(scope),))
        (row,) = self._select(f"SELECT count(*) FROM memories WHERE replaced_by IS NULL {where}", *values)
        return int(row[0])

    def replaced_by(self, memory_id: str) -> str:
        rows = self._select("SELECT replaced_by FROM memories WHERE id = ?", memory_id)
        return str(rows[0][0] or "") if rows else ""

    # ── episodes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def save_episode(self, episode: Episode) -> None:
        self.transaction(lambda writing: writing.save_episode(episode, absorbed=False))

    def load_episode(self, reference: str) -> Episode:
        if reference == "last":
            found = self._select("SELECT id, json FROM episodes ORDER BY sequence DESC LIMIT 1")
        else:
            found = self._find("episodes", "id, json", reference)
        return load_episode(self._one(found, "episode", reference, "mia run … or mia ask … to make one")["json"])

    def list_episodes(self, *, run: str | None = None, limit: int) -> tuple[Episode, ...]:
        where, values = ("", ()) if run is None else ("WHERE run = ?", (run,))
        rows = self._select(f"SELECT json FROM episodes {where} ORDER BY sequence DESC LIMIT ?", *values, limit)
        return tuple(load_episode(row["json"]) for row in rows)

    def count_episodes(self) -> int:
        return int(self._select("SELECT count(*) FROM episodes")[0][0])

    def close(self) -> None:
        # In the order of a transaction that reads: the other way round, the two would wait for each other for ever.
        with self._writing_lock, self._reading_lock:
            self._reader.close()
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        with self._reading_lock, self._explained():
            return _patiently(lambda: question(self._reader))

    def _select(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        return self._read(lambda connection: connection.execute(statement, values).fetchall())

    def _find(self, table: str, columns: str, reference: str) -> list[sqlite3.Row]:
        """The row of this id, else at most two whose id begins so."""
        reference = storable(reference)
        exact = self._select(f"SELECT {columns} FROM {table} WHERE id = ?", reference)
        if exact or not reference:
            return exact
        end = reference + chr(0x10FFFF)
        return self._select(f"SELECT {columns} FROM {table} WHERE id >= ? AND id < ? LIMIT 2", reference, end)

    def _one(self, found: Sequence[sqlite3.Row], kind: str, reference: str, hint: str) -> sqlite3.Row:
        if not found:
            raise RecordError(f"no {kind} '{reference}' in '{self._path}'.", hint=hint)
        if len(found) > 1:
            raise RecordError(f"several {kind} ids begin with '{reference}'.", wanted="more of the id", hint=hint)
        return found[0]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Troubles of file and disk as StoreError. A wrong statement of ours is a bug, and stays SQLite's own error."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            trouble = _TROUBLE.get(_code(error))
            if trouble is None:
                raise
            sentence, hint = trouble
            raise StoreError(f"the memory '{self._path}' {sentence} ({error}).", hint=hint) from error


class _SqliteWriting:
    """One open transaction on the writing connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._revision = 0

    def space(self) -> str:
        return _space(self._connection)

    def changes(self, scope: str, since: int) -> Changes:
        return _changes(self._connection, scope, since)

    def absorbed(self, episode_ids: Collection[str]) -> frozenset[str]:
        return _absorbed(self._connection, episode_ids)

    def save_episode(self, episode: Episode, *, absorbed: bool) -> None:
        # Not model_dump_json: it refuses text with lone surrogates, which an episode may well hold.
        text = storable(json.dumps(episode.model_dump(mode="json"), ensure_ascii=False))
        self._connection.execute(
            "INSERT INTO episodes (id, question_id, run, created_at, json, absorbed) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET json = excluded.json, absorbed = max(absorbed, excluded.absorbed)",
            (
                storable(episode.id),
                storable(episode.question.id),
                storable(episode.run),
                episode.started_at,
                text,
                absorbed,
            ),
        )

    def insert(self, memory: Memory, vectors: MemoryVectors, *, replaces: str = "") -> None:
        self._claim_space(vectors.space)
        row = memory.model_dump(mode="json", exclude={"version", "reviews", "provenance"})
        row["reviews"] = json.dumps([review.model_dump(mode="json") for review in memory.reviews], ensure_ascii=False)
        row["provenance"] = json.dumps(memory.provenance.model_dump(mode="json"), ensure_ascii=False)
        row["episode_id"] = memory.provenance.episode_id
        row["revision"] = self._next_revision()
        row = {name: storable(value) if isinstance(value, str) else value for name, value in row.items()}
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        inserted = self._connection.execute(f"INSERT INTO memories ({columns}) VALUES ({marks})", tuple(row.values()))
        self._connection.execute(
            "INSERT INTO vectors (sequence, space, question, caption) VALUES (?, ?, ?, ?)",
            (
                inserted.lastrowid,
                vectors.space,
                _blob(vectors.question),
                None if vectors.caption is None else _blob(vectors.caption),
            ),
        )
        if replaces:
            self._connection.execute(
                "UPDATE memories SET replaced_by = ?, updated_at = ?, revision = ? WHERE id = ?",
                (memory.id, memory.created_at, row["revision"], replaces),
            )

    def credit(self, scope: str, group: str, shown: Collection[str], verdict: Verdict) -> int:
        if verdict.outcome is Outcome.UNJUDGED:
            return 0
        scope, group = storable(scope), storable(group)
        # The plus keeps SQLite from walking through the whole scope instead of looking up a handful of ids.
        rows = self._connection.execute(
            f"SELECT id FROM memories WHERE +scope = ? AND id IN {_LIST} ORDER BY sequence", (scope, _json_list(shown))
        )
        ids = _json_list([row["id"] for row in rows])
        earlier = self._connection.execute(
            "SELECT correct, memory_ids FROM credits WHERE scope = ? AND question_group = ?", (scope, group)
        ).fetchone()
        if earlier is None and ids == "[]":
            return 0
        if earlier is None or (bool(earlier["correct"]), earlier["memory_ids"]) != (verdict.correct, ids):
            if earlier is not None:
                self._count(earlier["memory_ids"], uses=-1, wins=-int(earlier["correct"]))
            self._count(ids, uses=1, wins=int(verdict.correct))
            self._connection.execute(
                "INSERT OR REPLACE INTO credits (scope, question_group, correct, judge, memory_ids, credited_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (scope, group, verdict.correct, storable(verdict.judge), ids, time.time()),
            )
        return len(json.loads(ids))

    def _count(self, ids: str, *, uses: int, wins: int) -> None:
        """Add to the counts of the memories whose ids are in this JSON list."""
        self._connection.execute(
            f"UPDATE memories SET uses = uses + ?, wins = wins + ?, updated_at = ?, revision = ? WHERE id IN {_LIST}",
            (uses, wins, time.time(), self._next_revision(), ids),
        )

    def _claim_space(self, space: str) -> None:
        """The first vector names the space of the store; none of another is let in."""
        stored = self.space()
        if stored and stored != space:
            raise StoreError(f"a vector of the space '{space}' came to a memory of the space '{stored}'.")
        self._connection.execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('space', ?)", (space,))

    def _next_revision(self) -> int:
        """One new revision for the whole transaction."""
        if not self._revision:
            self._connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
            self._revision = _revision(self._connection)
        return self._revision


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions are written out (isolation_level=None); threads are kept apart by the locks of the store.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours before anything is written, then set the modes and migrate."""
    _refuse_strangers(connection, path)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"the disk that holds '{path}' does not allow a write-ahead log (journal mode '{mode}').",
            hint="keep the memory on a local disk: memory.path",
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    while _schema_version(connection) < len(MIGRATIONS):
        with _transaction(connection, "BEGIN IMMEDIATE"):
            # Read again under the lock: another process may have migrated meanwhile.
            version = _schema_version(connection)
            if version < len(MIGRATIONS):
                _migrate(connection, version)
    # A newer MIA may have got in between.
    _refuse_strangers(connection, path)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    MIGRATIONS[version](connection)
    connection.execute(f"PRAGMA user_version = {version + 1}")
    if version == 0:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("INSERT INTO meta (name, value) VALUES ('created_by', ?)", (f"mia {mia.__version__}",))


def _refuse_strangers(connection: sqlite3.Connection, path: Path) -> None:
    """Raises StoreError for another program's database and for a newer MIA's."""
    with _transaction(connection, "BEGIN"):
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        version = _schema_version(connection)
    if tables and owner != APPLICATION_ID:
        raise StoreError(
            f"'{path}' is the database of another program.",
            wanted="a memory made by MIA, or a file that does not exist yet",
            hint="name another file with memory.path",
        )
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the memory '{path}' has schema version {version}; this MIA knows versions up to {len(MIGRATIONS)}.",
            hint="install the newer MIA that wrote it",
        )


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    """Commit at the end; undo everything if anything is raised."""
    _patiently(lambda: connection.execute(begin))
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _patiently(action: Callable[[], T]) -> T:
    """Run it, again and again while other processes hold the lock. SQLite's own wait does not cover every case."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)


def _code(error: sqlite3.DatabaseError) -> int:
    """SQLite's primary result code; 0 where the error is not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _schema_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _space(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT value FROM meta WHERE name = 'space'").fetchone()
    return str(row[0]) if row else ""


def _revision(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0])


def _changes(connection: sqlite3.Connection, scope: str, since: int) -> Changes:
    # The revision first: rows committed between the two statements are then handed out twice, never missed.
    revision = _revision(connection)
    if revision == since:
        return Changes(revision, ())
    rows = connection.execute(
        "SELECT memories.id, kind, judgement, category, uses, wins, created_at, replaced_by IS NOT NULL AS replaced, "
        "vectors.question, vectors.caption FROM memories JOIN vectors USING (sequence) "
        "WHERE scope = ? AND revision > ? ORDER BY sequence",
        (storable(scope), since),
    )
    return Changes(revision, tuple(_vector_row(row) for row in rows))


def _absorbed(connection: sqlite3.Connection, episode_ids: Collection[str]) -> frozenset[str]:
    rows = connection.execute(f"SELECT id FROM episodes WHERE absorbed AND id IN {_LIST}", (_json_list(episode_ids),))
    return frozenset(row["id"] for row in rows)


def _memory(row: sqlite3.Row) -> Memory:
    fields = dict(row)
    fields["reviews"] = json.loads(fields["reviews"])
    fields["provenance"] = Provenance.model_validate_json(fields["provenance"])
    return Memory.model_validate(fields)


def _vector_row(row: sqlite3.Row) -> VectorRow:
    return VectorRow(
        id=row["id"],
        kind=MemoryKind(row["kind"]),
        correct=row["judgement"] == "correct",
        category=row["category"],
        uses=row["uses"],
        wins=row["wins"],
        created_at=row["created_at"],
        replaced=bool(row["replaced"]),
        question=_vector(row["question"]),
        caption=None if row["caption"] is None else _vector(row["caption"]),
    )


def _blob(vector: Vectors) -> bytes:
    return vector.astype("<f4").tobytes()


def _vector(blob: bytes) -> Vectors:
    return numpy.frombuffer(blob, dtype="<f4").astype(numpy.float32, copy=False)


def _json_list(values: Collection[str]) -> str:
    """The value for `_LIST`."""
    return json.dumps([storable(value) for value in values])
