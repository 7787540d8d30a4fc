"""What the reference's services keep between calls, durably: registered ground truths and images, the candidates of
test-time learning, how they were evaluated, and what the web tools found.

One SQLite file in `home`, readable by its owner alone, since ground truths are in it. What a method has written is on
the disk when it returns. Everything but the web cache belongs to a scope. Sync: async callers go through a thread.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mia.erasure import Reached, Selection
from mia.errors import StoreError
from mia.store.base import storable
from mia.types import Episode, Image, load_episode

T = TypeVar("T")

CACHED = 10_000
"""Answers of web tools that are kept; the oldest go first."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE ground_truths (
    scope TEXT NOT NULL, data_id TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (scope, data_id)
) WITHOUT ROWID;
CREATE TABLE images (
    scope TEXT NOT NULL, data_id TEXT NOT NULL, json TEXT NOT NULL, PRIMARY KEY (scope, data_id)
);
CREATE TABLE candidates (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, scope TEXT NOT NULL, data_id TEXT NOT NULL, json TEXT NOT NULL
);
CREATE INDEX candidates_by_scope ON candidates (scope, data_id, sequence);
CREATE TABLE evaluations (
    sequence INTEGER PRIMARY KEY, scope TEXT NOT NULL, group_id TEXT NOT NULL, json TEXT NOT NULL,
    UNIQUE (scope, group_id)
);
CREATE TABLE web (
    tool TEXT NOT NULL, key TEXT NOT NULL, json TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (tool, key)
);
CREATE INDEX web_by_age ON web (at);
"""


@dataclass(frozen=True)
class Candidates:
    """The tries of one question that wait to be consolidated."""

    data_id: str
    sequences: tuple[int, ...]
    episodes: tuple[Episode, ...]

    @property
    def group(self) -> str:
        """The same until they are consolidated, whatever comes to them; and never that of others."""
        return f"{self.data_id}/{self.sequences[0]}"


class Registry:
    """Opens the file when something is first asked of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    # ── ground truths and images ──────────────────────────────────────────────────────────────────────────────────

    def register_truths(self, scope: str, truths: Mapping[str, str]) -> int:
        """Later ones replace earlier ones. Returns how many the scope has now. Raises StoreError."""
        return self._register("ground_truths", "text", scope, truths)

    def truth(self, scope: str, data_id: str) -> str:
        """For a judge's eyes only; empty where none was registered. Raises StoreError."""
        found = self._select("SELECT text FROM ground_truths WHERE scope = ? AND data_id = ?", scope, data_id)
        return str(found[0][0]) if found else ""

    def count_truths(self, scope: str) -> int:
        return int(self._select("SELECT count(*) FROM ground_truths WHERE scope = ?", scope)[0][0])

    def register_images(self, scope: str, images: Mapping[str, Sequence[Image]]) -> int:
        """Later ones replace earlier ones. Returns how many questions the scope has now. Raises StoreError."""
        pages = {id: json.dumps([image.model_dump() for image in some]) for id, some in images.items()}
        return self._register("images", "json", scope, pages)

    def images(self, scope: str, data_id: str) -> tuple[Image, ...]:
        """None where none were registered. Raises StoreError."""
        found = self._select("SELECT json FROM images WHERE scope = ? AND data_id = ?", scope, data_id)
        return tuple(Image.model_validate(one) for one in json.loads(found[0][0])) if found else ()

    def count_images(self, scope: str) -> int:
        return int(self._select("SELECT count(*) FROM images WHERE scope = ?", scope)[0][0])

    # ── candidates ────────────────────────────────────────────────────────────────────────────────────────────────

    def keep_candidate(self, scope: str, data_id: str, episode: Episode) -> None:
        """One try of a question. Raises StoreError."""
        page = episode.model_dump_json()
        self._write(
            lambda connection: connection.execute(
                "INSERT INTO candidates (scope, data_id, json) VALUES (?, ?, ?)", (scope, data_id, page)
            )
        )

    def candidates(self, scope: str) -> tuple[Candidates, ...]:
        """By question, the first tried first. Raises StoreError."""
        groups: dict[str, list[tuple[int, Episode]]] = {}
        for row in self._select("SELECT * FROM candidates WHERE scope = ? ORDER BY sequence", scope):
            groups.setdefault(row["data_id"], []).append((row["sequence"], load_episode(row["json"])))
        return tuple(
            Candidates(id, tuple(number for number, _ in tries), tuple(episode for _, episode in tries))
            for id, tries in groups.items()
        )

    def remove_candidates(self, scope: str, sequences: Sequence[int]) -> None:
        """The memory holds them now. Raises StoreError."""
        self._write(
            lambda connection: connection.executemany(
                "DELETE FROM candidates WHERE scope = ? AND sequence = ?", [(scope, number) for number in sequences]
            )
        )

    def count_candidates(self, scope: str) -> int:
        """Questions that have any."""
        return int(self._select("SELECT count(DISTINCT data_id) FROM candidates WHERE scope = ?", scope)[0][0])

    def keep_evaluation(self, scope: str, group: str, page: Mapping[str, Any]) -> None:
        """A later evaluation of the same tries replaces the earlier one. Raises StoreError."""
        content = json.dumps(page, ensure_ascii=False)
        self._write(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO evaluations (scope, group_id, json) VALUES (?, ?, ?)", (scope, group, content)
            )
        )

    def evaluations(self, scope: str) -> tuple[Mapping[str, Any], ...]:
        """In the order in which they were made. Raises StoreError."""
        found = self._select("SELECT json FROM evaluations WHERE scope = ? ORDER BY sequence", scope)
        return tuple(json.loads(row["json"]) for row in found)

    # ── the web ───────────────────────────────────────────────────────────────────────────────────────────────────

    def found(self, tool: str, key: str, *, not_before: float) -> Any:
        """What a web tool found; None where it was not asked since. Raises StoreError."""
        rows = self._select("SELECT json FROM web WHERE tool = ? AND key = ? AND at >= ?", tool, key, not_before)
        return json.loads(rows[0]["json"]) if rows else None

    def keep_found(self, tool: str, key: str, result: Any) -> None:
        """Raises StoreError."""
        content = json.dumps(result, ensure_ascii=False)

        def keep(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO web VALUES (?, ?, ?, ?)", (tool, key, content, time.time()))
            connection.execute(
                "DELETE FROM web WHERE at < (SELECT min(at) FROM (SELECT at FROM web ORDER BY at DESC LIMIT ?))",
                (CACHED,),
            )

        self._write(keep)

    # ── erasure ───────────────────────────────────────────────────────────────────────────────────────────────────

    def evaluations_of(self, selection: Selection) -> list[tuple[str, Mapping[str, Any]]]:
        """The evaluations that go, each with its scope. Raises StoreError."""
        rows = self._select("SELECT scope, json FROM evaluations")
        pages = ((row["scope"], json.loads(row["json"])) for row in rows)
        return [(scope, page) for scope, page in pages if _takes(selection, scope, page)]

    def erase(self, selection: Selection) -> Reached:
        """Remove what goes for good, and its traces from the disk; a ground truth and images, by the id of their
        question. What the web tools found stays. Raises StoreError."""
        reached = self._write(lambda connection: _erase(connection, selection))
        if reached.ids or reached.blotted:
            reached.cleaned.append(self._path)
        with self._lock:
            try:
                connection = self._opened()
                # Also where nothing was found: a death may have come before it.
                connection.execute("VACUUM")
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.Error as error:
                raise StoreError(f"'{self._path}' cannot be cleaned: {error}.") from error
        if busy:
            raise StoreError(f"'{self._path}' is in use, and traces may be left in its log.")
        return reached

    def close(self) -> None:
        """Let go of the file; a later call opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _register(self, table: str, column: str, scope: str, entries: Mapping[str, str]) -> int:
        def insert(connection: sqlite3.Connection) -> int:
            connection.executemany(
                f"INSERT OR REPLACE INTO {table} (scope, data_id, {column}) VALUES (?, ?, ?)",
                [(scope, id, content) for id, content in entries.items()],
            )
            return int(connection.execute(f"SELECT count(*) FROM {table} WHERE scope = ?", (scope,)).fetchone()[0])

        return self._write(insert)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return self._run(work, "BEGIN IMMEDIATE")

    def _select(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        return self._run(lambda connection: connection.execute(statement, values).fetchall(), "BEGIN")

    def _run(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        try:
            with self._lock:
                connection = self._opened()
                connection.execute(begin)
                try:
                    result = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                return result
        except sqlite3.Error as error:
            # Without the statement's values.
            raise StoreError(
                f"'{self._path}' cannot be used: {error}.", hint="make room on the disk, or look at the file's rights"
            ) from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            except OSError as error:
                raise StoreError(f"cannot open '{self._path}': {error.strerror}.") from error
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection, self._path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


def _takes(selection: Selection, scope: str, evaluation: Mapping[str, Any]) -> bool:
    chosen = evaluation.get("chosen", {}).values()
    return (
        selection.covers(scope)
        or selection.takes_question(evaluation["data_id"], evaluation["question"])
        or any(one["episode_id"] in selection.episode_ids for one in chosen)
    )


def _erase(connection: sqlite3.Connection, selection: Selection) -> Reached:
    reached = Reached()
    asked: set[tuple[str, str]] = set()
    """Scope and id of questions that go as a whole."""
    for (number,) in connection.execute("SELECT sequence FROM candidates").fetchall():
        row = connection.execute("SELECT * FROM candidates WHERE sequence = ?", (number,)).fetchone()
        episode = json.loads(row["json"])
        question = episode["question"]
        if selection.takes_question(question["id"], question["text"]):
            asked.add((row["scope"], row["data_id"]))
        if selection.covers(row["scope"]) or row["data_id"] in selection.question_ids or selection.takes(episode):
            reached.note(episode)
            connection.execute("DELETE FROM candidates WHERE sequence = ?", (number,))
        elif selection.blot_out(episode):
            reached.blotted.add(episode["id"])
            content = storable(json.dumps(episode, ensure_ascii=False))
            connection.execute("UPDATE candidates SET json = ? WHERE sequence = ?", (content, number))
    for row in connection.execute("SELECT * FROM evaluations").fetchall():
        page = json.loads(row["json"])
        if selection.takes_question(page["data_id"], page["question"]):
            asked.add((row["scope"], page["data_id"]))
        if _takes(selection, row["scope"], page):
            reached.note_question({"text": page["question"]})
            reached.ids |= {page["data_id"], *(one["episode_id"] for one in page.get("chosen", {}).values())}
            connection.execute("DELETE FROM evaluations WHERE sequence = ?", (row["sequence"],))
    for table in ("ground_truths", "images"):
        for scope, id in connection.execute(f"SELECT scope, data_id FROM {table}").fetchall():
            if not (selection.covers(scope) or id in selection.question_ids or (scope, id) in asked):
                continue
            reached.ids.add(id)
            where = f"FROM {table} WHERE scope = ? AND data_id = ?"
            if table == "images":
                (content,) = connection.execute(f"SELECT json {where}", (scope, id)).fetchone()
                reached.images |= {image["sha256"] for image in json.loads(content)}
            connection.execute(f"DELETE {where}", (scope, id))
    return reached


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.row_factory = sqlite3.Row
    with closing(connection.execute("PRAGMA user_version")) as cursor:
        version = cursor.fetchone()[0]
    if version > _VERSION:
        raise StoreError(f"'{path}' was made by a newer MIA.", hint="install that one, or name another home")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # What is removed is not left in free pages.
    connection.execute("PRAGMA secure_delete = ON")
    if version < _VERSION:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
