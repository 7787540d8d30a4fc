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
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import mia
from mia.embeddings.base import Embedder
from mia.errors import RecordError, StoreError
from mia.redaction import Redactor
from mia.store import audit, checking, erasing, history, reembedding, rows, statistics
from mia.store.base import (
    Census,
    Change,
    Changes,
    Erased,
    KeptEpisode,
    MemoryVectors,
    Rollback,
    Statistics,
    Task,
    Waiting,
    Writing,
    storable,
)
from mia.store.checking import Problem, Repair, Report
from mia.store.commits import Commits
from mia.store.conditions import below, within
from mia.store.migrations import MIGRATIONS, backup_name
from mia.store.reembedding import Reembedding
from mia.store.rows import LIST, MEMORIES, MEMORIES_WITH_VECTORS, json_list
from mia.store.writing import SqliteWriting
from mia.types import Episode, Memory, MemoryKind, MemoryState, load_episode

T = TypeVar("T")

APPLICATION_ID = 0x4D494131
"""Marks the file as ours ("MIA1")."""
OLDEST_SQLITE = (3, 35, 0)
"""The first one that knows RETURNING."""
BUSY_SECONDS = 5.0
"""How long SQLite itself waits, before we ask again."""
PATIENCE_SECONDS = 60.0
"""How long to wait for other processes before giving up."""

CHECKPOINT_PAGES = 4_000
"""The write-ahead log is folded into the database after so many pages (16 MB): seldom enough not to be felt."""
CACHE_KILOBYTES = 16_000
"""Pages that a connection keeps, so that a write into a large store reads little."""
EXPORT_PAGE = 256
KEPT = "json, scope, absorbed, lessons"
"""The columns of a `KeptEpisode`."""
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
    sqlite3.SQLITE_NOTADB: (
        "is no SQLite database",
        "name another file with memory.path; if it was a memory once: mia memory check --salvage rescued.jsonl",
    ),
    sqlite3.SQLITE_TOOBIG: ("cannot hold a text of this size", "shorten it; a gigabyte is the limit"),
    sqlite3.SQLITE_NOMEM: ("cannot be used: memory ran out", "close other programs and run it again"),
}

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SqliteStore:
    """Opens the file, makes it (and its folder) where there is none, and brings its schema up to date.

    `redactor` blacks out what must not be stored in episodes; memories come redacted, since their vectors must agree
    with their texts.
    """

    def __init__(self, path: Path, redactor: Redactor | None = None) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreError(
                f"this Python has SQLite {sqlite3.sqlite_version}.",
                wanted=f"SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer",
                hint="use a newer Python: SQLite comes with it, or with your system",
            )
        self._path = path
        self._redactor = redactor or Redactor()
        self._reading_lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder '{path.parent}' for the memory: {error.strerror}.") from error
        if path.is_dir():
            raise StoreError(
                f"'{path}' is a folder.", wanted="a file for the memory", hint=f"memory.path: {path / 'memory.db'}"
            )
        self._closed = False
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
        return self._read_at_once(lambda connection: rows.changes(connection, scope, since, known))

    def alike(self, scope: str, kind: MemoryKind, question: str) -> Sequence[tuple[Memory, MemoryVectors]]:
        return self._read(lambda connection: rows.alike(connection, scope, kind, question))

    def absorbed(self, episode_ids: Collection[str]) -> frozenset[str]:
        return self._read(lambda connection: rows.absorbed(connection, episode_ids))

    def kept(self, episode_ids: Collection[str]) -> frozenset[str]:
        return self._read(lambda connection: rows.kept(connection, episode_ids))

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

        return self._read_at_once(count)

    def mark(self, revision: int) -> str:
        found = self._select("SELECT at, action, memories, memory_id FROM audit WHERE sequence = ?", revision)
        return " ".join(repr(value) for value in found[0]) if found else ""

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
        where, values = within(scope, states)
        if judgement is not None:
            where, values = f"{where} AND judgement = ?", (*values, judgement)
        # The numbers first, else SQLite sorts whole memories, texts and all; and from the newest down, which ends with
        # the page, where the index would first collect the whole scope.
        found = self._select(
            f"{MEMORIES} WHERE sequence IN (SELECT sequence FROM memories NOT INDEXED WHERE {where} "
            "ORDER BY sequence DESC LIMIT ? OFFSET ?) ORDER BY sequence DESC",
            *values,
            limit,
            offset,
        )
        return tuple(rows.memory(row) for row in found)

    def count_memories(
        self, scope: str | None = None, *, states: Collection[MemoryState] = (MemoryState.ACTIVE,)
    ) -> int:
        where, values = within(scope, states)
        return int(self._select(f"SELECT count(*) FROM memories WHERE {where}", *values)[0][0])

    def export(self, scope: str | None) -> Iterator[tuple[Memory, MemoryVectors]]:
        where, values = within(scope, tuple(MemoryState))
        last = 0

        def read(connection: sqlite3.Connection) -> tuple[str, list[sqlite3.Row]]:
            statement = f"{MEMORIES_WITH_VECTORS} WHERE {where} AND sequence > ? ORDER BY sequence LIMIT ?"
            return rows.space(connection), connection.execute(statement, (*values, last, EXPORT_PAGE)).fetchall()

        while True:
            # A page at a time, and no statement left open between: an export of hours holds up nobody.
            space, page = self._read_at_once(read)
            if not page:
                return
            for row in page:
                yield rows.memory(row), rows.memory_vectors(space, row["question_vector"], row["caption_vector"])
            last = page[-1]["sequence"]

    # ── the queue and the audit ───────────────────────────────────────────────────────────────────────────────────

    def queue(self, scope: str | None = None) -> tuple[Waiting, ...]:
        where, values = below(scope)
        found = self._select(f"SELECT * FROM queue WHERE {where} ORDER BY since, task, subject", *values)
        return tuple(Waiting(**{**dict(row), "task": Task(row["task"])}) for row in found)

    def audit(
        self, *, memory_id: str = "", scope: str | None = None, limit: int, before: int | None = None
    ) -> tuple[Change, ...]:
        where, values = below(scope)
        if memory_id:
            # A credit concerns several memories at once.
            where = f"{where} AND (memory_id = ? OR EXISTS (SELECT 1 FROM json_each(memories) WHERE value = ?))"
            values = (*values, storable(memory_id), self.numbers([memory_id]).get(memory_id, 0))
        if before is not None:
            where, values = f"{where} AND sequence < ?", (*values, before)
        found = self._select(
            f"SELECT {audit.COLUMNS} FROM audit WHERE {where} ORDER BY sequence DESC LIMIT ?",
            *values,
            limit,
        )
        return tuple(audit.change(row) for row in found)

    def statistics(self, scope: str | None = None) -> Statistics:
        return self._read_at_once(
            lambda connection: statistics.statistics(connection, scope, path=self._path, cache=self.cache)
        )

    # ── going back, and removing for good ─────────────────────────────────────────────────────────────────────────

    def rollback(self, to: float | int, *, scope: str | None = None) -> Rollback:
        return self.transaction(lambda _: history.rollback(self._writer, to, scope))

    def purge(
        self,
        *,
        scope: str | None = None,
        before: float | None = None,
        ids: Collection[str] | None = None,
        dry_run: bool = False,
    ) -> Erased:
        if dry_run:
            found = self._read_at_once(
                lambda connection: erasing.purgeable(connection, scope=scope, before=before, ids=ids, now=time.time())
            )
            return Erased(memories=tuple(row["id"] for row in found))
        return self.transaction(lambda _: erasing.purge(self._writer, scope=scope, before=before, ids=ids))

    def erase(
        self,
        *,
        scope: str | None = None,
        memory_ids: Collection[str] = (),
        episode_ids: Collection[str] = (),
        question_ids: Collection[str] = (),
    ) -> Erased:
        selection = erasing.Selection(scope, memory_ids, episode_ids, question_ids)
        if self._closed:
            raise self._is_closed()
        with self._explained():
            # Neither the writer nor the reader: only here what is deleted is overwritten at once, and VACUUM wants to
            # be alone on its connection.
            connection = _connect(self._path)
            try:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA secure_delete = ON")
                if not selection and not erasing.is_pending(connection):
                    return Erased()
                with _transaction(connection, "BEGIN IMMEDIATE"):
                    erased = erasing.erase_rows(connection, selection, erasing.backups(self._path), self._redactor)
                self._take_off_the_disk(connection, erased)
            finally:
                connection.close()
        return erased

    def erased_at(self, scope: str) -> float:
        return self._read(lambda connection: erasing.erased_at(connection, scope))

    def _take_off_the_disk(self, connection: sqlite3.Connection, erased: Erased) -> None:
        """Whatever deleted rows leave behind in files."""
        try:
            erasing.remove_files(self.cache, erased.backups)
            _patiently(lambda: connection.execute("VACUUM"))
            _empty_log(connection)
            with _transaction(connection, "BEGIN IMMEDIATE"):
                erasing.cross_out(connection)
            # The note itself holds ids only: it may stay in the log where somebody is reading.
            connection.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchone()
        except (OSError, sqlite3.DatabaseError) as error:
            raise StoreError(
                f"the rows are erased from '{self._path}', but traces of them are still in its files ({error}).",
                wanted="no other process at work on the memory, and room on the disk for a copy of it",
                hint="run the same command again: it finishes what is left",
            ) from error

    def check(self) -> Report:
        """Whether all of it is sound: see `checking`. Changes nothing."""
        try:
            return self._read_at_once(lambda connection: checking.examine(connection, self.location))
        except StoreError as error:
            # On a damaged file, even to end the reading may fail.
            if not isinstance(error.__cause__, sqlite3.DatabaseError) or _code(error.__cause__) not in _DAMAGED:
                raise
            return checking.unreadable(self.location, str(error.__cause__))

    def repair(self) -> Repair:
        """Mend what can be mended without losing anything, after a copy of the store was laid beside it."""
        found = [problem for problem in self.check().problems if problem.repairable]
        if not found:
            return Repair((), self.check(), None)
        backup = self._path.with_name(f"{self._path.name}.{time.strftime('%Y%m%d-%H%M%S')}-repair-backup")

        def mend(_: Writing) -> tuple[Problem, ...]:
            # As it is now, under the lock: another process may have changed it meanwhile.
            report = checking.examine(self._writer, self.location)
            problems = tuple(dict.fromkeys(problem for problem in report.problems if problem.repairable))
            _copy(self._path, backup)
            checking.mend(self._writer, problems)
            return problems

        return Repair(self.transaction(mend), self.check(), backup)

    def reembed(self, embedder: Embedder, on_progress: Callable[[Reembedding], None]) -> Reembedding:
        """Change the embedder of the store, while it is in use: see `reembedding`. Called again after it was cut short,
        it goes on; with yet another embedder, it begins anew."""

        def write(work: Callable[[sqlite3.Connection], T]) -> T:
            return self.transaction(lambda _: work(self._writer))

        return reembedding.reembed(self._read, write, embedder, on_progress)

    # ── episodes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def save_episode(self, episode: Episode, *, scope: str = "default") -> None:
        self.transaction(lambda writing: writing.save_episode(episode, scope=scope, absorbed=False))

    def load_episode(self, reference: str, *, scope: str | None = None) -> Episode:
        if reference == "last":
            where, values = below(scope)
            # The number first: with the whole rows, SQLite would sort all episodes of the scope.
            found = self._select(
                f"SELECT id, json FROM episodes WHERE sequence = (SELECT max(sequence) FROM episodes WHERE {where})",
                *values,
            )
        else:
            found = self._find("episodes", "id, json", reference, scope)
        return load_episode(self._one(found, "episode", reference, "mia run … or mia ask … to make one")["json"])

    def episodes(self, ids: Collection[str]) -> dict[str, Episode]:
        found = self._select(f"SELECT id, json FROM episodes WHERE id IN {LIST}", json_list(ids))
        return {row["id"]: load_episode(row["json"]) for row in found}

    def kept_episode(self, id: str) -> KeptEpisode | None:
        found = self._select(f"SELECT {KEPT} FROM episodes WHERE id = ?", storable(id))
        return _kept(found[0]) if found else None

    def list_episodes(
        self, *, run: str | None = None, scope: str | None = None, before: str = "", limit: int
    ) -> tuple[Episode, ...]:
        where, values = below(scope)
        if run is not None:
            where, values = f"{where} AND run = ?", (*values, run)
        if before:
            earlier = "sequence < (SELECT sequence FROM episodes WHERE id = ?)"
            where, values = f"{where} AND {earlier}", (*values, storable(before))
        found = self._select(f"SELECT json FROM episodes WHERE {where} ORDER BY sequence DESC LIMIT ?", *values, limit)
        return tuple(load_episode(row["json"]) for row in found)

    def count_episodes(self, scope: str | None = None) -> int:
        where, values = below(scope)
        return int(self._select(f"SELECT count(*) FROM episodes WHERE {where}", *values)[0][0])

    def export_episodes(self, scope: str | None) -> Iterator[KeptEpisode]:
        where, values = below(scope)
        last = 0
        while True:
            page = self._select(
                f"SELECT sequence, {KEPT} FROM episodes WHERE {where} AND sequence > ? ORDER BY sequence LIMIT ?",
                *values,
                last,
                EXPORT_PAGE,
            )
            yield from map(_kept, page)
            if not page:
                return
            last = page[-1]["sequence"]

    def register_copy(self, place: Path) -> None:
        def register(_: Writing) -> None:
            self._writer.execute("INSERT OR IGNORE INTO copies (place) VALUES (?)", (storable(str(place.resolve())),))

        self.transaction(register)

    def close(self) -> None:
        # In the order of a transaction that reads: the other way round, the two would wait for each other for ever.
        with self._commits.writing, self._reading_lock:
            self._closed = True
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

    def _read_at_once(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Where the answer takes several statements, all see the store at one moment."""

        def ask(connection: sqlite3.Connection) -> T:
            with _transaction(connection, "BEGIN"):
                return question(connection)

        return self._read(ask)

    def _select(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        return self._read(lambda connection: connection.execute(statement, values).fetchall())

    def _find(self, table: str, columns: str, reference: str, scope: str | None = None) -> list[sqlite3.Row]:
        """The row of this id, else at most two of a scope and all below it (None: of all) whose id begins so."""
        reference = storable(reference)
        exact = self._select(f"SELECT {columns} FROM {table} WHERE id = ?", reference)
        if exact or not reference:
            return exact
        end = reference + chr(0x10FFFF)
        where, values = below(scope)
        return self._select(
            f"SELECT {columns} FROM {table} WHERE id >= ? AND id < ? AND {where} LIMIT 2", reference, end, *values
        )

    def _one(self, found: Sequence[sqlite3.Row], kind: str, reference: str, hint: str) -> sqlite3.Row:
        if not found:
            raise RecordError(f"no {kind} '{reference}' in '{self._path}'.", hint=hint)
        if len(found) > 1:
            raise RecordError(f"several {kind} ids begin with '{reference}'.", wanted="more of the id", hint=hint)
        return found[0]

    def _is_closed(self) -> StoreError:
        return StoreError(f"the memory '{self._path}' is closed.", hint="open it again: open_store(path)")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Troubles of file and disk as StoreError. A wrong statement of ours is a bug, and stays SQLite's own error."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if self._closed and isinstance(error, sqlite3.ProgrammingError):
                raise self._is_closed() from error
            trouble = _TROUBLE.get(_code(error))
            if trouble is None:
                raise
            sentence, hint = trouble
            raise StoreError(f"the memory '{self._path}' {sentence} ({error}).", hint=hint) from error


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _kept(row: sqlite3.Row) -> KeptEpisode:
    return KeptEpisode(
        load_episode(row["json"]), row["scope"], bool(row["absorbed"]), tuple(json.loads(row["lessons"]))
    )


def _connect(path: Path) -> sqlite3.Connection:
    if not path.exists():
        # What is kept is nobody else's on this machine. What cannot be made, SQLite explains.
        with suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
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
                if version and _holds_anything(connection):
                    _copy(path, backup_name(path, version))
                _migrate(connection, version)
    # A newer MIA may have got in between.
    _refuse_strangers(connection, path)


def _holds_anything(connection: sqlite3.Connection) -> bool:
    statement = "SELECT EXISTS (SELECT 1 FROM memories) OR EXISTS (SELECT 1 FROM episodes)"
    return bool(connection.execute(statement).fetchone()[0])


def _copy(path: Path, backup: Path) -> None:
    """Copy the store as it is committed. Called while we hold the write lock, so that nobody changes it meanwhile."""
    unfinished = backup.with_name(f"{backup.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    source, target = _connect(path), _connect(unfinished)
    try:
        source.backup(target)
    except BaseException:
        # On a full disk it would be in the way of those who make room.
        target.close()
        unfinished.unlink(missing_ok=True)
        raise
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
    if (tables or version or owner) and owner != APPLICATION_ID:
        raise StoreError(
            f"'{path}' is the database of another program.",
            wanted="a memory made by MIA, or a file that does not exist yet",
            hint="name another file with memory.path",
        )
    if version and not tables:
        raise StoreError(
            f"the memory '{path}' has schema version {version} and no tables: somebody emptied it.",
            hint="put a copy of it back, or name another file with memory.path",
        )
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the memory '{path}' has schema version {version}; this MIA knows versions up to {len(MIGRATIONS)}.",
            hint="install the newer MIA that wrote it",
        )


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    """Commit at the end; undo everything if anything is raised."""
    if connection.in_transaction:
        # Ctrl-C fell between two instructions of an earlier one.
        connection.execute("ROLLBACK")
    try:
        _patiently(lambda: connection.execute(begin))
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _empty_log(connection: sqlite3.Connection) -> None:
    """Fold the write-ahead log into the database and cut it to nothing. Raises sqlite3.OperationalError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        (busy, _, _) = _patiently(lambda: connection.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchone())
        if not busy:
            return
        if time.monotonic() >= deadline:
            raise sqlite3.OperationalError("another process reads an older state, which keeps the write-ahead log")
        time.sleep(0.05)


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
