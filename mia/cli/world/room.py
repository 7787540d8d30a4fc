"""`mia world room`: how far symbolic planners get: the room that memory, replanning and learning have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import output
from mia.cli.memory.progress import measuring

if TYPE_CHECKING:
    from rich.table import Table

    from mia.statistics import Interval
    from mia.world.room import Row

_LONGEST_BAR = 32
_SHORTEST_BAR = 8
"""Where a terminal has no room for this, there are no bars."""


def room(
    worlds: Annotated[int, typer.Option(min=1, help="How many worlds.")] = 24,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 600_000,
    questions: Annotated[int, typer.Option(min=2, help="Questions of each world's stream.")] = 60,
    shifted: Annotated[bool, typer.Option("--shifted", help="Worlds without favourite sources.")] = False,
    json: output.JsonFlag = False,
) -> None:
    """Measure planners that are rules, each with one thing more than the one before: no model is asked.

    Intervals are of 95 %, over worlds; steps are paired by world. To choose anything by what you see, take worlds of
    the validation split (--first-seed 500000).
    """
    from mia.world.facts import World
    from mia.world.room import room as measure
    from mia.world.seeds import split_of

    for seed in (first_seed, first_seed + worlds - 1):
        split_of(seed)
    with measuring("worlds") as on_world:
        made = [World.make(seed, shifted=shifted) for seed in range(first_seed, first_seed + worlds)]
        rows = measure(made, questions, on_world=on_world)
    if json:
        asked = {"worlds": worlds, "first_seed": first_seed, "questions": questions, "shifted": shifted}
        output.result_json(asked | {"rows": [_page(row) for row in rows]})
        return
    console = output.result_console()
    table = _table(rows, bars=0)
    bars = min(_LONGEST_BAR, console.width - console.measure(table).maximum - 2)
    if console.is_terminal and bars >= _SHORTEST_BAR:
        table = _table(rows, bars)
    console.print(table)
    output.note("A step is over the row above, if no other is named.")


def _table(rows: list[Row], bars: int) -> Table:
    """`bars`: the length of a bar for 100 %; 0: none."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("planner", "accuracy", "step", "halves", "searches", *([""] if bars else [])):
        table.add_column(name, justify="left" if name in ("planner", "") else "right", no_wrap=True)
    controls = False
    for row in rows:
        if row.rung.control and not controls:
            controls = True
            table.add_row("[dim]controls[/dim]")
        steps = dict(row.steps)
        below = "" if row.rung.control or not steps else _signed(steps.pop(next(iter(steps))))
        first, second = row.halves
        table.add_row(
            row.rung.name,
            _percent(row.accuracy, row.interval),
            below,
            f"{100 * first:.0f} → {100 * second:.0f}",
            f"{row.searches:.1f}",
            *(["█" * round(row.accuracy * bars)] if bars else []),
        )
        for name, step in steps.items():
            table.add_row(f"[dim]  over {name}[/dim]", "", _signed(step))
    return table


def _percent(value: float, interval: Interval | None) -> str:
    spread = f" ± {100 * (interval.high - interval.estimate):4.1f}" if interval else ""
    return f"{100 * value:.1f}{spread}"


def _signed(step: Interval | None) -> str:
    return f"{100 * step.estimate:+.1f} ± {100 * (step.high - step.estimate):4.1f}" if step else ""


def _page(row: Row) -> dict[str, Any]:
    interval = row.interval
    return {
        "name": row.rung.name,
        "what": row.rung.what,
        "accuracy": row.accuracy,
        "accuracy_95": list(interval[1:]) if interval else None,
        "control": row.rung.control,
        "steps": {
            name: {"estimate": step.estimate, "estimate_95": list(step[1:])} if step else None
            for name, step in row.steps.items()
        },
        "first_half": row.halves[0],
        "second_half": row.halves[1],
        "searches": row.searches,
        "by_world": list(row.by_world),
    }
