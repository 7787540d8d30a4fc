"""The SQLite store: what went in comes out, whole, once, whatever happens to the file or to another writer."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import (
    NONE,
    RIGHT,
    SPACE,
    UNKNOWN,
    WRONG,
    a_memory,
    an_episode,
    counts,
    credit,
    insert,
    set_expiry,
    set_state,
    vector,
)

from mia.errors import RecordError, StoreError
from mia.store import open_store, sqlite
from mia.store.base import MemoryVectors, Task, Writing, fingerprint
from mia.store.sqlite import SqliteStore
from mia.types import Answer, MemoryKind, MemoryState, Outcome, Provenance, Review, Verdict

# ── memories ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(os.name != "posix", reason="needs file modes of POSIX")
def test_nobody_else_on_the_machine_can_read_it(path: Path) -> None:
    with open_store(path) as store:
        insert(store, a_memory())
        files = [file for file in path.parent.iterdir() if file.is_file()]
        assert files
        assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_every_field_survives_a_restart(path: Path) -> None:
    memory = a_memory(
        scope="tenant/project",
        caption="a moon",
        category="human",
        plan="1. search",
        judgement="incorrect",
        reviews=(Review(reviewer="sourcing", score=3, reason="no source"),),
        uses=4,
        wins=2,
        provenance=Provenance(episode_id="ep-1", leaned_on=("mem-0",), compressed_by="rules"),
        created_at=1234.5,
        updated_at=1235.25,
        expires_at=9e9,
        state=MemoryState.QUARANTINED,
    )
    pair = a_memory(kind=MemoryKind.PLAN_PAIR, workflow="", plan="good", incorrect_plan="bad")
    with open_store(path) as store:
        insert(store, memory)
        insert(store, pair)
    with open_store(path) as store:
        assert store.memory(memory.id) == memory
        assert store.memory(pair.id) == pair
        ((kept, vectors),) = store.export("tenant")
        assert kept == memory
        assert vectors.space == SPACE
        assert vectors.question.tolist() == [1, 0]
        assert vectors.caption is not None
        assert vectors.caption.tolist() == [0, 1]
        ((_, vectors),) = store.export("default")
        assert vectors.caption is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\0b", "a\0b"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("'; DROP TABLE memories; --", "'; DROP TABLE memories; --"),
        ("𝔘𝔫𝔦 ö \u202e \r\n\t 漢字 👩‍👩‍👧", "𝔘𝔫𝔦 ö \u202e \r\n\t 漢字 👩‍👩‍👧"),
        ("x" * 10_000_000, "x" * 10_000_000),
    ],
    ids=["nul", "surrogate", "quotes", "unicode", "10 MB"],
)
def test_any_text_is_kept(store: SqliteStore, text: str, kept: str) -> None:
    memory = insert(store, a_memory(text, workflow=text))
    store.save_episode(an_episode("ep-1").evolve(answer=Answer(text=text)))
    assert store.memory(memory.id).question == kept
    assert store.memory(memory.id).workflow == kept
    assert store.load_episode("ep-1").answer == Answer(text=kept)


def test_a_replaced_memory_is_out_of_sight_and_not_forgotten(store: SqliteStore) -> None:
    old, new = (insert(store, a_memory()) for _ in range(2))
    seen = store.changes("default", 0).revision
    newest = insert(store, a_memory(), replaces=old.id)
    assert [memory.id for memory in store.list_memories("default", limit=10)] == [newest.id, new.id]
    assert store.count_memories("default") == store.count_memories() == 2
    kept = store.memory(old.id)
    assert (kept.state, kept.replaced_by, kept.workflow) == (MemoryState.REPLACED, newest.id, old.workflow)
    rows = store.changes("default", seen).rows
    names = store.named(rows.sequence.tolist())
    assert {
        names[sequence][0]: bool(active) for sequence, active in zip(rows.sequence.tolist(), rows.active, strict=True)
    } == {
        old.id: False,
        newest.id: True,
    }
    assert credit(store, "late", {old.id}, Outcome.CORRECT) == 1
    assert counts(store, old) == (2, 2)


def test_what_is_active_because_of_episodes(store: SqliteStore) -> None:
    memories = [insert(store, a_memory()) for _ in range(3)]
    for number, lessons in enumerate((memories[:2], memories[1:2], memories[2:])):
        store.transaction(
            lambda writing, number=number, lessons=lessons: writing.save_episode(
                an_episode(f"ep-{number}"), scope="default", absorbed=True, lessons=[one.id for one in lessons]
            )
        )
    set_state(store, MemoryState.FORGOTTEN, memories[0])
    store.save_episode(an_episode("ep-1"))  # Lessons once known stay known.
    assert [memory.id for memory in store.memories_of(["ep-0", "ep-1"])] == [memories[1].id]
    assert [memory.id for memory in store.memories_of(["ep-2", "ep-x"])] == [memories[2].id]


def test_changes_are_those_since_a_revision_and_of_one_scope(store: SqliteStore) -> None:
    first = insert(store, a_memory(caption="a moon", created_at=3.0, expires_at=5.0))
    insert(store, a_memory(scope="other"))
    seen = store.changes("default", 0)
    rows = seen.rows
    assert store.named(rows.sequence.tolist()) == {1: (first.id, first.question)}
    assert (rows.new.tolist(), rows.questions.tolist(), rows.captions.tolist()) == ([True], [[1, 0]], [[0, 1]])
    assert (rows.created_at.tolist(), rows.expires_at.tolist()) == ([3.0], [5.0])
    assert len(store.changes("default", seen.revision).rows) == 0
    credit(store, "g", {first.id}, Outcome.INCORRECT)
    rows = store.changes("default", seen.revision, known=1).rows
    assert (rows.sequence.tolist(), rows.uses.tolist(), rows.wins.tolist()) == ([1], [2], [1])
    assert (rows.new.tolist(), rows.questions.size) == ([False], 0)


def test_questions_of_the_same_words_are_alike(store: SqliteStore) -> None:
    first = insert(store, a_memory("Who found Titan?"))
    second = insert(store, a_memory("who FOUND titan"))
    insert(store, a_memory("Who found Io?"))
    insert(store, a_memory("Who found Titan?", scope="other"))
    insert(store, a_memory("Who found Titan?", kind=MemoryKind.PLAN_PAIR))
    set_state(store, MemoryState.QUARANTINED, insert(store, a_memory("Who found Titan?")))
    alike = store.alike("default", MemoryKind.WORKFLOW, "who found titan!")
    assert [memory.id for memory, _ in alike] == [first.id, second.id]
    assert alike[0][1].question.tolist() == [1, 0]


def test_what_waits_for_a_model_is_a_queue(store: SqliteStore) -> None:
    def put(subject: str, error: str, scope: str = "default") -> None:
        store.transaction(lambda writing: writing.enqueue(Task.COMPRESS, subject, scope=scope, error=error, delay=60))

    put("mem-1", "down")
    put("mem-2", "down", "default/project")
    put("mem-1", "still down")
    put("mem-3", "down", "other")
    first, second = store.queue("default")
    assert (first.subject, first.error, first.attempts) == ("mem-1", "still down", 2)
    assert first.retry_at >= first.since + 60
    assert second.subject == "mem-2"
    assert len(store.queue()) == 3
    store.transaction(lambda writing: writing.dequeue(Task.COMPRESS, ["mem-1", "mem-unknown"]))
    store.transaction(lambda writing: writing.dequeue(Task.CATEGORISE, ["mem-2"]))
    assert [entry.subject for entry in store.queue()] == ["mem-2", "mem-3"]


def test_every_change_is_in_the_audit_with_before_and_after(store: SqliteStore) -> None:
    memory, bystander = insert(store, a_memory()), insert(store, a_memory())
    set_state(store, MemoryState.FORGOTTEN, memory)
    assert set_state(store, MemoryState.FORGOTTEN, memory) == ()
    store.transaction(lambda writing: writing.set_category(memory.id, "human"))
    set_expiry(store, 7.0, memory)
    credit(store, "g", {memory.id, bystander.id}, RIGHT)
    changes = store.audit(memory_id=memory.id, limit=10)
    assert [change.action for change in changes] == ["credit", "expire", "categorise", "forget", "add"]
    credited, expired, categorised, forgotten, added = changes
    assert (added.before, added.after) == ({}, {"state": "active", "uses": 1, "wins": 1})
    assert forgotten.before == {"state": "active", "replaced_by": ""}
    assert forgotten.after == {"state": "forgotten", "replaced_by": ""}
    assert (categorised.before, categorised.after) == ({"category": "others"}, {"category": "human"})
    assert (expired.before, expired.after) == ({"expires_at": None}, {"expires_at": 7.0})
    assert credited.after["counts"] == {memory.id: [2, 2], bystander.id: [2, 2]}
    assert [change.action for change in store.audit(limit=2, before=credited.sequence)] == ["expire", "categorise"]
    assert store.audit(scope="default/below", limit=9) == ()


def test_over_quota_the_least_valuable_are_forgotten_first(store: SqliteStore) -> None:
    """150 memories; 100 may stay, so 99 do: the expired go first, then by (wins) / (trials + 2), the oldest first."""
    expired = insert(store, a_memory(uses=9, wins=9, expires_at=1.0))
    poor = insert(store, a_memory(uses=9, wins=1))
    untried = [insert(store, a_memory()) for _ in range(146)]
    good = insert(store, a_memory(uses=3, wins=3))
    unborn = insert(store, a_memory(uses=0, wins=0))
    insert(store, a_memory(scope="default/below", uses=9, wins=0))

    def evict(most: int) -> tuple[str, ...]:
        return store.transaction(lambda writing: writing.evict("default", most))

    assert evict(150) == ()
    gone = evict(100)
    assert set(gone) == {expired.id, poor.id, unborn.id, *(memory.id for memory in untried[:48])}
    assert store.count_memories("default") == 99 + 1
    assert store.memory(good.id).state is MemoryState.ACTIVE
    assert store.memory(poor.id).state is MemoryState.FORGOTTEN
    assert store.audit(memory_id=poor.id, limit=1)[0].reason == "quota"
    # Of few, one per cent is none: the best one stays.
    assert len(evict(1)) == 98
    assert [memory.id for memory in store.list_memories("default", limit=9)][1:] == [good.id]


def test_the_newest_come_first_by_arrival_whatever_the_clock_says(store: SqliteStore) -> None:
    ids = [insert(store, a_memory(created_at=at)).id for at in (3.0, 1.0, 2.0)]
    assert [memory.id for memory in store.list_memories("default", limit=2)] == [ids[2], ids[1]]
    assert [memory.id for memory in store.list_memories("default", limit=2, offset=2)] == [ids[0]]


def test_a_memory_is_found_by_the_beginning_of_its_id(store: SqliteStore) -> None:
    one = insert(store, a_memory(id="mem-aa1"))
    insert(store, a_memory(id="mem-aa2"))
    longer = insert(store, a_memory(id="mem-aa11"))
    assert store.memory("mem-aa1") == one
    assert store.memory("mem-aa11") == longer
    with pytest.raises(RecordError, match="several memory ids begin with 'mem-a'"):
        store.memory("mem-a")
    for reference in ("mem-b", "", "%", "mem-\ud800"):
        with pytest.raises(RecordError, match="no memory"):
            store.memory(reference)


def test_vectors_of_another_space_are_refused(store: SqliteStore) -> None:
    assert store.space() == ""
    insert(store, a_memory())
    assert store.space() == SPACE
    with pytest.raises(StoreError, match="'other/2' came to a memory of the space 'test/2'"):
        insert(store, a_memory(), space="other/2")
    assert store.count_memories() == 1


def test_a_transaction_that_raises_leaves_nothing(store: SqliteStore) -> None:
    def work(writing: Writing) -> None:
        writing.insert(a_memory(), MemoryVectors(SPACE, vector(1, 0)))
        writing.save_episode(an_episode("ep-1"), scope="default", absorbed=True)
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        store.transaction(work)
    assert store.count_memories() == store.count_episodes() == 0
    assert store.space() == ""
    insert(store, a_memory())
    assert store.count_memories() == 1


# ── credit ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], (1, 1)),
        ([RIGHT], (2, 2)),
        ([WRONG], (2, 1)),
        ([NONE], (2, 1)),
        ([UNKNOWN], (1, 1)),
        ([RIGHT, RIGHT, RIGHT], (2, 2)),
        ([WRONG, RIGHT], (2, 2)),
        ([RIGHT, WRONG], (2, 1)),
        ([RIGHT, UNKNOWN], (2, 2)),
        ([UNKNOWN, RIGHT], (2, 2)),
        ([WRONG, NONE, RIGHT, WRONG, RIGHT], (2, 2)),
    ],
)
def test_a_group_is_credited_once_by_its_latest_verdict(
    store: SqliteStore, verdicts: list[Outcome], expected: tuple[int, int]
) -> None:
    memory, bystander = insert(store, a_memory()), insert(store, a_memory())
    for outcome in verdicts:
        assert credit(store, "g", {memory.id}, outcome) == int(outcome is not UNKNOWN)
    assert counts(store, memory) == expected
    assert counts(store, bystander) == (1, 1)


def test_a_later_verdict_on_other_memories_takes_the_earlier_back(store: SqliteStore) -> None:
    first, second = insert(store, a_memory()), insert(store, a_memory())
    credit(store, "g", {first.id}, RIGHT)
    assert credit(store, "g", {second.id}, RIGHT) == 1
    assert (counts(store, first), counts(store, second)) == ((1, 1), (2, 2))
    assert credit(store, "g", set(), RIGHT) == 0
    assert (counts(store, first), counts(store, second)) == ((1, 1), (1, 1))


def test_groups_and_scopes_are_counted_apart(store: SqliteStore) -> None:
    memory = insert(store, a_memory())
    assert credit(store, "g", {memory.id}, RIGHT, ["other"]) == 0
    assert credit(store, "g", {memory.id, "mem-unknown"}, RIGHT) == 1
    assert credit(store, "h", {memory.id}, WRONG) == 1
    assert counts(store, memory) == (3, 2)
    # A scope credits what the levels above it share with it; the group is its own.
    assert credit(store, "g", {memory.id}, RIGHT, ["default/project", "default"]) == 1
    assert counts(store, memory) == (4, 3)


def test_credits_survive_a_restart(path: Path) -> None:
    with open_store(path) as store:
        memory = insert(store, a_memory())
        credit(store, "g", {memory.id}, WRONG)
    with open_store(path) as store:
        credit(store, "g", {memory.id}, RIGHT)
        assert counts(store, memory) == (2, 2)


# ── episodes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_episodes_are_loaded_by_id_beginning_or_last(store: SqliteStore) -> None:
    for id in ("ep-aa", "ep-ab", "ep-ac"):
        store.save_episode(an_episode(id, run="r" if id != "ep-ac" else ""))
    store.save_episode(an_episode("ep-aa", run="r", question="Who found Io?"))
    assert store.count_episodes() == 3
    assert store.load_episode("last").id == "ep-ac"
    assert store.load_episode("ep-aa").question.text == "Who found Io?"
    with pytest.raises(RecordError, match="several"):
        store.load_episode("ep-a")
    with pytest.raises(RecordError, match="no episode 'ep-z'"):
        store.load_episode("ep-z")
    assert [episode.id for episode in store.list_episodes(limit=2)] == ["ep-ac", "ep-ab"]
    assert [episode.id for episode in store.list_episodes(run="r", limit=9)] == ["ep-ab", "ep-aa"]
    assert [episode.id for episode in store.list_episodes(run="", limit=9)] == ["ep-ac"]


def test_a_scope_narrows_what_last_and_a_beginning_of_an_id_mean(store: SqliteStore) -> None:
    for id, scope in (("ep-aa", "ours"), ("ep-ab", "ours/project"), ("ep-ac", "theirs"), ("ep-b", "oursnot")):
        store.save_episode(an_episode(id), scope=scope)
    assert store.load_episode("last").id == "ep-b"
    assert store.load_episode("last", scope="ours").id == "ep-ab"
    assert store.load_episode("ep-a", scope="theirs").id == "ep-ac"
    # A whole id leaves no doubt.
    assert store.load_episode("ep-ac", scope="ours").id == "ep-ac"
    with pytest.raises(RecordError, match="several"):
        store.load_episode("ep-a", scope="ours")
    for reference in ("last", "ep-"):
        with pytest.raises(RecordError, match=f"no episode '{reference}'"):
            store.load_episode(reference, scope="nobody")


def test_episodes_are_found_by_their_whole_ids_only(store: SqliteStore) -> None:
    for id in ("ep-aa", "ep-ab"):
        store.save_episode(an_episode(id))
    assert store.episodes(["ep-aa", "ep-a", "ep-", "last", ""]) == {"ep-aa": an_episode("ep-aa")}
    assert store.episodes([]) == {}


def test_an_absorbed_episode_stays_absorbed(store: SqliteStore) -> None:
    store.save_episode(an_episode("ep-1"))
    assert store.absorbed(["ep-1", "ep-2"]) == frozenset()
    store.transaction(lambda writing: writing.save_episode(an_episode("ep-1"), scope="default", absorbed=True))
    store.save_episode(an_episode("ep-1"))
    assert store.absorbed(["ep-1", "ep-2"]) == {"ep-1"}


def test_no_episode_yet(store: SqliteStore) -> None:
    with pytest.raises(RecordError, match="no episode 'last'"):
        store.load_episode("last")


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_folder_is_made(tmp_path: Path) -> None:
    with open_store(tmp_path / "a" / "b" / "memory.db") as store:
        insert(store, a_memory())
        assert store.count_memories() == 1


def test_open_without_create_wants_a_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no memory at"):
        open_store(tmp_path / "memory.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_writes_are_durable_and_readers_do_not_wait(store: SqliteStore, path: Path) -> None:
    """What SQLite itself says of the modes, and a read in the middle of a write."""
    insert(store, a_memory())
    inside, done = threading.Event(), threading.Event()

    def work(writing: Writing) -> None:
        writing.insert(a_memory(), MemoryVectors(SPACE, vector(1, 0)))
        inside.set()
        assert done.wait(10)

    writer = threading.Thread(target=lambda: store.transaction(work))
    writer.start()
    assert inside.wait(10)
    assert store.count_memories() == 1
    done.set()
    writer.join()
    assert store.count_memories() == 2
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


def test_a_text_file_is_refused(path: Path) -> None:
    path.write_text("# notes\n" * 200)
    with pytest.raises(StoreError, match="is no SQLite database") as caught:
        open_store(path)
    assert "memory.path" in caught.value.hint
    assert path.read_text() == "# notes\n" * 200


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="database of another program"):
        open_store(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    open_store(path).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="has schema version 99; this MIA knows versions up to 2") as caught:
        open_store(path)
    assert caught.value.hint == "install the newer MIA that wrote it"
    assert path.read_bytes() == before


@pytest.mark.parametrize("pragma", ["user_version = 7", "user_version = 1", "application_id = 5"])
def test_an_empty_database_of_another_program_is_left_alone(path: Path, pragma: str) -> None:
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA {pragma}")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="database of another program"):
        open_store(path)
    assert path.read_bytes() == before


def test_a_memory_without_its_tables_is_said(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA application_id = {sqlite.APPLICATION_ID}")
        other.execute("PRAGMA user_version = 2")
    other.close()
    with pytest.raises(StoreError, match="has schema version 2 and no tables"):
        open_store(path)


def test_a_closed_store_says_so(path: Path) -> None:
    store = open_store(path)
    store.close()
    store.close()
    calls: tuple[Callable[[], object], ...] = (
        store.space,
        store.check,
        store.repair,
        store.erase,
        store.count_episodes,
        lambda: insert(store),
        lambda: store.changes("default", 0),
        lambda: store.purge(dry_run=True),
        lambda: store.rollback(0),
        lambda: list(store.export(None)),
    )
    for call in calls:
        with pytest.raises(StoreError, match="is closed"):
            call()


def test_a_damaged_file_is_named_as_such(path: Path) -> None:
    with open_store(path) as store:
        for _ in range(50):
            insert(store, a_memory("x" * 5000))
    content = bytearray(path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="is damaged"), open_store(path) as store:
        store.list_memories("default", limit=100)


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder") as caught:
        open_store(tmp_path)
    assert str(tmp_path / "memory.db") in caught.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        open_store(tmp_path / "file" / "memory.db")


def test_a_full_disk_loses_nothing_that_was_acknowledged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def on_a_small_disk(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 80")
        return connection

    acknowledged = []
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", on_a_small_disk)
        with open_store(path) as store:

            def fill() -> None:
                while True:
                    acknowledged.append(insert(store, a_memory("x" * 5000)))

            with pytest.raises(StoreError, match="the disk is full") as caught:
                fill()
            assert "free some space" in caught.value.hint
            # The store goes on reading.
            assert store.count_memories() == len(acknowledged) > 5
    with open_store(path) as store:
        assert {memory.id for memory in store.list_memories("default", limit=999)} == {one.id for one in acknowledged}
        insert(store, a_memory("x" * 5000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits of POSIX")
def test_a_file_size_limit_ends_in_a_store_error(path: Path) -> None:
    """The disk itself refuses: a quota, as a limit on the size of files."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from mia.errors import StoreError
from mia.store import open_store
from mia.types import Answer, Episode, Question
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = open_store(Path({str(path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
for number in range(1000):
    try:
        store.save_episode(Episode(id=f"ep-{{number}}", question=Question.of("x" * 5000), started_at=1))
    except StoreError as error:
        print(number, error.got)
        sys.exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    number, _, message = done.stdout.partition(" ")
    assert "cannot be read or written" in message or "disk is full" in message
    with open_store(path) as store:
        assert store.count_episodes() == int(number) > 5


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions of POSIX")
def test_a_file_that_may_not_be_written_is_named_as_such() -> None:
    folder = Path(tempfile.mkdtemp())
    as_root = os.geteuid() == 0
    try:
        open_store(folder / "memory.db").close()
        (folder / "memory.db").chmod(0o444)
        folder.chmod(0o555)
        if as_root:
            # Root may write everything, so it takes another user's place for a moment.
            os.seteuid(65534)
        with pytest.raises(StoreError, match=r"cannot be (written|opened)") as caught:
            open_store(folder / "memory.db")
        assert caught.value.hint
    finally:
        if as_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


# ── others at the same file ───────────────────────────────────────────────────────────────────────────────────────


def test_a_writer_waits_for_another_process(store: SqliteStore, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    release.start()
    begun = time.monotonic()
    insert(store, a_memory())
    assert time.monotonic() - begun > 0.2
    release.join()
    other.close()


def test_a_lock_that_is_never_released_ends_in_a_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with open_store(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked by another process") as caught:
            insert(store, a_memory())
        assert caught.value.hint
        other.execute("ROLLBACK")
        other.close()
        insert(store, a_memory())
        assert store.count_memories() == 1


def test_closing_waits_for_a_transaction_that_reads(path: Path) -> None:
    store = open_store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ends: list[int] = []
    work = threading.Thread(
        target=lambda: ends.append(store.transaction(lambda writing: store.count_memories())), daemon=True
    )
    work.start()
    time.sleep(0.1)
    closing = threading.Thread(target=store.close, daemon=True)
    closing.start()
    time.sleep(0.1)
    other.execute("ROLLBACK")
    other.close()
    work.join(5)
    closing.join(5)
    assert not closing.is_alive()
    assert ends == [0]


def test_many_threads_write_at_once(store: SqliteStore) -> None:
    memory = insert(store, a_memory())
    threads = [
        threading.Thread(target=lambda name=name: [credit(store, f"{name}/{n}", {memory.id}, RIGHT) for n in range(20)])
        for name in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(store, memory) == (161, 161)


def test_processes_that_open_a_new_store_at_once_agree(path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from mia.store import open_store
from mia.types import Answer, Episode, Question
sys.stdin.readline()
with open_store(Path({str(path)!r})) as store:
    store.save_episode(Episode(id="ep-" + sys.argv[1], question=Question.of("?"), started_at=1))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], stdin=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0] * 4
    with open_store(path) as store:
        assert {episode.id for episode in store.list_episodes(limit=9)} == {f"ep-{number}" for number in range(4)}


def test_an_old_sqlite_is_named_as_such(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StoreError, match="has SQLite") as caught:
        open_store(path)
    assert caught.value.wanted == "SQLite 3.35.0 or newer"
    assert not path.exists()


# ── what near-duplicates are ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "question",
    [
        "did france beat brazil",
        "  Did France\tbeat\n Brazil ?!",
        "“Did France beat Brazil?”",
        "'Did France beat brazil'.",
    ],
)
def test_case_space_closing_punctuation_and_quotes_make_no_difference(question: str) -> None:
    assert fingerprint(question) == fingerprint("Did France beat Brazil?")


def test_every_other_sign_makes_a_difference() -> None:
    questions = [
        "C",
        "C++",
        "C#",
        "1 + 1",
        "1 - 1",
        "1 1",
        "🙂",
        "🙃",
        "!?",
        '"',
        "",
        "f(x)",
        "f x",
        '"a" or "b"',
        "-5",
        "5",
    ]
    assert len({fingerprint(question) for question in questions}) == len(questions)


# ── redaction ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_free_text_from_outside_is_redacted_wherever_it_is_kept(path: Path) -> None:
    secret = "sk-abcdefghijklmnopqrstuvwxyz123456"
    with open_store(path) as store:
        old, memory = insert(store), a_memory()
        found = Verdict(outcome=RIGHT, judge=f"judge {secret}")

        def work(writing: Writing) -> int:
            vectors = MemoryVectors(SPACE, vector(1, 0))
            writing.insert(memory, vectors, replaces=old.id, reason=f"a {secret}")
            writing.set_state([memory.id], MemoryState.QUARANTINED, action="quarantine", reason=f"b {secret}")
            writing.set_expiry([memory.id], 5.0, reason=f"c {secret}")
            writing.enqueue(Task.COMPRESS, memory.id, scope="default", error=f"d {secret}", delay=1)
            writing.enqueue(Task.COMPRESS, memory.id, scope="default", error=f"e {secret}", delay=1)
            writing.credit(["default"], f"f {secret}", [memory.id], found)
            return writing.credit(["default"], f"f {secret}", [memory.id], found)

        assert store.transaction(work) == 1
        # The group is found again under its redacted name: counted once.
        assert counts(store, memory) == (2, 2)
        assert [change.reason[:1] for change in store.audit(limit=5)] == ["f", "c", "b", "a", "a"]
        assert store.queue()[0].error.startswith("e ")
        # And by an erasure, which is told the name as it was.
        store.erase(question_ids=[f"f {secret}"])
        assert store._reader.execute("SELECT count(*) FROM credits").fetchone()[0] == 0
    assert [
        file.name for file in path.parent.iterdir() if file.is_file() and secret.encode() in file.read_bytes()
    ] == []


def test_a_page_of_a_scope_is_the_newest_of_it(store: SqliteStore) -> None:
    made = [insert(store, a_memory(f"q {n}", scope=("a", "a/b", "c")[n % 3])) for n in range(30)]
    ours = [memory.id for memory in reversed(made) if memory.scope != "c"]
    assert [memory.id for memory in store.list_memories("a", limit=7)] == ours[:7]
    assert [memory.id for memory in store.list_memories("a", limit=7, offset=15)] == ours[15:]
