"""Curves as numbers: what is drawn lies inside its frame, and says what the values say."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from mia import statistics
from mia.service.dashboard.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Point,
    chart,
    moving_mean,
    moving_share,
    window_of,
)

OUTCOMES = st.lists(st.sampled_from([True, False, None]), max_size=900)


@given(OUTCOMES, st.integers(1, 60))
def test_a_moving_share_is_that_of_its_window_with_wilsons_interval(outcomes: list[bool | None], window: int) -> None:
    points = moving_share(outcomes, window)
    assert len(points) <= POINTS + 1
    for point in points:
        judged = [one for one in outcomes[max(0, point.at - window) : point.at] if one is not None]
        assert statistics.wilson(sum(judged), len(judged)) == (point.value, point.low, point.high)
    if any(one is not None for one in outcomes[-window:]):
        assert points[-1].at == len(outcomes)


@given(st.lists(st.none() | st.floats(), max_size=400), st.integers(1, 60))
def test_a_moving_mean_passes_over_what_is_no_number(values: list[float | None], window: int) -> None:
    for point in moving_mean(values, window):
        known = [one for one in values[max(0, point.at - window) : point.at] if one is not None and math.isfinite(one)]
        assert known
        assert point.value == math.fsum(known) / len(known) or not math.isfinite(math.fsum(known))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=200), st.booleans())
def test_what_is_drawn_lies_inside_its_frame(values: list[float], bounded: bool) -> None:
    points = [
        Point(at, value, value - 1 if bounded else None, value + 1 if bounded else None)
        for at, value in enumerate(values, start=1)
    ]
    drawn = chart("Reward", points, len(points), marks=[(len(points), "v7")])
    assert drawn is not None
    assert bool(drawn.band) is bounded
    for pair in (*drawn.line.split(), *drawn.band.split()):
        x, y = map(float, pair.split(","))
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM
    heights = [y for y, _ in drawn.y_ticks]
    assert 2 <= len(heights) <= 8
    assert heights == sorted(heights, reverse=True)
    assert drawn.x_ticks[0][1] == "1"
    assert drawn.x_ticks[-1][1] == f"{len(points):,}"


def test_higher_values_are_drawn_higher_and_the_axis_says_percents() -> None:
    drawn = chart("Accuracy", [Point(1, 0.0), Point(2, 1.0)], 2, low=0.0, high=1.0, as_percent=True)
    assert drawn is not None
    first, last = (float(pair.split(",")[1]) for pair in drawn.line.split())
    assert (first, last) == (HEIGHT - BOTTOM, TOP)
    assert [label for _, label in drawn.y_ticks] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert "0 % at first, 100 % at last, over 2 questions" in drawn.description


def test_one_point_is_no_curve() -> None:
    assert chart("Reward", [Point(1, 0.5)], 1) is None


def test_labels_of_changes_do_not_lie_over_each_other() -> None:
    points = [Point(at, 0.5) for at in range(1, 101)]
    drawn = chart("Reward", points, 100, marks=[(50, "v1"), (51, "v2"), (90, "v3")])
    assert drawn is not None
    assert [(mark.label, mark.shown) for mark in drawn.marks] == [("v1", True), ("v2", False), ("v3", True)]


def test_a_window_smooths_and_leaves_something_to_see() -> None:
    assert [window_of(count) for count in (0, 10, 100, 10_000)] == [5, 5, 25, 50]
