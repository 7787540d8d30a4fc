"""Intervals. Pure functions over numbers; no dependence on what was measured.

Source: Wilson (1927), the score interval of a proportion.
"""

from __future__ import annotations

import math
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
