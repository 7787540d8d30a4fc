"""A rollback gives the store as it was, and can itself be rolled back."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import RIGHT, WRONG, a_memory, counts, credit, insert, set_expiry, set_state

from mia.errors import StoreError
from mia.store import open_store
from mia.store.sqlite import SqliteStore
from mia.types import MemoryState

FORGOTTEN, ACTIVE, QUARANTINED, REPLACED = (
    MemoryState.FORGOTTEN,
    MemoryState.ACTIVE,
    MemoryState.QUARANTINED,
    MemoryState.REPLACED,
)
SCOPES = ("team", "team/ann", "team/bob")


def last(store: SqliteStore) -> int:
    changes = store.audit(limit=1)
    return changes[0].sequence if changes else 0


def test_each_change_is_undone_as_a_change(store: SqliteStore) -> None:
    old = insert(store)
    moment = last(store)
    new = insert(store, replaces=old.id)
    set_expiry(store, 7.0, old)
    credit(store, "g", {old.id}, RIGHT)
    done = store.rollback(moment)
    assert done.to == moment
    assert [change.action for change in done.changes] == ["roll back"] * 4
    assert [change.reason.split(",")[0] for change in done.changes] == ["g", "expire", "replace", "add"]
    assert store.audit(limit=4) == done.changes[::-1]
    back = store.memory(old.id)
    assert (back.state, back.replaced_by, back.expires_at, back.uses) == (ACTIVE, "", None, 1)
    assert store.memory(new.id).state is FORGOTTEN
    assert done.lost == ()
    # The group counts for nothing now: its verdict comes as if for the first time.
    assert credit(store, "g", {old.id}, WRONG) == 1
    assert counts(store, old) == (2, 1)


def test_back_to_a_time(store: SqliteStore) -> None:
    memory = insert(store)
    moment = time.time()
    time.sleep(0.01)
    set_state(store, FORGOTTEN, memory)
    assert store.rollback(time.time()).changes == ()
    assert len(store.rollback(moment).changes) == 1
    assert store.memory(memory.id).state is ACTIVE
    store.rollback(0.0)
    assert store.memory(memory.id).state is FORGOTTEN


def test_what_was_purged_since_cannot_come_back(store: SqliteStore) -> None:
    memory, kept = insert(store), insert(store)
    moment = last(store)
    later = insert(store)
    credit(store, "g", {memory.id, kept.id}, RIGHT)
    set_state(store, FORGOTTEN, memory, later)
    store.purge(ids=[memory.id, later.id])
    assert store.rollback(moment).lost == (memory.id,)
    assert counts(store, kept) == (1, 1)


def test_a_verdict_that_another_scope_counted_meanwhile_stays(store: SqliteStore) -> None:
    shared = insert(store, a_memory(scope="team"))
    moment = last(store)
    credit(store, "g", {shared.id}, RIGHT, ["team/ann", "team"])
    credit(store, "g", {shared.id}, RIGHT, ["team/bob", "team"])
    store.rollback(moment, scope="team/ann")
    assert counts(store, shared) == (2, 2)
    store.rollback(moment, scope="team")
    assert counts(store, shared) == (1, 1)


def test_counts_that_contradict_the_audit_are_left_alone(store: SqliteStore, path: Path) -> None:
    memory = insert(store)
    credit(store, "g", {memory.id}, RIGHT)
    store._writer.execute("UPDATE memories SET uses = 0, wins = 0")
    with pytest.raises(StoreError, match="do not agree with the audit") as caught:
        store.rollback(1)
    assert caught.value.hint == "mia memory check --repair"
    assert counts(store, memory) == (0, 0)


# ── any history ───────────────────────────────────────────────────────────────────────────────────────────────────


def state_of(store: SqliteStore, scope: str | None = None) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """All that a history may change: memories by id, and the credits."""
    memories = {
        memory.id: (
            memory.state,
            memory.replaced_by,
            memory.category,
            memory.expires_at,
            memory.uses,
            memory.wins,
        )
        for memory, _ in store.export(scope)
    }
    rows = store._reader.execute("SELECT scope, question_group, correct, judge, memory_ids FROM credits").fetchall()
    inside = [tuple(row) for row in rows if scope is None or row["scope"].startswith(scope)]
    return memories, [(*row[:4], frozenset(json.loads(row[4]))) for row in inside]


Step = Callable[[SqliteStore, list[str]], object]
number = st.integers(0, 9)


def _one(ids: list[str], index: int) -> list[str]:
    return [ids[index % len(ids)]] if ids else []


def _add(index: int, replacing: bool, scope: str) -> Step:
    def step(store: SqliteStore, ids: list[str]) -> None:
        memory = a_memory(scope=scope, uses=2)
        replaced = [id for id in _one(ids, index) if replacing]
        insert(store, memory, replaces=replaced[0] if replaced else "")
        ids.append(memory.id)

    return step


def _state(index: int, state: MemoryState) -> Step:
    return lambda store, ids: store.transaction(lambda w: w.set_state(_one(ids, index), state, action="restore"))


def _credit(scope: str, group: int, shown: set[int], outcome: Any) -> Step:
    lineage = [scope, "team"] if scope != "team" else ["team"]
    return lambda store, ids: credit(store, f"g{group}", {id for i in shown for id in _one(ids, i)}, outcome, lineage)


steps = st.one_of(
    st.builds(_add, number, st.booleans(), st.sampled_from(SCOPES)),
    st.builds(_state, number, st.sampled_from([ACTIVE, FORGOTTEN, QUARANTINED])),
    st.builds(_credit, st.sampled_from(SCOPES), st.integers(0, 2), st.sets(number), st.sampled_from([RIGHT, WRONG])),
    st.builds(
        lambda index, name: (
            lambda store, ids: [store.transaction(lambda w, id=id: w.set_category(id, name)) for id in _one(ids, index)]
        ),
        number,
        st.sampled_from(["human", "others"]),
    ),
    st.builds(
        lambda index, at: lambda store, ids: store.transaction(lambda w: w.set_expiry(_one(ids, index), at)),
        number,
        st.sampled_from([None, 5.0]),
    ),
    st.builds(lambda most: lambda store, ids: store.transaction(lambda w: w.evict("team", most)), st.integers(1, 4)),
    st.builds(lambda back: lambda store, ids: store.rollback(max(0, last(store) - back)), number),
)


@settings(max_examples=60, deadline=None)
@given(history=st.lists(steps, min_size=1, max_size=14), choice=st.integers(0, 13))
def test_back_to_any_moment_and_forth_again(history: list[Step], choice: int) -> None:
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "memory.db") as store:
        # The disk's own speed is not the matter here.
        store._writer.execute("PRAGMA synchronous = OFF")
        ids: list[str] = []
        moments = [(0, state_of(store))]
        for step in history:
            step(store, ids)
            moments.append((last(store), state_of(store)))
        final = moments[-1]
        moment, (then, credits_then) = moments[choice % len(moments)]
        store.rollback(moment)
        now, credits_now = state_of(store)
        assert {id: now[id] for id in then} == then
        assert sorted(map(str, credits_now)) == sorted(map(str, credits_then))
        assert all(now[id][0] is FORGOTTEN for id in now.keys() - then.keys())
        store.rollback(final[0])
        assert state_of(store)[0] == final[1][0]
        assert sorted(map(str, state_of(store)[1])) == sorted(map(str, final[1][1]))


@settings(max_examples=30, deadline=None)
@given(history=st.lists(steps, min_size=1, max_size=12), choice=st.integers(0, 11))
def test_a_rollback_of_one_scope_leaves_the_credits_of_others(history: list[Step], choice: int) -> None:
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "memory.db") as store:
        store._writer.execute("PRAGMA synchronous = OFF")
        ids: list[str] = []
        moments = [(0, state_of(store, "team/ann"))]
        for step in history:
            step(store, ids)
            moments.append((last(store), state_of(store, "team/ann")))
        others = state_of(store, "team/bob")
        moment, (then, credits_then) = moments[choice % len(moments)]
        store.rollback(moment, scope="team/ann")
        now, credits_now = state_of(store, "team/ann")
        assert {id: now[id] for id in then} == then
        assert sorted(map(str, credits_now)) == sorted(map(str, credits_then))
        assert state_of(store, "team/bob") == others
