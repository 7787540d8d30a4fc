"""A store of any age opens, with everything in it, and a copy of what it was beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stored import RIGHT, a_memory, an_episode, counts, credit, insert

from mia.store import migrations, open_store, sqlite
from mia.store.base import fingerprint
from mia.types import MemoryKind, MemoryState, Provenance, Question, Review

TITAN = "Who found Titan? 漢字 👩‍👩‍👧 \u202e"
BACKUP = "memory.db.v1-backup"


def make_first_version(path: Path, count: int = 3, padding: str = "") -> None:
    """A store as version 1 of the schema left it: mem-1 replaced by mem-2, mem-2 credited, mem-3 with a caption."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN")
    migrations._lay_foundations(connection)
    connection.execute("PRAGMA user_version = 1")
    connection.execute(f"PRAGMA application_id = {sqlite.APPLICATION_ID}")
    connection.execute("INSERT INTO meta VALUES ('created_by', 'mia 0.2'), ('space', 'test/2')")
    for number in range(1, count + 1):
        row = (
            number,
            f"mem-{number}",
            "default" if number != 3 else "tenant/project",
            "workflow",
            "correct" if number != 3 else "incorrect",
            "others",
            3 if number == 2 else 1,
            2 if number == 2 else 1,
            10.0 + number,
            20.0 + number,
            number,
            "mem-2" if number == 1 else None,
            f"ep-{number}" if number != 3 else "ep-2",
            TITAN,
            "a moon" if number == 3 else "",
            f"1. look{padding}",
            "a plan",
            "",
            json.dumps([{"reviewer": "sourcing", "score": 3, "reason": "none"}]),
            json.dumps({"episode_id": f"ep-{number}", "leaned_on": ["mem-0"], "compressed_by": "rules"}),
        )
        connection.execute(f"INSERT INTO memories VALUES (?{', ?' * 19})", row)
        vectors = (number, "test/2", bytes(8), bytes([0, 0, 128, 63] * 2) if number == 3 else None)
        connection.execute("INSERT INTO vectors VALUES (?, ?, ?, ?)", vectors)
    episode = an_episode("ep-2", question=TITAN).model_dump(mode="json") | {"version": 1}
    connection.execute(
        "INSERT INTO episodes VALUES (7, 'ep-2', 'q-2', 'run', 1.5, ?, 1)", (json.dumps(episode, ensure_ascii=False),)
    )
    connection.execute("INSERT INTO credits VALUES ('default', 'g', 1, 'reference', '[\"mem-2\"]', 30.0)")
    connection.execute("COMMIT")
    connection.close()


def is_whole_first_version(path: Path, count: int = 3) -> bool:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (vectors,) = connection.execute("SELECT count(*) FROM vectors JOIN memories USING (sequence)").fetchone()
        return (version, vectors) == (1, count)
    finally:
        connection.close()


def test_a_store_of_the_first_version_opens_with_everything(path: Path) -> None:
    make_first_version(path)
    with open_store(path) as store:
        first, second, third = (store.memory(f"mem-{number}") for number in (1, 2, 3))
        assert (first.state, first.replaced_by) == (MemoryState.REPLACED, "mem-2")
        assert second == a_memory(
            TITAN,
            id="mem-2",
            plan="a plan",
            reviews=(Review(reviewer="sourcing", score=3, reason="none"),),
            uses=3,
            wins=2,
            provenance=Provenance(episode_id="ep-2", leaned_on=("mem-0",), compressed_by="rules"),
            created_at=12.0,
            updated_at=22.0,
        )
        assert (third.caption, third.scope, third.judgement) == ("a moon", "tenant/project", "incorrect")
        assert [vectors.caption is not None for _, vectors in store.export(None)] == [False, False, True]
        assert [vectors.question.tolist() for _, vectors in store.export(None)] == [[0, 0]] * 3
        assert store.space() == "test/2"
        assert [memory.id for memory, _ in store.alike("default", MemoryKind.WORKFLOW, TITAN.upper())] == ["mem-2"]
        assert store.load_episode("last") == an_episode("ep-2", question=TITAN)
        assert store.absorbed(["ep-2"]) == {"ep-2"}
        assert {memory.id for memory in store.memories_of(["ep-2"])} == {"mem-2", "mem-3"}
        assert [change.action for change in store.audit(limit=9)] == ["add"] * 3
        # A verdict that comes again is not counted twice, and another one takes it back.
        assert credit(store, "g", {"mem-2"}, RIGHT) == 1
        assert counts(store, second) == (3, 2)
        insert(store, a_memory())
    assert is_whole_first_version(path.with_name(BACKUP))
    assert not list(path.parent.glob("*.unfinished*"))
    with open_store(path) as store:
        assert store.count_memories() == 3


def test_the_fingerprint_of_old_questions_is_that_of_new_ones(path: Path) -> None:
    make_first_version(path)
    with open_store(path) as store:
        found = store._reader.execute("SELECT DISTINCT fingerprint FROM memories").fetchall()
        assert [row[0] for row in found] == [fingerprint(Question.of(TITAN).text)]


def test_a_new_store_is_not_backed_up(path: Path) -> None:
    open_store(path).close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_processes_that_open_an_old_store_at_once_migrate_it_once(path: Path) -> None:
    make_first_version(path, 500, "x" * 2000)
    code = f"""
import sys
from pathlib import Path
from mia.store import open_store
sys.stdin.readline()
with open_store(Path({str(path)!r})) as store:
    print(store.count_memories(), len(store.audit(limit=9999)))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0].split() for process in processes] == [["499", "500"]] * 3
    assert is_whole_first_version(path.with_name(BACKUP), 500)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_a_kill_at_any_moment_of_a_migration_leaves_a_usable_store(path: Path, tmp_path: Path) -> None:
    original = tmp_path / "original.db"
    make_first_version(original, 3000, "x" * 2000)
    code = f"""
from pathlib import Path
from mia.store import open_store
print("go", flush=True)
open_store(Path({str(path)!r}))
print("done", flush=True)
"""
    finished = []
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2):
        for file in path.parent.glob("memory.db*"):
            file.unlink()
        shutil.copy(original, path)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        finished.append("done" in process.communicate(timeout=60)[0])
        with open_store(path) as store:
            assert store.count_memories() == 2999
            assert len(store.audit(limit=9999)) == 3000
        assert is_whole_first_version(path.with_name(BACKUP), 3000)
        assert not list(path.parent.glob("*.unfinished*"))
    assert not all(finished), "every kill came too late"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits of POSIX")
def test_a_full_disk_during_the_backup_changes_nothing(path: Path) -> None:
    make_first_version(path, 200, "x" * 5000)
    before = path.read_bytes()
    code = f"""
import resource, signal
from pathlib import Path
from mia.errors import StoreError
from mia.store import open_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    open_store(Path({str(path)!r}))
except StoreError as error:
    print(error.got)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "cannot be read or written" in done.stdout or "disk is full" in done.stdout
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if "backup" in file.name] == []
    with open_store(path) as store:
        assert store.count_memories() == 199


def test_a_step_added_later_is_taken_when_the_store_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as store:
        memory = insert(store, a_memory())

    def grow(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE episodes ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'")

    monkeypatch.setattr(sqlite, "MIGRATIONS", (*migrations.MIGRATIONS, grow))
    with open_store(path) as store:
        assert store.memory(memory.id) == memory
        store.save_episode(an_episode("ep-1"))
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (3,)
        assert other.execute("SELECT colour FROM episodes").fetchall() == [("red",)]
    other.close()


def test_a_migration_that_fails_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(path) as store:
        memory = insert(store, a_memory())

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE memories ADD COLUMN colour TEXT")
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (*migrations.MIGRATIONS, fail))
        with pytest.raises(OSError, match="power cut"):
            open_store(path)
    with open_store(path) as store:
        assert store.memory(memory.id) == memory
    with sqlite3.connect(path) as other:
        assert "colour" not in {row[1] for row in other.execute("PRAGMA table_info (memories)")}
    other.close()
