"""The bank: the vectors of a scope as matrices, which follow every change of the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shelf_of_memories import SPACE, clustered, insert, memory

from mia.embeddings.base import Vectors
from mia.memory import bank as module
from mia.memory import score
from mia.memory.bank import COLUMNS, Bank, Shelf
from mia.store import open_store
from mia.store.base import MemoryVectors
from mia.store.sqlite import SqliteStore
from mia.types import MemoryKind, MemoryState, Outcome, Verdict

NOW = 1_800_000_000.0
POOL = {"category": None, "now": NOW, "nearest": 200, "valued": 50, "exact": False}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with open_store(tmp_path / "memory.db") as store:
        yield store


def shelf_of(bank: Bank, store: SqliteStore, *, pair: bool = False, captioned: bool = False) -> Shelf:
    with bank.refreshed(store):
        return bank.shelf(pair=pair, captioned=captioned)


def same(one: Shelf, other: Shelf) -> bool:
    names = [[shelf.categories[code] for code in shelf.column("category").tolist()] for shelf in (one, other)]
    columns = [name for name in COLUMNS if name != "category"]
    return (
        names[0] == names[1]
        and all(numpy.array_equal(one.column(name), other.column(name)) for name in columns)
        and numpy.array_equal(one.vectors, other.vectors)
    )


# ── following the store ───────────────────────────────────────────────────────────────────────────────────────────

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "credit", "forget", "restore", "expire", "categorise"]), st.integers(0, 99)),
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_a_bank_that_followed_every_step_equals_one_that_is_loaded_now(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    with open_store(tmp_path_factory.mktemp("bank") / "memory.db") as store:
        followed, ids = Bank("default"), insert(store, 3)
        shelf_of(followed, store)
        for number, (step, choice) in enumerate(steps):
            id = ids[choice % len(ids)]
            if step == "add":
                ids += insert(store, 1, start=1_000 + number, caption="a moon" if choice % 2 else "")
            elif step == "credit":
                verdict = Verdict(outcome=Outcome.CORRECT if choice % 2 else Outcome.INCORRECT, judge="t")
                store.transaction(lambda w, id=id, v=verdict, g=str(choice): w.credit(("default",), g, [id], v))
            elif step == "expire":
                store.transaction(lambda w, id=id, at=float(choice): w.set_expiry([id], at))
            elif step == "categorise":
                store.transaction(lambda w, id=id, name=f"category {choice}": w.set_category(id, name))
            else:
                state = MemoryState.FORGOTTEN if step == "forget" else MemoryState.ACTIVE
                store.transaction(lambda w, id=id, s=state, a=step: w.set_state([id], s, action=a))
            if choice % 3 == 0:
                shelf_of(followed, store)
        fresh = Bank("default")
        for captioned in (False, True):
            assert same(shelf_of(followed, store, captioned=captioned), shelf_of(fresh, store, captioned=captioned))


def test_shelves_are_kept_apart_and_so_are_scopes(store: SqliteStore) -> None:
    insert(store, 2)
    insert(store, 3, start=10, caption="a moon")
    insert(store, 1, start=20, kind=MemoryKind.PLAN_PAIR)
    insert(store, 5, start=30, scope="other")
    bank = Bank("default")
    sizes = {
        (pair, captioned): len(shelf_of(bank, store, pair=pair, captioned=captioned))
        for pair in (False, True)
        for captioned in (False, True)
    }
    assert sizes == {(False, False): 2, (False, True): 3, (True, False): 1, (True, True): 0}


def test_after_a_purge_everything_is_loaded_anew(store: SqliteStore) -> None:
    first, second, third = insert(store, 3)
    bank = Bank("default")
    assert len(shelf_of(bank, store)) == 3
    store.transaction(lambda writing: writing.set_state([third], MemoryState.FORGOTTEN, action="forget"))
    store.purge(ids=[third])
    # The next memory gets the number of the purged one.
    insert(store, 1, start=50)
    shelf = shelf_of(bank, store)
    assert len(shelf) == 3
    assert same(shelf, shelf_of(Bank("default"), store))
    assert {first, second} < {memory.id for memory in store.list_memories(None, limit=9)}


# ── searching ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_may_be_shown_is_in_the_pool(store: SqliteStore) -> None:
    ids = insert(store, 6)
    bank, query = Bank("default"), clustered(1, seed=9)[0]
    store.transaction(lambda writing: writing.set_state([ids[0]], MemoryState.QUARANTINED, action="quarantine"))
    store.transaction(lambda writing: writing.set_expiry([ids[1]], NOW - 1))
    store.transaction(lambda writing: writing.set_expiry([ids[2]], NOW + 1))
    store.transaction(lambda writing: writing.set_category(ids[3], "human"))
    store.transaction(lambda writing: writing.set_category(ids[4], "time"))
    numbers = store.numbers(ids)

    def pooled(category: str | None) -> set[int]:
        shelf = shelf_of(bank, store)
        pool = shelf.pool(query, **{**POOL, "category": category})
        assert pool.considered == len(pool.places)
        return set(shelf.column("sequence")[pool.places].tolist())

    assert pooled(None) == {numbers[id] for id in ids[2:]}
    assert pooled("human") == {numbers[id] for id in (ids[2], ids[3], ids[5])}


def test_a_pool_holds_the_nearest_and_the_best_valued_of_each_judgement(store: SqliteStore) -> None:
    ids = insert(store, 600)
    far = ids[17]
    verdict = Verdict(outcome=Outcome.CORRECT, judge="t")
    for group in range(3):
        store.transaction(lambda w, g=str(group): w.credit(("default",), g, [far], verdict))
    shelf = shelf_of(Bank("default"), store)
    query = -shelf.vectors[17]
    pool = shelf.pool(query, category=None, now=NOW, nearest=20, valued=5, exact=False)
    assert pool.considered == 600
    assert 40 <= len(pool.places) <= 50
    similarity = shelf.vectors @ query
    for judgement in (True, False):
        own = numpy.flatnonzero(shelf.column("correct") == judgement)
        nearest = own[numpy.argsort(-similarity[own])[:20]]
        assert set(nearest.tolist()) <= set(pool.places.tolist())
    # As far away as can be, and in the pool for what it won.
    assert 17 in pool.places
    assert pool.similarity == pytest.approx(similarity[pool.places])
    everything = shelf.pool(query, category=None, now=NOW, nearest=20, valued=5, exact=True)
    assert len(everything.places) == 600


def test_captions_count_a_fifth(store: SqliteStore) -> None:
    question, caption = clustered(2, seed=3)
    store.transaction(
        lambda writing: writing.insert(memory(1, caption="a moon"), MemoryVectors(SPACE, question, caption))
    )
    shelf = shelf_of(Bank("default"), store, captioned=True)
    other = clustered(1, seed=8)[0]
    pool = shelf.pool(score.joined(question, other), **POOL)
    assert pool.similarity[0] == pytest.approx(0.8 + 0.2 * float(caption @ other), abs=1e-6)
    places, similarity = shelf.most_similar(question, 3, now=NOW)
    assert (places.tolist(), similarity[0]) == ([0], pytest.approx(1.0, abs=1e-6))


def test_vectors_without_a_direction_are_similar_to_nothing(store: SqliteStore) -> None:
    zero = numpy.zeros(32, numpy.float32)
    store.transaction(lambda writing: writing.insert(memory(1), MemoryVectors(SPACE, zero)))
    shelf = shelf_of(Bank("default"), store)
    for query in (zero, numpy.full(32, numpy.nan, numpy.float32), clustered(1)[0]):
        assert shelf.pool(query, **POOL).similarity.tolist() == [0.0]


# ── above the threshold ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes come into use at a size that a test can fill."""
    monkeypatch.setattr(module, "THRESHOLD", 1_500)
    monkeypatch.setattr(module, "TAIL", 50)


def hits(shelf: Shelf, queries: Vectors) -> float:
    """Share of the ten truly nearest that a search finds."""
    found = 0
    for query in queries:
        places, _ = shelf.most_similar(query, 10, now=NOW)
        may = numpy.flatnonzero(shelf.eligible(NOW))
        exact = may[numpy.argsort(-(shelf.vectors[may] @ query))[:10]]
        found += len(set(places.tolist()) & set(exact.tolist()))
    return found / (10 * len(queries))


def test_indexes_are_built_in_the_background_and_find_what_an_exact_search_finds(
    store: SqliteStore, low_threshold: None
) -> None:
    insert(store, 3_000)
    bank, queries = Bank("default"), clustered(40, seed=7)
    shelf = shelf_of(bank, store)
    # Nothing waits for them: until they are there, a search is exact.
    assert hits(shelf, queries) == 1.0
    assert bank.settled(timeout=60)
    assert shelf.indexes
    assert shelf.indexed.sum() == 3_000
    assert hits(shelf, queries) >= 0.99
    for query in queries[:10]:
        pool = shelf.pool(query, **POOL)
        assert pool.similarity == pytest.approx(shelf.vectors[pool.places] @ query, abs=1e-6)
    bank.close(store)


def test_what_the_indexes_do_not_hold_yet_is_found_all_the_same(store: SqliteStore, low_threshold: None) -> None:
    insert(store, 2_000)
    bank = Bank("default")
    shelf_of(bank, store)
    assert bank.settled(timeout=60)
    insert(store, 30, start=5_000)
    shelf = shelf_of(bank, store)
    assert shelf.indexed.sum() == 2_000
    for place in range(2_000, 2_030):
        places, similarity = shelf.most_similar(shelf.vectors[place], 1, now=NOW)
        assert similarity[0] == pytest.approx(1.0, abs=1e-5)
        assert place in places or numpy.allclose(shelf.vectors[places[0]], shelf.vectors[place], atol=1e-5)
    # Enough of them, and they are taken in.
    insert(store, 60, start=6_000)
    shelf_of(bank, store)
    assert bank.settled(timeout=60)
    assert shelf.indexed.sum() == 2_090
    bank.close(store)


def test_what_is_forgotten_disappears_from_the_indexes_and_comes_back(store: SqliteStore, low_threshold: None) -> None:
    ids = insert(store, 2_000)
    bank, queries = Bank("default"), clustered(20, seed=5)
    shelf_of(bank, store)
    assert bank.settled(timeout=60)
    gone = ids[::3]
    store.transaction(lambda writing: writing.set_state(gone, MemoryState.FORGOTTEN, action="forget"))
    shelf = shelf_of(bank, store)
    for query in queries:
        pool = shelf.pool(query, **POOL)
        assert shelf.column("active")[pool.places].all()
    # So many are out of sight that the indexes are built anew without them.
    assert bank.settled(timeout=60)
    assert sum(len(index) for index in shelf.indexes.values()) == 2_000 - len(gone)
    assert hits(shelf, queries) >= 0.99
    store.transaction(lambda writing: writing.set_state(gone, MemoryState.ACTIVE, action="restore"))
    # At once, before any index holds them.
    assert hits(shelf_of(bank, store), queries) >= 0.99
    assert bank.settled(timeout=60)
    assert shelf.indexed.all()
    assert hits(shelf_of(bank, store), queries) >= 0.99
    bank.close(store)


def test_recalls_go_on_while_another_thread_writes(store: SqliteStore, low_threshold: None) -> None:
    insert(store, 1_600)
    bank, failures = Bank("default"), []
    done = threading.Event()

    def write() -> None:
        for round_number in range(15):
            insert(store, 40, start=10_000 + 100 * round_number)
        done.set()

    def recall() -> None:
        try:
            while not done.is_set():
                with bank.refreshed(store):
                    shelf = bank.shelf(pair=False, captioned=False)
                    pool = shelf.pool(clustered(1, seed=4)[0], **POOL)
                    assert len(pool.places) <= pool.considered <= len(shelf)
        except Exception as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (write, recall, recall)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(shelf_of(bank, store)) == 1_600 + 15 * 40
    bank.close(store)


def test_closing_does_not_wait_for_an_index(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THRESHOLD", 1_000)
    insert(store, 6_000)
    bank = Bank("default")
    shelf_of(bank, store)
    begun = time.monotonic()
    bank.close(store)
    assert time.monotonic() - begun < 5
