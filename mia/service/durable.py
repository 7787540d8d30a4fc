"""What a server must not lose: answers that were given and are not yet absorbed, memories that were accepted and are
not yet stored, and jobs.

One SQLite file in `home`. When a method that writes returns, what it wrote is on the disk. One server uses it at a
time; the memory itself may be shared by many.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from mia.erasure import Reached, Selection
from mia.errors import HomeTaken, RecordError, StoreError
from mia.redaction import Redactor
from mia.store.base import storable
from mia.store.commits import Commits
from mia.store.conditions import below
from mia.store.rows import to_json
from mia.types import Episode, Question, Task, Usage, load_episode, new_id

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
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
"""
ERASED = "[erased]"
"""What stands where a question of a job stood whose episode was erased."""
_HOLDER_BYTES = 300
"""Of what the lock says of its holder."""


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
class Due:
    """A question of a job that is still to be answered."""

    number: int
    task: Task
    episode_id: str
    """Of what will come of it: the same after a death, and another one where it is asked again after that."""


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
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """In US dollars; None: not known, or not asked yet."""


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
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """Of all its answers; None while there are none, or where a price is not known."""
    waits: str = ""
    """Why questions of it wait for their next try; empty: none does."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class Durable:
    """Opens the file, and holds it alone until `close`."""

    def __init__(self, path: Path, redactor: Redactor | None = None) -> None:
        """`redactor`: blacks out what must not be kept; only a question that is still to be asked stays as it is. None:
        keys, tokens and passwords. Raises StoreError where it cannot be used, HomeTaken where another server holds
        it."""
        self._path = path
        self._redactor = redactor or Redactor()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"cannot open '{path}': {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            taken = _taken(path, os.pread(self._lock, _HOLDER_BYTES, 0))
            os.close(self._lock)
            raise taken from None
        self.listens_at("")
        self._reading = threading.Lock()
        self._closed = False
        self._erased: set[str] = set()
        """Memories that were erased while this process had answers under way, which may have been shown them."""
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

    def listens_at(self, address: str) -> None:
        """Tell whoever comes to this home where its server listens; empty: nowhere."""
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()} {address}".encode()[:_HOLDER_BYTES], 0)

    # ── what is pending ───────────────────────────────────────────────────────────────────────────────────────────

    def accept(self, episode: Episode, scope: str) -> None:
        """Keep an answered episode until it is absorbed; idempotent by its id."""
        episode = self._redactor.model(episode)
        self._write(lambda connection: _put(connection, "absorb", episode.id, scope, self._page(episode)))

    def accept_memory(self, content: Mapping[str, Any], scope: str) -> str:
        """Keep what a user knows until it is stored; returns a receipt."""
        id = new_id("rcp")
        self._write(lambda connection: _put(connection, "add", id, scope, json.dumps(content)))
        return id

    def pending(
        self, *, due_at: float | None = None, limit: int = 100, scope: str | None = None
    ) -> tuple[Pending, ...]:
        """The oldest first; `due_at`: only what may be tried at that time; `scope`: of this one and all below it (None:
        of all)."""
        where, values = below(scope)
        if due_at is not None:
            where, values = f"{where} AND retry_at <= ?", (*values, due_at)
        return tuple(
            map(
                _pending, self._select(f"SELECT * FROM pending WHERE {where} ORDER BY sequence LIMIT ?", *values, limit)
            )
        )

    def pending_count(self, scope: str | None = None) -> int:
        """Of a scope and all below it (None: of all)."""
        where, values = below(scope)
        return int(self._select(f"SELECT count(*) FROM pending WHERE {where}", *values)[0][0])

    def pending_ids(self, scope: str | None = None) -> frozenset[str]:
        """Of all that waits in a scope and below it (None: everywhere)."""
        where, values = below(scope)
        return frozenset(row["id"] for row in self._select(f"SELECT id FROM pending WHERE {where}", *values))

    def pending_one(self, id: str) -> Pending | None:
        """What waits under this id."""
        found = self._select("SELECT * FROM pending WHERE id = ?", id)
        return _pending(found[0]) if found else None

    def pending_episode(self, id: str) -> tuple[Episode, str] | None:
        """An episode that waits, and its scope."""
        found = self._select("SELECT json, scope FROM pending WHERE kind = 'absorb' AND id = ?", id)
        return (load_episode(found[0]["json"]), found[0]["scope"]) if found else None

    def amend(self, episode: Episode) -> bool:
        """Have an episode that waits be absorbed as it is given here, with a verdict that a job it belongs to counts
        from now on; whether it waits."""
        episode = self._redactor.model(episode)
        outcome = episode.verdict.outcome.value if episode.verdict is not None else ""

        def amend(connection: sqlite3.Connection) -> bool:
            connection.execute("UPDATE items SET outcome = ? WHERE episode_id = ?", (outcome, episode.id))
            waits = connection.execute(
                "UPDATE pending SET json = ? WHERE kind = 'absorb' AND id = ?", (self._page(episode), episode.id)
            )
            return bool(waits.rowcount)

        return self._write(amend)

    def hasten(self, scope: str | None) -> int:
        """Try what was put off, of a scope and all below it (None: of all), at once; how much that is."""
        where, values = below(scope)
        return self._write(
            lambda connection: (
                connection.execute(f"UPDATE pending SET retry_at = 0 WHERE {where} AND retry_at > 0", values).rowcount
            )
        )

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

    def jobs(
        self, *, scope: str | None = None, limit: int = 50, unfinished: bool = False, before: str = ""
    ) -> tuple[Job, ...]:
        """The newest first, of a scope and all below it (None: of all); `before`: those older than the job of this
        id."""
        where, values = below(scope)
        if unfinished:
            where = f"{where} AND state IN ('queued', 'running')"
        if before:
            where, values = f"{where} AND sequence < (SELECT sequence FROM jobs WHERE id = ?)", (*values, before)
        return self._jobs(self._select(f"{_JOBS} WHERE {where} ORDER BY sequence DESC LIMIT ?", *values, limit))

    def unfinished(self) -> tuple[tuple[str, str], ...]:
        """Id and scope of each job that is not over, the oldest first."""
        found = self._select("SELECT id, scope FROM jobs WHERE state IN ('queued', 'running') ORDER BY sequence")
        return tuple((row["id"], row["scope"]) for row in found)

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
                    row["prompt_tokens"],
                    row["completion_tokens"],
                    row["cost"],
                )
            )
        return tuple(items)

    def open_items(self, job: str, *, after: int = -1, limit: int = 1_000) -> tuple[Due, ...]:
        """What is still to be answered, in order; only numbers above `after`."""
        found = self._select(
            "SELECT number, task, episode_id FROM items WHERE job = ? AND number > ? AND state = 'queued' "
            "ORDER BY number LIMIT ?",
            job,
            after,
            limit,
        )
        return tuple(
            Due(row["number"], Task.model_validate_json(row["task"]), _next_episode_id(job, row)) for row in found
        )

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
        are let go of once it is answered: what failed may be asked again, with its keys blacked out."""
        episode = self._redactor.model(episode) if episode is not None else None
        answered = episode is not None and (episode.answer is not None or episode.withheld)
        state = ItemState.ANSWERED if answered else ItemState.FAILED
        answer = storable(episode.answer.text) if episode is not None and episode.answer is not None else None
        outcome = episode.verdict.outcome.value if episode is not None and episode.verdict is not None else ""
        usage = episode.total_usage if episode is not None else Usage()

        def finish(connection: sqlite3.Connection) -> None:
            row = connection.execute(
                "SELECT task, state FROM items WHERE job = ? AND number = ?", (job, number)
            ).fetchone()
            if row is None or row["state"] != ItemState.QUEUED:
                return
            task = Task.model_validate_json(row["task"])
            question = self._redactor.model(_without_images(task.question))
            if answered:
                task = Task(question=question)
            else:
                question = question.model_copy(update={"images": task.question.images})
                task = task.model_copy(update={"question": question})
            connection.execute(
                "UPDATE items SET state = ?, task = ?, episode_id = ?, outcome = ?, answer = ?, error = ?, "
                "prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?, "
                "cost = coalesce(cost, 0) + ? WHERE job = ? AND number = ?",
                (
                    state,
                    task.model_dump_json(),
                    episode.id if episode else "",
                    outcome,
                    answer,
                    error,
                    usage.prompt_tokens,
                    usage.completion_tokens,
                    usage.cost,
                    job,
                    number,
                ),
            )
            if episode is not None and accept_for:
                _put(connection, "absorb", episode.id, accept_for, self._page(episode))

        self._write(finish)

    def put_off_item(self, job: str, number: int, why: str, usage: Usage) -> None:
        """A question that waits for its next try: why, and what the last one cost. Raises StoreError."""
        self._write(
            lambda connection: connection.execute(
                "UPDATE items SET error = ?, prompt_tokens = prompt_tokens + ?, "
                "completion_tokens = completion_tokens + ?, cost = coalesce(cost, 0) + ? "
                "WHERE job = ? AND number = ? AND state = 'queued'",
                (why, usage.prompt_tokens, usage.completion_tokens, usage.cost, job, number),
            )
        )

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

    def retry_job(self, id: str) -> int:
        """Ask again what could not be answered; how many questions that are. Also of a job that was cancelled."""

        def queue(connection: sqlite3.Connection) -> int:
            again = connection.execute(
                "UPDATE items SET state = 'queued', error = '' WHERE job = ? AND state IN ('failed', 'cancelled') "
                "AND json_extract(task, '$.question.id') <> ?",
                (id, ERASED),
            ).rowcount
            if again:
                connection.execute("UPDATE jobs SET state = 'queued', finished_at = NULL WHERE id = ?", (id,))
            return again

        return self._write(queue)

    def delete_job(self, id: str) -> None:
        """Nothing is left of it here; the episodes that came of it stay."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM items WHERE job = ?", (id,))
            connection.execute("DELETE FROM jobs WHERE id = ?", (id,))

        self._write(delete)
        self._wipe()

    def erase(self, selection: Selection) -> Reached:
        """Remove what goes for good, from what waits and from the jobs that asked for it, and its traces from the disk.
        Of a question of a job its place and what it cost stay; of a job of a scope that goes, nothing."""

        def erase(connection: sqlite3.Connection) -> Reached:
            self._erased.update(selection.memory_ids)
            reached = Reached()
            _erase_pending(connection, selection, reached)
            _erase_jobs(connection, selection, reached)
            return reached

        reached = self._write(erase)
        if reached.ids or reached.blotted or reached.texts:
            reached.cleaned.append(self._path)
        # Also where nothing was found: a death may have come before it.
        self._wipe(whole=True)
        return reached

    def close(self) -> None:
        """Let go of the file; calling it twice is harmless."""
        with self._commits.writing, self._reading:
            if self._closed:
                return
            self._closed = True
            self._reader.close()
            self._writer.close()
            # Not before: another server may take it at this moment.
            os.close(self._lock)

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _jobs(self, found: Sequence[sqlite3.Row]) -> tuple[Job, ...]:
        jobs = []
        for row in found:
            counted = self._select(
                "SELECT state, count(*) AS count, sum(outcome = 'correct') AS correct, "
                "sum(outcome IN ('correct', 'incorrect', 'not_attempted')) AS judged, "
                "sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens, "
                "sum(cost) AS cost, sum(episode_id <> '' AND cost IS NULL) AS unpriced FROM items WHERE job = ? "
                "GROUP BY state",
                row["id"],
            )
            waiting = self._select(
                "SELECT error FROM items WHERE job = ? AND state = 'queued' AND error <> '' LIMIT 1", row["id"]
            )
            costs = [one["cost"] for one in counted if one["cost"] is not None]
            priced = costs and not any(one["unpriced"] for one in counted)
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
                    sum(one["prompt_tokens"] for one in counted),
                    sum(one["completion_tokens"] for one in counted),
                    sum(costs) if priced else None,
                    waiting[0]["error"] if waiting else "",
                )
            )
        return tuple(jobs)

    def _page(self, episode: Episode) -> str:
        """An episode as it is kept, without what it was shown of memories that were erased since. To be called within a
        write, so that no erasure comes between."""
        content, recall = to_json(episode), episode.recall
        if recall is None or self._erased.isdisjoint(one.memory_id for one in (*recall.shown, *recall.passed_over)):
            return content
        page = json.loads(content)
        Selection(memory_ids=self._erased).blot_out(page)
        return storable(json.dumps(page, ensure_ascii=False))

    def _wipe(self, *, whole: bool = False) -> None:
        """Take out of the log of writes what was removed; the file itself is overwritten where it stood. `whole`: the
        file is written anew, since pages that rows were moved in may still show them."""
        with self._explained(), self._commits.writing, self._reading:
            if whole:
                self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

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


def _erase_pending(connection: sqlite3.Connection, selection: Selection, reached: Reached) -> None:
    for (sequence,) in connection.execute("SELECT sequence FROM pending").fetchall():
        row = connection.execute("SELECT * FROM pending WHERE sequence = ?", (sequence,)).fetchone()
        content = json.loads(row["json"])
        if row["kind"] == "absorb":
            question, gone = content["question"], selection.takes(content)
        else:
            question = {"text": content["question"]}
            gone = row["id"] in selection.episode_ids or selection.takes_question("", content["question"])
        if gone or selection.covers(row["scope"]):
            reached.ids.add(row["id"])
            reached.note_question(question)
            connection.execute("DELETE FROM pending WHERE sequence = ?", (sequence,))
        elif row["kind"] == "absorb" and selection.blot_out(content):
            reached.blotted.add(row["id"])
            blotted = storable(json.dumps(content, ensure_ascii=False))
            connection.execute("UPDATE pending SET json = ? WHERE sequence = ?", (blotted, sequence))


def _erase_jobs(connection: sqlite3.Connection, selection: Selection, reached: Reached) -> None:
    nothing = Task(question=Question(id=ERASED, text=ERASED)).model_dump_json()
    for job in connection.execute("SELECT id, scope FROM jobs").fetchall():
        all_go = selection.covers(job["scope"])
        for item in connection.execute(
            "SELECT number, task, state, episode_id FROM items WHERE job = ?", (job["id"],)
        ).fetchall():
            question = json.loads(item["task"])["question"]
            episode_id = item["episode_id"]
            gone = (
                episode_id in selection.episode_ids
                or (item["state"] == ItemState.QUEUED and _next_episode_id(job["id"], item) in selection.episode_ids)
                or selection.takes_question(question["id"], question["text"])
            )
            if not (all_go or gone):
                continue
            reached.ids |= {episode_id} if episode_id else set()
            reached.note_question(question)
            if not all_go:
                # What is still to be asked is not asked any more.
                connection.execute(
                    "UPDATE items SET task = ?, answer = NULL, error = '', episode_id = '', "
                    "state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END WHERE job = ? AND number = ?",
                    (nothing, job["id"], item["number"]),
                )
        if all_go:
            reached.ids.add(job["id"])
            connection.execute("DELETE FROM items WHERE job = ?", (job["id"],))
            connection.execute("DELETE FROM jobs WHERE id = ?", (job["id"],))


def _next_episode_id(job: str, item: sqlite3.Row) -> str:
    """Of what comes of a question when it is asked next. So an answer that a death kept from being noted is found."""
    asked = f"{job}\n{item['number']}\n{item['episode_id']}"
    return f"ep-{hashlib.sha256(asked.encode()).hexdigest()[:20]}"


def _without_images(question: Question) -> Question:
    """Their hashes stay."""
    return question.evolve(images=tuple(image.without_data() for image in question.images))


def _pending(row: sqlite3.Row) -> Pending:
    content = json.loads(row["json"])
    return Pending(row["kind"], row["id"], row["scope"], content, row["attempts"], row["error"], row["retry_at"])


def _taken(path: Path, holder: bytes) -> HomeTaken:
    """What is said of a home whose lock is held; `holder`: what the one who holds it has written."""
    pid, _, address = holder.decode(errors="replace").strip().partition(" ")
    process = f" (process {pid}{f', at {address}' if address else ''})" if pid.isdecimal() else ""
    return HomeTaken(
        f"another server works in '{path.parent}'{process}.",
        pid=int(pid) if pid.isdecimal() else None,
        address=address,
        wanted="a home of its own for each server; they may share one memory",
        hint=f'mia --home ELSEWHERE serve --port … with memory.path = "{path.parent / "memory.db"}"',
    )


def _connect(path: Path) -> sqlite3.Connection:
    if not path.exists():
        # What is kept is nobody else's on this machine. What cannot be made, SQLite explains.
        with suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
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
    # What is removed is not left in free pages.
    connection.execute("PRAGMA secure_delete = ON")
    if version < _VERSION:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
