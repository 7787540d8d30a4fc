"""`mia learn …`: training in stages, of the Executor, of the Planner and of the reader of long texts."""

from __future__ import annotations

import typer

from mia.cli.learn.alternate import alternate
from mia.cli.learn.reader import reader
from mia.cli.learn.stage import executor, planner

app = typer.Typer(
    no_args_is_help=True, help="Learn from what was tried: Executor, Planner, both in turn, or the reader."
)

app.command(epilog="Example: mia learn executor --model runs/short/model --out runs/executor")(executor)
app.command(
    epilog="Example: mia learn planner --out runs/planner --hops 2 --questions-per-step 32 --questions-per-world 12"
)(planner)
app.command(epilog="Example: mia learn alternate --out runs/both --rounds 2 --steps 50")(alternate)
app.command(epilog="Example: mia learn reader --out runs/reader --steps 60")(reader)
