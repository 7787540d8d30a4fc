"""Between the rows of SQLite and our records, and the questions that both connections ask."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy

from mia.embeddings.base import Vectors
from mia.store.base import Changes, MemoryVectors, Rows, fingerprint, storable
from mia.types import Memory, MemoryKind, Provenance, Record, Review

LIST = "(SELECT value FROM json_each(?))"
"""An SQL list of any length as one value: `json_list`."""
_COLUMNS = (
    "sequence, id, scope, kind, judgement, category, state, uses, wins, created_at, updated_at, expires_at, "
    "replaced_by, question, caption, workflow, plan, incorrect_plan, reviews, provenance"
)
MEMORIES = f"SELECT {_COLUMNS} FROM memories JOIN texts USING (sequence)"
"""The beginning of every statement whose rows become memories."""
MEMORIES_WITH_VECTORS = f"SELECT {_COLUMNS}, question_vector, caption_vector FROM memories JOIN texts USING (sequence)"
_SINCE = "SELECT value FROM audit, json_each(audit.memories) WHERE audit.sequence > ?"
_MEMORY_FIELDS = tuple(_COLUMNS.split(", ")[1:])


_encode = json.JSONEncoder(ensure_ascii=False).encode


def json_object(fields: Mapping[str, Any]) -> str:
    """Fields as JSON text."""
    return _encode(fields)


def json_list(values: Iterable[str | int]) -> str:
    """The value for `LIST`."""
    return json.dumps([storable(value) if isinstance(value, str) else value for value in values])


def to_json(record: Record) -> str:
    """A record as text that SQLite can keep."""
    try:
        return record.model_dump_json()
    except ValueError:
        # It holds lone surrogates, which UTF-8 cannot write.
        return storable(json.dumps(record.model_dump(mode="json"), ensure_ascii=False))


def memory_rows(memory: Memory) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The values for `memories` and for `texts`, both without the sequence and the latter without the vectors."""
    reviews = f"[{','.join(to_json(review) for review in memory.reviews)}]" if memory.reviews else "[]"
    own = (
        memory.id,
        storable(memory.scope),
        fingerprint(memory.question),
        memory.kind.value,
        memory.judgement,
        storable(memory.category),
        memory.state.value,
        memory.uses,
        memory.wins,
        memory.created_at,
        memory.updated_at,
        memory.expires_at,
        memory.replaced_by,
        storable(memory.provenance.episode_id),
        bool(memory.caption),
    )
    texts = (
        storable(memory.question),
        storable(memory.caption),
        storable(memory.workflow),
        storable(memory.plan),
        storable(memory.incorrect_plan),
        reviews,
        to_json(memory.provenance),
    )
    return own, texts


def memory(row: sqlite3.Row) -> Memory:
    """From a row of `MEMORIES`."""
    fields = {name: row[name] for name in _MEMORY_FIELDS}
    fields["reviews"] = tuple(Review.model_validate(review) for review in json.loads(fields["reviews"]))
    fields["provenance"] = Provenance.model_validate_json(fields["provenance"])
    return Memory.model_validate(fields)


def storable_row(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([storable(value) if isinstance(value, str) else value for value in row])


def blob(vector: Vectors) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


def vector(content: bytes) -> Vectors:
    return numpy.frombuffer(content, dtype="<f4").astype(numpy.float32, copy=False)


def memory_vectors(space: str, question: bytes, caption: bytes | None) -> MemoryVectors:
    return MemoryVectors(space, vector(question), None if caption is None else vector(caption))


# ── questions that a reader and an open transaction both ask ──────────────────────────────────────────────────────


def meta(connection: sqlite3.Connection, name: str) -> Any:
    """A value of the store itself; None if it was never set."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def space(connection: sqlite3.Connection) -> str:
    return meta(connection, "space") or ""


def revision(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT max(sequence) FROM audit").fetchone()[0] or 0


def changes(connection: sqlite3.Connection, scope: str, since: int, known: int) -> Changes:
    # The revision first: rows committed between two statements are then handed out twice, never missed.
    latest, epoch = revision(connection), int(meta(connection, "epoch"))
    if latest == since:
        return Changes(latest, epoch, _NO_ROWS)
    columns = "sequence, kind, judgement, state, uses, wins, created_at, expires_at, category, captioned"
    if since:
        where = f"sequence IN ({_SINCE}) AND +scope = ?"
        values: tuple[object, ...] = (since, storable(scope))
    else:
        where, values = "scope = ?", (storable(scope),)
    found = _tuples(connection, f"SELECT {columns} FROM memories WHERE {where} ORDER BY sequence", values)
    if not found:
        return Changes(latest, epoch, _NO_ROWS)
    embedded = _tuples(
        connection,
        f"SELECT sequence, question_vector, caption_vector FROM memories JOIN texts USING (sequence) WHERE {where} "
        "AND sequence BETWEEN ? AND ? ORDER BY sequence",
        (*values, known + 1, found[-1][0]),
    )
    if len(embedded) != sum(row[0] > known for row in found):
        # A damaged store, which `mia memory check` explains: what has lost its texts can be neither found nor shown.
        whole = {row[0] for row in embedded}
        found = [row for row in found if row[0] <= known or row[0] in whole]
    return Changes(latest, epoch, _rows(found, embedded, known)) if found else Changes(latest, epoch, _NO_ROWS)


def alike(
    connection: sqlite3.Connection, scope: str, kind: MemoryKind, question: str
) -> Sequence[tuple[Memory, MemoryVectors]]:
    found = connection.execute(
        f"{MEMORIES} WHERE scope = ? AND fingerprint = ? AND kind = ? AND state = 'active' ORDER BY sequence",
        (storable(scope), fingerprint(question), kind.value),
    ).fetchall()
    alike = []
    for row in found:
        vectors = connection.execute(
            "SELECT question_vector, caption_vector FROM texts WHERE sequence = ?", (row["sequence"],)
        ).fetchone()
        alike.append((memory(row), memory_vectors(space(connection), *vectors)))
    return alike


def absorbed(connection: sqlite3.Connection, episode_ids: Collection[str]) -> frozenset[str]:
    rows = connection.execute(f"SELECT id FROM episodes WHERE absorbed AND id IN {LIST}", (json_list(episode_ids),))
    return frozenset(row["id"] for row in rows)


def kept(connection: sqlite3.Connection, episode_ids: Collection[str]) -> frozenset[str]:
    found = connection.execute(f"SELECT id FROM episodes WHERE id IN {LIST}", (json_list(episode_ids),))
    return frozenset(row["id"] for row in found)


def _tuples(connection: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
    """Plain tuples: with a hundred thousand of them the difference is felt."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(statement, values).fetchall()


def _rows(found: Sequence[tuple[Any, ...]], embedded: Sequence[tuple[Any, ...]], known: int) -> Rows:
    sequence, kind, judgement, state, uses, wins, created_at, expires_at, category, captioned = zip(*found, strict=True)
    numbers = numpy.array(sequence, numpy.int64)
    return Rows(
        sequence=numbers,
        pair=numpy.array(kind) == MemoryKind.PLAN_PAIR.value,
        captioned=numpy.array(captioned, bool),
        correct=numpy.array(judgement) == "correct",
        active=numpy.array(state) == "active",
        uses=numpy.array(uses, numpy.int64),
        wins=numpy.array(wins, numpy.int64),
        created_at=numpy.array(created_at, numpy.float64),
        expires_at=numpy.array([numpy.inf if at is None else at for at in expires_at], numpy.float64),
        category=numpy.array(category, numpy.str_),
        new=numbers > known,
        questions=_matrix([row[1] for row in embedded]),
        captions=_matrix([row[2] for row in embedded if row[2] is not None]),
    )


def _matrix(blobs: Sequence[bytes]) -> Vectors:
    if not blobs:
        return numpy.zeros((0, 0), numpy.float32)
    return numpy.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), -1).astype(numpy.float32, copy=False)


_NO_ROWS = Rows(
    sequence=numpy.zeros(0, numpy.int64),
    pair=numpy.zeros(0, bool),
    captioned=numpy.zeros(0, bool),
    correct=numpy.zeros(0, bool),
    active=numpy.zeros(0, bool),
    uses=numpy.zeros(0, numpy.int64),
    wins=numpy.zeros(0, numpy.int64),
    created_at=numpy.zeros(0, numpy.float64),
    expires_at=numpy.zeros(0, numpy.float64),
    category=numpy.zeros(0, "U1"),
    new=numpy.zeros(0, bool),
    questions=numpy.zeros((0, 0), numpy.float32),
    captions=numpy.zeros((0, 0), numpy.float32),
)
