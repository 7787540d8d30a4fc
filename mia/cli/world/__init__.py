"""`mia world …`: the offline laboratory: worlds, the room there is, training, measuring, the ladder."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="The offline laboratory: a small world, a small model, the whole line.")
