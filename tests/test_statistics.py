"""Intervals against hand-worked and published values, and what must hold of any."""

from __future__ import annotations

import random
from statistics import NormalDist, fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.statistics import clustered, paired, student_t_975, wilson

values = st.floats(-100, 100)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_against_published_values(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert interval is not None
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_holds_the_estimate(successes: int, failures: int) -> None:
    interval = wilson(successes, successes + failures)
    if interval is None:
        assert successes + failures == 0
        return
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, trials)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (4, 2.7764),
        (5, 2.5706),
        (10, 2.2281),
        (23, 2.0687),
        (30, 2.0423),
        (60, 2.0003),
        (120, 1.9799),
    ],
)
def test_quantiles_of_student_against_the_printed_table(degrees: int, quantile: float) -> None:
    assert student_t_975(degrees) == pytest.approx(quantile, abs=5e-5)


@given(st.integers(1, 400))
def test_quantiles_of_student_fall_towards_the_normal_one(degrees: int) -> None:
    assert NormalDist().inv_cdf(0.975) < student_t_975(degrees + 1) < student_t_975(degrees)


def test_no_degrees_of_freedom_are_refused() -> None:
    with pytest.raises(ValueError, match="0 degrees"):
        student_t_975(0)


def test_clustered_against_a_hand_worked_value() -> None:
    # Means 0.5, 1, 0 of unequal clusters: mean 0.5, standard deviation 0.5, t(2) = 4.3027.
    interval = clustered([[0, 1, 0, 1], [1], [0, 0]])
    assert interval is not None
    assert interval == pytest.approx((0.5, 0.5 - 4.3027 * 0.5 / 3**0.5, 0.5 + 4.3027 * 0.5 / 3**0.5), abs=1e-4)


@given(st.lists(st.lists(values, min_size=1, max_size=6), min_size=2, max_size=8), values)
def test_clustered_moves_with_its_values_and_not_with_repetition(clusters: list[list[float]], shift: float) -> None:
    interval = clustered(clusters)
    moved = clustered([[value + shift for value in cluster] for cluster in clusters])
    repeated = clustered([cluster * 3 for cluster in clusters])
    assert interval is not None
    assert moved == pytest.approx([bound + shift for bound in interval], abs=1e-6)
    assert repeated == pytest.approx(interval, abs=1e-6)
    assert interval.low <= interval.estimate <= interval.high
    assert interval.estimate == pytest.approx(fmean(fmean(cluster) for cluster in clusters), abs=1e-9)


def test_clustered_covers_the_truth_in_95_of_100() -> None:
    chance = random.Random(1)
    held = 0
    for _ in range(4_000):
        centres = [chance.gauss(3, 1) for _ in range(6)]
        interval = clustered([[chance.gauss(centre, 0.5) for _ in range(4)] for centre in centres])
        assert interval is not None
        held += interval.low <= 3 <= interval.high
    assert held / 4_000 == pytest.approx(0.95, abs=0.012)


@given(st.lists(st.tuples(values, values), min_size=2, max_size=12))
def test_paired_is_the_interval_of_the_differences(pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*pairs, strict=True)
    step = paired(one, other)
    assert step is not None
    assert step == clustered([[second - first] for first, second in pairs])
    back = paired(other, one)
    assert back == pytest.approx((-step.estimate, -step.high, -step.low))


def test_paired_takes_out_what_both_share() -> None:
    step = paired([0.1, 0.5, 0.9], [0.2, 0.6, 1.0])
    assert step == pytest.approx((0.1, 0.1, 0.1))


def test_fewer_than_two_clusters_have_no_interval() -> None:
    assert clustered([]) is None
    assert clustered([[1, 0, 1]]) is None
    assert paired([1], [0]) is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="without values"):
        clustered([[1], []])
    with pytest.raises(ValueError, match="zip"):
        paired([1, 2], [1])
