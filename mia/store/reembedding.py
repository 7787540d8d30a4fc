"""Another embedder for a store that is in use: new vectors collect beside the old ones, and change places with them at
once.

Until then the store serves with its old embedder and takes memories in. What was embedded stays through a kill: the
next start goes on after the last page. What came or went meanwhile is looked after in the transaction that swaps.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy

from mia.embeddings.base import Embedder, unit_rows
from mia.errors import StoreError
from mia.store import audit, rows
from mia.store.base import EMBEDDED_CHARACTERS, storable

T = TypeVar("T")

PAGE = 256
"""Memories that are embedded between two commits."""
_TARGET = "space_next"
"""In `meta`: the space of the vectors that collect."""


@dataclass(frozen=True)
class Reembedding:
    """How far it is."""

    space: str
    """Where it leads."""
    done: int
    total: int
    kept: int
    """How many of those done an earlier attempt had embedded."""
    dropped: str = ""
    """The space of an earlier attempt that led elsewhere; its vectors were dropped, and all began anew."""


@dataclass(frozen=True)
class _Page:
    epoch: int
    """Of the store when the page was read: what was removed since must not be kept."""
    texts: Sequence[sqlite3.Row]


OnProgress = Callable[[Reembedding], None]


class Ask(Protocol):
    """Puts a question to the committed state, or runs a piece of work."""

    def __call__(self, question: Callable[[sqlite3.Connection], T], /) -> T: ...


def reembed(read: Ask, write: Ask, embedder: Embedder, on_progress: OnProgress) -> Reembedding:
    """`write` runs its piece of work in a transaction that is durable when it returns.

    Raises what the embedder raises; what was embedded until then is kept. Nothing happens to a store that is in the
    embedder's space already.
    """
    space = embedder.space
    dropped, kept = write(lambda connection: _begin(connection, space))
    done = kept

    def progress() -> Reembedding:
        total = read(lambda connection: int(connection.execute("SELECT count(*) FROM memories").fetchone()[0]))
        return Reembedding(space, done, max(total, done), kept, dropped)

    if not read(_is_under_way):
        return Reembedding(space, 0, 0, 0, dropped)
    on_progress(progress())
    while (page := read(_next_page)).texts:
        if write(partial(_add, space=space, page=page, vectors=_embed(embedder, page.texts))):
            done += len(page.texts)
            on_progress(progress())
            if len(page.texts) < PAGE:
                # What comes from now on is embedded when all change places: or it would go on as long as they come.
                break
    write(lambda connection: _swap(connection, embedder))
    return progress()


def _begin(connection: sqlite3.Connection, space: str) -> tuple[str, int]:
    """Make the side table, or find the one that leads to the same space. Returns the space of one that was dropped, and
    how many vectors there are."""
    target = rows.meta(connection, _TARGET) or ""
    dropped = ""
    if target and target != space:
        dropped = target
        _clear(connection)
    if rows.space(connection) == space:
        _clear(connection)
        return dropped, 0
    connection.execute(
        "CREATE TABLE IF NOT EXISTS vectors_next (sequence INTEGER PRIMARY KEY, question BLOB NOT NULL, caption BLOB)"
    )
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (_TARGET, storable(space)))
    return dropped, int(connection.execute("SELECT count(*) FROM vectors_next").fetchone()[0])


def _clear(connection: sqlite3.Connection) -> None:
    connection.execute("DROP TABLE IF EXISTS vectors_next")
    connection.execute("DELETE FROM meta WHERE name = ?", (_TARGET,))


def _is_under_way(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'vectors_next'").fetchall())


def _next_page(connection: sqlite3.Connection) -> _Page:
    """The memories after the last one that has new vectors; none if another process has swapped."""
    # The epoch first: what is removed between the two is then noticed.
    epoch = int(rows.meta(connection, "epoch"))
    if not _is_under_way(connection):
        return _Page(epoch, ())
    texts = _texts(
        connection,
        "SELECT sequence FROM memories WHERE sequence > (SELECT coalesce(max(sequence), 0) FROM vectors_next) "
        "ORDER BY sequence LIMIT ?",
    )
    return _Page(epoch, texts)


def _left_out(connection: sqlite3.Connection) -> list[sqlite3.Row]:
    """Memories that have no new vectors, wherever they are."""
    return _texts(connection, "SELECT sequence FROM memories EXCEPT SELECT sequence FROM vectors_next LIMIT ?")


def _texts(connection: sqlite3.Connection, sequences: str) -> list[sqlite3.Row]:
    return connection.execute(
        f"SELECT sequence, question, caption FROM texts WHERE sequence IN ({sequences})", (PAGE,)
    ).fetchall()


def _embed(embedder: Embedder, page: Sequence[sqlite3.Row]) -> list[tuple[bytes, bytes | None]]:
    """The vectors of the question and, where there is one, of the caption, as they are stored."""
    # Cut here: SQLite's substr() ends at a NUL.
    pairs = [(row["question"][:EMBEDDED_CHARACTERS], row["caption"][:EMBEDDED_CHARACTERS]) for row in page]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair if text))
    vectors = unit_rows(embedder.embed(texts)) if texts else numpy.zeros((0, embedder.dimension), numpy.float32)
    if vectors.shape != (len(texts), embedder.dimension):
        raise StoreError(
            f"the embedder of the space '{embedder.space}' gave vectors of shape {vectors.shape}.",
            wanted=f"shape {(len(texts), embedder.dimension)}",
        )
    blobs = {text: rows.blob(vector) for text, vector in zip(texts, vectors, strict=True)}
    empty = bytes(4 * embedder.dimension)
    return [(blobs.get(question, empty), blobs[caption] if caption else None) for question, caption in pairs]


def _check_target(connection: sqlite3.Connection, space: str) -> None:
    if rows.meta(connection, _TARGET) != space:
        raise StoreError(
            "another process began to embed this memory anew meanwhile.",
            hint="mia memory reembed, when the other one has ended",
        )


def _add(
    connection: sqlite3.Connection, space: str, page: _Page, vectors: Sequence[tuple[bytes, bytes | None]]
) -> bool:
    """Keep the vectors of a page, unless memories were removed since it was read; whether it did."""
    if rows.space(connection) == space or int(rows.meta(connection, "epoch")) != page.epoch:
        return False
    _check_target(connection, space)
    _keep(connection, page.texts, vectors)
    return True


def _keep(
    connection: sqlite3.Connection, page: Sequence[sqlite3.Row], vectors: Sequence[tuple[bytes, bytes | None]]
) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO vectors_next (sequence, question, caption) VALUES (?, ?, ?)",
        [(row["sequence"], *pair) for row, pair in zip(page, vectors, strict=True)],
    )


def _swap(connection: sqlite3.Connection, embedder: Embedder) -> None:
    """Embed what came since the last page, and put the new vectors in the place of the old ones."""
    if rows.space(connection) == embedder.space:
        # Another process led to the same space, and swapped before us.
        return
    _check_target(connection, embedder.space)
    while page := _left_out(connection):
        _keep(connection, page, _embed(embedder, page))
    before = rows.space(connection)
    connection.execute(
        "UPDATE texts SET (question_vector, caption_vector) = "
        "(SELECT question, caption FROM vectors_next WHERE vectors_next.sequence = texts.sequence)"
    )
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('space', ?)", (storable(embedder.space),))
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'")
    _clear(connection)
    audit.append(
        connection,
        "reembed",
        at=time.time(),
        scope="",
        before={"space": before},
        after={"space": embedder.space},
    )
