"""The arithmetic of recall, as properties over any numbers."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mia.memory import score
from mia.memory.score import Candidates, Ranked, Weights

floats32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
matrices = arrays.arrays(numpy.float32, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=floats32)
cosine = st.floats(-1, 1)
weight = st.floats(0, 2)


@st.composite
def banks(draw: st.DrawFn) -> tuple[Candidates, numpy.ndarray, numpy.ndarray]:
    """Candidates with their uses and wins; few distinct numbers, so that ties are common."""
    size = draw(st.integers(0, 30))

    def column(values: st.SearchStrategy[float], kind: str) -> numpy.ndarray:
        return numpy.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=kind)

    uses = column(st.integers(0, 5), "i8")
    wins = numpy.minimum(column(st.integers(0, 5), "i8"), uses)
    similarity = column(st.one_of(st.sampled_from([0.0, 0.3, 0.5, 1.0]), cosine), "f8")
    candidates = Candidates(
        ids=[f"m{number:02}" for number in draw(st.permutations(range(size)))],
        correct=column(st.booleans(), "?"),
        created_at=column(st.sampled_from([1.0, 2.0]), "f8"),
        similarity=similarity,
    )
    return candidates, uses, wins


@given(matrices)
def test_unit_rows_are_of_length_one_or_zero(rows: numpy.ndarray) -> None:
    unit = score.unit_rows(rows)
    lengths = numpy.linalg.norm(unit.astype(float), axis=1)
    assert unit.dtype == numpy.float32
    assert numpy.isfinite(unit).all()
    assert all(abs(length - 1) < 1e-5 or length == 0 for length in lengths)
    for row, length in zip(rows, lengths, strict=True):
        assert (length == 0) == (not numpy.isfinite(row).all() or not row.any())


@given(matrices)
def test_cosines_stay_in_range_and_a_row_is_most_like_itself(rows: numpy.ndarray) -> None:
    unit = score.unit_rows(rows)
    for vector in unit:
        found = score.cosines(unit, vector)
        assert ((found >= -1) & (found <= 1)).all()
        if vector.any():
            assert found.max() == pytest.approx(1, abs=1e-5)


def test_a_row_that_holds_nan_or_infinity_is_similar_to_nothing() -> None:
    rows = numpy.array([[numpy.nan, 1], [numpy.inf, 0], [1, 0]], dtype=numpy.float32)
    assert score.cosines(rows, numpy.array([1, 0], dtype=numpy.float32)).tolist() == [0, 0, 1]


@given(st.lists(cosine, max_size=20))
def test_min_max_spans_zero_to_one_and_keeps_the_order(values: list[float]) -> None:
    stretched = score.min_max(numpy.array(values))
    assert ((stretched >= 0) & (stretched <= 1)).all()
    if len(set(values)) > 1:
        assert (stretched.min(), stretched.max()) == (0, 1)
    elif values:
        assert (stretched == 1).all()
    for low, first in zip(values, stretched, strict=True):
        assert all(first <= second for high, second in zip(values, stretched, strict=True) if low <= high)


@given(banks(), weight, weight, weight)
def test_the_score_is_its_parts_weighed(
    bank: tuple[Candidates, numpy.ndarray, numpy.ndarray], similarity: float, value: float, frequency: float
) -> None:
    candidates, uses, wins = bank
    scores = score.score(candidates, uses, wins, Weights(similarity, value, frequency))
    for index in range(len(candidates)):
        parts = {name: float(column[index]) for name, column in scores.parts.items()}
        assert parts["similarity"] == candidates.similarity[index]
        assert parts["value"] == (wins[index] / uses[index] if uses[index] else 0)
        assert parts["frequency"] == pytest.approx((1 + uses[index]) ** -0.5)
        expected = similarity * parts["similarity_normalised"] + value * parts["value"] + frequency * parts["frequency"]
        assert scores.total[index] == pytest.approx(expected)


def test_the_papers_weights_on_figures_worked_out_by_hand() -> None:
    candidates = Candidates(["a", "b", "c"], numpy.array([True] * 3), numpy.zeros(3), numpy.array([0.9, 0.5, 0.7]))
    scores = score.score(candidates, numpy.array([4, 1, 2]), numpy.array([1, 1, 1]), Weights())
    assert scores.total.tolist() == pytest.approx([0.7 * 1 + 0.3 * 0.25, 0.7 * 0 + 0.3 * 1, 0.7 * 0.5 + 0.3 * 0.5])


def test_similarity_weighs_question_and_caption() -> None:
    question, caption = numpy.array([1.0, 0.5]), numpy.array([0.0, 1.0])
    assert score.similarity(question, None).tolist() == [1.0, 0.5]
    assert score.similarity(question, caption).tolist() == pytest.approx([0.8, 0.6])


def plain_select(
    candidates: Candidates, total: numpy.ndarray, *, correct: bool, k: int, floor: float, skip: frozenset[str]
) -> list[Ranked]:
    """The same by sorting everything, in the plainest words."""
    own = [index for index in range(len(candidates)) if candidates.correct[index] == correct]
    own.sort(
        key=lambda at: (
            candidates.similarity[at] < floor,
            -total[at],
            -candidates.created_at[at],
            candidates.ids[at],
        )
    )
    places = []
    shown = 0
    for rank, index in enumerate(own, start=1):
        reason = ""
        if candidates.similarity[index] < floor:
            reason = "below the similarity floor"
        elif candidates.ids[index] in skip:
            reason = "skipped"
        elif shown == k:
            reason = f"rank {rank} of {k} shown"
        else:
            shown += 1
        places.append(Ranked(index, rank, reason))
    return places


@given(
    banks(),
    st.booleans(),
    st.integers(0, 4),
    st.sampled_from([-1.0, 0.0, 0.3, 0.5]),
    st.frozensets(st.integers(0, 30), max_size=6),
)
def test_selection_agrees_with_a_plain_sort(
    bank: tuple[Candidates, numpy.ndarray, numpy.ndarray], correct: bool, k: int, floor: float, skipped: frozenset[int]
) -> None:
    candidates, uses, wins = bank
    skip = frozenset(f"m{number:02}" for number in skipped)
    scores = score.score(candidates, uses, wins, Weights())
    got = score.select(candidates, scores, correct=correct, k=k, floor=floor, skip=skip)
    wanted = plain_select(candidates, scores.total, correct=correct, k=k, floor=floor, skip=skip)
    assert [one for one in got if not one.passed_over] == [one for one in wanted if not one.passed_over]
    listed = [one for one in wanted if one.passed_over][: score.LISTED]
    assert [one for one in got if one.passed_over] == listed
    shown = [one.index for one in got if not one.passed_over]
    assert len(shown) <= k
    assert all(candidates.similarity[index] >= floor and candidates.ids[index] not in skip for index in shown)


def test_skipping_makes_room_for_the_next() -> None:
    candidates = Candidates(
        ["a", "b", "c", "d"], numpy.array([True] * 4), numpy.zeros(4), numpy.array([0.9, 0.8, 0.7, 0.1])
    )
    scores = score.score_by_similarity(candidates)
    places = score.select(candidates, scores, correct=True, k=1, floor=0.3, skip={"a"})
    assert [(place.index, place.rank, place.passed_over) for place in places] == [
        (0, 1, "skipped"),
        (1, 2, ""),
        (2, 3, "rank 3 of 1 shown"),
        (3, 4, "below the similarity floor"),
    ]
