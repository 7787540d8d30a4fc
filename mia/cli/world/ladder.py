"""`mia world ladder`: what planning, memory and replanning bring, on worlds that no training has seen."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import output
from mia.errors import MissingExtra

if TYPE_CHECKING:
    from mia.evals.ladder import Progress
    from mia.evals.ladder_report import Report

NOTE_SECONDS = 10.0
"""How often a ladder without a terminal says where it stands."""
_MOST_PROCESSES = 2
"""Unless told otherwise: each holds a model."""


def ladder(
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="A model's folder.", show_default="the embedded model"),
    ] = None,
    worlds: Annotated[int, typer.Option(min=1, help="How many worlds.")] = 24,
    first_seed: Annotated[
        int | None, typer.Option(help="The first of them.", show_default="the first test world")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Questions in each.")] = 60,
    shifted: Annotated[bool, typer.Option("--shifted", help="Worlds without favourite sources.")] = False,
    rungs: Annotated[
        str | None, typer.Option(help="Their names, with commas between.", show_default="all of the ladder")
    ] = None,
    planner: Annotated[
        Path | None,
        typer.Option(help="What `mia learn planner` made.", show_default="the adapter that comes with the model"),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the worlds.", show_default="1 or 2, as CPUs allow")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder for results; one that holds a part goes on.")
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Climb from no plan to plan, memory, replanning and learning, in the same worlds, with controls.

    Rungs: no-plan, no-plan-fair, plan, plan-memory, plan-memory-replan, plan-replan; where there is a Planner that has
    learnt, planner-rl and ttl; by name only: three-replans, no-coverage, verdict-replan. Steps are taken in pairs, with
    95 % intervals over worlds. --out keeps ladder.jsonl (each finished rung of a world), ladder.md, ladder.json and
    ladder.png; the same command goes on with it.
    """
    from mia.config import LearnSettings
    from mia.evals.ladder import LEARNT, RUNGS, LadderSettings, choose, digest, run_ladder
    from mia.evals.ladder_report import report, write
    from mia.learn.laboratory import opener
    from mia.models.local import EMBEDDED
    from mia.world import preset
    from mia.world.seeds import TEST, check_unseen

    seed = TEST.start if first_seed is None else first_seed
    check_unseen(seed, worlds)
    if planner is None and model is None and preset.PLANNER.is_dir():
        planner = preset.PLANNER
    learn = LearnSettings(**preset.LEARN)
    every = (*RUNGS, *(LEARNT if planner else ()))
    settings = LadderSettings(
        worlds=worlds,
        first_seed=seed,
        questions=questions,
        shifted=shifted,
        rungs=every if rungs is None else choose([name.strip() for name in rungs.split(",") if name.strip()]),
        model=preset.model_settings(path=str(model or "")),
        weights=digest(model or EMBEDDED),
        planner=str(planner or ""),
        planner_weights=digest(planner) if planner else "",
        learn=preset.LEARN,
        open_online=opener(learn, str(planner or "")),
    )
    begun = time.monotonic()
    try:
        with _watching() as on_progress:
            results = run_ladder(
                settings,
                folder=out,
                processes=processes or min(_MOST_PROCESSES, os.cpu_count() or 1),
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        if out is None:
            raise
        output.warn(f"Stopped. The same command goes on: {shlex.join(['mia', *sys.argv[1:]])}")
        raise typer.Exit(130) from None
    found = report(settings, results)
    if out is not None:
        write(found, out)
        _draw(found, out / "ladder.png")
    if json:
        output.result_json({**found.as_dict(), "seconds": time.monotonic() - begun})
    else:
        _show(found)
    output.note(f"{time.monotonic() - begun:,.0f} s{f'; {out}' if out is not None else ''}")


@contextmanager
def _watching() -> Iterator[Callable[[Progress], None]]:
    """A bar at a terminal, a line now and then elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = output.console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[say]}"),
        TimeRemainingColumn(),
    )
    begun = noted = time.monotonic()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("questions", total=None, say="")

        def on_progress(progress: Progress) -> None:
            nonlocal noted
            finished = f"{progress.results} of {progress.of_results} rungs in worlds"
            bar.update(task, completed=progress.questions, total=progress.of_questions, say=finished)
            now = time.monotonic()
            if not console.is_terminal and now - noted > NOTE_SECONDS:
                noted = now
                left = (now - begun) * (progress.of_questions / progress.questions - 1) if progress.questions else None
                about = f"; about {left:,.0f} s left" if left is not None else ""
                output.note(f"ladder: {progress.questions:,} of {progress.of_questions:,} questions, {finished}{about}")

        yield on_progress


def _draw(found: Report, path: Path) -> None:
    """The picture; a ladder without matplotlib is none the worse."""
    from mia.evals.ladder_plot import draw

    try:
        draw(found, path)
    except MissingExtra as error:
        output.warn(f"No picture: {error}")


def _show(found: Report) -> None:
    from rich.table import Table

    from mia.evals.ladder_report import notes, tables

    console = output.result_console()
    for page in tables(found):
        table = Table(title=page.title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for number, column in enumerate(page.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
        for row in page.rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for note in notes(found):
        output.note(note)
