"""The vector bank holds what the store holds after any history, and finds what an exact search finds."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy
import pytest
from filled import clustered, contents, credit, fill
from hypothesis import given, settings
from hypothesis import strategies as st

from mia.memory import bank as banks
from mia.memory import score
from mia.memory.bank import Bank, Pool, Shelf
from mia.store import open_store
from mia.store.base import MemoryStore, Rows
from mia.store.sqlite import SqliteStore
from mia.types import MemoryKind, MemoryState

FAR = 4e9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with open_store(tmp_path / "memory.db") as opened:
        yield opened


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of shelves that are small enough for tests."""
    monkeypatch.setattr(banks, "THRESHOLD", 1_000)
    monkeypatch.setattr(banks, "TAIL", 100)


def search(shelf: Shelf, vector: object, **changed: object) -> Pool:
    wanted = {"category": None, "now": time.time(), "nearest": 20, "valued": 10, "exact": False}
    (pool,) = shelf.pools(numpy.stack([vector]), **{**wanted, **changed})
    return pool


def workflows(bank: Bank, store: MemoryStore) -> Shelf:
    with bank.refreshed(store):
        return bank.shelf(pair=False, captioned=False)


def indexed(store: MemoryStore) -> Bank:
    """A bank whose indexes are built."""
    bank = Bank("default")
    workflows(bank, store)
    assert bank.settled(timeout=60)
    assert set(bank.shelf(pair=False, captioned=False).indexes) == {True, False}
    return bank


def recall_of(shelf: Shelf, queries: Sequence[object], **changed: object) -> float:
    """The share of the exact pool that is found."""
    shares = []
    for query in queries:
        found, exact = search(shelf, query, **changed), by_hand(shelf, query, **changed)
        shares.append(len(set(found.places.tolist()) & exact) / len(exact))
        assert len(found.places) <= len(exact)
    return float(numpy.mean(shares))


def by_hand(
    shelf: Shelf, query: object, *, now: float = 0, category: str | None = None, nearest: int = 20, valued: int = 10
) -> set[int]:
    """The pool as its docstring says it, without haste."""
    value = score.value(shelf.column("uses"), shelf.column("wins"))
    similarity = score.cosines(shelf.vectors, query)
    now = now or time.time()
    chosen: set[int] = set()
    for judgement in (True, False):
        own = [
            place
            for place in range(len(shelf))
            if shelf.column("correct")[place] == judgement
            and shelf.column("active")[place]
            and shelf.column("expires_at")[place] > now
            and (category is None or shelf.categories[shelf.column("category")[place]] in (category, "others"))
        ]
        chosen.update(sorted(own, key=lambda place: (-similarity[place], -place))[:nearest])
        chosen.update(sorted(own, key=lambda place: (-value[place], -place))[:valued])
    return chosen


# ── following the store ───────────────────────────────────────────────────────────────────────────────────────────────

operations = st.lists(
    st.tuples(
        st.sampled_from(
            ["insert", "replace", "credit", "forget", "restore", "expire", "categorise", "purge", "look", "look"]
        ),
        st.booleans(),
        st.booleans(),
        st.integers(0, 99),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(operations)
def test_a_bank_that_follows_agrees_with_one_that_starts_anew(history: list[tuple[str, bool, bool, int]]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_store(Path(folder) / "memory.db") as store,
        mock.patch.object(banks, "THRESHOLD", 4),
        mock.patch.object(banks, "TAIL", 1),
        mock.patch.object(banks, "WORTH_KEEPING", 1),
    ):
        follower = Bank("default")
        ids: list[str] = []
        for number, (operation, captioned, correct, pick) in enumerate(history):
            one = ids[pick % len(ids) :][:1] if ids else []
            if operation in ("insert", "replace"):
                replaced = one[0] if one and operation == "replace" else ""
                kind = MemoryKind.WORKFLOW if pick % 4 else MemoryKind.PLAN_PAIR
                vectors = clustered(1, dimension=3, seed=number)
                new = {"judgement": "correct" if correct else "incorrect", "kind": kind}
                ids += fill(store, vectors, captions=-vectors if captioned else None, **new)
                if replaced:
                    state(store, [replaced], MemoryState.REPLACED)
            elif operation == "credit":
                credit(store, f"g{pick % 3}", one, won=correct)
            elif operation == "forget":
                state(store, one, MemoryState.FORGOTTEN)
            elif operation == "restore":
                state(store, one, MemoryState.ACTIVE)
            elif operation == "expire":
                expiry = [1.0, FAR, None][pick % 3]
                store.transaction(lambda writing, one=one, expiry=expiry: writing.set_expiry(one, expiry))
            elif operation == "categorise" and one:
                store.transaction(lambda writing, one=one, pick=pick: writing.set_category(one[0], f"c{pick % 3}"))
            elif operation == "purge":
                store.purge(scope="default")
            else:
                workflows(follower, store)
        anew = Bank("default", indexes=False)
        with follower.refreshed(store), anew.refreshed(store, kept=False):
            assert contents(follower) == contents(anew)
        assert follower.settled(timeout=60)
        follower.close(store)
        from_disk = Bank("default", indexes=False)
        with follower.refreshed(store), from_disk.refreshed(store):
            assert contents(follower) == contents(from_disk) == contents(anew)
            # With little in sight, an index and what is beside it hold everything.
            for captioned in (False, True):
                query = clustered(1, dimension=6 if captioned else 3, seed=7)[0]
                pools = [search(bank.shelf(pair=False, captioned=captioned), query) for bank in (follower, anew)]
                assert pools[0].places.tolist() == pools[1].places.tolist()
                assert pools[0].considered == pools[1].considered
                assert numpy.allclose(pools[0].similarity, pools[1].similarity, atol=1e-6)


def state(store: MemoryStore, ids: Sequence[str], to: MemoryState) -> None:
    store.transaction(lambda writing: writing.set_state(ids, to, action="test"))


def test_a_bank_holds_exactly_one_scope(store: SqliteStore) -> None:
    fill(store, clustered(3))
    fill(store, clustered(5, seed=1), scope="default/other")
    assert len(workflows(Bank("default"), store)) == 3
    assert len(workflows(Bank("default/other"), store)) == 5
    assert len(workflows(Bank("nobody"), store)) == 0


def test_shelves_are_kept_apart(store: SqliteStore) -> None:
    fill(store, clustered(2))
    fill(store, clustered(3), captions=clustered(3))
    fill(store, clustered(1), kind=MemoryKind.PLAN_PAIR)
    bank = Bank("default")
    with bank.refreshed(store):
        sizes = {
            (pair, captioned): len(bank.shelf(pair=pair, captioned=captioned))
            for pair in (False, True)
            for captioned in (False, True)
        }
    assert sizes == {(False, False): 2, (False, True): 3, (True, False): 1, (True, True): 0}


def test_the_number_of_a_purged_memory_may_be_given_to_another(store: SqliteStore) -> None:
    ids = fill(store, clustered(3))
    bank = Bank("default")
    workflows(bank, store)
    state(store, ids[2:], MemoryState.FORGOTTEN)
    store.purge(ids=ids[2:])
    late = clustered(1, seed=5)
    fill(store, late)
    assert store.numbered([3])
    assert workflows(bank, store).vectors.tolist() == [*clustered(3)[:2].tolist(), late[0].tolist()]


def test_after_a_purge_or_an_erasure_everything_is_loaded_anew(store: SqliteStore) -> None:
    ids = fill(store, clustered(6))
    bank = Bank("default")
    shelf = workflows(bank, store)
    state(store, ids[:2], MemoryState.FORGOTTEN)
    assert (len(workflows(bank, store)), bank.eligible(0)) == (6, 4)
    assert workflows(bank, store) is shelf
    store.purge(scope="default")
    purged = workflows(bank, store)
    assert purged is not shelf
    assert len(purged) == 4
    store.erase(memory_ids=ids[3:])
    assert workflows(bank, store).vectors.tolist() == clustered(6)[2:3].tolist()


def test_what_is_broken_off_halfway_is_not_applied_twice(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank("default")
    fill(store, clustered(3))
    workflows(bank, store)
    fill(store, clustered(2))
    fill(store, clustered(2), captions=clustered(2))
    apply = Shelf.apply

    def interrupted(shelf: Shelf, rows: Rows, own: object, vectors: object) -> None:
        if shelf.dimension == 48:
            raise KeyboardInterrupt
        apply(shelf, rows, own, vectors)

    with monkeypatch.context() as patched:
        patched.setattr(Shelf, "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workflows(bank, store)
    anew = Bank("default")
    with bank.refreshed(store), anew.refreshed(store):
        assert contents(bank) == contents(anew)
        assert len(bank) == 7


# ── searching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_shelf_has_no_candidates(store: SqliteStore) -> None:
    shelf = workflows(Bank("default"), store)
    for exact in (False, True):
        pool = search(shelf, clustered(1)[0], exact=exact)
        assert (pool.places.tolist(), pool.similarity.tolist(), pool.considered) == ([], [], 0)
    assert shelf.most_similar(clustered(1)[0], 5, now=0)[0].tolist() == []


def test_only_what_may_be_shown_is_in_the_pool(store: SqliteStore) -> None:
    ids = fill(store, clustered(7))
    state(store, ids[:1], MemoryState.QUARANTINED)
    state(store, ids[1:2], MemoryState.FORGOTTEN)
    store.transaction(lambda writing: writing.set_expiry(ids[2:3], 99.0))
    store.transaction(lambda writing: writing.set_expiry(ids[3:4], 101.0))
    store.transaction(lambda writing: writing.set_category(ids[4], "human"))
    store.transaction(lambda writing: writing.set_category(ids[5], "time"))
    shelf = workflows(Bank("default"), store)
    query = clustered(1, seed=9)[0]
    assert search(shelf, query, now=100.0).places.tolist() == [3, 4, 5, 6]
    assert search(shelf, query, now=100.0, category="human").places.tolist() == [3, 4, 6]
    assert search(shelf, query, now=102.0, category="human").places.tolist() == [4, 6]


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(0, 200),
    st.sampled_from([None, "a", "b", "nobody"]),
    st.floats(0, 1),
    st.integers(1, 12),
    st.integers(0, 12),
)
def test_a_pool_is_what_its_definition_says(
    seed: int, count: int, category: str | None, hidden: float, nearest: int, valued: int
) -> None:
    generator = numpy.random.default_rng(seed)
    shelf = Shelf(4)
    shelf.apply(*drawn_rows(generator, count, hidden))
    query = clustered(1, dimension=4, seed=seed)[0]
    may = [
        place
        for place in range(count)
        if shelf.eligible(100.0)[place]
        and (category is None or shelf.categories[shelf.column("category")[place]] in (category, "others"))
    ]
    pool = search(shelf, query, now=100.0, category=category, nearest=nearest, valued=valued)
    assert pool.considered == len(may)
    if len(may) > nearest:
        expected = by_hand(shelf, query, now=100.0, category=category, nearest=nearest, valued=valued)
        assert pool.places.tolist() == sorted(expected)
    else:
        assert pool.places.tolist() == may
    assert numpy.allclose(pool.similarity, shelf.vectors[pool.places] @ query, atol=1e-6)
    everything = search(shelf, query, now=100.0, category=category, exact=True)
    assert everything.places.tolist() == may


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(0, 300),
    st.integers(1, 20),
    st.sampled_from([None, "a"]),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.booleans(),
)
def test_pools_of_many_questions_are_those_of_each_alone_to_the_last_bit(
    seed: int, count: int, questions: int, category: str | None, hidden: float, exact: bool
) -> None:
    shelf = Shelf(4)
    shelf.apply(*drawn_rows(numpy.random.default_rng(seed), count, hidden))
    queries = clustered(questions, dimension=4, seed=seed)
    wanted = {"category": category, "now": 100.0, "nearest": 8, "valued": 4, "exact": exact}
    # Rows are taken in parts; here these are small.
    with mock.patch.object(score, "_AT_A_TIME", 7 * 16):
        together = shelf.pools(queries, **wanted)
        for query, pool in zip(queries, together, strict=True):
            assert_same(pool, search(shelf, query, **wanted))


def test_pools_of_many_questions_are_those_of_each_alone_with_an_index_too(store: SqliteStore, small: None) -> None:
    """Of some questions the index finds too little, since all around them is out of sight."""
    vectors = clustered(4_000)
    ids = fill(store, vectors)
    bank = indexed(store)
    around = numpy.argsort(-(vectors @ vectors[0]))[:600]
    state(store, [ids[place] for place in around.tolist()], MemoryState.FORGOTTEN)
    shelf = workflows(bank, store)
    queries = numpy.concatenate([vectors[:1], clustered(12, seed=1), vectors[around[:2]]])
    for query, pool in zip(queries, search_many(shelf, queries), strict=True):
        assert_same(pool, search(shelf, query))
    bank.close(store)


def search_many(shelf: Shelf, vectors: numpy.ndarray) -> list[Pool]:
    return shelf.pools(vectors, category=None, now=time.time(), nearest=20, valued=10, exact=False)


def assert_same(one: Pool, other: Pool) -> None:
    assert one.considered == other.considered
    assert one.places.tolist() == other.places.tolist()
    assert one.similarity.tobytes() == other.similarity.tobytes()


def drawn_rows(
    generator: numpy.random.Generator, count: int, hidden: float
) -> tuple[Rows, numpy.ndarray, numpy.ndarray]:
    """Rows of few distinct values, so that many are equal."""
    uses = generator.integers(1, 5, count)
    rows = Rows(
        sequence=numpy.arange(1, count + 1),
        pair=numpy.zeros(count, bool),
        captioned=numpy.zeros(count, bool),
        correct=generator.random(count) < 0.6,
        active=generator.random(count) >= hidden,
        uses=uses,
        wins=generator.integers(0, uses + 1),
        created_at=numpy.zeros(count),
        expires_at=generator.choice([50.0, 150.0, numpy.inf], count),
        category=generator.choice(["a", "b", "others"], count),
        new=numpy.ones(count, bool),
        questions=clustered(count, dimension=4, seed=int(generator.integers(10**6))),
        captions=numpy.zeros((0, 4), numpy.float32),
    )
    return rows, numpy.ones(count, bool), rows.questions


def test_the_most_similar_come_best_first_and_with_captions_by_their_questions(store: SqliteStore) -> None:
    questions, captions = clustered(300), clustered(300, seed=1)
    ids = fill(store, questions, captions=captions)
    state(store, ids[::2], MemoryState.FORGOTTEN)
    bank = Bank("default")
    with bank.refreshed(store):
        shelf = bank.shelf(pair=False, captioned=True)
        query = clustered(1, seed=2)[0]
        places, similarity = shelf.most_similar(query, 10, now=0)
        cosines = questions @ query
        assert places.tolist() == sorted(range(1, 300, 2), key=lambda place: -cosines[place])[:10]
        assert numpy.allclose(similarity, cosines[places], atol=1e-6)
        both = score.joined(query, captions[3])
        pool = search(shelf, both, exact=True)
        assert numpy.allclose(pool.similarity, (0.8 * cosines + 0.2 * captions @ captions[3])[pool.places], atol=1e-6)


def test_what_is_not_a_number_is_similar_to_nothing(small: None) -> None:
    rows, own, vectors = drawn_rows(numpy.random.default_rng(0), 40, 0)
    vectors[::8], vectors[4::8] = numpy.nan, 0
    shelf = Shelf(4)
    shelf.apply(rows, own, vectors)
    query = clustered(1, dimension=4)[0]
    pool = search(shelf, query, exact=True, now=0)
    assert (pool.similarity[::4] == 0).all()
    assert (pool.similarity[1::4] != 0).all()
    assert search(shelf, numpy.full(4, numpy.nan, numpy.float32), exact=True, now=0).similarity.tolist() == [0] * 40


# ── approximate indexes ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_index_finds_what_an_exact_search_finds(store: SqliteStore, small: None) -> None:
    ids = fill(store, clustered(3_000))
    queries = clustered(60, seed=1)
    exact = workflows(Bank("default", indexes=False), store)
    bank = indexed(store)
    credit(store, "g", ids[100:140], won=True)
    credit(store, "h", ids[120:200], won=False)
    shelf = workflows(bank, store)
    assert shelf.column("indexed").all()
    assert recall_of(shelf, queries) >= 0.99
    for query in queries[:20]:
        found, similarity = shelf.most_similar(query, 10, now=0)
        wanted, best = exact.most_similar(query, 10, now=0)
        assert len(set(found.tolist()) & set(wanted.tolist())) >= 9
        assert numpy.allclose(similarity[:5], best[:5], atol=1e-6)
    bank.close(store)


def test_what_is_in_no_index_yet_is_found_beside_it(store: SqliteStore, small: None) -> None:
    fill(store, clustered(1_500))
    bank = indexed(store)
    late = clustered(90, seed=5)
    fill(store, late)
    shelf = workflows(bank, store)
    assert not shelf.column("indexed")[1_500:].any()
    for number, vector in enumerate(late):
        assert 1_500 + number in search(shelf, vector).places
        assert shelf.most_similar(vector, 1, now=0)[0].tolist() == [1_500 + number]
    assert recall_of(shelf, clustered(30, seed=6)) >= 0.99
    bank.close(store)


def test_an_index_grows_in_the_background_when_much_is_new(store: SqliteStore, small: None) -> None:
    fill(store, clustered(1_500))
    bank = indexed(store)
    before = bank.shelf(pair=False, captioned=False).indexes[True]
    fill(store, clustered(400, seed=1))
    workflows(bank, store)
    assert bank.settled(timeout=60)
    shelf = workflows(bank, store)
    assert shelf.indexes[True] is before
    assert shelf.column("indexed").all()
    assert len(shelf.indexes[True]) + len(shelf.indexes[False]) == 1_900
    assert recall_of(shelf, clustered(30, seed=6)) >= 0.99
    bank.close(store)


def test_what_comes_back_into_sight_is_found_though_the_index_was_built_without_it(
    store: SqliteStore, small: None
) -> None:
    vectors = clustered(1_500)
    ids = fill(store, vectors)
    state(store, ids[:50], MemoryState.FORGOTTEN)
    bank = indexed(store)
    assert not workflows(bank, store).column("indexed")[:50].any()
    state(store, ids[:50], MemoryState.ACTIVE)
    shelf = workflows(bank, store)
    for number in range(50):
        assert number in search(shelf, vectors[number]).places
    assert recall_of(shelf, vectors[:30]) >= 0.99
    bank.close(store)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_what_is_out_of_sight_takes_no_place(
    store: SqliteStore, small: None, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Not even while it is still in the index: here, nothing is built anew."""
    monkeypatch.setattr(banks, "MOST_HIDDEN", 1.0)
    vectors = clustered(2_000)
    ids = fill(store, vectors)
    bank = indexed(store)
    drawn = numpy.random.default_rng(3).random(2_000)
    forgotten = numpy.flatnonzero(drawn < share / 2)
    expired = numpy.flatnonzero((drawn >= share / 2) & (drawn < share))
    state(store, [ids[place] for place in forgotten], MemoryState.FORGOTTEN)
    store.transaction(lambda writing: writing.set_expiry([ids[place] for place in expired], 5.0))
    shelf = workflows(bank, store)
    assert shelf.column("indexed").all()
    hidden = {*forgotten.tolist(), *expired.tolist()}
    for query in clustered(20, seed=1):
        pool = search(shelf, query)
        assert pool.considered == 2_000 - len(hidden)
        assert not hidden & set(pool.places.tolist())
        assert not hidden & set(shelf.most_similar(query, 30, now=time.time())[0].tolist())
    assert recall_of(shelf, clustered(20, seed=2)) >= 0.99
    bank.close(store)


def test_where_all_around_is_out_of_sight_the_search_is_exact(
    store: SqliteStore, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The few nearest may be shown, and the hundreds after them may not."""
    monkeypatch.setattr(banks, "MOST_HIDDEN", 1.0)
    vectors, query = clustered(2_000), clustered(1, seed=1)[0]
    ids = fill(store, vectors)
    bank = indexed(store)
    around = numpy.argsort(-(vectors @ query))
    state(store, [ids[place] for place in around[12:1_200]], MemoryState.FORGOTTEN)
    shelf = workflows(bank, store)
    assert shelf.column("indexed").all()
    assert set(search(shelf, query).places.tolist()) == by_hand(shelf, query)
    assert shelf.most_similar(query, 20, now=0)[0].tolist() == [*around[:12], *around[1_200:1_208]]
    bank.close(store)


def test_with_an_index_few_rows_are_measured(store: SqliteStore, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a tenth of the index is out of sight, and in a category that half of the memories are of."""
    vectors = clustered(4_000)
    ids = [*fill(store, vectors[:2_000], category="a"), *fill(store, vectors[2_000:], category="b")]
    bank = indexed(store)
    state(store, ids[::10], MemoryState.FORGOTTEN)
    shelf = workflows(bank, store)
    measured: list[int] = []
    cosines = score.cosines
    monkeypatch.setattr(score, "cosines", lambda rows, vector: measured.append(len(rows)) or cosines(rows, vector))
    for query in clustered(30, seed=1):
        for category in (None, "a"):
            search(shelf, query, category=category)
    assert numpy.median(measured) <= 2 * (20 + 10)
    bank.close(store)


def test_an_index_of_which_much_is_out_of_sight_is_built_anew(store: SqliteStore, small: None) -> None:
    ids = fill(store, clustered(2_000))
    bank = indexed(store)
    before = bank.shelf(pair=False, captioned=False).indexes[True]
    state(store, ids[:600], MemoryState.FORGOTTEN)
    workflows(bank, store)
    assert bank.settled(timeout=60)
    shelf = workflows(bank, store)
    assert shelf.indexes[True] is not before
    assert len(shelf.indexes[True]) + len(shelf.indexes[False]) == 1_400
    assert shelf.column("indexed").tolist() == [False] * 600 + [True] * 1_400
    assert not shelf.wants_indexes
    bank.close(store)


@pytest.mark.parametrize("rare", [0.02, 0.4])
def test_a_category_is_searched_with_an_index_too(store: SqliteStore, small: None, rare: float) -> None:
    vectors = clustered(2_000)
    kinds = numpy.random.default_rng(0).random(2_000)
    # They arrive one sort after the other.
    for name, own in (("a", kinds < rare), ("others", kinds > 0.95), ("b", (kinds >= rare) & (kinds <= 0.95))):
        fill(store, vectors[own], category=name)
    bank = indexed(store)
    shelf = workflows(bank, store)
    for query in clustered(10, seed=1):
        found = search(shelf, query, category="a").places
        assert {shelf.categories[code] for code in shelf.column("category")[found]} == {"a", "others"}
    assert recall_of(shelf, clustered(20, seed=2), category="a") >= 0.99
    bank.close(store)


def test_without_the_library_of_indexes_a_search_stays_exact(
    store: SqliteStore, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    fill(store, clustered(1_500))
    bank = Bank("default")
    workflows(bank, store)
    assert bank.settled(timeout=60)
    shelf = workflows(bank, store)
    assert not shelf.indexes
    # It is not tried again with each search.
    assert bank.settled(timeout=0)
    assert recall_of(shelf, clustered(20, seed=2)) == 1
    bank.close(store)


def test_a_search_does_not_wait_for_an_index(store: SqliteStore, small: None) -> None:
    fill(store, clustered(6_000))
    bank = Bank("default")
    query = clustered(1, seed=1)[0]
    pools: list[Pool] = []
    shelf = workflows(bank, store)
    while not shelf.indexes:
        with bank.refreshed(store):
            pools += [] if shelf.indexes else [search(shelf, query)]
        # So that the index gets its turn.
        time.sleep(0.001)
    assert len(pools) > 5
    exact = by_hand(shelf, query)
    assert all(set(pool.places.tolist()) == exact for pool in pools)
    bank.close(store)


def test_closing_ends_the_work_in_the_background(store: SqliteStore, small: None) -> None:
    fill(store, clustered(8_000))
    bank = Bank("default")
    workflows(bank, store)
    begun = time.monotonic()
    bank.close(store)
    bank.close(store)
    assert time.monotonic() - begun < 5
    assert bank.settled(timeout=0)
    assert len(workflows(bank, store)) == 8_000
    assert bank.settled(timeout=0)


def test_searches_and_a_writer_at_once(store: SqliteStore, small: None) -> None:
    """Indexes are built, grow and are built anew while everybody is at work."""
    ids = fill(store, clustered(1_200))
    bank = Bank("default")
    ended = threading.Event()

    def searching(number: int) -> int:
        queries, searched = clustered(50, seed=number), 0
        while not ended.is_set():
            with bank.refreshed(store):
                shelf = bank.shelf(pair=False, captioned=False)
                pool = search(shelf, queries[searched % 50])
                assert shelf.eligible(time.time())[pool.places].all()
                assert len(set(pool.places.tolist())) == len(pool.places) >= 40
            searched += 1
        return searched

    with ThreadPoolExecutor() as threads:
        searchers = [threads.submit(searching, number) for number in range(2)]
        for round_number in range(8):
            new = fill(store, clustered(150, seed=round_number))
            state(store, ids[:100], MemoryState.FORGOTTEN)
            credit(store, f"g{round_number}", new[:30], won=True)
            ids = ids[100:] + new
        ended.set()
    assert all(searcher.result() > 0 for searcher in searchers)
    workflows(bank, store)
    assert bank.settled(timeout=60)
    anew = Bank("default", indexes=False)
    with bank.refreshed(store), anew.refreshed(store, kept=False):
        assert contents(bank) == contents(anew)
        assert bank.shelf(pair=False, captioned=False).indexes
    assert recall_of(workflows(bank, store), clustered(20, seed=2)) >= 0.99
    bank.close(store)


def test_a_search_waits_little_while_an_index_grows(store: SqliteStore, small: None) -> None:
    """Whoever waits gets his turn after a few rows, not when the index is done."""
    fill(store, clustered(1_200))
    bank = indexed(store)
    fill(store, clustered(2_500, seed=1))
    shelf = workflows(bank, store)
    states = []
    while not bank.settled(timeout=0):
        with bank.refreshed(store):
            states.append(int(numpy.count_nonzero(shelf.column("indexed"))))
    assert len(set(states)) > 5
    bank.close(store)


def test_nothing_is_loaded_anew_while_nothing_changes(store: SqliteStore) -> None:
    fill(store, clustered(10))
    bank = Bank("default")
    shelf = workflows(bank, store)
    before = shelf.column("uses").base
    assert workflows(bank, store).column("uses").base is before
    fill(store, clustered(100))
    assert workflows(bank, store).column("uses").base is not before
