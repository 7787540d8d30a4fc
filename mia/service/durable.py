"""What a server must not lose: answers that were given and are not yet absorbed, memories that were accepted and are
not yet stored, and jobs.

One SQLite file in `home`. When a method that writes returns, what it wrote is on the disk. One server uses it at a
time; the memory itself may be shared by many.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from mia.errors import RecordError, StoreError
from mia.store.commits import Commits
from mia.types import Episode, Task, load_episode, new_id

T = TypeVar("T")

_VERSION = 1
_SCHEMA = """
CREATE TABLE pending (
    sequence INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('absorb', 'add')),
    id TEXT NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    json TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    retry_at REAL NOT NULL DEFAULT 0
);
CREATE TABLE jobs (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at REAL NOT NULL,
    finished_at REAL
);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE TABLE items (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    task TEXT NOT NULL,
    state TEXT NOT NULL,
    episode_id TEXT NOT NULL DEFAULT '',
    outcome TEXT NOT NULL DEFAULT '',
    answer TEXT,
    error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
"""


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


class ItemState(StrEnum):
    QUEUED = "queued"
    ANSWERED = "answered"
    FAILED = "failed"
    """It could not be answered; `error` says why."""
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Pending:
    """Something accepted that the memory does not hold yet."""

    kind: str
    """absorb (an episode) or add (what a user knows)."""
    id: str
    scope: str
    content: Mapping[str, Any]
    attempts: int
    error: str
    """What went wrong last time."""
    retry_at: float

    @property
    def episode(self) -> Episode:
        """Of "absorb"."""
        return load_episode(json.dumps(self.content))


@dataclass(frozen=True)
class Item:
    """One question of a job."""

    number: int
    question_id: str
    question: str
    state: ItemState
    episode_id: str
    outcome: str
    answer: str | None
    error: str


@dataclass(frozen=True)
class Job:
    """A batch of questions."""

    id: str
    scope: str
    state: JobState
    created_at: float
    finished_at: float | None
    counts: Mapping[str, int]
    """Items by state."""
    correct: int
    judged: int

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class Durable:
    """Opens the file, and holds it alone until `close`."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError where it cannot be used, or another server holds it."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"cannot open '{path}': {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise StoreError(
                f"another server works in '{path.parent}'{f' (process {holder})' if holder else ''}.",
                wanted="a home of its own for each server; they may share one memory",
                hint=f'mia --home ELSEWHERE serve --port … with memory.path = "{path.parent / "memory.db"}"',
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        self._reading = threading.Lock()
        try:
            with self._explained():
                self._writer = _connect(path)
                _prepare(self._writer, path)
                self._reader = _connect(path)
                self._reader.execute("PRAGMA query_only = ON")
        except BaseException:
            os.close(self._lock)
            raise
        self._commits: Commits[sqlite3.Connection] = Commits(self._writer, self._transaction)

    # ── what is pending ───────────────────────────────────────────────────────────────────────────────────────────

    def accept(self, episode: Episode, scope: str) -> None:
        """Keep an answered episode until it is absorbed; idempotent by its id."""
        self._write(lambda connection: _put(connection, "absorb", episode.id, scope, episode.model_dump_json()))

    def accept_memory(self, content: Mapping[str, Any], scope: str) -> str:
        """Keep what a user knows until it is stored; returns a receipt."""
        id = new_id("rcp")
        self._write(lambda connection: _put(connection, "add", id, scope, json.dumps(content)))
        return id

    def pending(
        self, *, due_at: float | None = None, limit: int = 100, scope: str | None = None
    ) -> tuple[Pending, ...]:
        """The oldest first; `due_at`: only what may be tried at that time; `scope`: of exactly this one."""
        where: list[str] = ["TRUE"]
        values: list[Any] = []
        if due_at is not None:
            where, values = [*where, "retry_at <= ?"], [*values, due_at]
        if scope is not None:
            where, values = [*where, "scope = ?"], [*values, scope]
        found = self._select(
            f"SELECT * FROM pending WHERE {' AND '.join(where)} ORDER BY sequence LIMIT ?", *values, limit
        )
        return tuple(
            Pending(
                row["kind"],
                row["id"],
                row["scope"],
                json.loads(row["json"]),
                row["attempts"],
                row["error"],
                row["retry_at"],
            )
            for row in found
        )

    def pending_count(self) -> int:
        return int(self._select("SELECT count(*) FROM pending")[0][0])

    def pending_episode(self, id: str) -> tuple[Episode, str] | None:
        """An episode that waits, and its scope."""
        found = self._select("SELECT json, scope FROM pending WHERE kind = 'absorb' AND id = ?", id)
        return (load_episode(found[0]["json"]), found[0]["scope"]) if found else None

    def absorbed(self, ids: Sequence[str]) -> None:
        """The memory holds them now."""
        self._write(
            lambda connection: connection.executemany("DELETE FROM pending WHERE id = ?", [(id,) for id in ids])
        )

    def put_off(self, id: str, error: str, seconds: float) -> None:
        """It could not be absorbed; it is tried again after so long."""
        self._write(
            lambda connection: connection.execute(
                "UPDATE pending SET attempts = attempts + 1, error = ?, retry_at = ? WHERE id = ?",
                (error, time.time() + seconds, id),
            )
        )

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, tasks: Sequence[Task], scope: str) -> Job:
        """Keep a batch; it is begun when its turn comes."""
        id = new_id("job")

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO jobs (id, scope, state, created_at) VALUES (?, ?, ?, ?)",
                (id, scope, JobState.QUEUED, time.time()),
            )
            connection.executemany(
                "INSERT INTO items (job, number, task, state) VALUES (?, ?, ?, ?)",
                [(id, number, task.model_dump_json(), ItemState.QUEUED) for number, task in enumerate(tasks)],
            )

        self._write(insert)
        return self.job(id)

    def job(self, id: str) -> Job:
        """Raises RecordError where there is none."""
        found = self._select(f"{_JOBS} WHERE id = ?", id)
        if not found:
            raise RecordError(f"no job '{id}'.", hint="GET /v1/jobs lists them")
        return self._jobs(found)[0]

    def jobs(self, *, scope: str | None = None, limit: int = 50, unfinished: bool = False) -> tuple[Job, ...]:
        """The newest first, of a scope and all below it (None: of all)."""
        where: list[str] = ["TRUE"]
        values: list[Any] = []
        if scope is not None:
            where, values = (
                [*where, "(scope = ? OR scope LIKE ? ESCAPE '\\')"],
                [*values, scope, f"{_escaped(scope)}/%"],
            )
        if unfinished:
            where = [*where, "state IN ('queued', 'running')"]
        return self._jobs(
            self._select(f"{_JOBS} WHERE {' AND '.join(where)} ORDER BY sequence DESC LIMIT ?", *values, limit)
        )

    def items(self, job: str, *, limit: int = 1000, offset: int = 0) -> tuple[Item, ...]:
        """The questions of a job in their order, with what came of them."""
        found = self._select("SELECT * FROM items WHERE job = ? ORDER BY number LIMIT ? OFFSET ?", job, limit, offset)
        items = []
        for row in found:
            question = json.loads(row["task"])["question"]
            items.append(
                Item(
                    row["number"],
                    question["id"],
                    question["text"],
                    ItemState(row["state"]),
                    row["episode_id"],
                    row["outcome"],
                    row["answer"],
                    row["error"],
                )
            )
        return tuple(items)

    def open_items(self, job: str) -> tuple[tuple[int, Task], ...]:
        """What is still to be answered."""
        found = self._select("SELECT number, task FROM items WHERE job = ? AND state = 'queued' ORDER BY number", job)
        return tuple((row["number"], Task.model_validate_json(row["task"])) for row in found)

    def begin_job(self, id: str) -> None:
        self._write(
            lambda connection: connection.execute(
                "UPDATE jobs SET state = 'running' WHERE id = ? AND state = 'queued'", (id,)
            )
        )

    def finish_item(
        self, job: str, number: int, episode: Episode | None, error: str = "", *, accept_for: str = ""
    ) -> None:
        """What came of a question; in the same commit its episode is accepted for a scope, if one is named. References
        are let go of."""
        state = ItemState.ANSWERED if episode is not None and episode.answer is not None else ItemState.FAILED
        answer = episode.answer.text if episode is not None and episode.answer is not None else None
        outcome = episode.verdict.outcome.value if episode is not None and episode.verdict is not None else ""

        def finish(connection: sqlite3.Connection) -> None:
            row = connection.execute(
                "SELECT task, state FROM items WHERE job = ? AND number = ?", (job, number)
            ).fetchone()
            if row is None or row["state"] != ItemState.QUEUED:
                return
            task = Task.model_validate_json(row["task"]).evolve(references=())
            connection.execute(
                "UPDATE items SET state = ?, task = ?, episode_id = ?, outcome = ?, answer = ?, error = ? "
                "WHERE job = ? AND number = ?",
                (state, task.model_dump_json(), episode.id if episode else "", outcome, answer, error, job, number),
            )
            if episode is not None and accept_for:
                _put(connection, "absorb", episode.id, accept_for, episode.model_dump_json())

        self._write(finish)

    def finish_job(self, id: str) -> None:
        """Once nothing of it is left to answer."""
        self._write(
            lambda connection: connection.execute(
                "UPDATE jobs SET state = 'finished', finished_at = ? WHERE id = ? AND state IN ('queued', 'running') "
                "AND NOT EXISTS (SELECT 1 FROM items WHERE job = jobs.id AND state = 'queued')",
                (time.time(), id),
            )
        )

    def cancel_job(self, id: str) -> None:
        """What was not answered is not asked any more."""

        def cancel(connection: sqlite3.Connection) -> None:
            changed = connection.execute(
                "UPDATE jobs SET state = 'cancelled', finished_at = ? WHERE id = ? AND state IN ('queued', 'running')",
                (time.time(), id),
            ).rowcount
            if changed:
                connection.execute("UPDATE items SET state = 'cancelled' WHERE job = ? AND state = 'queued'", (id,))

        self._write(cancel)

    def close(self) -> None:
        """Let go of the file; calling it twice is harmless."""
        with self._commits.writing, self._reading:
            self._reader.close()
            self._writer.close()
        with contextlib.suppress(OSError):
            os.close(self._lock)

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _jobs(self, found: Sequence[sqlite3.Row]) -> tuple[Job, ...]:
        jobs = []
        for row in found:
            counted = self._select(
                "SELECT state, count(*) AS count, sum(outcome = 'correct') AS correct, "
                "sum(outcome IN ('correct', 'incorrect', 'not_attempted')) AS judged FROM items WHERE job = ? "
                "GROUP BY state",
                row["id"],
            )
            jobs.append(
                Job(
                    row["id"],
                    row["scope"],
                    JobState(row["state"]),
                    row["created_at"],
                    row["finished_at"],
                    {one["state"]: one["count"] for one in counted},
                    sum(one["correct"] for one in counted),
                    sum(one["judged"] for one in counted),
                )
            )
        return tuple(jobs)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._explained():
            return self._commits.run(work)

    def _select(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._reading, self._explained():
            return self._reader.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise StoreError(f"'{self._path}' is closed.") from error
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            raise StoreError(
                f"'{self._path}' cannot be used: {error}.", hint="make room on the disk, or look at the file's rights"
            ) from error


_JOBS = "SELECT * FROM jobs"


def _put(connection: sqlite3.Connection, kind: str, id: str, scope: str, content: str) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO pending (kind, id, scope, json) VALUES (?, ?, ?, ?)", (kind, id, scope, content)
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > _VERSION:
        raise StoreError(f"'{path}' was made by a newer MIA.", hint="install that one, or name another home")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if version < _VERSION:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
