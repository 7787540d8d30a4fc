"""The bank on the disk: fast to open, never believed where it could be wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shelf_of_memories import clustered, insert

from mia.memory import bank as module
from mia.memory import cache
from mia.memory.bank import Bank
from mia.store import open_store
from mia.store.sqlite import SqliteStore
from mia.types import MemoryState

NOW = 1_800_000_000.0
ROWS = 2_500


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with open_store(tmp_path / "memory.db") as store:
        yield store


@pytest.fixture
def kept(store: SqliteStore) -> SqliteStore:
    """A store of which a bank was kept."""
    insert(store, ROWS)
    fill(store)
    assert len(loaded(store)) == ROWS
    return store


def fill(store: SqliteStore) -> None:
    bank = Bank("default")
    with bank.refreshed(store):
        pass
    assert bank.settled(timeout=60)
    bank.close(store)


def loaded(store: SqliteStore) -> list[int]:
    """The sequence numbers that are found on the disk; none where the cache is not believed."""
    found = cache.load(store, "default", store.census("default"))
    return [] if found is None else found.shelves[False, False].column("sequence").tolist()


def nearest(store: SqliteStore) -> list[list[int]]:
    """What a fresh bank finds for some questions."""
    bank = Bank("default")
    with bank.refreshed(store):
        shelf = bank.shelf(pair=False, captioned=False)
        found = [shelf.most_similar(query, 5, now=NOW)[0] for query in clustered(20, seed=2)]
        return [sorted(shelf.column("sequence")[places].tolist()) for places in found]


def manifest(store: SqliteStore) -> Path:
    (path,) = store.cache.glob("*.json")
    return path


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kept_bank_is_brought_up_to_date(kept: SqliteStore) -> None:
    ids = insert(kept, 5, start=9_000)
    kept.transaction(lambda writing: writing.set_state(ids[:1], MemoryState.FORGOTTEN, action="forget"))
    assert len(loaded(kept)) == ROWS
    bank = Bank("default")
    with bank.refreshed(kept):
        shelf = bank.shelf(pair=False, captioned=False)
        assert len(shelf) == ROWS + 5
        assert shelf.column("active").sum() == ROWS + 4
    assert cache.verify(kept, "default") == []


def test_a_small_bank_is_not_worth_keeping(store: SqliteStore) -> None:
    insert(store, 50)
    fill(store)
    assert not store.cache.exists()


def test_indexes_are_kept_too(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THRESHOLD", 2_000)
    insert(store, ROWS)
    fill(store)
    bank = Bank("default")
    with bank.refreshed(store):
        shelf = bank.shelf(pair=False, captioned=False)
        assert shelf.indexes
        assert shelf.indexed.all()
        assert shelf.most_similar(shelf.vectors[7], 1, now=NOW)[1][0] == pytest.approx(1.0, abs=1e-5)


def test_names_of_files_tell_nobody_whose_they_are_and_others_cannot_read_them(store: SqliteStore) -> None:
    insert(store, ROWS, scope="acme/research/ann")
    bank = Bank("acme/research/ann")
    with bank.refreshed(store):
        pass
    bank.close(store)
    files = list(store.cache.iterdir())
    assert files
    for file in files:
        assert "ann" not in file.name
        assert file.stat().st_mode & 0o077 == 0


def test_the_next_generation_takes_the_place_of_the_last(kept: SqliteStore) -> None:
    before = set(kept.cache.iterdir())
    insert(kept, ROWS, start=10_000)
    fill(kept)
    assert len(loaded(kept)) == 2 * ROWS
    assert len(set(kept.cache.iterdir())) == len(before)


def test_dropping_leaves_nothing(kept: SqliteStore) -> None:
    cache.drop(kept.cache, "other")
    assert loaded(kept)
    cache.drop(kept.cache, "default")
    assert list(kept.cache.iterdir()) == []


# ── what is not believed ──────────────────────────────────────────────────────────────────────────────────────────


def test_damage_anywhere_is_noticed_and_costs_only_time(kept: SqliteStore, tmp_path: Path) -> None:
    expected, generator = nearest(kept), random.Random(7)
    spare = tmp_path / "spare"
    shutil.copytree(kept.cache, spare)
    for file in sorted(kept.cache.iterdir()):
        whole = file.read_bytes()
        places = sorted({0, len(whole) // 2, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(3))})
        damages = [
            whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
            for place in places
            for bit in (0, 6)
        ]
        damages += [whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0", b"garbage"]
        for damage in damages:
            file.write_bytes(damage)
            believed = loaded(kept)
            assert believed == [] or (file.suffix == ".json" and believed == list(range(1, ROWS + 1)))
            assert nearest(kept) == expected
        file.unlink()
        assert loaded(kept) == []
        file.mkdir()
        assert loaded(kept) == []
        file.rmdir()
        shutil.copy(spare / file.name, file)
    assert loaded(kept)


def test_a_manifest_that_points_elsewhere_is_not_followed(kept: SqliteStore, tmp_path: Path) -> None:
    page = json.loads(manifest(kept).read_bytes())
    (outside := tmp_path / "outside").write_bytes(b"secret")
    entry = page["shelves"][0]["files"]["vectors"]
    for name in (str(outside), "../outside", "..", "", 7, None):
        entry["file"] = name
        manifest(kept).write_text(json.dumps(page))
        assert loaded(kept) == []


def test_the_cache_of_another_store_is_not_believed(kept: SqliteStore, tmp_path: Path) -> None:
    with open_store(tmp_path / "other.db") as other:
        insert(other, ROWS, start=40_000)
        shutil.copytree(kept.cache, other.cache)
        assert loaded(other) == []
        assert len(nearest(other)) == 20


def test_a_store_that_was_put_back_to_an_earlier_state_does_not_believe_a_later_cache(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with open_store(path) as store:
        insert(store, ROWS)
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    with open_store(path) as store:
        insert(store, ROWS, start=20_000)
        fill(store)
    shutil.copy(copy, path)
    with open_store(path) as store:
        assert loaded(store) == []
        bank = Bank("default")
        with bank.refreshed(store):
            assert len(bank) == ROWS
        # Gone another way, past the size of the cache.
        insert(store, 2 * ROWS, start=50_000)
        assert loaded(store) == []


def test_a_purge_makes_the_cache_worthless(kept: SqliteStore) -> None:
    (id,) = (memory.id for memory in kept.list_memories(None, limit=1))
    kept.transaction(lambda writing: writing.set_state([id], MemoryState.FORGOTTEN, action="forget"))
    kept.purge(ids=[id])
    assert loaded(kept) == []


def test_a_folder_that_cannot_be_written_costs_only_time(store: SqliteStore) -> None:
    insert(store, ROWS)
    store.cache.write_text("a file where the folder should be")
    fill(store)
    assert len(nearest(store)) == 20


def test_verify_names_what_the_cache_says_otherwise(kept: SqliteStore) -> None:
    assert cache.verify(kept, "default") == []
    bank = Bank("default")
    with bank.refreshed(kept):
        shelf = bank.shelf(pair=False, captioned=False)
        shelf.column("uses")[3] += 1
        shelf.vectors[5][0] += 1
        cache.save(kept, bank)
    problems = cache.verify(kept, "default")
    assert len(problems) == 2
    assert "'uses'" in problems[0]
    assert "vectors" in problems[1]


SAVER = """
import sys
from pathlib import Path
from mia.memory import cache
from mia.memory.bank import Bank
from mia.store import open_store

with open_store(Path(sys.argv[1])) as store:
    bank = Bank("default")
    with bank.refreshed(store):
        print("ready", flush=True)
        while True:
            cache.save(store, bank)
"""


def test_kill_9_while_saving_leaves_the_old_generation_or_the_new_one(kept: SqliteStore) -> None:
    generator, expected = random.Random(3), nearest(kept)
    for _ in range(12):
        # Two at once, as two processes that end together.
        savers = [
            subprocess.Popen([sys.executable, "-c", SAVER, kept.location], stdout=subprocess.PIPE) for _ in range(2)
        ]
        for saver in savers:
            assert saver.stdout is not None
            assert saver.stdout.readline() == b"ready\n"
        time.sleep(generator.random() * 0.1)
        for saver in savers:
            os.kill(saver.pid, signal.SIGKILL)
            saver.communicate()
        assert loaded(kept) in ([], list(range(1, ROWS + 1)))
        assert nearest(kept) == expected
    # What the killed left lying about is cleared away by the next that ends in peace.
    insert(kept, ROWS, start=30_000)
    fill(kept)
    assert len(loaded(kept)) == 2 * ROWS
    assert len(list(kept.cache.iterdir())) == 10
