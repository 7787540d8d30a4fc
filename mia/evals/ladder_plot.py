"""The ladder as a picture: how many answers of each rung are correct, and in which half of the stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mia.errors import StoreError, require
from mia.evals.ladder_report import Figure, Report

_DARK, _LIGHT = "#3b6ea5", "#b8cde3"
_ERRORS: dict[str, Any] = {"ecolor": "0.25", "capsize": 2, "error_kw": {"elinewidth": 1}}


def draw(report: Report, path: Path) -> Path:
    """A PNG: bars with 95 % intervals over worlds, a rung a line. Raises MissingExtra without matplotlib, StoreError if
    it cannot be written."""
    require("matplotlib", extra="plots", purpose="the picture of the ladder")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    rows = report.rows
    figure = Canvas(figsize=(11, 1.6 + 0.62 * len(rows)), layout="constrained")
    # A canvas of its own: no window, and nothing global.
    FigureCanvasAgg(figure)
    whole, halves = figure.subplots(1, 2, sharey=True, sharex=True)
    places = range(len(rows))
    _bars(whole, places, [row.accuracy for row in rows], height=0.6, color=_DARK)
    for place, row in enumerate(rows):
        if row.accuracy is not None:
            end = row.accuracy.value if row.accuracy.high is None else row.accuracy.high
            whole.annotate(
                f"{100 * row.accuracy.value:.1f}",
                (100 * end, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
    _bars(halves, [place - 0.19 for place in places], [row.first_half for row in rows], height=0.36, color=_LIGHT)
    _bars(halves, [place + 0.19 for place in places], [row.second_half for row in rows], height=0.36, color=_DARK)
    whole.set_yticks(places, [row.title for row in rows])
    whole.invert_yaxis()
    whole.set_title("All questions", loc="left")
    halves.set_title("First (light) and second half of the stream", loc="left")
    for axes in (whole, halves):
        axes.set_xlabel("correct answers, %")
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    settings = report.settings
    kind = "shifted worlds" if settings.shifted else "worlds"
    figure.supxlabel(
        f"{settings.worlds} {kind} from seed {settings.first_seed}, {settings.questions} questions in each; "
        "whiskers: 95 % t intervals over worlds",
        fontsize="small",
        color="0.35",
    )
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise StoreError(f"cannot write '{path}': {error.strerror}.") from error
    return path


def _bars(axes: Any, places: Sequence[float], figures: Sequence[Figure | None], **look: Any) -> None:
    for place, figure in zip(places, figures, strict=True):
        if figure is None:
            continue
        low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
        spread = [[100 * (figure.value - low)], [100 * (high - figure.value)]]
        axes.barh(place, 100 * figure.value, xerr=spread, **look, **_ERRORS)
