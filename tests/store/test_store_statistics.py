"""The figures of a store are those of what was put in."""

from __future__ import annotations

from pathlib import Path

from stored import SPACE, a_memory, an_episode, credit, insert, set_state

from mia.store.base import Task
from mia.store.sqlite import SqliteStore
from mia.types import MemoryKind, MemoryState, Outcome, Provenance


def test_an_empty_store_has_figures_too(store: SqliteStore) -> None:
    empty = store.statistics()
    assert (empty.states, empty.judgements, empty.queue, empty.expired, empty.episodes) == ({}, {}, {}, 0, 0)
    assert (empty.uses, empty.wins, empty.oldest, empty.newest, empty.space) == (0, 0, None, None, "")


def test_everything_is_counted(store: SqliteStore, path: Path) -> None:
    first = insert(store, a_memory(created_at=5.0, category="human"))
    insert(store, a_memory(created_at=3.0, judgement="incorrect", expires_at=4.0, scope="default/project"))
    insert(store, a_memory(created_at=4.0, kind=MemoryKind.PLAN_PAIR, provenance=Provenance(origin="user")))
    insert(store, a_memory(created_at=9.0, scope="defaults"))
    set_state(store, MemoryState.FORGOTTEN, insert(store, a_memory(created_at=1.0)))
    credit(store, "g", {first.id}, Outcome.INCORRECT)
    store.save_episode(an_episode("ep-1"), scope="default/project")
    store.save_episode(an_episode("ep-2"), scope="other")
    store.transaction(lambda writing: writing.enqueue(Task.COMPRESS, first.id, scope="default", error="", delay=1))
    store.cache.mkdir()
    (store.cache / "vectors").write_bytes(b"x" * 1000)

    found = store.statistics("default")
    assert found.states == {"active": 3, "forgotten": 1}
    assert found.expired == 1
    assert found.judgements == {"correct": 2, "incorrect": 1}
    assert found.kinds == {"workflow": 2, "plan_pair": 1}
    assert found.categories == {"others": 2, "human": 1}
    assert found.origins == {"episode": 2, "user": 1}
    assert (found.uses, found.wins) == (4, 3)
    assert (found.oldest, found.newest) == (3.0, 5.0)
    assert (found.episodes, found.queue, found.space) == (1, {"compress": 1}, SPACE)
    assert found.changes == 4 + 1 + 1
    assert found.database_bytes == path.stat().st_size
    assert found.log_bytes == path.with_name("memory.db-wal").stat().st_size > 0
    assert found.cache_bytes == 1000
    assert store.statistics().states == {"active": 4, "forgotten": 1}
    assert store.statistics("defaults").states == {"active": 1}
