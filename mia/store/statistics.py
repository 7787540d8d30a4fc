"""What a store holds, in figures."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

from mia.store import rows
from mia.store.base import Statistics
from mia.store.conditions import below


def statistics(connection: sqlite3.Connection, scope: str | None, *, path: Path, cache: Path) -> Statistics:
    """Of a scope and all below it (None: of all); the bytes are those of the whole store."""
    where, values = below(scope)
    in_sight = f"FROM memories WHERE {where} AND state = 'active'"
    expired, uses, wins, oldest, newest = connection.execute(
        f"SELECT count(*) FILTER (WHERE expires_at <= ?), total(uses), total(wins), min(created_at), max(created_at) "
        f"{in_sight}",
        (time.time(), *values),
    ).fetchone()

    def counted(column: str, rest: str) -> Mapping[str, int]:
        statement = f"SELECT {column}, count(*) {rest} GROUP BY 1 ORDER BY 2 DESC, 1"
        return {row[0]: row[1] for row in connection.execute(statement, values)}

    def count(table: str) -> int:
        return int(connection.execute(f"SELECT count(*) FROM {table} WHERE {where}", values).fetchone()[0])

    return Statistics(
        states=counted("state", f"FROM memories WHERE {where}"),
        expired=expired,
        judgements=counted("judgement", in_sight),
        kinds=counted("kind", in_sight),
        categories=counted("category", in_sight),
        origins=counted(
            "coalesce(json_extract(provenance, '$.origin'), 'episode')",
            in_sight.replace("memories", "memories JOIN texts USING (sequence)", 1),
        ),
        uses=int(uses),
        wins=int(wins),
        oldest=oldest,
        newest=newest,
        episodes=count("episodes"),
        queue=counted("task", f"FROM queue WHERE {where}"),
        changes=count("audit"),
        space=rows.space(connection),
        database_bytes=_size(path),
        log_bytes=_size(path.with_name(f"{path.name}-wal")),
        cache_bytes=sum(_size(file) for file in cache.rglob("*") if file.is_file()),
    )


def _size(file: Path) -> int:
    """0 if it is not there, or goes at this moment."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
