"""What is purged or erased is gone: from the rows, and from every byte beside the database."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stored import (
    NONE,
    RIGHT,
    WRONG,
    a_memory,
    an_episode,
    counts,
    credit,
    insert,
    made_of,
    set_expiry,
    set_state,
    vector,
)

from mia.errors import RecordError, StoreError
from mia.store import open_store, sqlite
from mia.store.base import Erased, Task
from mia.store.erasing import ERASED
from mia.store.rows import blob
from mia.store.sqlite import SqliteStore
from mia.types import (
    Attempt,
    Episode,
    Image,
    MemoryKind,
    MemoryState,
    Plan,
    Provenance,
    Question,
    Stop,
    StopReason,
    Trace,
)

SENTENCE = "Ann Smith grows purple aubergines"
VECTOR = vector(0.123456789, 0.987654321)


def save(store: SqliteStore, episode: Episode, *, scope: str = "default", lessons: tuple[str, ...] = ()) -> Episode:
    store.transaction(lambda writing: writing.save_episode(episode, scope=scope, absorbed=True, lessons=lessons))
    return episode


def planned(id: str, plan: str, *, question: str = "Who found Titan?") -> Episode:
    trace = Trace(stop=Stop(reason=StopReason.ANSWERED, sentence="."))
    return an_episode(id, question=question).evolve(attempts=(Attempt(plan=Plan(text=plan), trace=trace),))


def files_with(folder: Path, *needles: bytes) -> list[str]:
    """The files below a folder that hold one of these."""
    return [
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and any(needle in file.read_bytes() for needle in needles)
    ]


def gone(store: SqliteStore, id: str) -> bool:
    try:
        store.memory(id)
    except RecordError:
        return True
    return False


# ── purge ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_is_out_of_sight_is_purged(store: SqliteStore) -> None:
    active, forgotten, old, quarantined, expired = (insert(store) for _ in range(5))
    elsewhere = insert(store, a_memory(scope="other"))
    set_state(store, MemoryState.FORGOTTEN, forgotten, elsewhere)
    set_state(store, MemoryState.QUARANTINED, quarantined)
    set_expiry(store, 5.0, expired)
    set_expiry(store, 9e9, active)
    new = insert(store, replaces=old.id)
    epoch = store.census("default").epoch
    store.transaction(lambda writing: writing.enqueue(Task.COMPRESS, forgotten.id, scope="default", error="", delay=1))
    purged = store.purge(scope="default")
    assert purged == Erased(memories=(forgotten.id, old.id, expired.id))
    assert all(gone(store, id) for id in purged.memories)
    assert {memory.id for memory, _ in store.export(None)} == {active.id, quarantined.id, elsewhere.id, new.id}
    assert store.census("default").epoch == epoch + 1
    assert store.queue() == ()
    assert store.purge(scope="default") == Erased()
    assert store.census("default").epoch == epoch + 1
    # By id: what is quarantined too, what is active never.
    assert store.purge(ids=[quarantined.id, active.id, "mem-x"]).memories == (quarantined.id,)
    assert store.purge().memories == (elsewhere.id,)


def test_the_audit_says_that_it_was_there(store: SqliteStore) -> None:
    old = insert(store, a_memory(SENTENCE))
    new = insert(store, replaces=old.id)
    newest = insert(store, replaces=new.id)
    store.purge(ids=[new.id])
    change = store.audit(memory_id=new.id, limit=1)[0]
    assert (change.action, change.scope, change.after) == ("purge", "default", {})
    # What took the place of the replaced one can still be followed.
    assert store.memory(old.id).replaced_by == new.id
    assert change.before["replaced_by"] == newest.id
    store.purge()
    assert SENTENCE not in str(store.audit(limit=99))


def test_it_goes_by_how_long_it_was_out_of_sight(store: SqliteStore) -> None:
    forgotten, expired, imported = insert(store), insert(store), insert(store, a_memory(state=MemoryState.FORGOTTEN))
    credit(store, "g", {imported.id}, RIGHT)
    set_state(store, MemoryState.FORGOTTEN, forgotten)
    set_state(store, MemoryState.ACTIVE, forgotten)
    before_all = time.time()
    time.sleep(0.01)
    set_state(store, MemoryState.FORGOTTEN, forgotten)
    set_expiry(store, 5.0, expired)
    between = time.time()
    time.sleep(0.01)
    credit(store, "late", {forgotten.id}, RIGHT)
    assert store.purge(before=before_all).memories == (imported.id,)
    assert store.purge(before=between).memories == (forgotten.id, expired.id)


def test_a_dry_run_says_what_would_go_and_changes_nothing(store: SqliteStore) -> None:
    forgotten, expired, quarantined, _ = (insert(store) for _ in range(4))
    set_state(store, MemoryState.FORGOTTEN, forgotten)
    set_state(store, MemoryState.QUARANTINED, quarantined)
    set_expiry(store, 5.0, expired)
    before = store.audit(limit=99)
    assert store.purge(dry_run=True, ids=[quarantined.id]).memories == (quarantined.id,)
    assert store.purge(dry_run=True, before=5.5).memories == ()
    assert store.purge(dry_run=True, scope="other").memories == ()
    would = store.purge(dry_run=True)
    assert store.audit(limit=99) == before
    assert store.purge() == would == Erased(memories=(forgotten.id, expired.id))


def test_a_purge_takes_the_reasons_with_it(store: SqliteStore) -> None:
    memory, other = insert(store), insert(store)
    for one in (memory, other):
        store.transaction(
            lambda writing, id=one.id: writing.set_state([id], MemoryState.FORGOTTEN, action="forget", reason=SENTENCE)  # type: ignore[misc]
        )
    store.purge(ids=[memory.id])
    assert [change.reason for change in store.audit(memory_id=memory.id, limit=9)] == ["", "", ""]
    assert store.audit(memory_id=other.id, limit=1)[0].reason == SENTENCE
    assert store.check().sound


def test_a_late_verdict_does_not_find_it(store: SqliteStore) -> None:
    memory, other = insert(store), insert(store)
    credit(store, "g", {memory.id, other.id}, WRONG)
    set_state(store, MemoryState.FORGOTTEN, memory)
    store.purge()
    assert credit(store, "g", {memory.id, other.id}, RIGHT) == 1
    assert counts(store, other) == (2, 2)
    assert credit(store, "h", {memory.id}, RIGHT) == 0


def test_a_number_that_is_given_again_brings_no_history_with_it(store: SqliteStore) -> None:
    first = insert(store)
    last = insert(store)
    credit(store, "g", {first.id, last.id}, RIGHT)
    set_state(store, MemoryState.FORGOTTEN, last)
    (number,) = store.numbers([last.id]).values()
    store.purge()
    heir = insert(store)
    if store.numbers([heir.id])[heir.id] == number:
        assert [change.action for change in store.audit(memory_id=heir.id, limit=9)] == ["add"]
    assert [change.action for change in store.audit(memory_id=first.id, limit=9)] == ["credit", "add"]


# ── erase ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_of_it_is_left_in_any_file(path: Path) -> None:
    with open_store(path) as store:
        for number in range(200):
            insert(store, a_memory(f"question {number} " + "x" * 500))
        victim = insert(store, a_memory(SENTENCE, workflow=f"1. {SENTENCE} " * 300), question=VECTOR)
        forgotten = insert(store, a_memory(f"2 {SENTENCE}"), question=VECTOR)
        set_state(store, MemoryState.FORGOTTEN, forgotten)
        store.transaction(
            lambda writing: writing.set_state(
                [victim.id], MemoryState.QUARANTINED, action="quarantine", reason=SENTENCE
            )
        )
        kept = save(store, an_episode("ep-kept", shown=[victim, store.list_memories(None, limit=1)[0]]))
        own = save(store, an_episode("ep-own", question=f"{SENTENCE}?"))
        store.transaction(
            lambda writing: writing.enqueue(Task.COMPRESS, victim.id, scope="default", error=SENTENCE, delay=1)
        )
        store.cache.mkdir()
        (store.cache / "below").mkdir()
        (store.cache / "below" / "vectors").write_bytes(blob(VECTOR))
        backup, unfinished = path.with_name("memory.db.v1-backup"), path.with_name("memory.db.v1-backup.unfinished")
        backup.write_text(SENTENCE)
        unfinished.write_text(SENTENCE)
        needles = (SENTENCE.encode(), blob(VECTOR))
        assert set(files_with(path.parent, *needles)) >= {"memory.db-wal", "memory.db.cache/below/vectors", backup.name}

        erased = store.erase(memory_ids=[victim.id, forgotten.id], episode_ids=[own.id])
        assert erased.memories == (victim.id, forgotten.id)
        assert erased.episodes == (own.id,)
        assert erased.backups == (backup, unfinished)
        assert files_with(path.parent, *needles) == []
        assert path.with_name("memory.db-wal").stat().st_size == 0
        # All else is there.
        assert store.count_memories() == 200
        assert store.load_episode(kept.id).question == kept.question
        insert(store)
    assert files_with(path.parent, *needles) == []


def test_a_scope_is_erased_with_all_below_it(store: SqliteStore) -> None:
    shared = insert(store, a_memory(scope="team"))
    own = insert(store, a_memory(SENTENCE, scope="team/ann"))
    below = insert(store, a_memory(SENTENCE, scope="team/ann/home"))
    set_state(store, MemoryState.FORGOTTEN, below)
    purged = insert(store, a_memory(SENTENCE, scope="team/ann"))
    beside = insert(store, a_memory(scope="team/annabel"))
    save(store, an_episode("ep-ann", run="run-1", shown=[shared]), scope="team/ann")
    other = save(store, an_episode("ep-bob", shown=[purged, shared]), scope="team/bob")
    credit(store, "ep-ann", {shared.id, own.id}, RIGHT, ["team/ann", "team"])
    set_state(store, MemoryState.FORGOTTEN, purged)
    store.purge(ids=[purged.id])
    store.register_copy(Path("/somewhere/runs"))
    epoch = store.census("team").epoch

    erased = store.erase(scope="team/ann")
    assert set(erased.memories) == {own.id, below.id}
    assert (erased.episodes, erased.runs, erased.copies) == (("ep-ann",), ("run-1",), (Path("/somewhere/runs"),))
    assert {memory.id for memory, _ in store.export(None)} == {shared.id, beside.id}
    assert store.census("team").epoch == epoch + 1
    # What was counted for others stays counted; whose verdict it was is not known any more.
    assert counts(store, shared) == (2, 2)
    (change,) = [change for change in store.audit(limit=99) if change.action == "credit"]
    assert (change.reason, change.after["memory_ids"], change.after["counts"]) == ("", [shared.id], {shared.id: [2, 2]})
    # Even what was purged before leaves no word in the episodes of others.
    assert SENTENCE not in store.load_episode(other.id).model_dump_json()
    actions = [change.action for change in store.audit(memory_id=own.id, limit=9)]
    assert actions == ["erase", "add"]


def test_an_episode_takes_its_memories_with_it(store: SqliteStore) -> None:
    right, wrong = planned("ep-right", "look at the moon"), planned("ep-wrong", "ask a friend")
    memory = insert(store, made_of(right))
    pair = insert(
        store,
        made_of(right, kind=MemoryKind.PLAN_PAIR, workflow="", plan="look at the moon", incorrect_plan="ask a friend"),
    )
    another = insert(
        store,
        a_memory(kind=MemoryKind.PLAN_PAIR, plan="sleep", incorrect_plan="eat", provenance=Provenance(episode_id="e")),
    )
    save(store, right, lessons=(memory.id, pair.id, another.id))
    save(store, wrong)
    # The pair quotes the plan of both.
    assert store.erase(episode_ids=["ep-wrong"]).memories == (pair.id,)
    assert store.erase(episode_ids=["ep-right"]).memories == (memory.id,)
    assert not gone(store, another.id)


def test_a_memory_leaves_its_episode_where_it_is(store: SqliteStore) -> None:
    episode = an_episode("ep-1")
    memory, other = insert(store, made_of(episode)), insert(store)
    save(store, episode, lessons=(memory.id, other.id))
    assert store.erase(memory_ids=[memory.id]).episodes == ()
    assert store.load_episode("ep-1") == episode
    assert [one.id for one in store.memories_of(["ep-1"])] == [other.id]


def test_all_episodes_of_a_question_are_erased(store: SqliteStore) -> None:
    question = Question.of(SENTENCE)
    for id in ("ep-1", "ep-2"):
        save(store, an_episode(id, question=SENTENCE))
    save(store, an_episode("ep-3"))
    memory = insert(store, made_of(an_episode("ep-2")))
    erased = store.erase(question_ids=[question.id])
    assert erased.episodes == ("ep-1", "ep-2")
    assert erased.memories == (memory.id,)
    assert store.count_episodes() == 1


def test_credits_of_erased_groups_go_and_others_lose_a_name(store: SqliteStore) -> None:
    memory, other = insert(store), insert(store)
    save(store, an_episode("ep-1"))
    credit(store, "ep-1", {memory.id, other.id}, RIGHT)
    credit(store, "ep-2", {memory.id, other.id}, NONE)
    store.erase(memory_ids=[memory.id], episode_ids=["ep-1"])
    rows = [tuple(row) for row in store._reader.execute("SELECT question_group, memory_ids FROM credits")]
    assert rows == [("ep-2", f'["{other.id}"]')]
    assert memory.id not in str(store.audit(memory_id=other.id, limit=99))
    # The verdict of the other group can still be changed, and the history undone.
    credit(store, "ep-2", {memory.id, other.id}, RIGHT)
    assert counts(store, other) == (3, 3)
    store.rollback(2)
    assert counts(store, other) == (1, 1)


def test_credits_that_are_left_without_a_memory_go_with_their_names(store: SqliteStore) -> None:
    memory, other = insert(store), insert(store)
    group = f"about {SENTENCE}"
    for outcome in (RIGHT, WRONG):
        credit(store, group, {memory.id}, outcome)
    # The same name in another scope is another group.
    credit(store, group, {other.id}, RIGHT, ["default/project", "default"])
    store.erase(memory_ids=[memory.id])
    found = [tuple(row) for row in store._reader.execute("SELECT scope, question_group FROM credits")]
    assert found == [("default/project", group)]
    assert [change.scope for change in store.audit(limit=99) if SENTENCE in str(change)] == ["default/project"]
    assert counts(store, other) == (2, 2)
    assert store.check().sound


def test_the_users_own_copies_are_left_alone(store: SqliteStore, path: Path) -> None:
    own = ("my-backup", "v1-backup-kept", "vx-backup", "backup", "2024-repair-backup", "v1-backup.gz")
    ours = ("20240102-030405-repair-backup", "v1-backup", "v1-backup-wal", "v12-backup.unfinished")
    for name in (*own, *ours):
        path.with_name(f"{path.name}.{name}").write_text("a copy")
    path.with_name("memoryxdb.v1-backup").write_text("of another file")
    erased = store.erase(memory_ids=["mem-none"])
    assert [file.name for file in erased.backups] == [f"{path.name}.{name}" for name in ours]
    left = {file.name for file in path.parent.iterdir() if "backup" in file.name}
    assert left == {*(f"{path.name}.{name}" for name in own), "memoryxdb.v1-backup"}


def test_other_episodes_lose_what_they_were_shown(store: SqliteStore) -> None:
    memory, other = insert(store, a_memory(SENTENCE)), insert(store)
    shown = an_episode("ep-1", shown=[memory, other])
    passed = an_episode("ep-2", shown=[other])
    assert passed.recall is not None
    assert shown.recall is not None
    passed = passed.evolve(recall=passed.recall.evolve(passed_over=(shown.recall.shown[0],)))
    untouched = an_episode("ep-3", shown=[other])
    for episode in (shown, passed, untouched):
        save(store, episode)
    store.erase(memory_ids=[memory.id])
    first, second, third = (store.load_episode(id) for id in ("ep-1", "ep-2", "ep-3"))
    assert first.recall is not None
    assert second.recall is not None
    assert (first.recall.for_planner, first.recall.for_executor) == (ERASED, ERASED)
    assert [(one.memory_id, one.question) for one in first.recall.shown] == [
        (memory.id, ERASED),
        (other.id, other.question),
    ]
    assert second.recall.for_planner == passed.recall.for_planner  # type: ignore[union-attr]
    assert second.recall.passed_over[0].question == ERASED
    assert third == untouched


def test_images_that_another_episode_holds_are_not_named(store: SqliteStore) -> None:
    images = [Image(sha256=letter * 64, media_type="image/png") for letter in "ab"]
    for id, held in (("ep-1", images), ("ep-2", images[1:])):
        save(store, an_episode(id).evolve(question=Question.of("What is it?", images=tuple(held))))
    assert store.erase(episode_ids=["ep-1"]).images == ("a" * 64,)
    assert store.erase(episode_ids=["ep-2"]).images == ("b" * 64,)


def test_the_store_goes_on_working_beside_an_erasure(store: SqliteStore) -> None:
    for _ in range(50):
        insert(store, a_memory("x" * 5000))
    stop = threading.Event()
    failures: list[BaseException] = []
    added: list[str] = []

    def work() -> None:
        try:
            while not stop.is_set():
                added.append(insert(store).id)
                store.count_memories()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for memory in store.list_memories("default", limit=3):
        store.erase(memory_ids=[memory.id])
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.count_memories() >= 50 + len(added) - 3


@pytest.fixture
def a_reader(path: Path, store: SqliteStore) -> Iterator[sqlite3.Connection]:
    """Another program that reads an old state of the store and does not stop."""
    other = sqlite3.connect(path, isolation_level=None)
    yield other
    other.close()


def test_a_log_that_cannot_be_emptied_is_said_and_finished_later(
    store: SqliteStore, path: Path, a_reader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    memory = insert(store, a_memory(SENTENCE))
    save(store, an_episode("ep-1", run="r"))
    a_reader.execute("BEGIN")
    a_reader.execute("SELECT count(*) FROM memories").fetchone()
    with pytest.raises(StoreError, match="the rows are erased") as caught:
        store.erase(memory_ids=[memory.id], episode_ids=["ep-1"])
    assert "traces of them are still in its files" in caught.value.got
    assert "run the same command again" in caught.value.hint
    assert gone(store, memory.id)
    assert files_with(path.parent, SENTENCE.encode()) != []
    a_reader.execute("ROLLBACK")
    # Again, with the same arguments or with none: what was erased the first time is named once more.
    erased = store.erase()
    assert (erased.memories, erased.episodes, erased.runs) == ((memory.id,), ("ep-1",), ("r",))
    assert files_with(path.parent, SENTENCE.encode()) == []
    assert store.erase() == Erased()


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_an_erasure_that_was_killed_is_finished_by_the_next(path: Path) -> None:
    """Killed at instants spread over its whole length; afterwards the rows are all there or all gone."""
    code = f"""
from pathlib import Path
from mia.store import open_store
store = open_store(Path({str(path)!r}))
print("go", flush=True)
store.erase(scope="ann")
print("done", flush=True)
"""
    unfinished = 0
    for delay in (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08):
        with open_store(path) as store:
            ids = {insert(store, a_memory(f"{SENTENCE} {'x' * 9000}", scope="ann")).id for _ in range(30)}
            others = {insert(store, a_memory("y" * 9000)).id for _ in range(30)}
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        finished = "done" in process.communicate(timeout=30)[0]
        with open_store(path) as store:
            left = {memory.id for memory in store.list_memories("ann", limit=999)}
            assert left in (ids, set())
            erased = store.erase(scope="ann")
            if not finished:
                unfinished += 1
                # Those of the killed erasure are named again, unless it was past its last step.
                assert set(erased.memories) in (ids, set())
            assert files_with(path.parent, SENTENCE.encode()) == []
            assert {memory.id for memory in store.list_memories("default", limit=999)} >= others
    assert unfinished


def test_an_episode_that_comes_later_brings_back_no_word_of_it(store: SqliteStore) -> None:
    secret, other = insert(store, a_memory(SENTENCE)), insert(store)
    late = an_episode("ep-late", shown=[secret, other])
    store.erase(memory_ids=[secret.id])
    save(store, late)
    kept = store.load_episode("ep-late").recall
    assert kept is not None
    assert [one.question for one in kept.shown] == [ERASED, other.question]
    assert (kept.for_planner, kept.for_executor) == (ERASED, ERASED)
    # A memory that was purged was nobody's secret.
    set_state(store, MemoryState.FORGOTTEN, other)
    store.purge()
    save(store, late.evolve(id="ep-later"))
    kept = store.load_episode("ep-later").recall
    assert kept is not None
    assert [one.question for one in kept.shown] == [ERASED, other.question]


def test_when_a_scope_was_erased_is_known_to_all_below_it(store: SqliteStore) -> None:
    assert store.erased_at("acme/ann") == 0
    begun = time.time()
    store.erase(scope="acme")
    erased = store.erased_at("acme/ann")
    assert begun <= erased <= time.time()
    assert store.erased_at("acme") == erased
    assert (store.erased_at("acmeX"), store.erased_at("other"), store.erased_at("default")) == (0, 0, 0)
    store.erase(scope="acme/ann")
    assert store.erased_at("acme/ann") >= erased
    assert store.erased_at("acme/bob") == erased
