"""What a measurement comes to: accuracy by length and by depth, with 95 % intervals, as text, JSON and (in `plot`) a
picture.

An item's score lies in [0, 1]. Where all scores of a cell are 0 or 1 its interval is Wilson's; else it is the t
interval of the mean over items, cut to [0, 1]. By depth, each place that the answer needs counts at its own depth with
what was reached there, an item's places of one depth together as one. Tasks whose answer is everywhere have no depth.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mia.errors import StoreError
from mia.evals.ladder_report import MISSING, Table
from mia.evals.ruler.results import Result
from mia.statistics import clustered, wilson

ALL = "all"
BANDS = 5
"""Parts of the text that depth is told in."""


@dataclass(frozen=True)
class Cell:
    """The accuracy of some items."""

    accuracy: float
    low: float | None
    """The interval; missing for a single item whose score is a fraction."""
    high: float | None
    items: int

    @classmethod
    def of(cls, scores: Sequence[float]) -> Cell | None:
        """None for no items."""
        if not scores:
            return None
        if all(score in (0.0, 1.0) for score in scores):
            interval = wilson(round(sum(scores)), len(scores))
        else:
            interval = clustered([[score] for score in scores])
        if interval is None:
            return cls(math.fsum(scores) / len(scores), None, None, len(scores))
        return cls(interval.estimate, max(0.0, interval.low), min(1.0, interval.high), len(scores))


@dataclass(frozen=True)
class Row:
    """A task, or all of them together, at each length."""

    name: str
    by_length: Mapping[int, Cell]


@dataclass(frozen=True)
class Cost:
    """What the items of a length took, each on average."""

    length: int
    items: int
    text_tokens: float
    calls: float
    prompt_tokens: float
    completion_tokens: float
    seconds: float
    failures: Mapping[str, int]
    """Over all items: the error that stood for an answer → how often."""


@dataclass(frozen=True)
class Report:
    unit: str
    """Of lengths: "tokens" or "documents"."""
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    by_depth: tuple[Row, ...]
    """A row for each band, from the beginning of the text to its end, over all tasks that have a depth."""
    costs: tuple[Cost, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(cost.length for cost in self.costs)

    def as_dict(self) -> dict[str, Any]:
        """The whole report as plain JSON data."""
        return {
            "unit": self.unit,
            "settings": dict(self.settings),
            "tasks": [_row_page(row) for row in self.rows],
            "by_depth": [_row_page(row) for row in self.by_depth],
            "costs": [asdict(cost) for cost in self.costs],
        }


def report(results: Iterable[Result], *, unit: str = "tokens", settings: Mapping[str, Any] | None = None) -> Report:
    """Of any results; tasks in the order in which they first come."""
    found = list(results)
    lengths = sorted({result.length for result in found})
    tasks = list(dict.fromkeys(result.task for result in found))
    rows = [_row(task, [result for result in found if result.task == task], lengths) for task in tasks]
    if len(tasks) > 1:
        rows.append(_row(ALL, found, lengths))
    return Report(
        unit=unit,
        settings=dict(settings or {}),
        rows=tuple(rows),
        by_depth=tuple(_band(band, found, lengths) for band in range(BANDS)) if any(r.depths for r in found) else (),
        costs=tuple(_cost(length, [result for result in found if result.length == length]) for length in lengths),
    )


def _row(name: str, results: Sequence[Result], lengths: Sequence[int]) -> Row:
    scores: dict[int, list[float]] = defaultdict(list)
    for result in results:
        scores[result.length].append(result.score)
    return Row(name, _cells(scores, lengths))


def _band(band: int, results: Sequence[Result], lengths: Sequence[int]) -> Row:
    scores: dict[int, list[float]] = defaultdict(list)
    for result in results:
        here = [hit for at, hit in zip(result.depths, result.hits, strict=True) if band_of(at) == band]
        if here:
            scores[result.length].append(math.fsum(here) / len(here))
    step = 100 // BANDS
    return Row(f"{band * step}–{(band + 1) * step} %", _cells(scores, lengths))


def band_of(depth: float) -> int:
    """The band that a depth lies in; the end of the text belongs to the last one."""
    return min(BANDS - 1, int(depth * BANDS))


def _cells(scores: Mapping[int, Sequence[float]], lengths: Sequence[int]) -> dict[int, Cell]:
    cells = {length: Cell.of(scores.get(length, ())) for length in lengths}
    return {length: cell for length, cell in cells.items() if cell is not None}


def _cost(length: int, results: Sequence[Result]) -> Cost:
    failures: dict[str, int] = defaultdict(int)
    for result in results:
        if result.failure:
            failures[result.failure] += 1

    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(results)

    return Cost(
        length=length,
        items=len(results),
        text_tokens=mean(result.tokens for result in results),
        calls=mean(result.usage.calls for result in results),
        prompt_tokens=mean(result.usage.prompt_tokens for result in results),
        completion_tokens=mean(result.usage.completion_tokens for result in results),
        seconds=mean(result.seconds for result in results),
        failures=dict(failures),
    )


def _row_page(row: Row) -> dict[str, Any]:
    return {"name": row.name, "by_length": {str(length): asdict(cell) for length, cell in row.by_length.items()}}


# ── as text ───────────────────────────────────────────────────────────────────────────────────────────────────────


def tables(report: Report) -> tuple[Table, ...]:
    """Accuracy by length, by depth, and what it took."""
    columns = tuple(short(length) for length in report.lengths)
    accuracy = Table(
        f"Accuracy by length in {report.unit}, %",
        ("task", *columns),
        tuple((row.name, *_percents(row, report.lengths)) for row in report.rows),
    )
    depth = Table(
        "Accuracy by depth in the text, %",
        ("depth", *columns),
        tuple((row.name, *_percents(row, report.lengths)) for row in report.by_depth),
    )
    cost = Table(
        "Taken by an item, on average",
        (f"{report.unit}", "items", "text tokens", "calls", "prompt", "reply", "seconds", "scored 0 for"),
        tuple(_spent(cost) for cost in report.costs),
    )
    return (accuracy, depth, cost) if report.by_depth else (accuracy, cost)


def notes(report: Report) -> tuple[str, ...]:
    """What a reader of the tables must know."""
    settings = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in report.settings.items() if value not in ("", None)
    )
    return (
        "Mean, and its 95 % interval (Wilson's; of fractions, the t interval over items).",
        *([f"Measured with {settings}."] if settings else []),
        "An item whose text the model's window does not hold, or whose reply could not be used, scores 0.",
    )


def markdown(report: Report) -> str:
    """The tables as a Markdown page."""
    return "\n".join(["# Accuracy over long texts", "", *_markdown_lines(report)])


def _markdown_lines(report: Report) -> Iterator[str]:
    for table in tables(report):
        yield from (f"## {table.title}", "", f"| {' | '.join(table.columns)} |")
        yield f"|{'---|' * len(table.columns)}"
        yield from (f"| {' | '.join(row)} |" for row in table.rows)
        yield ""
    for note in notes(report):
        yield from (note, "")


def write(report: Report, folder: Path) -> None:
    """`report.md` and `report.json`, whole or not at all. Raises StoreError."""
    pages = {"report.md": markdown(report), "report.json": json.dumps(report.as_dict(), ensure_ascii=False, indent=2)}
    for name, text in pages.items():
        fresh = folder / f"{name}.tmp"
        try:
            fresh.write_text(text.rstrip() + "\n", encoding="utf-8")
            fresh.replace(folder / name)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise StoreError(f"cannot write '{folder / name}': {error.strerror}.") from error


def short(length: int) -> str:
    """8192 as "8K", 1048576 as "1M"; what is no round number in full."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if length >= unit and length % unit == 0:
            return f"{length // unit}{name}"
    return f"{length:,}"


def _percents(row: Row, lengths: Sequence[int]) -> Iterator[str]:
    for length in lengths:
        cell = row.by_length.get(length)
        if cell is None:
            yield MISSING
        elif cell.low is None or cell.high is None:
            yield f"{100 * cell.accuracy:.1f}"
        else:
            yield f"{100 * cell.accuracy:.1f} ({100 * cell.low:.0f}–{100 * cell.high:.0f})"


def _spent(cost: Cost) -> tuple[str, ...]:
    return (
        short(cost.length),
        f"{cost.items:,}",
        f"{cost.text_tokens:,.0f}",
        f"{cost.calls:.1f}",
        f"{cost.prompt_tokens:,.0f}",
        f"{cost.completion_tokens:,.0f}",
        f"{cost.seconds:.2f}",
        ", ".join(f"{name} {count}" for name, count in cost.failures.items()) or MISSING,
    )
