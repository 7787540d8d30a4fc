"""The arithmetic of recall, as properties over any numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mia.embeddings.base import unit_rows
from mia.errors import ConfigError
from mia.memory import score
from mia.memory.coverage import Coverage
from mia.memory.score import Candidates, Form, Mia, Pairs, Paper, Ranked, Scores

NOW = 1_700_000_000.0
DAY = 86_400.0

floats32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
matrices = arrays.arrays(numpy.float32, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=floats32)
cosine = st.floats(-1, 1)
counts = st.integers(0, 1000)
weights = st.floats(0, 2)
forms = st.sampled_from([Paper(), Mia(), Mia(0.5, 0.3, 0.2, 0.4, floor=None), Pairs(), Pairs(0.5)])
floors = st.sampled_from([None, -1.0, 0.0, 0.3, 0.5, 1.0])


def pool(
    similarity: list[float],
    *,
    correct: list[bool] | None = None,
    uses: list[int] | None = None,
    wins: list[int] | None = None,
    created_at: list[float] | None = None,
) -> Candidates:
    """Candidates in the order of their arrival: positives at birth, unless said otherwise."""
    size = len(similarity)
    return Candidates(
        sequence=numpy.arange(1, size + 1),
        correct=numpy.array([True] * size if correct is None else correct),
        created_at=numpy.array([NOW] * size if created_at is None else created_at),
        uses=numpy.array([1] * size if uses is None else uses),
        wins=numpy.array([1] * size if wins is None else wins),
        similarity=numpy.array(similarity),
    )


@st.composite
def pools(draw: st.DrawFn, most: int = 30) -> Candidates:
    """Few distinct numbers, so that ties are common."""
    size = draw(st.integers(0, most))

    def column(values: st.SearchStrategy[float], kind: str) -> numpy.ndarray:
        return numpy.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=kind)

    uses = column(st.integers(1, 6), "i8")
    return Candidates(
        sequence=numpy.array(draw(st.permutations(range(1, size + 1))), dtype="i8"),
        correct=column(st.booleans(), "?"),
        created_at=column(st.sampled_from([NOW - 40 * DAY, NOW - DAY, NOW]), "f8"),
        uses=uses,
        wins=numpy.minimum(column(st.integers(1, 6), "i8"), uses),
        similarity=column(st.one_of(st.sampled_from([0.0, 0.3, 0.5, 1.0]), cosine), "f8"),
    )


def reordered(candidates: Candidates, order: list[int]) -> Candidates:
    return Candidates(**{name: column[order] for name, column in vars(candidates).items()})


def shown(places: tuple[Ranked, ...]) -> list[int]:
    return [place.index for place in places if not place.passed_over]


# ── vectors ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(matrices)
def test_unit_rows_are_of_length_one_or_zero(rows: numpy.ndarray) -> None:
    unit = unit_rows(rows)
    lengths = numpy.linalg.norm(unit.astype(float), axis=1)
    assert unit.dtype == numpy.float32
    assert numpy.isfinite(unit).all()
    assert all(abs(length - 1) < 1e-5 or length == 0 for length in lengths)
    for row, length in zip(rows, lengths, strict=True):
        assert (length == 0) == (not numpy.isfinite(row).all() or not row.any())


@given(matrices)
def test_cosines_stay_in_range_and_a_row_is_most_like_itself(rows: numpy.ndarray) -> None:
    unit = unit_rows(rows)
    for vector in unit:
        found = score.cosines(unit, vector)
        assert ((found >= -1) & (found <= 1)).all()
        if vector.any():
            assert found.max() == pytest.approx(1, abs=1e-5)


@given(st.integers(0, 10**6), st.integers(0, 2_500), st.integers(1, 17), st.sampled_from([1, 3, 384, 768]))
@settings(max_examples=40)
def test_cosines_to_many_are_those_to_each_alone_to_the_last_bit(
    seed: int, count: int, questions: int, dimension: int
) -> None:
    generator = numpy.random.default_rng(seed)
    rows = unit_rows(generator.standard_normal((count, dimension)))
    vectors = unit_rows(generator.standard_normal((questions, dimension)))
    together = score.cosines(rows, vectors)
    assert together.shape == (questions, count)
    for vector, own in zip(vectors, together, strict=True):
        assert score.cosines(rows, vector).tobytes() == own.tobytes()
        assert numpy.allclose(own, rows.astype(numpy.float64) @ vector, atol=1e-6)


def test_a_row_that_holds_nan_or_infinity_is_similar_to_nothing() -> None:
    rows = numpy.array([[numpy.nan, 1], [numpy.inf, 0], [1, 0]], dtype=numpy.float32)
    assert score.cosines(rows, numpy.array([1, 0], dtype=numpy.float32)).tolist() == [0, 0, 1]


@given(matrices)
def test_the_product_of_joined_vectors_weighs_question_and_caption(rows: numpy.ndarray) -> None:
    questions = unit_rows(rows)
    captions = questions[::-1]
    together = score.joined(questions, captions)
    assert together.dtype == numpy.float32
    assert together.shape == (len(rows), 2 * rows.shape[1])
    for place, (question, caption) in enumerate(zip(questions, captions, strict=True)):
        one = score.joined(question, caption)
        assert one.shape == (2 * question.size,)
        assert (one == together[place]).all()
        expected = 0.8 * score.cosines(questions, question) + 0.2 * score.cosines(captions, caption)
        assert together @ one == pytest.approx(expected, abs=1e-5)


# ── what comes in ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_candidates_are_made_safe_and_their_columns_converted() -> None:
    candidates = Candidates(
        sequence=numpy.array([1, 2, 3, 4], dtype="i4"),
        correct=numpy.array([1, 0, 1, 0]),
        created_at=numpy.array([numpy.nan, 1, 2, 3]),
        uses=numpy.array([1, 1, 1, 1], dtype="i2"),
        wins=numpy.array([1, 1, 1, 1], dtype="u1"),
        similarity=numpy.array([numpy.nan, numpy.inf, 1.0000001, -1.5], dtype="f4"),
    )
    assert candidates.similarity.tolist() == [0, 0, 1, -1]
    assert candidates.created_at.tolist() == [-numpy.inf, 1, 2, 3]
    kinds = [column.dtype.str[1:] for column in vars(candidates).values()]
    assert kinds == ["i8", "b1", "f8", "i8", "i8", "f8"]
    assert len(candidates) == 4


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uses \(2,\)"):
        pool([0.1, 0.2, 0.3], uses=[1, 2])


any_float = st.floats(allow_nan=True, allow_infinity=True)
any_count = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(any_count, st.booleans(), any_float, any_count, any_count, any_float), max_size=12), floors)
def test_no_score_is_nan_whatever_comes_in(rows: list[tuple[float, ...]], floor: float | None) -> None:
    kinds = ["i8", "?", "f8", "i8", "i8", "f8"]
    columns = list(zip(*rows, strict=True)) or [()] * 6
    candidates = Candidates(*(numpy.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))
    for form in (Paper(), Pairs(), Mia(1e6, 1e6, 1e6, 1e6, 1e-300, floor=floor), Mia(half_life=1e300)):
        scores = form.scores(candidates, now=NOW)
        for name, column in scores.parts.items():
            assert column.shape == (len(rows),)
            assert numpy.isfinite(column).all(), name
        assert numpy.isfinite(scores.total).all()
        places = score.select(candidates, scores, k_positive=3, k_negative=3, floor=floor)
        assert all(floor is None or candidates.similarity[index] >= floor for index in shown(places))


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def values_of(part: Callable[..., numpy.ndarray], *counts: list[int]) -> list[float]:
    return part(*(numpy.array(column) for column in counts)).tolist()


def test_the_win_rate_is_the_papers() -> None:
    assert values_of(score.win_rate, [0, 0, 1, 4, 3], [0, 3, 1, 1, 0]) == [0, 0, 1, 0.25, 0]


def test_the_value_doubts_few_trials() -> None:
    # Birth; birth and one trial, won and lost; ten trials, seven won.
    assert values_of(score.value, [1, 2, 2, 11], [1, 2, 1, 8]) == pytest.approx([1 / 2, 2 / 3, 1 / 3, 8 / 12])
    # Never born, or with counts that cannot be: still a value between.
    assert values_of(score.value, [0, 0, 2, 2], [0, 5, 9, -3]) == pytest.approx([1 / 2, 1 / 2, 2 / 3, 1 / 3])


@given(counts, counts)
def test_a_win_never_lowers_the_value_and_a_loss_never_raises_it(trials: int, won: int) -> None:
    won = min(won, trials)
    uses, wins = trials + 1, won + 1
    before, after_win, after_loss = values_of(score.value, [uses, uses + 1, uses + 1], [wins, wins + 1, wins])
    assert 0 < after_loss < before < after_win < 1


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_the_value_tends_to_the_win_rate_of_the_trials(trials: int, share: float) -> None:
    won = round(share * trials)
    (value,) = values_of(score.value, [trials + 1], [won + 1])
    assert abs(value - won / trials) <= 1 / (trials + 2) + 1e-12
    assert min(0.5, won / trials) <= value <= max(0.5, won / trials)


@given(counts)
def test_the_frequency_reward_falls_with_every_use(uses: int) -> None:
    before, after = values_of(score.frequency, [uses, uses + 1])
    assert before == pytest.approx((1 + uses) ** -0.5)
    assert 0 < after < before <= 1


@given(st.floats(0, 10_000), st.floats(0.1, 1000))
def test_recency_is_halved_every_half_life(age: float, half_life: float) -> None:
    ages = numpy.array([0, age, age + half_life])
    fresh, old, older = score.recency(NOW - ages * DAY, NOW, half_life).tolist()
    assert fresh == 1
    assert old == pytest.approx(0.5 ** (age / half_life), rel=1e-4)
    assert older == pytest.approx(old / 2, rel=1e-4)


def test_what_comes_from_the_future_is_new_and_not_newer_than_new() -> None:
    born = numpy.array([NOW + 400 * DAY, NOW, NOW - 30 * DAY, -numpy.inf])
    assert score.recency(born, NOW, 30).tolist() == [1, 1, 0.5, 0]


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


thousandths = st.lists(st.integers(-1000, 1000), min_size=1, max_size=20).map(lambda ones: numpy.array(ones) / 1000)


@given(thousandths)
def test_a_z_score_is_measured_in_deviations(values: numpy.ndarray) -> None:
    found = score.z_score(values, numpy.ones(values.size, bool), 0.1)
    assert found == pytest.approx((values - values.mean()) / max(values.std(), 0.1), abs=1e-12)


@given(thousandths, st.floats(-5, 5), st.floats(0.1, 10))
def test_a_z_score_ignores_an_offset_and_a_scale_only_where_the_spread_is_wide(
    values: numpy.ndarray, offset: float, scale: float
) -> None:
    everyone = numpy.ones(values.size, bool)
    before = score.z_score(values, everyone, 0.1)
    assert score.z_score(values + offset, everyone, 0.1) == pytest.approx(before, abs=1e-9)
    narrow, wide = sorted([values.std(), values.std() * scale])
    after = score.z_score(values * scale, everyone, 0.1)
    if narrow > 0.1:
        assert after == pytest.approx(before, abs=1e-9)
    elif wide < 0.1:
        assert after == pytest.approx(before * scale, abs=1e-9)


# ── the paper's form ──────────────────────────────────────────────────────────────────────────────────────────────


def plain_paper(candidates: Candidates) -> list[float]:
    """The paper's score in the plainest words: 0.7·min-max similarity + 0.3·win rate."""
    similarity = candidates.similarity.tolist()
    totals = []
    for place in range(len(similarity)):
        stretched = 1.0
        if max(similarity) > min(similarity):
            stretched = (similarity[place] - min(similarity)) / (max(similarity) - min(similarity))
        uses, wins = int(candidates.uses[place]), int(candidates.wins[place])
        totals.append(0.7 * stretched + 0.3 * (wins / uses if uses else 0.0))
    return totals


@given(pools())
def test_the_papers_form_agrees_with_its_plain_words_to_the_last_bit(candidates: Candidates) -> None:
    unused = candidates.sequence % 5 == 0
    candidates = replace(candidates, uses=candidates.uses * ~unused, wins=candidates.wins * ~unused)
    total = Paper().scores(candidates, now=NOW).total
    assert total.tolist() == plain_paper(candidates)
    assert ((total >= 0) & (total <= 1)).all()


def test_the_papers_form_on_figures_worked_out_by_hand() -> None:
    scores = Paper().scores(pool([0.9, 0.5, 0.7], uses=[4, 1, 2], wins=[1, 1, 1]), now=NOW)
    assert scores.total.tolist() == pytest.approx([0.7 * 1 + 0.3 * 0.25, 0.7 * 0 + 0.3 * 1, 0.7 * 0.5 + 0.3 * 0.5])
    assert Paper().floor is None


@given(thousandths, st.floats(-0.2, 0.2), st.floats(0.05, 2))
def test_the_papers_form_ignores_an_offset_and_a_scale(values: numpy.ndarray, offset: float, scale: float) -> None:
    values = 0.4 * values
    before = Paper().scores(pool(values.tolist()), now=NOW).total
    after = Paper().scores(pool((values * scale + offset).tolist()), now=NOW).total
    assert after == pytest.approx(before, abs=1e-9)


# ── our form ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_our_form_on_figures_worked_out_by_hand() -> None:
    # Three reach the floor: mean similarity 0.6, deviation √(0.08/3) = 0.1633; values 1/2, 2/3, 1/2: mean 5/9,
    # deviation √2/18 = 0.0786, which is less than 0.15.
    candidates = pool([0.4, 0.6, 0.8, 0.1], uses=[1, 2, 1, 1], wins=[1, 2, 1, 1])
    scores = Mia(0.7, 0.3, floor=0.3).scores(candidates, now=NOW)
    deviation = (0.08 / 3) ** 0.5
    expected = [
        0.7 * -0.2 / deviation + 0.3 * (1 / 2 - 5 / 9) / 0.15,
        0.3 * (2 / 3 - 5 / 9) / 0.15,
        0.7 * 0.2 / deviation + 0.3 * (1 / 2 - 5 / 9) / 0.15,
        0.7 * -0.5 / deviation + 0.3 * (1 / 2 - 5 / 9) / 0.15,
    ]
    assert scores.total.tolist() == pytest.approx(expected)


@given(pools(), st.builds(Mia, weights, weights, weights, weights, st.floats(1, 100), floors))
def test_a_score_is_the_sum_of_its_parts_times_the_weights(candidates: Candidates, mia: Mia) -> None:
    for form in (mia, Paper(), Pairs()):
        scores = form.scores(candidates, now=NOW)
        for index in range(len(candidates)):
            expected = sum(weight * scores.parts[name][index] for name, weight in form.weights.items())
            assert scores.total[index] == pytest.approx(expected, abs=1e-9)


@given(pools(), st.lists(st.floats(-1, 0.2999), max_size=10))
def test_who_is_below_the_floor_changes_no_score_of_those_above(candidates: Candidates, low: list[float]) -> None:
    above = numpy.flatnonzero(candidates.similarity >= 0.3).tolist()
    assume(above)
    alone = Mia(floor=0.3).scores(reordered(candidates, above), now=NOW)
    together = Mia(floor=0.3).scores(candidates, now=NOW)
    assert together.total[above].tolist() == alone.total.tolist()


@given(pools())
def test_where_nobody_reaches_the_floor_all_are_measured(candidates: Candidates) -> None:
    candidates = replace(candidates, similarity=candidates.similarity - 0.5)
    out_of_reach = Mia(floor=0.6).scores(candidates, now=NOW)
    assert out_of_reach.total.tolist() == Mia(floor=None).scores(candidates, now=NOW).total.tolist()


@given(thousandths, st.floats(-0.2, 0.2))
def test_our_form_ignores_an_offset(values: numpy.ndarray, offset: float) -> None:
    form = Mia(floor=None)
    before = form.scores(pool((0.8 * values).tolist()), now=NOW).total
    assert form.scores(pool((0.8 * values + offset).tolist()), now=NOW).total == pytest.approx(before, abs=1e-9)


@given(st.integers(0, 9), st.integers(0, 9), st.floats(0.3, 1))
def test_where_all_are_equal_all_scores_are_equal(uses: int, wins: int, similarity: float) -> None:
    candidates = pool([similarity] * 5, uses=[uses] * 5, wins=[wins] * 5)
    for form in (Paper(), Mia(), Pairs()):
        assert len(set(form.scores(candidates, now=NOW).total.tolist())) == 1


def test_a_hairs_difference_of_similarity_beats_the_value_in_the_papers_form_and_not_in_ours() -> None:
    # Nine of ten trials were won of the first, one of ten of the second.
    candidates = pool([0.500, 0.501], uses=[11, 11], wins=[10, 2])
    assert rank_of(Paper(), candidates) == [2, 1]
    assert rank_of(Mia(), candidates) == [1, 2]
    # A real difference of similarity still wins in ours.
    assert rank_of(Mia(), pool([0.400, 0.800], uses=[11, 11], wins=[10, 2])) == [2, 1]


@pytest.mark.parametrize("weight", [-0.1, numpy.nan, numpy.inf, 1e7])
def test_a_weight_that_cannot_be_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"memory\.recency_weight is") as caught:
        Mia(recency=weight)
    assert "MIA_MEMORY__RECENCY_WEIGHT=0.0" in caught.value.hint


@pytest.mark.parametrize("half_life", [0.0, -1.0, numpy.nan, numpy.inf])
def test_a_half_life_that_cannot_be_is_refused(half_life: float) -> None:
    with pytest.raises(ConfigError, match=r"memory\.recency_half_life is"):
        Mia(half_life=half_life)


# ── order ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def rank_of(form: Form, candidates: Candidates) -> list[int]:
    """The rank of each candidate within its judgement, where there is room and no floor for all."""
    places = score.select(candidates, form.scores(candidates, now=NOW), k_positive=10**6, k_negative=10**6)
    return [place.rank for place in sorted(places, key=lambda place: place.index)]


def twins(candidates: Candidates, **better: tuple[float, float]) -> Candidates:
    """The candidates and two more positives that differ in the given columns only; the first one came earlier."""
    fields = {"correct": True, "created_at": NOW, "uses": 4, "wins": 2, "similarity": 0.6}
    last = len(candidates)
    columns = {
        name: numpy.append(getattr(candidates, name), better.get(name, (value, value)))
        for name, value in fields.items()
    }
    return Candidates(sequence=numpy.append(candidates.sequence, [last + 1, last + 2]), **columns)


@given(pools(), forms, cosine, st.floats(1e-6, 0.5))
def test_the_more_similar_of_two_never_ranks_lower(
    candidates: Candidates, form: Form, similarity: float, more: float
) -> None:
    # Rounding may swallow less than a millionth; then their age decides.
    assume(similarity + more <= 1)
    ranks = rank_of(form, twins(candidates, similarity=(similarity + more, similarity)))
    assert ranks[-2] < ranks[-1]


@given(pools(), st.sampled_from([Paper(), Mia(), Mia(floor=None, frequency=0.5)]), st.integers(1, 20), st.data())
def test_the_one_with_more_wins_never_ranks_lower(
    candidates: Candidates, form: Form, trials: int, data: st.DataObject
) -> None:
    wins = data.draw(st.integers(1, trials))
    uses = trials + 1
    ranks = rank_of(form, twins(candidates, uses=(uses, uses), wins=(wins + 1, wins)))
    assert ranks[-2] < ranks[-1]


def test_equals_are_told_apart_by_age_and_then_by_number() -> None:
    candidates = pool([0.5] * 4, created_at=[2.0, 3.0, 3.0, numpy.nan])
    assert rank_of(Pairs(), candidates) == [3, 2, 1, 4]


# ── selection ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Wish:
    """What is asked of a selection; the questions are alike by their numbers' remainder."""

    k_positive: int
    k_negative: int
    balance: Literal["fixed", "fill"]
    floor: float | None
    skip: frozenset[int]
    diversity: float | None
    classes: int

    def alike(self, candidates: Candidates, one: int, other: int) -> float:
        return 0.9 if (candidates.sequence[one] - candidates.sequence[other]) % self.classes == 0 else 0.2

    def select(
        self,
        candidates: Candidates,
        scores: Scores,
        asked: list[tuple[int, int]] | None = None,
        coverage: Coverage | None = None,
    ) -> tuple[Ranked, ...]:
        def alike(one: int, other: int) -> float:
            if asked is not None:
                asked.append((one, other))
            return self.alike(candidates, one, other)

        return score.select(
            candidates,
            scores,
            k_positive=self.k_positive,
            k_negative=self.k_negative,
            balance=self.balance,
            floor=self.floor,
            skip=self.skip,
            diversity=self.diversity,
            alike=alike,
            coverage=coverage,
        )


wishes = st.builds(
    Wish,
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from(["fixed", "fill"]),
    floors,
    st.frozensets(st.integers(1, 30), max_size=8),
    st.sampled_from([None, 0.1, 0.5, 0.9, 1.0]),
    st.integers(1, 6),
)


def plain_lineup(candidates: Candidates, total: list[float], wish: Wish, *, correct: bool, k: int) -> list[Ranked]:
    """All of one judgement, by sorting everything, in the plainest words."""
    own = [index for index in range(len(candidates)) if candidates.correct[index] == correct]
    floor = -2.0 if wish.floor is None else wish.floor
    own.sort(
        key=lambda at: (
            candidates.similarity[at] < floor,
            -total[at],
            -candidates.created_at[at],
            -candidates.sequence[at],
        )
    )
    places: list[Ranked] = []
    taken: list[int] = []
    for rank, index in enumerate(own, start=1):
        limit = 2.0 if wish.diversity in (None, 1.0) else wish.diversity
        like = next((one for one in taken if wish.alike(candidates, index, one) > limit), None)
        if candidates.similarity[index] < floor:
            places.append(Ranked(index, rank, "below the similarity floor"))
        elif int(candidates.sequence[index]) in wish.skip:
            places.append(Ranked(index, rank, "skipped"))
        elif len(taken) == k:
            places.append(Ranked(index, rank, f"rank {rank} of {k} shown"))
        elif like is not None:
            places.append(Ranked(index, rank, "too like", like))
        else:
            taken.append(index)
            places.append(Ranked(index, rank))
    return places


def plain_select(candidates: Candidates, total: list[float], wish: Wish) -> list[Ranked]:
    wanted = {True: wish.k_positive, False: wish.k_negative}
    if wish.balance == "fill":
        free = {
            correct: k - len(shown(plain_lineup(candidates, total, wish, correct=correct, k=k)))
            for correct, k in wanted.items()
        }
        # One that has places free has nobody left: more room changes nothing for it.
        wanted = {correct: k + (0 if free[correct] else free[not correct]) for correct, k in wanted.items()}
    found = []
    for correct, k in wanted.items():
        places = plain_lineup(candidates, total, wish, correct=correct, k=k)
        listed = [place for place in places if place.passed_over][:5]
        found += [place for place in places if not place.passed_over or place in listed]
    return found


@given(pools(), forms, wishes)
def test_selection_agrees_with_a_plain_sort(candidates: Candidates, form: Form, wish: Wish) -> None:
    scores = form.scores(candidates, now=NOW)
    assert list(wish.select(candidates, scores)) == plain_select(candidates, scores.total.tolist(), wish)


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), wishes)
def test_selection_agrees_with_a_plain_sort_in_large_pools_full_of_equals(seed: int, size: int, wish: Wish) -> None:
    random = numpy.random.default_rng(seed)
    candidates = Candidates(
        sequence=1 + random.permutation(size),
        correct=random.random(size) < 0.7,
        created_at=NOW - random.integers(0, 3, size),
        uses=numpy.ones(size),
        wins=numpy.ones(size),
        similarity=random.choice([0.2, 0.5, 0.9], size, p=[0.1, 0.8, 0.1]),
    )
    # So many skipped that the first look is not enough.
    wish = replace(wish, skip=frozenset(random.permutation(size)[: int(size * 0.8)].tolist()))
    scores = Pairs().scores(candidates, now=NOW)
    assert list(wish.select(candidates, scores)) == plain_select(candidates, scores.total.tolist(), wish)


@given(pools(), forms, wishes)
def test_floor_skip_and_room_are_always_honoured(candidates: Candidates, form: Form, wish: Wish) -> None:
    places = wish.select(candidates, form.scores(candidates, now=NOW))
    taken = shown(places)
    assert len({place.index for place in places}) == len(places)
    assert all(wish.floor is None or candidates.similarity[index] >= wish.floor for index in taken)
    assert not wish.skip & set(candidates.sequence[taken].tolist())
    positives = int(candidates.correct[taken].sum())
    assert len(taken) <= wish.k_positive + wish.k_negative
    if wish.balance == "fixed":
        assert positives <= wish.k_positive
        assert len(taken) - positives <= wish.k_negative
    for correct in (True, False):
        passed_over = [one for one in places if one.passed_over and candidates.correct[one.index] == correct]
        assert len(passed_over) <= score.LISTED
        ranks = [place.rank for place in places if candidates.correct[place.index] == correct]
        assert ranks == sorted(set(ranks))


@given(pools(), forms, wishes)
def test_filling_shows_at_least_what_fixed_places_show(candidates: Candidates, form: Form, wish: Wish) -> None:
    scores = form.scores(candidates, now=NOW)
    fixed, filled = (
        set(shown(replace(wish, balance=balance).select(candidates, scores)))  # type: ignore[arg-type]
        for balance in ("fixed", "fill")
    )
    assert fixed <= filled
    # It stops short only where both judgements are used up: then twice the room shows no more.
    if len(filled) < wish.k_positive + wish.k_negative:
        roomy = replace(wish, balance="fixed", k_positive=99, k_negative=99)
        assert set(shown(roomy.select(candidates, scores))) == filled


@given(pools(), forms, wishes)
def test_no_two_alike_of_one_judgement_are_shown_and_few_are_compared(
    candidates: Candidates, form: Form, wish: Wish
) -> None:
    asked: list[tuple[int, int]] = []
    places = wish.select(candidates, form.scores(candidates, now=NOW), asked)
    taken = shown(places)
    if wish.diversity is None or wish.diversity == 1:
        assert not asked
        return
    for index in taken:
        for other in taken:
            if index != other and candidates.correct[index] == candidates.correct[other]:
                assert wish.alike(candidates, index, other) <= wish.diversity
    for place in places:
        assert (place.like is not None) == (place.passed_over == score.TOO_LIKE)
        if place.like is not None:
            assert place.like in taken
            assert candidates.correct[place.like] == candidates.correct[place.index]
            assert wish.alike(candidates, place.index, place.like) > wish.diversity
    assert len(set(asked)) == len(asked)
    for index, other in asked:
        assert other in taken
        assert wish.floor is None or candidates.similarity[index] >= wish.floor
        assert int(candidates.sequence[index]) not in wish.skip


@given(pools(), forms, wishes, st.data())
def test_the_order_of_the_candidates_changes_nothing(
    candidates: Candidates, form: Form, wish: Wish, data: st.DataObject
) -> None:
    def told(one: Candidates) -> list[tuple[object, ...]]:
        """The selection by numbers instead of places, with the scores to the last bit."""
        scores = form.scores(one, now=NOW)
        return [
            (
                int(one.sequence[place.index]),
                place.rank,
                place.passed_over,
                None if place.like is None else int(one.sequence[place.like]),
                {name: float(column[place.index]) for name, column in scores.parts.items()},
                float(scores.total[place.index]),
            )
            for place in wish.select(one, scores)
        ]

    order = data.draw(st.permutations(range(len(candidates))))
    assert told(reordered(candidates, order)) == told(candidates)


def test_skipping_makes_room_for_the_next() -> None:
    candidates = pool([0.9, 0.8, 0.7, 0.1])
    scores = Pairs(0.3).scores(candidates, now=NOW)
    assert score.select(candidates, scores, k_positive=1, k_negative=2, floor=0.3, skip={1}) == (
        Ranked(0, 1, "skipped"),
        Ranked(1, 2),
        Ranked(2, 3, "rank 3 of 1 shown"),
        Ranked(3, 4, "below the similarity floor"),
    )


def test_skipping_hundreds_of_the_best_shows_the_next() -> None:
    candidates = pool((numpy.arange(500) / 1000).tolist())
    places = score.select(
        candidates, Pairs().scores(candidates, now=NOW), k_positive=2, k_negative=0, skip=set(range(201, 501))
    )
    assert [(place.index, place.rank) for place in places if not place.passed_over] == [(199, 301), (198, 302)]
    assert [place.rank for place in places if place.passed_over == score.SKIPPED] == [1, 2, 3, 4, 5]


def test_places_that_one_judgement_cannot_take_go_to_the_other() -> None:
    candidates = pool([0.9, 0.8, 0.7, 0.6, 0.2], correct=[False, False, False, True, True])
    scores = Pairs(0.3).scores(candidates, now=NOW)
    fixed = score.select(candidates, scores, k_positive=2, k_negative=1, floor=0.3)
    assert shown(fixed) == [3, 0]
    assert Ranked(1, 2, "rank 2 of 1 shown") in fixed
    filled = score.select(candidates, scores, k_positive=2, k_negative=1, floor=0.3, balance="fill")
    assert shown(filled) == [3, 0, 1]
    assert Ranked(2, 3, "rank 3 of 2 shown") in filled


def test_one_too_like_says_which_one_and_leaves_the_other_judgement_alone() -> None:
    candidates = pool([0.9, 0.8, 0.7, 0.6], correct=[True, True, True, False])
    scores = Pairs().scores(candidates, now=NOW)
    same = {frozenset({0, 1}), frozenset({0, 3})}
    places = score.select(
        candidates,
        scores,
        k_positive=2,
        k_negative=1,
        diversity=0.98,
        alike=lambda one, other: 0.99 if frozenset({one, other}) in same else 0.98,
    )
    assert places == (Ranked(0, 1), Ranked(1, 2, "too like", 0), Ranked(2, 3), Ranked(3, 1))


def test_diversity_without_a_way_to_compare_is_refused() -> None:
    candidates = pool([0.9])
    with pytest.raises(ValueError, match="alike"):
        score.select(
            candidates, Pairs().scores(candidates, now=NOW), k_positive=1, k_negative=0, diversity=0.98, alike=None
        )


def test_plan_pairs_are_ranked_by_similarity_alone() -> None:
    candidates = pool([0.5, 0.9, 0.7], uses=[9, 9, 1], wins=[9, 1, 1])
    scores = Pairs().scores(candidates, now=NOW)
    assert scores.total.tolist() == [0.5, 0.9, 0.7]
    assert shown(score.select(candidates, scores, k_positive=2, k_negative=0)) == [1, 2]


# ── coverage of the question's words ──────────────────────────────────────────────────────────────────────────────


@st.composite
def coverages(draw: st.DrawFn, candidates: Candidates, weight: float | None = None) -> Coverage:
    """Some of the candidates were read, and have words of a question of up to five."""
    size, count = len(candidates), draw(st.integers(0, 5))
    read = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    places = [place for place in range(size) if read[place]]
    # Sixteenths: their sums are exact.
    shares = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    cells = draw(st.lists(st.booleans(), min_size=len(places) * count, max_size=len(places) * count))
    return Coverage(
        draw(st.sampled_from([0.25, 1.0, 4.0])) if weight is None else weight,
        numpy.array(places, numpy.intp),
        numpy.array(shares, float) / 16,
        numpy.array(cells, bool).reshape(len(places), count),
    )


def covered(coverage: Coverage, chosen: list[int]) -> float:
    """What the chosen have together."""
    return float(coverage.shares[coverage.has[numpy.isin(coverage.places, chosen)].any(axis=0)].sum())


def greedily(
    candidates: Candidates, total: list[float], coverage: Coverage, wish: Wish, *, correct: bool, k: int
) -> list[Ranked]:
    """All of one judgement that reach the floor, one after the other, in the plainest words."""
    floor = -2.0 if wish.floor is None else wish.floor
    limit = 2.0 if wish.diversity in (None, 1.0) else wish.diversity
    waiting = [at for at in range(len(candidates)) if candidates.correct[at] == correct]
    waiting = [at for at in waiting if candidates.similarity[at] >= floor]
    places: list[Ranked] = []
    taken: list[int] = []
    while waiting:
        gains = coverage.gains(taken, len(candidates)).tolist()
        index = max(
            waiting,
            key=lambda at: (
                total[at] + coverage.weight * gains[at],
                candidates.created_at[at],
                candidates.sequence[at],
            ),
        )
        waiting.remove(index)
        rank = len(places) + 1
        like = next((one for one in taken if wish.alike(candidates, index, one) > limit), None)
        if int(candidates.sequence[index]) in wish.skip:
            places.append(Ranked(index, rank, "skipped", None, gains[index]))
        elif len(taken) == k:
            places.append(Ranked(index, rank, f"rank {rank} of {k} shown", None, gains[index]))
        elif like is not None:
            places.append(Ranked(index, rank, "too like", like, gains[index]))
        else:
            taken.append(index)
            places.append(Ranked(index, rank, "", None, gains[index]))
    return places


@given(pools(), forms, wishes, st.data())
def test_with_coverage_each_pick_is_worth_most_beside_those_picked_before(
    candidates: Candidates, form: Form, wish: Wish, data: st.DataObject
) -> None:
    wish = replace(wish, balance="fixed")
    coverage = data.draw(coverages(candidates))
    scores = form.scores(candidates, now=NOW)
    found = wish.select(candidates, scores, coverage=coverage)
    for correct, k in ((True, wish.k_positive), (False, wish.k_negative)):
        places = greedily(candidates, scores.total.tolist(), coverage, wish, correct=correct, k=k)
        listed = [place for place in places if place.passed_over][:5]
        expected = [place for place in places if not place.passed_over or place in listed]
        own = [one for one in found if candidates.correct[one.index] == correct]
        assert [one for one in own if one.passed_over != score.BELOW_FLOOR] == expected
        # The score with what it covers descends.
        worth = [scores.total[one.index] + coverage.weight * one.coverage for one in expected]
        assert worth == sorted(worth, reverse=True)


@given(pools(), forms, wishes, st.data())
def test_coverage_of_no_weight_selects_as_if_there_were_none(
    candidates: Candidates, form: Form, wish: Wish, data: st.DataObject
) -> None:
    coverage = data.draw(coverages(candidates, weight=0.0))
    scores = form.scores(candidates, now=NOW)
    found = wish.select(candidates, scores, coverage=coverage)
    assert tuple(replace(one, coverage=0.0) for one in found) == wish.select(candidates, scores)


@given(pools(), forms, wishes, st.data())
def test_with_coverage_too_floor_skip_room_and_diversity_are_honoured(
    candidates: Candidates, form: Form, wish: Wish, data: st.DataObject
) -> None:
    coverage = data.draw(coverages(candidates))
    taken = shown(wish.select(candidates, form.scores(candidates, now=NOW), coverage=coverage))
    assert all(wish.floor is None or candidates.similarity[index] >= wish.floor for index in taken)
    assert not wish.skip & set(candidates.sequence[taken].tolist())
    # As many as without: words decide who is shown, not how many. (Diversity may let pass more of one lot.)
    if wish.diversity in (None, 1.0):
        assert len(taken) == len(shown(wish.select(candidates, form.scores(candidates, now=NOW))))
    else:
        for one, other in itertools.permutations(taken, 2):
            if candidates.correct[one] == candidates.correct[other]:
                assert wish.alike(candidates, one, other) <= wish.diversity


@given(pools(), forms, wishes, st.data())
def test_with_coverage_the_order_of_the_candidates_changes_nothing(
    candidates: Candidates, form: Form, wish: Wish, data: st.DataObject
) -> None:
    coverage = data.draw(coverages(candidates))
    order = data.draw(st.permutations(range(len(candidates))))
    row_of = {place: row for row, place in enumerate(coverage.places.tolist())}
    moved = [at for at, place in enumerate(order) if place in row_of]
    rows = [row_of[order[at]] for at in moved]
    again = replace(coverage, places=numpy.array(moved, numpy.intp), has=coverage.has[rows])

    def told(one: Candidates, coverage: Coverage) -> list[tuple[object, ...]]:
        """The selection by numbers instead of places."""
        return [
            (
                int(one.sequence[place.index]),
                place.rank,
                place.passed_over,
                None if place.like is None else int(one.sequence[place.like]),
                place.coverage,
            )
            for place in wish.select(one, form.scores(one, now=NOW), coverage=coverage)
        ]

    assert told(reordered(candidates, order), again) == told(candidates, coverage)


@given(pools(), forms, wishes, st.data())
def test_neither_judgement_covers_for_the_other(
    candidates: Candidates, form: Form, wish: Wish, data: st.DataObject
) -> None:
    coverage = data.draw(coverages(candidates))
    wish = replace(wish, balance="fixed")
    scores = form.scores(candidates, now=NOW)
    found = wish.select(candidates, scores, coverage=coverage)
    for correct, alone in ((True, replace(wish, k_negative=0)), (False, replace(wish, k_positive=0))):
        own = [one for one in found if candidates.correct[one.index] == correct]
        others = alone.select(candidates, scores, coverage=coverage)
        assert own == [one for one in others if candidates.correct[one.index] == correct]


picks = st.integers(1, 4)


def positives_of(candidates: Candidates) -> Candidates:
    return replace(candidates, correct=numpy.ones(len(candidates), bool))


@given(pools(), forms, st.data())
def test_the_first_pick_never_covers_less_than_the_best_scored(
    candidates: Candidates, form: Form, data: st.DataObject
) -> None:
    candidates = positives_of(candidates)
    coverage = data.draw(coverages(candidates))
    scores = form.scores(candidates, now=NOW)
    plain = shown(score.select(candidates, scores, k_positive=1, k_negative=0))
    greedy = shown(score.select(candidates, scores, k_positive=1, k_negative=0, coverage=coverage))
    assert covered(coverage, greedy) >= covered(coverage, plain) - 1e-9


@given(pools(), forms, picks, st.data())
def test_where_each_serves_one_part_no_number_of_picks_covers_less_than_the_best_scored(
    candidates: Candidates, form: Form, k: int, data: st.DataObject
) -> None:
    candidates = positives_of(candidates)
    parts = numpy.array([0b1, 0b110, 0b11000])[:, None] >> numpy.arange(5) & 1 == 1
    serves = data.draw(st.lists(st.integers(0, 2), min_size=len(candidates), max_size=len(candidates)))
    shares = numpy.array(data.draw(st.lists(st.integers(1, 3), min_size=5, max_size=5))) / 16
    weight = data.draw(st.sampled_from([0.25, 1.0, 4.0]))
    coverage = Coverage(weight, numpy.arange(len(candidates)), shares, parts[numpy.array(serves, int)])
    scores = form.scores(candidates, now=NOW)
    plain = shown(score.select(candidates, scores, k_positive=k, k_negative=0))
    greedy = shown(score.select(candidates, scores, k_positive=k, k_negative=0, coverage=coverage))
    assert covered(coverage, greedy) >= covered(coverage, plain) - 1e-9


@given(pools(most=7), picks, st.data())
def test_among_equal_scores_picks_cover_nearly_what_any_as_many_could(
    candidates: Candidates, k: int, data: st.DataObject
) -> None:
    candidates = positives_of(replace(candidates, similarity=0 * candidates.similarity))
    coverage = data.draw(coverages(candidates))
    scores = Pairs().scores(candidates, now=NOW)
    greedy = shown(score.select(candidates, scores, k_positive=k, k_negative=0, coverage=coverage))
    sets = itertools.combinations(range(len(candidates)), min(k, len(candidates)))
    best = max(covered(coverage, list(one)) for one in sets)
    assert covered(coverage, greedy) >= (1 - 1 / math.e) * best - 1e-12


def having(*rows: str, weight: float = 1.0) -> Coverage:
    """Which words each candidate has, as letters; all worth the same."""
    letters = sorted({letter for row in rows for letter in row})
    has = numpy.array([[letter in row for letter in letters] for row in rows])
    return Coverage(weight, numpy.arange(len(rows)), numpy.full(len(letters), 1 / len(letters)), has)


def test_a_question_of_two_parts_finds_a_memory_for_each() -> None:
    candidates = pool([0.9, 0.85, 0.8, 0.4])
    scores = Pairs(0.5).scores(candidates, now=NOW)
    plain = score.select(candidates, scores, k_positive=2, k_negative=0, floor=0.5)
    assert shown(plain) == [0, 1]
    coverage = having("ab", "ab", "cd", "cd")
    assert score.select(candidates, scores, k_positive=2, k_negative=0, floor=0.5, coverage=coverage) == (
        Ranked(0, 1, coverage=0.5),
        Ranked(2, 2, coverage=0.5),
        Ranked(1, 3, "rank 3 of 2 shown", coverage=0.0),
        Ranked(3, 4, "below the similarity floor", coverage=0.0),
    )


def test_who_is_skipped_or_too_like_covers_nothing_for_others() -> None:
    candidates = pool([0.9, 0.8, 0.7, 0.1])
    scores = Pairs().scores(candidates, now=NOW)
    coverage = having("ab", "ab", "c", "d")
    places = score.select(candidates, scores, k_positive=2, k_negative=0, skip={1}, coverage=coverage)
    assert places[:3] == (
        Ranked(0, 1, "skipped", coverage=0.5),
        Ranked(1, 2, coverage=0.5),
        Ranked(2, 3, coverage=0.25),
    )
    like = score.select(
        candidates,
        scores,
        k_positive=2,
        k_negative=0,
        diversity=0.98,
        alike=lambda one, other: 0.99 if {one, other} == {0, 2} else 0.5,
        coverage=having("ab", "", "c", "c"),
    )
    # Of the last two, who have the same word, the better one is too like and the other takes its place.
    assert [(one.index, one.passed_over) for one in like] == [
        (0, ""),
        (2, "too like"),
        (1, ""),
        (3, "rank 4 of 2 shown"),
    ]
    assert like[3].coverage == pytest.approx(1 / 3)


def test_picks_may_cover_less_than_the_best_scored_where_memories_overlap_in_part() -> None:
    candidates = pool([0.5, 0.5, 0.49])
    scores = Pairs().scores(candidates, now=NOW)
    coverage = having("abc", "def", "abde")
    plain = shown(score.select(candidates, scores, k_positive=2, k_negative=0))
    greedy = shown(score.select(candidates, scores, k_positive=2, k_negative=0, coverage=coverage))
    assert (sorted(plain), greedy[0]) == ([0, 1], 2)
    assert (covered(coverage, plain), covered(coverage, greedy)) == pytest.approx((1, 5 / 6))


def test_equals_in_score_and_coverage_are_told_apart_by_age_and_then_by_number() -> None:
    candidates = pool([0.5] * 5, created_at=[2.0, 3.0, 3.0, 1.0, 9.0])
    places = score.select(
        candidates,
        Pairs().scores(candidates, now=NOW),
        k_positive=5,
        k_negative=0,
        coverage=having("ab", "ab", "ab", "ab", "a"),
    )
    # All words are covered by the first one; from then on the newest comes first.
    assert shown(places) == [2, 4, 1, 0, 3]


@given(pools(), forms, floors, st.frozensets(st.integers(1, 30), max_size=8), st.integers(1, 6))
def test_worth_reading_are_the_best_scored_that_may_be_shown(
    candidates: Candidates, form: Form, floor: float | None, skip: frozenset[int], most: int
) -> None:
    scores = form.scores(candidates, now=NOW)
    read = score.worth_reading(candidates, scores, floor=floor, skip=skip, most=most).tolist()
    first = score.select(candidates, scores, k_positive=most, k_negative=most, floor=floor, skip=skip)
    assert read == sorted(shown(first))


@pytest.mark.parametrize("weight", [-1.0, numpy.nan, numpy.inf, 1e7])
def test_the_weight_of_a_part_is_checked(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"memory\.coverage_weight is") as caught:
        score.check_weight("coverage", weight, default=0.0)
    assert caught.value.hint == "MIA_MEMORY__COVERAGE_WEIGHT=0.0"
