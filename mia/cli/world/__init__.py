"""`mia world …`: the offline laboratory: worlds, the room there is, training, measuring, the ladder."""

from __future__ import annotations

import typer

from mia.cli.world.ladder import ladder
from mia.cli.world.measure import measure
from mia.cli.world.room import room
from mia.cli.world.show import show
from mia.cli.world.text import text
from mia.cli.world.train import train

app = typer.Typer(no_args_is_help=True, help="The offline laboratory: a small world, a small model, the whole line.")

app.command(epilog="Example: mia world show --seed 600000 --questions 20")(show)
app.command(epilog="Example: mia world room --worlds 8 --shifted")(room)
app.command(epilog="Example: mia world train --out runs/embedded")(train)
app.command(epilog="Example: mia world measure --model runs/embedded/model --worlds 20")(measure)
app.command(epilog="Example: mia world text long.txt --tokens 8000")(text)
app.command(epilog="Example: mia world ladder --worlds 24 --out runs/ladder")(ladder)
