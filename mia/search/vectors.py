"""The vectors of an index: a cache of what embedders made, by content and vector space.

A row is written once, in small commits, so making vectors can be killed and taken up again at any time, and a passage
that returns with the same words finds its vector. The cache can be thrown away: the passages are the truth.
Half precision on disk, single precision in memory: 50,000 vectors of 256 dimensions take 25 MB and 50 MB.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy

from mia.embeddings.base import Vectors
from mia.errors import CorpusError
from mia.search.lexical import Numbers

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (
    space TEXT NOT NULL, content INTEGER NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (space, content)
) WITHOUT ROWID
"""
_WAIT_SECONDS = 30.0


class VectorCache:
    """Vectors in a file. Every call opens it anew, so any thread may call."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def counts(self) -> dict[str, int]:
        """How many vectors there are in each space."""
        if not self._file.is_file():
            return {}
        with closing(self._connect("ro")) as database:
            return dict(_run(database, "SELECT space, COUNT(*) FROM vectors GROUP BY space ORDER BY space"))

    def contents(self, space: str) -> Numbers:
        """Which contents have a vector, in rising order."""
        if not self._file.is_file():
            return numpy.empty(0, dtype=numpy.int64)
        with closing(self._connect("ro")) as database:
            rows = _run(database, "SELECT content FROM vectors WHERE space = ? ORDER BY content", space)
        return numpy.array([row[0] for row in rows], dtype=numpy.int64)

    def load(self, space: str) -> tuple[Numbers, Vectors]:
        """All vectors of a space, with their contents in rising order."""
        if not self._file.is_file():
            return numpy.empty(0, dtype=numpy.int64), numpy.empty((0, 0), dtype=numpy.float32)
        with closing(self._connect("ro")) as database:
            rows = _run(database, "SELECT content, vector FROM vectors WHERE space = ? ORDER BY content", space)
        contents = numpy.array([row[0] for row in rows], dtype=numpy.int64)
        joined = numpy.frombuffer(b"".join(row[1] for row in rows), dtype=numpy.float16)
        vectors: Vectors = joined.reshape(len(rows), -1 if rows else 0).astype(numpy.float32)
        return contents, vectors

    def add(self, space: str, contents: Sequence[int], vectors: Vectors) -> None:
        rows = [
            (space, content, vector.tobytes())
            for content, vector in zip(contents, vectors.astype(numpy.float16), strict=True)
        ]
        self._write("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def forget(self, space: str, contents: Sequence[int]) -> None:
        self._write("DELETE FROM vectors WHERE space = ? AND content = ?", [(space, content) for content in contents])

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            with closing(self._connect("rwc")) as database, database:
                database.execute(_SCHEMA)
                database.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            raise CorpusError(
                f"the vectors of the index cannot be written ({error}).",
                hint="make room on the disk; those made so far are kept",
            ) from error

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._file.absolute().as_uri()}?mode={mode}", timeout=_WAIT_SECONDS, uri=True)


def _run(database: sqlite3.Connection, statement: str, *values: str) -> list[Any]:
    try:
        return database.execute(statement, values).fetchall()
    except sqlite3.DatabaseError as error:
        raise CorpusError(
            f"the vectors of the index cannot be read ({error}).",
            hint="remove vectors.db from the index and run `mia index` again; the passages are safe",
        ) from error
