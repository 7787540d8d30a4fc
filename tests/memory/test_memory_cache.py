"""The bank's cache on the disk: used where it agrees with the store, and ignored at the slightest doubt."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cache_saver
import numpy
import pytest
from cache_saver import kept
from filled import clustered, contents, credit, fill
from hypothesis import given, settings
from hypothesis import strategies as st

from mia.memory import bank as banks
from mia.memory import cache
from mia.memory.bank import Bank
from mia.store import open_store
from mia.store.sqlite import SqliteStore
from mia.types import MemoryState

ROWS = 2_400
SCOPE = "default"


@pytest.fixture(scope="module")
def kept_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and its cache: workflows with captions and without, and indexes."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "memory.db") as store:
        patch.setattr(banks, "THRESHOLD", 1_000)
        fill(store, clustered(ROWS - 300), category="maps")
        fill(store, clustered(300, seed=1), captions=clustered(300, seed=2))
        bank = loaded(store)
        assert bank.settled(timeout=60)
        bank.close(store)
        assert bank.shelf(pair=False, captioned=False).indexes
    return folder


@pytest.fixture
def folder(kept_folder: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(kept_folder, tmp_path / "copy"))


@pytest.fixture
def store(folder: Path) -> Iterator[SqliteStore]:
    with open_store(folder / "memory.db") as opened:
        yield opened


def loaded(store: SqliteStore, scope: str = SCOPE) -> Bank:
    bank = Bank(scope)
    with bank.refreshed(store):
        return bank


def used(store: SqliteStore) -> bool:
    """Whether the cache is used; what is loaded is what the store holds in any case."""
    bank, anew = Bank(SCOPE, indexes=False), Bank(SCOPE, indexes=False)
    with bank.refreshed(store), anew.refreshed(store, kept=False):
        assert contents(bank) == contents(anew)
        # What came from the rows would have to be saved.
        return bank.unsaved < anew.unsaved


def manifest(store: SqliteStore) -> Path:
    (path,) = store.cache.glob("*.json")
    return path


def files(store: SqliteStore) -> list[Path]:
    """All of a generation."""
    named = json.loads(manifest(store).read_text())["pages"]
    return sorted(store.cache / file["name"] for page in named for file in page["files"].values())


def rewritten(store: SqliteStore, change: Callable[[dict[str, object]], object]) -> None:
    """A manifest that says otherwise, and whose checksum is right."""
    page = json.loads(manifest(store).read_text())
    change(page)
    record = cache._Manifest.model_validate(page)
    manifest(store).write_text(record.model_copy(update={"checksum": record.sum()}).model_dump_json())


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_kept_is_used_with_its_indexes(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banks, "THRESHOLD", 1_000)
    assert used(store)
    bank = loaded(store)
    shelf = bank.shelf(pair=False, captioned=False)
    assert len(shelf.indexes[True]) + len(shelf.indexes[False]) == ROWS - 300
    assert not shelf.wants_indexes
    query = clustered(1, seed=3)[0]
    exact = set(numpy.argsort(-(shelf.vectors @ query))[:10].tolist())
    assert len(exact & set(shelf.most_similar(query, 10, now=0)[0].tolist())) >= 9
    assert cache.verify(store, SCOPE) == []


def test_it_is_brought_up_to_date(store: SqliteStore) -> None:
    bank = loaded(store)
    ids = fill(store, clustered(60, seed=4), category="new")
    credit(store, "g", [ids[0], *ids[5:9]], won=True)
    store.transaction(lambda writing: writing.set_state(ids[:3], MemoryState.FORGOTTEN, action="forget"))
    old = store.numbered([1, 2])
    credit(store, "h", [memory.id for memory in old.values()], won=False)
    with bank.refreshed(store):
        followed = contents(bank)
    assert used(store)
    assert contents(loaded(store)) == followed
    assert cache.verify(store, SCOPE) == []


def test_the_files_tell_nobody_else_anything(store: SqliteStore) -> None:
    fill(store, clustered(2_100), scope="clinic/ada.lovelace")
    loaded(store, "clinic/ada.lovelace").close(store)
    paths = list(store.cache.iterdir())
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert len({path.name.split(".")[0] for path in paths}) == 2
    assert not any("ada" in path.name or "clinic" in path.name for path in paths)


def test_saving_anew_leaves_one_generation(store: SqliteStore) -> None:
    name = manifest(store).stem
    (store.cache / f"{name}.0123456789ab.00.vectors").write_bytes(b"left by a writer that was killed")
    (store.cache / f"{name}.0123456789ab.manifest").write_bytes(b"{")
    before = set(files(store))
    assert cache.save(store, SCOPE, kept(loaded(store)))
    after = set(files(store))
    assert not before & after
    assert set(store.cache.iterdir()) == {*after, manifest(store), store.cache / f"{name}.lock"}
    assert used(store)


@pytest.mark.parametrize(("new", "kept_again"), [(1_999, False), (2_000, True)])
def test_it_is_written_only_where_enough_has_changed(store: SqliteStore, new: int, kept_again: bool) -> None:
    before = files(store)
    fill(store, clustered(new, seed=5))
    bank = loaded(store)
    bank.close(store)
    assert (files(store) != before) == kept_again
    again = files(store)
    bank.close(store)
    assert files(store) == again


def test_a_small_memory_keeps_none(tmp_path: Path) -> None:
    with open_store(tmp_path / "memory.db") as store:
        fill(store, clustered(100))
        loaded(store).close(store)
        assert not store.cache.exists()
        assert cache.verify(store, SCOPE) == []


def test_dropping_one_scope_leaves_the_others(store: SqliteStore) -> None:
    fill(store, clustered(2_100), scope="other")
    loaded(store, "other").close(store)
    cache.drop(store.cache, "other")
    assert used(store)
    assert len(list(store.cache.glob("*.json"))) == 1
    cache.drop(store.cache)
    assert list(store.cache.iterdir()) == []
    assert not used(store)
    cache.drop(store.cache.with_name("nowhere"))


# ── what is doubtful ──────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=150)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed(kept_folder: Path, data: st.DataObject) -> None:
    with open_store(kept_folder / "memory.db") as store:
        path = data.draw(st.sampled_from([manifest(store), *files(store)]))
        whole = path.read_bytes()
        offset = data.draw(st.integers(0, len(whole) - 1))
        broken = bytearray(whole)
        broken[offset] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(broken)
        try:
            assert cache.load(store, SCOPE, store.census(SCOPE)) is None
        finally:
            path.write_bytes(whole)
        assert cache.load(store, SCOPE, store.census(SCOPE)) is not None


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("way", ["cut", "longer", "empty", "gone", "a folder", "zeros", "another"])
def test_a_file_that_is_not_what_it_was_is_noticed(store: SqliteStore, number: int, way: str) -> None:
    paths = [manifest(store), *files(store)]
    assert len(paths) == 7, "two shelves of two files, two indexes, a manifest"
    path = paths[number % 7]
    content = path.read_bytes()
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way != "gone":
        changed = {
            "cut": content[: len(content) * 2 // 3],
            "longer": content + b"\0",
            "empty": b"",
            "zeros": bytes(len(content)),
            "another": paths[(number + 1) % 7].read_bytes(),
        }
        path.write_bytes(changed[way])
    assert not used(store)
    assert cache.verify(store, SCOPE) == []
    if way != "a folder":
        assert cache.save(store, SCOPE, kept(loaded(store)))
        assert used(store)


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", "{}", '{"format": 1}', "[" * 100_000, "\x00", '{"pages": {}}', "1e999", '"\\ud800"', "{" * 9],
)
def test_any_manifest_can_be_read(store: SqliteStore, content: str) -> None:
    manifest(store).write_text(content)
    assert not used(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page.update(format=2),
        lambda page: page.update(store="another"),
        lambda page: page.update(space="another/24"),
        lambda page: page.update(epoch=page["epoch"] + 1),
        lambda page: page.update(revision=page["revision"] + 1),
        lambda page: page.update(revision=0),
        lambda page: page.update(mark="2.0 'add'"),
        lambda page: page.update(count=page["count"] + 1),
        lambda page: page.update(count=page["count"] - 1),
        lambda page: page.update(last=page["last"] + 1),
        lambda page: page["pages"].pop(),
        lambda page: page["pages"][0].update(rows=page["pages"][0]["rows"] - 1),
        lambda page: page["pages"][0].update(dimension=23),
        lambda page: page["pages"][0].update(dimension=0),
        lambda page: page["pages"][0].update(rows=-1),
        lambda page: page["pages"][0].update(categories=[]),
        lambda page: page["pages"][0]["files"].pop("vectors"),
        lambda page: page["pages"][0]["files"].pop("columns"),
        lambda page: page["pages"][0]["files"].update(incorrect=page["pages"][0]["files"]["correct"]),
        lambda page: page["pages"][0]["files"]["vectors"].update(name=""),
        lambda page: page["pages"][0]["files"]["vectors"].update(name="/etc/passwd"),
        lambda page: page["pages"][0]["files"]["vectors"].update(name="../memory.db"),
        lambda page: page["pages"][0]["files"]["vectors"].update(name=".."),
    ],
)
def test_a_manifest_that_is_of_something_else_is_not_believed(
    store: SqliteStore, change: Callable[[dict[str, object]], object]
) -> None:
    rewritten(store, lambda page: None)
    assert used(store)
    rewritten(store, change)
    assert not used(store)


def test_a_missing_index_costs_only_the_index(store: SqliteStore) -> None:
    rewritten(store, lambda page: page["pages"][0]["files"].pop("correct"))
    assert used(store)
    shelf = loaded(store).shelf(pair=False, captioned=False)
    assert not shelf.indexes
    assert not shelf.column("indexed").any()


def test_without_the_library_of_indexes_the_vectors_are_used(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    assert used(store)
    assert not loaded(store).shelf(pair=False, captioned=False).indexes


def test_the_cache_of_another_store_is_not_used(store: SqliteStore, tmp_path: Path) -> None:
    """Though it holds as many memories of the same numbers."""
    with open_store(tmp_path / "other.db") as other:
        fill(other, clustered(ROWS, seed=7))
        shutil.copytree(store.cache, other.cache)
        assert not used(other)


def test_a_cache_from_before_the_store_was_put_back_from_a_copy_is_not_used(folder: Path, tmp_path: Path) -> None:
    """The numbers of what came since are those of what was lost, and there are more of them."""
    shutil.copy(folder / "memory.db", tmp_path / "earlier.db")
    with open_store(folder / "memory.db") as store:
        fill(store, clustered(2_000, seed=8))
        loaded(store).close(store)
        assert used(store)
    shutil.copy(tmp_path / "earlier.db", folder / "memory.db")
    with open_store(folder / "memory.db") as store:
        assert not used(store), "an earlier state"
        fill(store, clustered(2_500, seed=9))
        assert not used(store), "another history"


def test_what_was_purged_does_not_stay_in_the_cache(store: SqliteStore) -> None:
    ids = fill(store, clustered(3, seed=4))
    store.transaction(lambda writing: writing.set_state(ids, MemoryState.FORGOTTEN, action="forget"))
    assert manifest(store).exists()
    store.purge(scope=SCOPE)
    assert not used(store)
    assert [path.suffix for path in store.cache.iterdir() if path.suffix != ".lock"] == []


def test_what_is_erased_while_a_cache_is_saved_does_not_stay_in_it(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = loaded(store)
    (one,) = store.numbered([1]).values()
    write = cache._write

    def erasing(path: Path, content: bytes) -> None:
        write(path, content)
        if path.name.endswith(".manifest"):
            store.erase(memory_ids=[one.id])
            # Another file got in after the folder was emptied.
            write(path, content)

    monkeypatch.setattr(cache, "_write", erasing)
    assert not cache.save(store, SCOPE, kept(bank))
    assert list(store.cache.iterdir()) == []
    # And what was loaded before is not written any more.
    monkeypatch.undo()
    assert not cache.save(store, SCOPE, kept(bank))
    assert list(store.cache.iterdir()) == []


def test_a_difference_to_the_rows_is_said(store: SqliteStore) -> None:
    bank = loaded(store)
    shelf = bank.shelf(pair=False, captioned=False)
    shelf.column("wins")[5] += 1
    shelf.column("category")[7] = len(shelf.categories)
    shelf.categories.append("another")
    bank.shelf(pair=False, captioned=True).vectors[1, 2] += 0.5
    assert cache.save(store, SCOPE, kept(bank))
    assert cache.verify(store, SCOPE) == [
        "the cache of workflows says otherwise about 'wins'",
        "the cache of workflows says otherwise about 'category'",
        "the cache of workflows with captions holds other vectors",
    ]


def test_verifying_changes_nothing(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banks, "THRESHOLD", 10)
    before = {path: path.stat().st_mtime_ns for path in store.cache.iterdir()}
    assert cache.verify(store, SCOPE) == []
    assert not any(thread.name == "mia-memory-index" for thread in threading.enumerate())
    assert {path: path.stat().st_mtime_ns for path in store.cache.iterdir()} == before


# ── what cannot be written ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_in_place_of_the_folder_costs_only_time(store: SqliteStore) -> None:
    shutil.rmtree(store.cache)
    store.cache.write_text("in the way")
    assert not used(store)
    bank = loaded(store)
    bank.close(store)
    assert store.cache.read_text() == "in the way"


def test_a_disk_without_room_leaves_the_earlier_generation(store: SqliteStore) -> None:
    before = sorted(store.cache.iterdir())
    fill(store, clustered(2_000, seed=4))
    bank = loaded(store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError):
            cache.save(store, SCOPE, kept(bank))
        bank.close(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(store.cache.iterdir()) == before
    assert used(store)


# ── several processes ─────────────────────────────────────────────────────────────────────────────────────────────────


def saver(folder: Path, *count: str) -> subprocess.Popen[str]:
    command = [sys.executable, cache_saver.__file__, str(folder / "memory.db"), *count]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_savers_killed_at_any_moment_leave_a_cache_that_is_whole_or_ignored(folder: Path) -> None:
    moments = random.Random(20261121)
    with open_store(folder / "memory.db") as store:
        torn = 0
        # On a busy machine more kills fall between two savings.
        for _ in range(20):
            if torn > 3:
                break
            # Two at once, as two processes that end together.
            processes = [saver(folder), saver(folder)]
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "saving\n"
            time.sleep(moments.uniform(0, 0.02))
            for process in processes:
                process.kill()
                process.communicate()
                assert process.returncode == -signal.SIGKILL
            assert used(store)
            named = {*files(store), manifest(store)}
            torn += any(path not in named for path in store.cache.iterdir() if path.suffix != ".lock")
        assert torn > 3, "the kills fell between two savings"
        assert cache.save(store, SCOPE, kept(loaded(store)))
        assert {path for path in store.cache.iterdir() if path.suffix != ".lock"} == {*files(store), manifest(store)}


def test_several_savers_and_readers_at_once(folder: Path) -> None:
    with open_store(folder / "memory.db") as store:
        savers = [saver(folder, "40") for _ in range(3)]
        looks = 0
        while any(process.poll() is None for process in savers):
            # Used, or ignored since it has just been replaced; never wrong.
            used(store)
            looks += 1
        for process in savers:
            process.communicate()
        assert [process.returncode for process in savers] == [0, 0, 0]
        assert looks > 3
        assert used(store)
        assert {path for path in store.cache.iterdir() if path.suffix != ".lock"} == {*files(store), manifest(store)}
