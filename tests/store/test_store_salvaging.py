"""A damaged store gives up every row that was not itself hit, whichever pages are gone."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import numpy
import pytest
from stored import SPACE, a_memory, an_episode, credit, set_state, vector

from mia.errors import StoreError
from mia.store import open_store
from mia.store.base import MemoryVectors
from mia.store.salvaging import salvage
from mia.types import Episode, Memory, MemoryKind, MemoryState, Outcome

COUNT = 2000
PAGE = 4096


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 2,000 memories, some longer than a page, and 100 episodes, all in one file."""
    path = tmp_path_factory.mktemp("whole") / "memory.db"
    chance = random.Random(3)
    with open_store(path) as store:

        def fill(writing: object) -> None:
            for number in range(COUNT):
                memory = a_memory(
                    f"question {number} 漢字",
                    id=f"mem-{number:05}",
                    workflow="1. look " * chance.choice([5, 50, 200, 2000]),
                    caption="a moon" if number % 9 == 0 else "",
                    uses=3,
                    expires_at=9e9 if number % 5 == 0 else None,
                )
                vectors = MemoryVectors(SPACE, vector(number, 1), vector(0, 1) if memory.caption else None)
                writing.insert(memory, vectors)  # type: ignore[attr-defined]

        store.transaction(fill)
        for number in range(100):
            store.save_episode(an_episode(f"ep-{number}", question=f"question {number} " + "y" * 3000))
        credit(store, "g", {"mem-00007"}, Outcome.CORRECT)
        set_state(store, MemoryState.QUARANTINED, store.memory("mem-00009"))
    return path


@pytest.fixture
def path(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "memory.db"))


def read(path: Path) -> tuple[dict[str, Memory], dict[str, Episode]]:
    memories, episodes = {}, {}
    for found in salvage(path).read():
        if isinstance(found, Episode):
            episodes[found.id] = found
        else:
            memories[found[0].id] = found[0]
    return memories, episodes


def read_all(path: Path) -> None:
    """As the store itself reads: which of these meets the damage first is chance."""
    with open_store(path) as store:
        list(store.export(None))
        store.list_episodes(limit=999)
        store.alike("default", MemoryKind.WORKFLOW, "question 1")
        store.audit(limit=99_999)


def overwrite(path: Path, pages: list[int], chance: random.Random) -> None:
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(chance.randbytes(PAGE))


def hit(path: Path, pages: set[int]) -> tuple[set[str], set[str]]:
    """The ids of memories and episodes that have bytes in these pages, as a whole copy of the store tells by itself."""
    connection = sqlite3.connect(path)
    content = path.read_bytes()
    memories = dict(connection.execute("SELECT sequence, id FROM memories").fetchall())
    episodes = dict(connection.execute("SELECT sequence, id FROM episodes").fetchall())
    roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'").fetchall())
    connection.close()

    def varint(at: int) -> tuple[int, int]:
        value = 0
        while True:
            value = value << 7 | content[at] & 127
            at += 1
            if content[at - 1] < 128:
                return value, at

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], "big")

    def touched(page: int) -> set[int]:
        start = (page - 1) * PAGE
        if content[start] == 5:
            below = [number(start + number(start + 12 + 2 * cell, 2), 4) for cell in range(number(start + 3, 2))]
            return set().union(*map(touched, [*below, number(start + 8, 4)]))
        found = set()
        for cell in range(number(start + 3, 2)):
            length, at = varint(start + number(start + 8 + 2 * cell, 2))
            rowid, at = varint(at)
            used = {page}
            if length > PAGE - 35:
                least = (PAGE - 12) * 32 // 255 - 23
                here = least + (length - least) % (PAGE - 4)
                following = number(at + (here if here <= PAGE - 35 else least), 4)
                while following:
                    used.add(following)
                    following = number((following - 1) * PAGE, 4)
            if used & pages:
                found.add(rowid)
        return found

    of_memories = touched(roots["memories"]) | touched(roots["texts"])
    return {memories[one] for one in of_memories}, {episodes[one] for one in touched(roots["episodes"])}


def test_a_whole_store_is_read_whole(path: Path) -> None:
    with open_store(path) as store:
        expected = {memory.id: memory for memory, _ in store.export(None)}
        episodes = {episode.id: episode for episode in store.list_episodes(limit=999)}
    found = salvage(path)
    pairs = [one for one in found.read() if not isinstance(one, Episode)]
    assert {memory.id: memory for memory, _ in pairs} == expected
    assert read(path)[1] == episodes
    assert (found.memories, found.episodes, found.broken, found.space) == (COUNT, 100, 0, SPACE)
    for number, (_, vectors) in enumerate(pairs):
        assert vectors is not None
        assert numpy.array_equal(vectors.question, vector(number, 1))
        assert (vectors.caption is not None) == (number % 9 == 0)


@pytest.mark.parametrize("seed", range(4))
def test_random_pages_of_garbage_cost_only_the_rows_in_them(path: Path, whole: Path, seed: int) -> None:
    chance = random.Random(seed)
    pages = path.stat().st_size // PAGE
    gone = chance.sample(range(2, pages + 1), 40)
    overwrite(path, gone, chance)
    memories, episodes = read(path)
    lost_memories, lost_episodes = hit(whole, set(gone))
    everything, all_episodes = read(whole)
    assert memories == {id: memory for id, memory in everything.items() if id not in lost_memories}
    assert episodes == {id: episode for id, episode in all_episodes.items() if id not in lost_episodes}
    assert lost_memories
    with pytest.raises(StoreError, match="is damaged") as caught:
        read_all(path)
    assert caught.value.hint.startswith("mia memory check --salvage")


@pytest.mark.parametrize("size", [100, PAGE], ids=["the header", "the first page"])
def test_a_store_without_its_beginning(path: Path, whole: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.write(bytes(size))
    assert read(path) == read(whole)
    with pytest.raises(StoreError) as caught:
        open_store(path)
    assert "mia memory check --salvage" in caught.value.hint


def test_a_store_cut_short(path: Path, whole: Path) -> None:
    pages = path.stat().st_size // PAGE
    kept = pages * 2 // 3
    with path.open("r+b") as file:
        file.truncate(kept * PAGE + 1000)
    memories, _ = read(path)
    lost, _ = hit(whole, set(range(kept + 1, pages + 1)))
    assert memories.keys() == read(whole)[0].keys() - lost
    assert len(memories) > COUNT / 2


def test_what_is_still_in_the_log_is_found(path: Path, tmp_path: Path) -> None:
    with open_store(path) as store:
        store.transaction(lambda writing: writing.insert(a_memory(id="mem-late"), MemoryVectors(SPACE, vector(1, 0))))
        copy = tmp_path / "copy.db"
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    for damaged in (False, True):
        if damaged:
            with copy.open("r+b") as file:
                file.write(bytes(100))
        assert "mem-late" in read(copy)[0]


def test_what_was_removed_does_not_come_back(path: Path) -> None:
    with open_store(path) as store:
        gone = store.list_memories(None, limit=500)
        set_state(store, MemoryState.FORGOTTEN, *gone)
        store.purge()
    assert not read(path)[0].keys() & {memory.id for memory in gone}


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read"):
        salvage(tmp_path / "nothing.db")
    (tmp_path / "empty.db").write_bytes(b"")
    (tmp_path / "noise.db").write_bytes(random.Random(1).randbytes(100_000))
    for name in ("empty.db", "noise.db"):
        assert list(salvage(tmp_path / name).read()) == []
