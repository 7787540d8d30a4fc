"""`mia demo`: the embedded model in the offline world, first watched, then measured.

Watched are the first questions of one world's stream, and none is picked. Measured is what memory and replanning bring,
on that world and some others: three rungs of the ladder, every stream with a store that begins empty and is kept.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mia.cli import output
from mia.cli.demo import folder as demo_folder
from mia.cli.demo.streams import Row, Stream, measure
from mia.cli.demo.telling import count_correct, first_and_final, tell, tell_question
from mia.cli.demo.watching import Played, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mia.config import Config
    from mia.models import Models
    from mia.statistics import Interval
    from mia.types import Task
    from mia.world.facts import World

RUNGS = ("plan", "plan-memory", "plan-memory-replan")
"""Of the ladder; the last is the one that is watched."""
PAUSE = 0.08
"""Seconds between two lines, where somebody is watching."""
_NOTE_SECONDS = 10.0
"""How often the measuring says where it stands, without a terminal."""


@dataclass(frozen=True)
class Size:
    """How much is watched and measured."""

    watched: int = 8
    """Questions of the first world that are told of."""
    worlds: int = 6
    questions: int = 40
    """In each world, those that were watched among them."""


FULL_SIZE = Size()


@dataclass(frozen=True)
class Shown:
    """What a demonstration brought."""

    home: Path
    watched: tuple[Played, ...]
    rows: tuple[Row, ...]
    worlds: tuple[World, ...]
    questions: int
    seconds: float


def demonstrate(home: Path, *, paced: bool, json: bool) -> None:
    """The whole of it. Raises MiaError."""
    from mia.models import build_models

    config = prepare(home)
    pause = PAUSE if paced else 0.0
    show(introduction(), pause)
    with output.console().status("Loading the model…"):
        models = build_models(config.models)
    shown = asyncio.run(demonstrate_with(models, config, FULL_SIZE, pause=pause))
    if json:
        output.result_json(page(shown))
        return
    output.result_console().print(table(shown.rows))
    for row in farewell(shown):
        output.console().print(row, soft_wrap=True)  # A command that is broken in two cannot be copied.


def prepare(home: Path) -> Config:
    """Make the folder (`mia.cli.demo.folder`). The settings: the embedded model in the world of the demonstration."""
    from mia.config import WORLD_SEED, JudgeSettings, LineSettings
    from mia.world import preset

    config = demo_folder.prepare(
        home,
        {
            "models.default": preset.MODEL,
            "memory": preset.MEMORY,
            "search": {"engine": "world", "world": WORLD_SEED, "k": preset.PASSAGES},
        },
    )
    # Not in the file: whoever asks another question there has no reference.
    return config.model_copy(update={"line": LineSettings(judge="each"), "judge": JudgeSettings(kind="reference")})


async def demonstrate_with(models: Models, config: Config, size: Size, *, pause: float) -> Shown:
    """Watch, then measure; the models are closed. Raises MiaError."""
    from mia.evals.ladder import choose
    from mia.world.facts import World
    from mia.world.questions import tasks

    begun = time.monotonic()
    worlds = tuple(World.make(config.search.world + number) for number in range(size.worlds))
    stream = Stream(worlds[0], tasks(worlds[0], size.questions), config, models)
    try:
        watched = await _watch(stream, size.watched, pause)
        show(_between(watched, size), pause)
        rungs = choose(RUNGS)
        left = len(rungs) * size.worlds * size.questions - size.watched
        with _progress(left) as on_played:
            rows = await measure(rungs, worlds, size.questions, config.home, models, begun=stream, on_played=on_played)
    finally:
        await stream.close()
        await models.close()
    return Shown(config.home, tuple(watched), tuple(rows), worlds, size.questions, time.monotonic() - begun)


async def _watch(stream: Stream, count: int, pause: float) -> list[Played]:
    watched: list[Played] = []
    workflows: dict[str, str] = {}

    def on_question(number: int, task: Task) -> None:
        show(tell_question(number, task.question.text), pause)

    def on_played(number: int, played: Played) -> None:
        show(tell(played, workflows), pause)
        workflows.update({memory.id: memory.workflow for memory in played.memories})
        watched.append(played)

    await stream.live(count, on_question=on_question, on_played=on_played)
    return watched


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, Played], None]]:
    """A bar on a terminal, else a line now and then. Gives what is to be called after each question."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console(), transient=True) as bar:
        shown = bar.add_task("measuring", total=total)
        done, noted = 0, time.monotonic()

        def on_played(number: int, played: Played) -> None:
            nonlocal done, noted
            done += 1
            bar.update(shown, completed=done)
            if not bar.console.is_terminal and time.monotonic() - noted > _NOTE_SECONDS:
                noted = time.monotonic()
                output.note(f"{done} of {total} questions")

        yield on_played


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────────


def introduction() -> Iterator[RenderableType]:
    """Who answers here, what about, and what is real; before anything else."""
    from rich.text import Text

    from mia.config import WORLD_SEED
    from mia.world.facts import ENTITIES_PER_TYPE
    from mia.world.language import RELATIONS, SOURCES, TYPES

    yield Text(
        "A language model of about a million parameters, in this process, is Planner, Executor and Manager.",
        style="bold",
    )
    yield Text(
        f"It answers from a made-up world: {ENTITIES_PER_TYPE * len(TYPES)} names, {len(RELATIONS)} relations between "
        f"them, and {len(SOURCES)} sources to search in. Which source holds what differs from world to world and is "
        "written nowhere, and some that answer are wrong: it has to be tried, and remembered.\n"
        "Nothing is recorded: models, searches, memory and its store, citations and the judge (which alone knows the "
        f"right answers) are real. These are the first questions of world {WORLD_SEED}; none is picked.",
        style="dim",
    )


def _between(watched: Sequence[Played], size: Size) -> Iterator[RenderableType]:
    """From watching to measuring."""
    from rich.text import Text

    firsts, finals = zip(*(first_and_final(played.episode) for played in watched), strict=True)
    yield ""
    yield Text(
        f"Of these {len(watched)}, {count_correct(firsts)} were answered correctly at first and "
        f"{count_correct(finals)} in the end: too few to prove anything.",
        style="bold",
    )
    yield Text(
        f"Now {size.worlds} worlds of {size.questions} questions, this one among them, each three times: with a plan "
        "alone; with memory; and with a look back and a second plan.",
        style="dim",
    )


def table(rows: Sequence[Row]) -> RenderableType:
    """What each rung brought."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    drawn.add_column("")
    for name in ("correct, %", "first → second half", "more than above"):
        drawn.add_column(name, justify="right", no_wrap=True)
    below: Row | None = None
    for row in rows:
        drawn.add_row(
            row.rung.title,
            _percent(row.accuracy),
            " → ".join(f"{100 * half:.0f}" for half in row.halves) if row.halves else "–",
            _percent(row.step(below), signed=True) if below is not None else "",
        )
        below = row
    return drawn


def farewell(shown: Shown) -> Iterator[RenderableType]:
    """What the figures are, what is left, and what to type next."""
    from rich.text import Text

    yield Text(
        f"{len(shown.worlds)} worlds × {shown.questions} questions, after {shown.seconds:.0f} s; in brackets, 95 % "
        "intervals over worlds. These are a tiny model's figures in a made-up world: they show how the parts work "
        "together, and say nothing about a large model and your questions.",
        style="dim",
    )
    if failures := sum(row.failures for row in shown.rows):
        yield Text(f"{failures} questions lost a stage to a failure; `mia show` says which.", style="yellow")
    yield Text(f"Everything is kept in {shown.home}. To look around in it:")
    yield from demo_folder.commands(
        shown.home,
        (
            ("show last", f"the last episode of world {shown.worlds[0].seed}, opened up"),
            ("memory list", "what was learned, and how it fared"),
            ("memory why last", "why it was shown what it was shown"),
            # The world's questions hold nothing that a shell would read within these quotes.
            (f'ask "{_next_question(shown)}"', "its next question; the small model is also the judge"),
        ),
    )
    stream = shown.home / demo_folder.STREAMS / f"{shown.worlds[-1].seed}-{shown.rows[-1].rung.name}"
    for command, what in (
        (f"mia --home {shlex.quote(str(stream))} show last", "an episode of another world; every stream has a folder"),
        ("mia world ladder", "the real measurement: 24 worlds, with controls"),
        ("mia doctor", "finds an endpoint for a large model, and says what to type"),
    ):
        yield Text.assemble((f"  {command}", "cyan"), (f"   {what}", "dim"))


def _next_question(shown: Shown) -> str:
    from mia.world.questions import tasks

    return tasks(shown.worlds[0], shown.questions + 1)[-1].question.text


def _percent(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return "–"
    estimate, low, high = (100 * share for share in interval)
    sign = "+" if signed else ""
    return f"{estimate:{sign}.0f} ({low:{sign}.0f} to {high:{sign}.0f})"


def page(shown: Shown) -> dict[str, Any]:
    """The demonstration as data; the watched episodes whole, as they are in the store."""
    firsts, finals = zip(*(first_and_final(played.episode) for played in shown.watched), strict=True)
    return {
        "note": "The figures of a tiny model in a made-up world; they say nothing about any other model.",
        "home": str(shown.home),
        "watched": {
            "world": shown.worlds[0].seed,
            "questions": len(shown.watched),
            "first_correct": count_correct(firsts),
            "final_correct": count_correct(finals),
            "episodes": [played.episode.model_dump(mode="json") for played in shown.watched],
        },
        "measured": {
            "worlds": [world.seed for world in shown.worlds],
            "questions": shown.questions,
            "rungs": [_rung_page(row, below) for row, below in zip(shown.rows, (None, *shown.rows), strict=False)],
        },
        "seconds": round(shown.seconds, 3),
    }


def _rung_page(row: Row, below: Row | None) -> dict[str, Any]:
    step = row.step(below) if below is not None else None
    return {
        "rung": row.rung.name,
        "correct": [sum(world) for world in row.correct],
        "accuracy_95": row.accuracy and row.accuracy._asdict(),
        "halves": row.halves,
        "step_95": step and step._asdict(),
        "failures": row.failures,
    }
