"""The schema of the SQLite store, as numbered steps: a database of any age is brought up to date when it is opened.

`MIGRATIONS[n]` turns version n into n + 1. Each runs in a transaction of its own together with the new version number,
so that a crash leaves the one version or the other; before the first of them a store that holds anything is copied
(`backup_name`). A step is never changed once released; a new one is appended.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path

from mia.store.base import fingerprint

Migration = Callable[[sqlite3.Connection], None]


def backup_name(path: Path, version: int) -> Path:
    """Where the copy of a store goes before its schema is changed."""
    return path.with_name(f"{path.name}.v{version}-backup")


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


def _keep_a_history(connection: sqlite3.Connection) -> None:
    """The life cycle of memories: states, expiry, the audit, the queue, scopes of episodes.

    `memories` becomes narrow (what searching, listing and crediting touch); what never changes, the texts and vectors,
    moves to `texts`. So a credit rewrites a few hundred bytes whatever the workflow's length. The audit is also the log
    of changes that caches follow: a revision is the number of its last row, and `memories` in it lists the sequence
    numbers that a row concerns. Every index costs a page in every commit; so there are two.
    """
    connection.create_function("fingerprint", 1, fingerprint, deterministic=True)
    connection.execute("ALTER TABLE memories RENAME TO memories_1")
    statements = (
        "DROP INDEX memories_by_change",
        "DROP INDEX memories_by_episode",
        """
        CREATE TABLE memories (
            sequence INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            scope TEXT NOT NULL,
            fingerprint INTEGER NOT NULL,
            kind TEXT NOT NULL,
            judgement TEXT NOT NULL CHECK (judgement IN ('correct', 'incorrect')),
            category TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('active', 'replaced', 'forgotten', 'quarantined')),
            uses INTEGER NOT NULL CHECK (uses >= 0),
            wins INTEGER NOT NULL CHECK (wins BETWEEN 0 AND uses),
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            expires_at REAL,
            replaced_by TEXT NOT NULL,
            episode_id TEXT NOT NULL,
            captioned INTEGER NOT NULL
        )
        """,
        """
        CREATE TABLE texts (
            sequence INTEGER PRIMARY KEY,
            question TEXT NOT NULL,
            caption TEXT NOT NULL,
            workflow TEXT NOT NULL,
            plan TEXT NOT NULL,
            incorrect_plan TEXT NOT NULL,
            reviews TEXT NOT NULL,
            provenance TEXT NOT NULL,
            question_vector BLOB NOT NULL,
            caption_vector BLOB
        )
        """,
        """
        INSERT INTO memories SELECT sequence, id, scope, fingerprint(question), kind, judgement, category,
            CASE WHEN replaced_by IS NULL THEN 'active' ELSE 'replaced' END, uses, wins, created_at, updated_at,
            NULL, coalesce(replaced_by, ''), episode_id, caption <> ''
        FROM memories_1 ORDER BY sequence
        """,
        """
        INSERT INTO texts SELECT sequence, memories_1.question, memories_1.caption, workflow, plan, incorrect_plan,
            reviews, provenance, vectors.question, vectors.caption
        FROM memories_1 JOIN vectors USING (sequence) ORDER BY sequence
        """,
        "DROP TABLE vectors",
        "DROP TABLE memories_1",
        "CREATE INDEX memories_by_words ON memories (scope, fingerprint)",
        "ALTER TABLE episodes ADD COLUMN scope TEXT NOT NULL DEFAULT 'default'",
        "ALTER TABLE episodes ADD COLUMN lessons TEXT NOT NULL DEFAULT '[]'",
        """
        UPDATE episodes SET (scope, lessons) = (
            SELECT min(scope), json_group_array(memories.id) FROM memories WHERE episode_id = episodes.id
        ) WHERE id IN (SELECT episode_id FROM memories)
        """,
        "CREATE INDEX episodes_by_scope ON episodes (scope)",
        """
        CREATE TABLE audit (
            sequence INTEGER PRIMARY KEY,
            at REAL NOT NULL,
            action TEXT NOT NULL,
            memories TEXT NOT NULL,
            memory_id TEXT NOT NULL,
            scope TEXT NOT NULL,
            reason TEXT NOT NULL,
            before TEXT NOT NULL,
            after TEXT NOT NULL
        )
        """,
        """
        INSERT INTO audit (at, action, memories, memory_id, scope, reason, before, after)
        SELECT created_at, 'add', json_array(sequence), id, scope, 'schema 1', '{}',
            json_object('state', state, 'uses', uses, 'wins', wins) FROM memories ORDER BY sequence
        """,
        """
        CREATE TABLE queue (
            task TEXT NOT NULL,
            subject TEXT NOT NULL,
            scope TEXT NOT NULL,
            error TEXT NOT NULL,
            attempts INTEGER NOT NULL,
            since REAL NOT NULL,
            retry_at REAL NOT NULL,
            PRIMARY KEY (task, subject)
        ) WITHOUT ROWID
        """,
        "CREATE TABLE copies (place TEXT PRIMARY KEY) WITHOUT ROWID",
        "DELETE FROM meta WHERE name = 'revision'",
        "INSERT INTO meta (name, value) VALUES ('epoch', 0)",
    )
    for statement in statements:
        connection.execute(statement)
    connection.execute("INSERT INTO meta (name, value) VALUES ('store', ?)", (uuid.uuid4().hex,))


MIGRATIONS: tuple[Migration, ...] = (_lay_foundations, _keep_a_history)
