"""What a ladder comes to: rungs with clustered intervals, steps between them in pairs, and both as text.

Worlds are the clusters: questions of one world share its facts and, where there is memory, their past. So every figure
is a mean over the means of the worlds, with a 95 % t interval over worlds (`mia.statistics`), and a step from one rung
to another is the mean of the differences in each world. A world without a question of some kind (say, of four hops)
does not count in the figures of that kind. Shares are in [0, 1] here, and in per cent in the text.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from mia.errors import StoreError
from mia.evals.ladder import LEARNT, LadderSettings, Rung
from mia.evals.ladder_results import Answered, Result
from mia.statistics import clustered, paired
from mia.types import StopReason
from mia.world.questions import MOST_HOPS

MISSING = "–"
HOPS = range(1, MOST_HOPS + 1)


@dataclass(frozen=True)
class Figure:
    """A mean over worlds; the 95 % interval is missing where there is only one."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, worlds: Sequence[Sequence[float]]) -> Self | None:
        """The mean of values, by world; None where there are none."""
        full = [values for values in worlds if values]
        if not full:
            return None
        interval = clustered(full)
        return cls(*interval) if interval else cls(_mean(full[0]), None, None)

    @classmethod
    def of_step(cls, worlds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Self | None:
        """How much higher the second values are than the first, by world; None where there are none."""
        means = [(_mean(first), _mean(second)) for first, second in worlds if first and second]
        if not means:
            return None
        interval = paired([first for first, _ in means], [second for _, second in means])
        return cls(*interval) if interval else cls(means[0][1] - means[0][0], None, None)


@dataclass(frozen=True)
class Row:
    """A rung over all worlds."""

    rung: str
    title: str
    accuracy: Figure | None
    first_half: Figure | None
    """Of the stream, as is the second; None for a stream of one question."""
    second_half: Figure | None
    by_hops: Mapping[int, Figure]
    without_via: Figure | None
    with_via: Figure | None
    """Where some relation that is asked for is kept under another entity."""
    searches: float
    """A question, as are calls, tokens, replans and seconds."""
    executor_calls: float
    prompt_tokens: float
    completion_tokens: float
    replans: float
    seconds: float
    """Wall clock, beside many others."""
    unreadable: int
    """Over all questions, as are failures and stops."""
    failures: int
    stops: Mapping[str, int]
    """Why the last execution ended → how often."""


@dataclass(frozen=True)
class Step:
    """How much higher one rung is than another."""

    rung: str
    over: str
    all: Figure | None
    first_half: Figure | None
    second_half: Figure | None


@dataclass(frozen=True)
class Report:
    settings: LadderSettings
    rows: tuple[Row, ...]
    steps: tuple[Step, ...]

    @property
    def missing(self) -> tuple[Rung, ...]:
        """The learnt rungs that were not measured."""
        measured = {row.rung for row in self.rows}
        return tuple(rung for rung in LEARNT if rung.name not in measured)

    def as_dict(self) -> dict[str, Any]:
        """The whole report as plain JSON data."""
        settings = self.settings
        return {
            "worlds": settings.worlds,
            "first_seed": settings.first_seed,
            "questions": settings.questions,
            "shifted": settings.shifted,
            "model": settings.model.path or "embedded",
            "weights": settings.weights,
            "rungs": [
                *(asdict(row) for row in self.rows),
                *({"rung": rung.name, "title": rung.title, "accuracy": None} for rung in self.missing),
            ],
            "steps": [asdict(step) for step in self.steps],
        }


Streams = Sequence[Sequence[Answered]]
"""A rung's questions by world, in the order of the settings' seeds."""


def report(settings: LadderSettings, results: Iterable[Result]) -> Report:
    """Of every rung in every world of the settings. Raises KeyError if a result is missing."""
    found = {(result.rung, result.seed): result.questions for result in results}
    streams = {rung.name: [found[rung.name, seed] for seed in settings.seeds] for rung in settings.rungs}
    steps = [
        _step(rung.name, over, streams[over], streams[rung.name], settings.questions)
        for rung in settings.rungs
        for over in rung.over
        if over in streams
    ]
    rows = [_row(rung.name, rung.title, streams[rung.name], settings.questions) for rung in settings.rungs]
    return Report(settings, tuple(rows), tuple(steps))


def _row(name: str, title: str, streams: Streams, length: int) -> Row:
    every = [answered for stream in streams for answered in stream]
    hops = {hops: Figure.of(_correct(streams, partial(_has_hops, hops))) for hops in HOPS}
    first, second = _halves(streams, length)
    return Row(
        rung=name,
        title=title,
        accuracy=Figure.of(_correct(streams)),
        first_half=Figure.of(_correct(first)),
        second_half=Figure.of(_correct(second)),
        by_hops={hops: figure for hops, figure in hops.items() if figure is not None},
        without_via=Figure.of(_correct(streams, lambda one: not one.via)),
        with_via=Figure.of(_correct(streams, lambda one: one.via)),
        searches=_mean([one.searches for one in every]),
        executor_calls=_mean([one.executor_calls for one in every]),
        prompt_tokens=_mean([one.prompt_tokens for one in every]),
        completion_tokens=_mean([one.completion_tokens for one in every]),
        replans=_mean([one.replans for one in every]),
        seconds=_mean([one.seconds for one in every]),
        unreadable=sum(one.unreadable for one in every),
        failures=sum(one.failures for one in every),
        stops=dict(Counter(one.stop for one in every).most_common()),
    )


def _step(rung: str, over: str, below: Streams, above: Streams, length: int) -> Step:
    (first_below, second_below), (first_above, second_above) = _halves(below, length), _halves(above, length)
    return Step(
        rung=rung,
        over=over,
        all=_difference(below, above),
        first_half=_difference(first_below, first_above),
        second_half=_difference(second_below, second_above),
    )


def _difference(below: Streams, above: Streams) -> Figure | None:
    return Figure.of_step(list(zip(_correct(below), _correct(above), strict=True)))


def _halves(streams: Streams, length: int) -> tuple[Streams, Streams]:
    """Of an odd number, the second has one more."""
    return [stream[: length // 2] for stream in streams], [stream[length // 2 :] for stream in streams]


def _correct(streams: Streams, kind: Callable[[Answered], bool] = lambda one: True) -> list[list[float]]:
    """1 or 0 for each question of a kind, by world."""
    return [[float(one.correct) for one in stream if kind(one)] for stream in streams]


def _has_hops(hops: int, one: Answered) -> bool:
    return one.hops == hops


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def write(report: Report, folder: Path) -> None:
    """`ladder.md` and `ladder.json`, whole or not at all. Raises StoreError."""
    pages = {"ladder.md": markdown(report), "ladder.json": json.dumps(report.as_dict(), ensure_ascii=False, indent=2)}
    for name, text in pages.items():
        fresh = folder / f"{name}.tmp"
        try:
            fresh.write_text(text.rstrip() + "\n", encoding="utf-8")
            fresh.replace(folder / name)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise StoreError(f"cannot write '{folder / name}': {error.strerror}.") from error


# ── as text ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Table:
    """For a terminal or Markdown."""

    title: str
    columns: tuple[str, ...]
    """The first holds names, the others figures."""
    rows: tuple[tuple[str, ...], ...]


def tables(report: Report) -> tuple[Table, ...]:
    """The rungs, the steps between them, what each spent, and kinds of questions."""
    titles = {row.rung: row.title for row in report.rows}
    missing = tuple((rung.title, *3 * (MISSING,)) for rung in report.missing)
    return (
        Table(
            "Correct answers, %",
            ("rung", "all", "first half", "second half"),
            (
                *((row.title, *map(percent, (row.accuracy, row.first_half, row.second_half))) for row in report.rows),
                *missing,
            ),
        ),
        Table(
            "Steps, taken in pairs, %",
            ("rung, against", "all", "first half", "second half"),
            tuple(
                (
                    f"{titles[step.rung]}, against {titles[step.over]}",
                    *(percent(figure, sign=True) for figure in (step.all, step.first_half, step.second_half)),
                )
                for step in report.steps
            ),
        ),
        Table(
            "Correct answers by kind of question, %",
            ("rung", *(f"{hops} {'hop' if hops == 1 else 'hops'}" for hops in HOPS), "without via", "with via"),
            tuple((row.title, *map(percent, _kinds(row))) for row in report.rows),
        ),
        Table(
            "Spent on a question, and what went wrong in all",
            ("rung", "searches", "replans", "prompt", "reply", "seconds", "unreadable", "failures", "out of calls"),
            tuple((row.title, *_spent(row)) for row in report.rows),
        ),
    )


def notes(report: Report) -> tuple[str, ...]:
    """What a reader of the tables must know."""
    settings = report.settings
    kind = "shifted worlds (no favourite sources)" if settings.shifted else "worlds"
    return (
        f"{settings.worlds} {kind} from seed {settings.first_seed}, {settings.questions} questions in each, asked in "
        "one order. Mean ± half of the 95 % t interval over worlds.",
        "Fair control: the Executor may make as many calls as with plan + memory + replan on the same question, and "
        "asks no source twice for the same.",
        "Prompt and reply are tokens of all roles. Seconds pass while many questions share the model: they do not tell "
        "rungs apart.",
        *(
            f"{rung.title}: not measured; `mia world ladder --planner FOLDER` with what `mia learn planner` made."
            for rung in report.missing
        ),
    )


def markdown(report: Report) -> str:
    """The tables as a Markdown page."""
    return "\n".join(["# The ladder", "", *_markdown_lines(report)])


def _markdown_lines(report: Report) -> Iterator[str]:
    for table in tables(report):
        yield from (f"## {table.title}", "", f"| {' | '.join(table.columns)} |")
        yield f"|{'---|' * len(table.columns)}"
        yield from (f"| {' | '.join(row)} |" for row in table.rows)
        yield ""
    for note in notes(report):
        yield from (note, "")


def percent(figure: Figure | None, *, sign: bool = False) -> str:
    """In per cent, with half of its interval."""
    if figure is None:
        return MISSING
    # Adding 0 turns a negative zero, which rounding leaves, into zero.
    value = f"{round(100 * figure.value, 1) + 0.0:{'+' if sign else ''}.1f}"
    return value if figure.high is None else f"{value} ± {100 * (figure.high - figure.value):.1f}"


def _kinds(row: Row) -> Iterator[Figure | None]:
    for hops in HOPS:
        yield row.by_hops.get(hops)
    yield row.without_via
    yield row.with_via


def _spent(row: Row) -> tuple[str, ...]:
    stopped = sum(count for stop, count in row.stops.items() if stop != StopReason.ANSWERED)
    return (
        f"{row.searches:.2f}",
        f"{row.replans:.2f}",
        f"{row.prompt_tokens:,.0f}",
        f"{row.completion_tokens:,.0f}",
        f"{row.seconds:.2f}",
        f"{row.unreadable:,}",
        f"{row.failures:,}",
        f"{stopped:,}",
    )
