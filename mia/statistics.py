"""Intervals. Pure functions over numbers; no dependence on what was measured.

Sources: Wilson (1927), the score interval of a proportion; Student (1908), the mean of few values, its distribution in
the closed form of Abramowitz and Stegun, 26.7.3 and 26.7.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

Z_95 = 1.959963984540054
"""The two-sided 95 % quantile of the standard normal distribution."""


class Interval(NamedTuple):
    """A point estimate with a 95 % interval, in the unit of what was measured."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval | None:
    """The Wilson score interval of a proportion; None for no trials. Raises ValueError on impossible counts."""
    if not 0 <= successes <= trials:
        raise ValueError(f"got {successes} successes in {trials} trials")
    if trials == 0:
        return None
    share = successes / trials
    shrink = 1 + Z_95**2 / trials
    centre = (share + Z_95**2 / (2 * trials)) / shrink
    half = Z_95 / shrink * math.sqrt(share * (1 - share) / trials + Z_95**2 / (4 * trials**2))
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def clustered(values_by_cluster: Sequence[Sequence[float]]) -> Interval | None:
    """The mean of values that come in clusters (questions in worlds), each cluster counting the same.

    With the means m_1 … m_n of n clusters, m their mean and s their standard deviation (of n - 1): m ± t s / √n, where
    t is the 97.5 % quantile of Student's distribution of n - 1 degrees of freedom. Values of one cluster depend on each
    other, so that only clusters count as drawn by chance. None for fewer than two clusters; raises ValueError for an
    empty one.
    """
    if not all(len(values) for values in values_by_cluster):
        raise ValueError("got a cluster without values")
    return _mean_interval([math.fsum(values) / len(values) for values in values_by_cluster])


def paired(one: Sequence[float], other: Sequence[float]) -> Interval | None:
    """How much higher `other` is than `one`: the mean of other_i - one_i over clusters that both were measured on.

    `one`, `other`: a mean for each cluster, in the same order. The interval is that of `clustered`, of the differences:
    what makes a cluster hard for both falls out of it. None for fewer than two clusters; raises ValueError if the two
    are not of one length.
    """
    return _mean_interval([second - first for first, second in zip(one, other, strict=True)])


def _mean_interval(means: Sequence[float]) -> Interval | None:
    count = len(means)
    if count < 2:
        return None
    mean = math.fsum(means) / count
    variance = math.fsum((value - mean) ** 2 for value in means) / (count - 1)
    half = student_t_975(count - 1) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


@cache
def student_t_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t distribution: 95 % lie between minus this and this.

    With t = √ν tan θ, that share is sin θ (1 + 1/2 cos²θ + 1·3/(2·4) cos⁴θ + …) for even ν, and
    2/π (θ + sin θ (cos θ + 2/3 cos³θ + 2·4/(3·5) cos⁵θ + …)) for odd ν, up to the power ν - 2 of cos θ. It rises with
    θ, so that halving the interval finds θ. Raises ValueError for fewer than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"got {degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _share_within(middle, degrees) < 0.95 else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _share_within(theta: float, degrees: int) -> float:
    """The share of Student's distribution between -t and t, for t = √degrees tan theta."""
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    series = 0.0
    for power in range(odd, degrees - 1, 2):
        series += term
        term *= (power + 1) / (power + 2) * math.cos(theta) ** 2
    share = math.sin(theta) * series
    return 2 / math.pi * (theta + share) if odd else share
