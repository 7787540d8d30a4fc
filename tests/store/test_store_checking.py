"""A check finds what is wrong, and nothing where nothing is; a repair mends what can be told from the rest."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from stored import RIGHT, WRONG, a_memory, an_episode, counts, credit, insert, set_state

from mia.store import open_store
from mia.store.base import Task
from mia.store.sqlite import SqliteStore
from mia.types import Memory, MemoryState


def live(store: SqliteStore) -> list[Memory]:
    """A store with a past: three memories, of which one was replaced; a purged one; an erased one."""
    first, second, purged, erased = (insert(store) for _ in range(4))
    third = insert(store, a_memory(caption="a moon"), replaces=first.id)
    for group, outcome in (("g", RIGHT), ("h", WRONG), ("g", WRONG)):
        credit(store, group, {first.id, second.id, purged.id, erased.id}, outcome)
    store.transaction(
        lambda writing: writing.save_episode(
            an_episode("ep-1"), scope="default", absorbed=True, lessons=[second.id, purged.id]
        )
    )
    store.transaction(lambda writing: writing.enqueue(Task.COMPRESS, second.id, scope="default", error="down", delay=1))
    store.transaction(lambda writing: writing.enqueue(Task.REMEMBER, "ep-1", scope="default", error="", delay=1))
    set_state(store, MemoryState.FORGOTTEN, purged)
    store.purge(ids=[purged.id])
    store.erase(memory_ids=[erased.id])
    store.rollback(store.audit(limit=1)[0].sequence - 4)
    return [first, second, third]


def break_it(store: SqliteStore, statement: str, *values: object) -> None:
    store._writer.execute(statement, values)


def found(store: SqliteStore) -> list[tuple[str, str, bool]]:
    return [(problem.kind, problem.subject, problem.repairable) for problem in store.check().problems]


def test_a_sound_store_is_found_sound(store: SqliteStore) -> None:
    assert store.check().sound
    live(store)
    report = store.check()
    assert report.problems == ()
    assert (report.memories, report.episodes) == (3, 1)
    assert report.changes == len(store.audit(limit=999))
    repair = store.repair()
    assert (repair.repaired, repair.backup) == ((), None)


def test_what_the_rest_of_the_store_tells_is_repaired(store: SqliteStore, path: Path) -> None:
    first, second, third = live(store)
    was = counts(store, second)
    break_it(store, "UPDATE memories SET uses = 77, wins = 70 WHERE id = ?", second.id)
    break_it(store, "UPDATE memories SET fingerprint = 5 WHERE id = ?", first.id)
    break_it(store, "UPDATE memories SET captioned = 0 WHERE id = ?", third.id)
    break_it(store, "INSERT INTO queue VALUES ('compress', 'mem-x', 'default', '', 1, 1.0, 1.0)")
    break_it(store, "INSERT INTO queue VALUES ('remember', 'ep-x', 'default', '', 1, 1.0, 1.0)")
    expected = [
        ("fingerprint", first.id, True),
        ("caption", third.id, True),
        ("counts", second.id, True),
        ("queue", "compress mem-x", True),
        ("queue", "remember ep-x", True),
    ]
    assert found(store) == expected
    before = len(store.audit(limit=999))
    repair = store.repair()
    assert [(problem.kind, problem.subject, problem.repairable) for problem in repair.repaired] == expected
    assert repair.left.sound
    assert counts(store, second) == was
    assert [one.id for one, _ in store.alike("default", first.kind, first.question)][:1] == [second.id]
    assert len(store.queue()) == 2
    repairs = store.audit(limit=len(expected))
    assert {change.action for change in repairs} == {"repair"}
    assert len(store.audit(limit=999)) == before + len(expected)
    assert repairs[2].before == {"uses": 77, "wins": 70}
    # A copy as it was lies beside it; an erasure takes it away.
    assert repair.backup is not None
    with sqlite3.connect(repair.backup) as copy:
        assert copy.execute("SELECT uses FROM memories WHERE id = ?", (second.id,)).fetchone() == (77,)
    copy.close()
    assert store.erase(memory_ids=["mem-none"]).backups == (repair.backup,)
    assert not repair.backup.exists()


def test_the_audit_is_read_once_for_all_counts(store: SqliteStore) -> None:
    memories = [insert(store) for _ in range(8)]
    break_it(store, "UPDATE memories SET uses = 9")
    read: list[str] = []
    store._writer.set_trace_callback(lambda statement: read.append(statement) if "'roll back'" in statement else None)
    assert len(store.repair().repaired) == len(memories)
    # Once to look again under the lock, once to mend.
    assert len(read) == 2
    assert {counts(store, memory) for memory in memories} == {(1, 1)}


def test_what_went_wrong_in_a_queue_does_not_get_into_the_audit(store: SqliteStore) -> None:
    break_it(store, "INSERT INTO queue VALUES ('compress', 'mem-x', 'default', 'who found Titan?', 1, 1.0, 1.0)")
    store.repair()
    assert store.audit(limit=1)[0].before.keys() == {"task", "subject", "scope", "attempts", "since", "retry_at"}


def test_a_broken_index_is_made_anew(path: Path) -> None:
    with open_store(path) as store:
        memory = insert(store)
    raw = sqlite3.connect(path, isolation_level=None)
    # Point the schema's index at another column order: to SQLite, its entries are then missing.
    raw.execute("PRAGMA writable_schema = ON")
    raw.execute(
        "UPDATE sqlite_master SET sql = replace(sql, 'scope, fingerprint', 'fingerprint, scope') "
        "WHERE name = 'memories_by_words'"
    )
    raw.close()
    with open_store(path) as store:
        assert {(kind, repairable) for kind, _, repairable in found(store)} == {("index", True)}
        assert store.repair().left.sound
        assert store.memory(memory.id) == memory
        assert [one.id for one, _ in store.alike("default", memory.kind, memory.question)] == [memory.id]


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DELETE FROM texts WHERE sequence = 2", "texts"),
        ("INSERT INTO texts SELECT 99, question, caption, workflow, plan, incorrect_plan, reviews, provenance, "
         "question_vector, caption_vector FROM texts WHERE sequence = 2", "texts"),
        ("UPDATE texts SET provenance = '{' WHERE sequence = 2", "record"),
        ("UPDATE texts SET reviews = '[{}]' WHERE sequence = 2", "record"),
        ("UPDATE memories SET episode_id = 'ep-9' WHERE sequence = 2", "record"),
        ("UPDATE texts SET question_vector = x'00' WHERE sequence = 2", "vectors"),
        ("UPDATE texts SET question_vector = x'0000c07f00000000' WHERE sequence = 2", "vectors"),
        ("UPDATE texts SET question_vector = x'0000004000000040' WHERE sequence = 2", "vectors"),
        ("UPDATE texts SET caption_vector = question_vector WHERE sequence = 2", "vectors"),
        ("UPDATE texts SET caption_vector = NULL WHERE sequence = 5", "vectors"),
        ("UPDATE credits SET memory_ids = '[\"mem-x\"]' WHERE question_group = 'h'", "credits"),
        ("UPDATE credits SET memory_ids = '[' WHERE question_group = 'h'", "credits"),
        ("UPDATE memories SET replaced_by = 'mem-x' WHERE sequence = 1", "replaced_by"),
        ("UPDATE memories SET replaced_by = id WHERE sequence = 1", "replaced_by"),
        ("UPDATE memories SET replaced_by = id WHERE sequence = 2", "replaced_by"),
        ("UPDATE episodes SET json = '{}'", "episode"),
        ("UPDATE episodes SET json = replace(json, 'ep-1', 'ep-2')", "episode"),
        ("UPDATE episodes SET lessons = '[\"mem-x\"]'", "lessons"),
        ("UPDATE audit SET before = '{' WHERE action = 'replace'", "audit"),
        ("DELETE FROM audit WHERE sequence = 2", "audit"),
        ("INSERT INTO meta VALUES ('erasing', '{}')", "erasure"),
    ],
)  # fmt: skip
def test_what_nobody_can_know_is_said_and_left(store: SqliteStore, statement: str, kind: str) -> None:
    live(store)
    break_it(store, statement)
    problems = store.check().problems
    assert {problem.kind for problem in problems if not problem.repairable} == {kind}
    assert all(problem.sentence for problem in problems)


def test_a_damaged_file_is_said(path: Path) -> None:
    with open_store(path) as store:
        for _ in range(50):
            insert(store, a_memory("x" * 5000))
    content = bytearray(path.read_bytes())
    content[5 * 4096 : 30 * 4096] = bytes(25 * 4096)
    path.write_bytes(bytes(content))
    with open_store(path) as store:
        report = store.check()
        assert {problem.kind for problem in report.problems} == {"file"}
        assert "--salvage" in report.problems[0].sentence
