"""The schema of the SQLite store, as numbered steps: a database of any age is brought up to date when it is opened.

`MIGRATIONS[n]` turns version n into n + 1. Each runs in a transaction of its own together with the new version number,
so that a crash leaves the one version or the other. A step is never changed once released; a new one is appended.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

Migration = Callable[[sqlite3.Connection], None]


def _lay_foundations(connection: sqlite3.Connection) -> None:
    """Memories with their vectors, episodes, credits.

    `revision` in `meta` counts the transactions that changed memories; each memory carries the one that changed it
    last. `sequence` keeps the order of arrival, whatever the clock did.
    """
    statements = (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
        "INSERT INTO meta (name, value) VALUES ('revision', 0)",
        """
        CREATE TABLE memories (
            sequence INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            scope TEXT NOT NULL,
            kind TEXT NOT NULL,
            judgement TEXT NOT NULL CHECK (judgement IN ('correct', 'incorrect')),
            category TEXT NOT NULL,
            uses INTEGER NOT NULL CHECK (uses >= 0),
            wins INTEGER NOT NULL CHECK (wins BETWEEN 0 AND uses),
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            revision INTEGER NOT NULL,
            replaced_by TEXT REFERENCES memories (id) DEFERRABLE INITIALLY DEFERRED,
            episode_id TEXT NOT NULL,
            question TEXT NOT NULL,
            caption TEXT NOT NULL,
            workflow TEXT NOT NULL,
            plan TEXT NOT NULL,
            incorrect_plan TEXT NOT NULL,
            reviews TEXT NOT NULL,
            provenance TEXT NOT NULL
        )
        """,
        """
        CREATE TABLE vectors (
            sequence INTEGER PRIMARY KEY REFERENCES memories (sequence),
            space TEXT NOT NULL,
            question BLOB NOT NULL,
            caption BLOB
        )
        """,
        "CREATE INDEX memories_by_change ON memories (scope, revision)",
        "CREATE INDEX memories_by_episode ON memories (episode_id)",
        """
        CREATE TABLE episodes (
            sequence INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            question_id TEXT NOT NULL,
            run TEXT NOT NULL,
            created_at REAL NOT NULL,
            json TEXT NOT NULL,
            absorbed INTEGER NOT NULL
        )
        """,
        "CREATE INDEX episodes_by_run ON episodes (run)",
        """
        CREATE TABLE credits (
            scope TEXT NOT NULL,
            question_group TEXT NOT NULL,
            correct INTEGER NOT NULL,
            judge TEXT NOT NULL,
            memory_ids TEXT NOT NULL,
            credited_at REAL NOT NULL,
            PRIMARY KEY (scope, question_group)
        ) WITHOUT ROWID
        """,
    )
    for statement in statements:
        connection.execute(statement)


MIGRATIONS: tuple[Migration, ...] = (_lay_foundations,)
