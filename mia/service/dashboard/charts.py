"""Curves as numbers that a template draws: SVG with attributes alone, since a page may hold no styles of its own.

A curve has at most `POINTS` points, however much it was made of: what is drawn is what can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mia import statistics

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 30
POINTS = 160


@dataclass(frozen=True)
class Point:
    """A value with its interval, if it has one; `at` counts from 1."""

    at: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place of the x axis."""

    x: float
    label: str
    shown: bool
    """Whether its label has room."""


@dataclass(frozen=True)
class Chart:
    """What a template draws. Coordinates in units of the view box."""

    title: str
    description: str
    line: str
    """The points of a polyline."""
    band: str
    """Those of a polygon around it; empty: there are no intervals."""
    ends: tuple[float, float]
    """Where the last point is."""
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]
    last: Point
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def moving_share(outcomes: Sequence[bool | None], window: int) -> list[Point]:
    """At each of the last outcomes of a window, the share of those that were judged, with its Wilson interval."""
    found = []
    for at in _places(len(outcomes), window):
        judged = [one for one in outcomes[max(0, at - window) : at] if one is not None]
        interval = statistics.wilson(sum(judged), len(judged))
        if interval is not None:
            found.append(Point(at, *interval))
    return found


def moving_mean(values: Sequence[float | None], window: int) -> list[Point]:
    """At each place the mean over a window that ends there."""
    found = []
    for at in _places(len(values), window):
        known = [one for one in values[max(0, at - window) : at] if one is not None and math.isfinite(one)]
        if known:
            found.append(Point(at, math.fsum(known) / len(known)))
    return found


def window_of(count: int) -> int:
    """A window that smooths, and leaves something to see: a quarter of the values, from 5 to 50."""
    return max(5, min(50, count // 4))


def chart(
    title: str,
    points: Sequence[Point],
    count: int,
    *,
    low: float | None = None,
    high: float | None = None,
    as_percent: bool = False,
    marks: Sequence[tuple[int, str]] = (),
) -> Chart | None:
    """A curve over 1 … `count`; None for fewer than two points. `low`, `high`: ends of the y axis; else as the points
    have it. `marks`: places of the x axis with what happened there."""
    if len(points) < 2:
        return None
    values = [value for one in points for value in (one.value, one.low, one.high) if value is not None]
    ticks = _ticks(low if low is not None else min(values), high if high is not None else max(values))
    first, last = ticks[0], ticks[-1]

    def x(at: float) -> float:
        return round(LEFT + (at - 1) / max(1, count - 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        share = (min(last, max(first, value)) - first) / (last - first)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def say(value: float) -> str:
        return f"{100 * value:.0f} %" if as_percent else f"{value:.3g}"

    bounded = [one for one in points if one.low is not None and one.high is not None]
    upper = [f"{x(one.at)},{y(one.high)}" for one in bounded if one.high is not None]
    lower = [f"{x(one.at)},{y(one.low)}" for one in reversed(bounded) if one.low is not None]
    end = points[-1]
    return Chart(
        title=title,
        description=f"{title}: {say(points[0].value)} at first, {say(end.value)} at last, over {count} questions.",
        line=" ".join(f"{x(one.at)},{y(one.value)}" for one in points),
        band=" ".join((*upper, *lower)),
        ends=(x(end.at), y(end.value)),
        y_ticks=tuple((y(tick), say(tick)) for tick in ticks),
        x_ticks=tuple((x(at), f"{at:,}") for at in _counts(count)),
        marks=_marks([(x(at), label) for at, label in marks]),
        last=end,
    )


def _places(count: int, window: int) -> list[int]:
    """Up to `POINTS` ends of windows, evenly spaced; the first window is whole, where there is one."""
    start = min(window, count)
    if not count:
        return []
    step = max(1, math.ceil((count - start + 1) / POINTS))
    return sorted({*range(start, count + 1, step), count})


def _ticks(low: float, high: float) -> list[float]:
    """Four to six round numbers from at or below `low` to at or above `high`."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _counts(count: int) -> list[int]:
    """Up to five round places of the x axis, and its ends."""
    if count <= 5:
        return list(range(1, count + 1))
    step = next(size for power in range(9) for size in (10**power, 2 * 10**power, 5 * 10**power) if count / size <= 5)
    inner = [at for at in range(step, count, step) if at > 1 and count - at > step / 2]
    return [1, *inner, count]


def _marks(places: Sequence[tuple[float, str]]) -> tuple[Mark, ...]:
    """A label is left out where it would lie over the one before."""
    found: list[Mark] = []
    end = -math.inf
    for x, label in places:
        shown = x >= end
        found.append(Mark(x, label, shown))
        if shown:
            end = x + 9 * len(label) + 8
    return tuple(found)
