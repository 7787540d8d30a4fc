"""Accuracy against length as a picture: a line for each task, and one for each part of the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mia.errors import StoreError, require
from mia.evals.ruler.report import ALL, Report, Row, short


def draw(report: Report, path: Path) -> Path:
    """A PNG; bands are 95 % intervals. Raises MissingExtra without matplotlib, StoreError if it cannot be written."""
    require("matplotlib", extra="plots", purpose="the picture of accuracy against length")
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(14 if report.by_depth else 8.5, 4.8), layout="constrained")
    # A canvas of its own: no window, and nothing global.
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if report.by_depth else 1, sharey=True, squeeze=False)[0]
    tasks = [row for row in report.rows if row.name != ALL]
    colours = colormaps["tab20"]
    _lines(panels[0], tasks, [colours(number % 20) for number in range(len(tasks))], band=len(tasks) == 1)
    for row in report.rows:
        if row.name == ALL:
            _lines(panels[0], [row], ["black"], band=True, linewidth=2.5)
    panels[0].set_title("By task", loc="left")
    panels[0].set_ylabel("accuracy, %")
    if report.by_depth:
        shades = colormaps["viridis"](_even(len(report.by_depth)))
        _lines(panels[1], report.by_depth, list(shades), band=False)
        panels[1].set_title("By depth in the text", loc="left")
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(report.lengths, [short(length) for length in report.lengths])
        axes.minorticks_off()
        axes.set_xlabel(f"length of the text, {report.unit}")
        axes.set_ylim(-3, 103)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise StoreError(f"cannot write '{path}': {error.strerror}.") from error
    return path


def _lines(axes: Any, rows: Sequence[Row], colours: Sequence[Any], *, band: bool, **look: Any) -> None:
    for row, colour in zip(rows, colours, strict=True):
        cells = sorted(row.by_length.items())
        lengths = [length for length, _ in cells]
        axes.plot(lengths, [100 * cell.accuracy for _, cell in cells], marker="o", color=colour, label=row.name, **look)
        if band:
            low = [100 * (cell.accuracy if cell.low is None else cell.low) for _, cell in cells]
            high = [100 * (cell.accuracy if cell.high is None else cell.high) for _, cell in cells]
            axes.fill_between(lengths, low, high, color=colour, alpha=0.15, linewidth=0)


def _even(count: int) -> list[float]:
    """So many numbers from 0 to 0.9."""
    return [0.9 * number / max(1, count - 1) for number in range(count)]
