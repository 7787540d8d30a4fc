"""The approximate index: finds nearly what an exact search finds, and can be written down."""

from __future__ import annotations

import subprocess
import sys

import numpy
import pytest
from filled import clustered

from mia.memory.nearest import Nearest


def built(count: int, *, dimension: int = 24) -> tuple[Nearest, numpy.ndarray]:
    vectors = clustered(count, dimension=dimension)
    index = Nearest(dimension)
    index.add(numpy.arange(count), vectors)
    return index, vectors


def test_it_finds_what_an_exact_search_finds_best_first() -> None:
    index, vectors = built(4_000)
    shares = []
    for query in clustered(100, seed=1):
        exact = numpy.argsort(-(vectors @ query))[:50]
        found = index.search(query, 50)
        shares.append(len(numpy.intersect1d(found, exact)) / 50)
        similarity = vectors[found] @ query
        # Half precision: what is nearly equal may be in another order.
        assert (numpy.diff(similarity) < 2e-3).all()
    assert numpy.mean(shares) >= 0.99


def test_vectors_are_found_by_the_places_they_were_given() -> None:
    vectors = clustered(300)
    index = Nearest(24)
    places = numpy.arange(300) * 7 + 3
    for start in range(0, 300, 9):
        index.add(places[start : start + 9], vectors[start : start + 9])
    assert len(index) == 300
    assert [index.search(vector, 1)[0] for vector in vectors] == places.tolist()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_it_returns_no_more_than_it_holds(count: int) -> None:
    index, vectors = built(count)
    assert sorted(index.search(clustered(1)[0], 50).tolist()) == list(range(count))
    assert len(index) == len(vectors) == count


def test_what_is_not_a_number_does_no_harm() -> None:
    vectors = clustered(2_000)
    broken = numpy.arange(0, 2_000, 5)
    whole = numpy.setdiff1d(numpy.arange(2_000), broken)
    vectors[broken[::2]], vectors[broken[1::2]] = numpy.nan, 0
    index = Nearest(24)
    index.add(numpy.arange(2_000), vectors)
    for query in clustered(20, seed=1):
        exact = whole[numpy.argsort(-(vectors[whole] @ query))[:20]]
        assert len(numpy.intersect1d(index.search(query, 20), exact)) >= 19
    assert len(index.search(numpy.full(24, numpy.nan, numpy.float32), 20)) == 20


def test_what_is_written_down_and_read_again_finds_the_same_and_grows() -> None:
    index, _ = built(1_000)
    read = Nearest.parse(memoryview(index.dump()), 24)
    assert len(read) == 1_000
    late = clustered(30, seed=5)
    for one in (index, read):
        one.add(numpy.arange(1_000, 1_030), late)
    for query in [*clustered(20, seed=1), *late]:
        assert read.search(query, 20).tolist() == index.search(query, 20).tolist()


def test_an_index_of_another_size_or_no_index_is_refused() -> None:
    content = built(100)[0].dump()
    with pytest.raises(ValueError, match="24 dimensions instead of 48"):
        Nearest.parse(memoryview(content), 48)
    with pytest.raises(RuntimeError):
        Nearest.parse(memoryview(b"no index"), 24)


def test_the_library_is_loaded_only_where_it_is_used() -> None:
    script = "import sys, mia.memory.recalling, mia.memory.cache; print('usearch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_without_the_library_there_is_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ImportError):
        Nearest(24)
