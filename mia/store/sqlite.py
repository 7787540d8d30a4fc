"""The store in one SQLite file: every write is a durable transaction, any number of processes share the file.

WAL with synchronous=FULL: when `transaction` returns, the bytes are on the disk, and a kill at any instant loses
nothing that was acknowledged. The threads of a process write through one connection and share commits (`commits.py`);
processes queue for the write lock (BEGIN IMMEDIATE, then patience), so that "database is locked" stays between SQLite
and us. Another connection reads: a reader never waits for a writer's disk.

A file that is no database, belongs to another program, is damaged, or was made by a newer MIA is refused and left as
it is.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import mia
from mia.errors import RecordError, StoreError
from mia.redaction import Redactor
from mia.store import rows
from mia.store.base import Census, Change, Changes, MemoryVectors, Task, Waiting, Writing, storable
from mia.store.commits import Commits
from mia.store.migrations import MIGRATIONS, backup_name
from mia.store.rows import LIST, MEMORIES, MEMORIES_WITH_VECTORS, json_list
from mia.store.writing import SqliteWriting
from mia.types import Episode, Memory, MemoryKind, MemoryState, load_episode

T = TypeVar("T")

APPLICATION_ID = 0x4D494131
"""Marks the file as ours ("MIA1")."""
BUSY_SECONDS = 5.0
"""How long SQLite itself waits, before we ask again."""
PATIENCE_SECONDS = 60.0
"""How long to wait for other processes before giving up."""

CHECKPOINT_PAGES = 4_000
"""The write-ahead log is folded into the database after so many pages (16 MB): seldom enough not to be felt."""
CACHE_KILOBYTES = 16_000
"""Pages that a connection keeps, so that a write into a large store reads little."""
EXPORT_PAGE = 256
"""Memories that an export reads at a time."""

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
    sqlite3.SQLITE_CORRUPT: ("is damaged", "mia memory check --salvage rescued.jsonl, to save all that can be read"),
    sqlite3.SQLITE_NOTADB: ("is no SQLite database", "name another file with memory.path"),
    sqlite3.SQLITE_TOOBIG: ("cannot hold a text of this size", "shorten it; a gigabyte is the limit"),
    sqlite3.SQLITE_NOMEM: ("cannot be used: memory ran out", "close other programs and run it again"),
}


class SqliteStore:
    """Opens the file, makes it (and its folder) where there is none, and brings its schema up to date.

    `redactor` blacks out what must not be stored in episodes; memories come redacted, since their vectors must agree
    with their texts.
    """

    def __init__(self, path: Path, redactor: Redactor | None = None) -> None:
        self._path = path
        self._redactor = redactor or Redactor()
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
        self._commits: Commits[Writing] = Commits(self._writer, self._open_transaction)

    @property
    def location(self) -> str:
        return str(self._path)

    @property
    def cache(self) -> Path:
        return self._path.with_name(f"{self._path.name}.cache")

    def transaction(self, work: Callable[[Writing], T]) -> T:
        with self._explained():
            return self._commits.run(work)

    # ── searching ─────────────────────────────────────────────────────────────────────────────────────────────────

    def space(self) -> str:
        return self._read(rows.space)

    def changes(self, scope: str, since: int, *, known: int = 0) -> Changes:
        return self._read(lambda connection: rows.changes(connection, scope, since, known))

    def alike(self, scope: str, kind: MemoryKind, question: str) -> Sequence[tuple[Memory, MemoryVectors]]:
        return self._read(lambda connection: rows.alike(connection, scope, kind, question))

    def census(self, scope: str) -> Census:
        def count(connection: sqlite3.Connection) -> Census:
            (rows_of_scope, last) = connection.execute(
                "SELECT count(*), coalesce(max(sequence), 0) FROM memories WHERE scope = ?", (storable(scope),)
            ).fetchone()
            return Census(
                store=rows.meta(connection, "store"),
                space=rows.space(connection),
                epoch=int(rows.meta(connection, "epoch")),
                count=rows_of_scope,
                last=last,
            )

        return self._read(count)

    # ── memories ──────────────────────────────────────────────────────────────────────────────────────────────────

    def memory(self, reference: str) -> Memory:
        found = self._find("memories", "sequence, id", reference)
        sequence = self._one(found, "memory", reference, "mia memory list")["sequence"]
        memory = self.numbered([sequence]).get(sequence)
        # Purged between the two questions.
        return memory if memory is not None else self.memory(reference)

    def memories(self, ids: Collection[str]) -> dict[str, Memory]:
        return {row["id"]: rows.memory(row) for row in self._select(f"{MEMORIES} WHERE id IN {LIST}", json_list(ids))}

    def numbered(self, sequences: Collection[int]) -> dict[int, Memory]:
        found = self._select(f"{MEMORIES} WHERE sequence IN {LIST}", json_list(sequences))
        return {row["sequence"]: rows.memory(row) for row in found}

    def named(self, sequences: Collection[int]) -> dict[int, tuple[str, str]]:
        found = self._select(
            f"SELECT sequence, id, question FROM memories JOIN texts USING (sequence) WHERE sequence IN {LIST}",
            json_list(sequences),
        )
        return {row["sequence"]: (row["id"], row["question"]) for row in found}

    def numbers(self, ids: Collection[str]) -> dict[str, int]:
        found = self._select(f"SELECT id, sequence FROM memories WHERE id IN {LIST}", json_list(ids))
        return {row["id"]: row["sequence"] for row in found}

    def memories_of(self, episode_ids: Collection[str]) -> tuple[Memory, ...]:
        found = self._select(
            f"{MEMORIES} WHERE state = 'active' AND id IN (SELECT value FROM episodes, json_each(episodes.lessons) "
            f"WHERE episodes.id IN {LIST}) ORDER BY sequence",
            json_list(episode_ids),
        )
        return tuple(rows.memory(row) for row in found)

    def list_memories(
        self,
        scope: str | None,
        *,
        limit: int,
        offset: int = 0,
        states: Collection[MemoryState] = (MemoryState.ACTIVE,),
        judgement: str | None = None,
    ) -> tuple[Memory, ...]:
        where, values = _within(scope, states)
        if judgement is not None:
            where, values = f"{where} AND judgement = ?", (*values, judgement)
        found = self._select(
            f"{MEMORIES} WHERE {where} ORDER BY sequence DESC LIMIT ? OFFSET ?", *values, limit, offset
        )
        return tuple(rows.memory(row) for row in found)

    def count_memories(
        self, scope: str | None = None, *, states: Collection[MemoryState] = (MemoryState.ACTIVE,)
    ) -> int:
        where, values = _within(scope, states)
        return int(self._select(f"SELECT count(*) FROM memories WHERE {where}", *values)[0][0])

    def export(self, scope: str | None) -> Iterator[tuple[Memory, MemoryVectors]]:
        where, values = _within(scope, tuple(MemoryState))
        last = 0
        while True:
            # A page at a time, and no statement left open between: an export of hours holds up nobody.
            page = self._select(
                f"{MEMORIES_WITH_VECTORS} WHERE {where} AND sequence > ? ORDER BY sequence LIMIT ?",
                *values,
                last,
                EXPORT_PAGE,
            )
            if not page:
                return
            space = self.space()
            for row in page:
                yield rows.memory(row), rows.memory_vectors(space, row["question_vector"], row["caption_vector"])
            last = page[-1]["sequence"]

    # ── the queue and the audit ───────────────────────────────────────────────────────────────────────────────────

    def queue(self, scope: str | None = None) -> tuple[Waiting, ...]:
        where, values = _below(scope)
        found = self._select(f"SELECT * FROM queue WHERE {where} ORDER BY since, task, subject", *values)
        return tuple(Waiting(**{**dict(row), "task": Task(row["task"])}) for row in found)

    def audit(
        self, *, memory_id: str = "", scope: str | None = None, limit: int, before: int | None = None
    ) -> tuple[Change, ...]:
        where, values = _below(scope)
        if memory_id:
            # A credit concerns several memories at once.
            where = f"{where} AND (memory_id = ? OR EXISTS (SELECT 1 FROM json_each(memories) WHERE value = ?))"
            values = (*values, storable(memory_id), self.numbers([memory_id]).get(memory_id, 0))
        if before is not None:
            where, values = f"{where} AND sequence < ?", (*values, before)
        found = self._select(
            f"SELECT sequence, at, action, memory_id, scope, reason, before, after FROM audit WHERE {where} "
            "ORDER BY sequence DESC LIMIT ?",
            *values,
            limit,
        )
        return tuple(_change(dict(row)) for row in found)

    # ── episodes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def save_episode(self, episode: Episode, *, scope: str = "default") -> None:
        self.transaction(lambda writing: writing.save_episode(episode, scope=scope, absorbed=False))

    def load_episode(self, reference: str) -> Episode:
        if reference == "last":
            found = self._select("SELECT id, json FROM episodes ORDER BY sequence DESC LIMIT 1")
        else:
            found = self._find("episodes", "id, json", reference)
        return load_episode(self._one(found, "episode", reference, "mia run … or mia ask … to make one")["json"])

    def list_episodes(self, *, run: str | None = None, limit: int) -> tuple[Episode, ...]:
        where, values = ("", ()) if run is None else ("WHERE run = ?", (run,))
        found = self._select(f"SELECT json FROM episodes {where} ORDER BY sequence DESC LIMIT ?", *values, limit)
        return tuple(load_episode(row["json"]) for row in found)

    def count_episodes(self) -> int:
        return int(self._select("SELECT count(*) FROM episodes")[0][0])

    def register_copy(self, place: Path) -> None:
        def register(_: Writing) -> None:
            self._writer.execute("INSERT OR IGNORE INTO copies (place) VALUES (?)", (storable(str(place.resolve())),))

        self.transaction(register)

    def close(self) -> None:
        # In the order of a transaction that reads: the other way round, the two would wait for each other for ever.
        with self._commits.writing, self._reading_lock:
            self._reader.close()
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _open_transaction(self) -> Iterator[Writing]:
        with _transaction(self._writer, "BEGIN IMMEDIATE"):
            yield SqliteWriting(self._writer, self._redactor)

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


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions are written out (isolation_level=None); threads are kept apart by the locks of the store.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA cache_size = -{CACHE_KILOBYTES}")
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
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    while _schema_version(connection) < len(MIGRATIONS):
        with _transaction(connection, "BEGIN IMMEDIATE"):
            # Read again under the lock: another process may have migrated meanwhile.
            version = _schema_version(connection)
            if version < len(MIGRATIONS):
                if version:
                    _back_up(path, version)
                _migrate(connection, version)
    # A newer MIA may have got in between.
    _refuse_strangers(connection, path)


def _back_up(path: Path, version: int) -> None:
    """Copy the store as it is beside it. Called while we hold the write lock, so that nobody migrates meanwhile."""
    backup = backup_name(path, version)
    unfinished = backup.with_name(f"{backup.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    source, target = _connect(path), _connect(unfinished)
    try:
        source.backup(target)
    finally:
        source.close()
        target.close()
    os.replace(unfinished, backup)


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


# ── conditions ────────────────────────────────────────────────────────────────────────────────────────────────────


def _below(scope: str | None) -> tuple[str, tuple[object, ...]]:
    """The condition for a scope and all below it, and its values."""
    if scope is None:
        return "TRUE", ()
    scope = storable(scope)
    # "0" follows "/" in the order of letters: everything that begins with "scope/" lies between the two.
    return "(scope = ? OR (scope >= ? AND scope < ?))", (scope, f"{scope}/", f"{scope}0")


def _within(scope: str | None, states: Collection[MemoryState]) -> tuple[str, tuple[object, ...]]:
    where, values = _below(scope)
    return f"{where} AND state IN {LIST}", (*values, json_list(state.value for state in states))


def _change(row: Mapping[str, Any]) -> Change:
    return Change(**{**row, "before": json.loads(row["before"]), "after": json.loads(row["after"])})
