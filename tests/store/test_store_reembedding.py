"""Another embedder: the store serves on meanwhile, and no vector of two spaces ever meets."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from stored import SPACE, a_memory, insert, set_state

from mia.embeddings.base import Vectors
from mia.errors import StoreError
from mia.store import open_store, reembedding
from mia.store.base import EMBEDDED_CHARACTERS
from mia.store.reembedding import PAGE, Reembedding
from mia.store.sqlite import SqliteStore
from mia.types import MemoryState


class Hashes:
    """Gives each text a direction of its own, of three dimensions and not of unit length; "nothing" has none."""

    def __init__(self, space: str = "hashes/3") -> None:
        self.space = space
        self.dimension = 3
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return numpy.array([self.direction(text) for text in texts], numpy.float32)

    def direction(self, text: str) -> list[float]:
        if text == "nothing":
            return [0.0, 0.0, 0.0]
        if text == "not a number":
            return [float("nan"), 1.0, 1.0]
        return [byte + 1.0 for byte in hashlib.sha256((self.space + text).encode()).digest()[:3]]


def expected(embedder: Hashes, text: str) -> Vectors:
    row = numpy.array(embedder.direction(text[:EMBEDDED_CHARACTERS]))
    return (row / numpy.linalg.norm(row)).astype(numpy.float32)


def agree(store: SqliteStore, embedder: Hashes) -> bool:
    """Whether every memory, in whatever state, has the vectors of this embedder."""
    return all(
        vectors.space == embedder.space
        and numpy.allclose(vectors.question, expected(embedder, memory.question), atol=1e-6)
        and (vectors.caption is None) == (not memory.caption)
        and (vectors.caption is None or numpy.allclose(vectors.caption, expected(embedder, memory.caption), atol=1e-6))
        for memory, vectors in store.export(None)
    )


def ignore(_: Reembedding) -> None: ...


def fill(store: SqliteStore, count: int) -> None:
    vectors = [a_memory(f"question {number}", caption="a moon" if number % 7 == 0 else "") for number in range(count)]
    for memory in vectors:
        insert(store, memory)


def test_all_vectors_change_at_once(store: SqliteStore) -> None:
    fill(store, PAGE + 10)
    set_state(store, MemoryState.FORGOTTEN, store.list_memories(None, limit=1)[0])
    insert(store, a_memory("x" * (EMBEDDED_CHARACTERS + 1)))
    insert(store, a_memory("x" * EMBEDDED_CHARACTERS + "y"))
    before = store.census("default")
    seen = store.changes("default", 0)
    embedder = Hashes()
    told: list[Reembedding] = []
    done = store.reembed(embedder, told.append)
    total = PAGE + 12
    assert done == Reembedding("hashes/3", done=total, total=total, kept=0)
    assert [report.done for report in told] == [0, PAGE, total]
    assert agree(store, embedder)
    assert max(map(len, embedder.asked)) == EMBEDDED_CHARACTERS
    after = store.census("default")
    assert (after.space, after.epoch, after.count) == ("hashes/3", before.epoch + 1, before.count)
    assert store.changes("default", seen.revision).epoch == before.epoch + 1
    assert store.audit(limit=1)[0].after == {"space": "hashes/3"}
    assert store._reader.execute("SELECT * FROM sqlite_master WHERE name = 'vectors_next'").fetchall() == []
    with pytest.raises(StoreError, match="came to a memory of the space 'hashes/3'"):
        insert(store)
    assert store.reembed(embedder, ignore).total == 0


@pytest.mark.parametrize("question", ["nothing", "not a number"])
def test_a_text_without_direction_is_like_nothing(store: SqliteStore, question: str) -> None:
    insert(store, a_memory(question))
    store.reembed(Hashes(), ignore)
    ((_, vectors),) = store.export(None)
    assert vectors.question.tolist() == [0, 0, 0]


def test_what_follows_a_nul_is_embedded_too(store: SqliteStore) -> None:
    insert(store, a_memory("a\0b", caption="\0moon"))
    insert(store, a_memory("a\0c" + "x" * EMBEDDED_CHARACTERS))
    embedder = Hashes()
    store.reembed(embedder, ignore)
    assert agree(store, embedder)


def test_an_empty_store_changes_its_space(store: SqliteStore) -> None:
    store.reembed(Hashes(), ignore)
    assert store.space() == "hashes/3"


def test_the_store_serves_and_takes_in_meanwhile(store: SqliteStore) -> None:
    fill(store, 2 * PAGE)
    victim = store.list_memories(None, limit=1)[0]

    def meanwhile(report: Reembedding) -> None:
        assert store.space() == SPACE
        insert(store, a_memory(f"late {report.done}"))
        if report.done == PAGE:
            set_state(store, MemoryState.FORGOTTEN, victim)
            store.purge()
            store.erase(memory_ids=[store.list_memories(None, limit=999)[-1].id])

    class Slow(Hashes):
        def embed(self, texts: Sequence[str]) -> Vectors:
            # While a page is embedded, what is in it may go.
            if len(self.asked) < PAGE:
                newest = store.list_memories(None, limit=1)[0]
                set_state(store, MemoryState.FORGOTTEN, newest)
                store.purge()
                insert(store, a_memory("heir"))
            return super().embed(texts)

    embedder = Slow()
    store.reembed(embedder, meanwhile)
    assert agree(store, embedder)
    questions = [memory.question for memory, _ in store.export(None)]
    assert {"heir", f"late {PAGE}", f"late {2 * PAGE}"} <= {*questions}


def test_a_kill_loses_a_page_at_most(path: Path) -> None:
    with open_store(path) as store:
        fill(store, 3 * PAGE)
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_store_reembedding import Hashes
from mia.store import open_store
def report(progress):
    if progress.done >= {2 * PAGE}:
        os.kill(os.getpid(), signal.SIGKILL)
open_store(Path({str(path)!r})).reembed(Hashes(), report)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGKILL
    with open_store(path) as store:
        assert store.space() == SPACE
        insert(store, a_memory("late"))
        embedder = Hashes()
        done = store.reembed(embedder, ignore)
        assert (done.kept, done.done, done.dropped) == (2 * PAGE, 3 * PAGE + 1, "")
        assert len(embedder.asked) <= PAGE + 2
        assert agree(store, embedder)


def test_with_yet_another_embedder_it_begins_anew_and_says_so(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembedding, "PAGE", 4)
    fill(store, 10)

    class Breaks(Hashes):
        def embed(self, texts: Sequence[str]) -> Vectors:
            if self.asked:
                raise ConnectionError("down")
            return super().embed(texts)

    with pytest.raises(ConnectionError):
        store.reembed(Breaks("one/3"), ignore)
    embedder = Hashes("two/3")
    done = store.reembed(embedder, ignore)
    assert (done.kept, done.dropped) == (0, "one/3")
    assert agree(store, embedder)


def test_back_to_the_old_embedder_drops_what_was_begun(store: SqliteStore) -> None:
    fill(store, 3)

    class Down(Hashes):
        def embed(self, texts: Sequence[str]) -> Vectors:
            raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        store.reembed(Down(), ignore)
    assert store.reembed(Down(SPACE), ignore).dropped == "hashes/3"
    assert store._reader.execute("SELECT * FROM sqlite_master WHERE name = 'vectors_next'").fetchall() == []


def test_two_embedders_at_once_are_refused(store: SqliteStore) -> None:
    fill(store, 3)
    other = Hashes("two/3")
    started: list[Reembedding] = []

    def begin_another(_: Reembedding) -> None:
        if not started:
            started.append(store.reembed(other, ignore))

    with pytest.raises(StoreError, match="another process began to embed"):
        store.reembed(Hashes("one/3"), begin_another)
    assert agree(store, other)
