"""`mia`: the program. Registers the commands, reads the options that all of them share, and turns errors into exits."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import mia
from mia.cli import adapters, eval, learn, memory, output, token, world
from mia.cli.ask import ask
from mia.cli.config import config
from mia.cli.demo import demo
from mia.cli.doctor import doctor
from mia.cli.index import index
from mia.cli.mcp import mcp
from mia.cli.options import Shared
from mia.cli.read import read
from mia.cli.run import run
from mia.cli.search import search
from mia.cli.serve import serve
from mia.cli.show import show
from mia.errors import MiaError

_SENTENCE = 300
"""Characters of a first sentence that are shown."""


class _Listing(TyperGroup):
    """Lists each command with its whole first sentence, which would else be cut off at the end of the line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(_SENTENCE)) for name, one in commands if one is not None])


app = typer.Typer(
    name="mia",
    cls=_Listing,
    help="A research agent that learns from its own past.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.result(f"mia {mia.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="A TOML file of settings.", show_default="mia.toml here, if there is one"),
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Where MIA keeps its files.", show_default=".mia")] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = Shared(config_file=config_file, home=home)


# Commands, in the order in which `mia --help` lists them.
app.command()(demo)
app.command()(ask)
app.command()(run)
app.command()(read)
app.command()(show)
app.command()(index)
app.command()(search)
app.add_typer(memory.app, name="memory", cls=_Listing)
app.add_typer(world.app, name="world", cls=_Listing)
app.add_typer(learn.app, name="learn", cls=_Listing)
app.add_typer(adapters.app, name="adapters", cls=_Listing)
app.add_typer(eval.app, name="eval", cls=_Listing)
app.command(epilog="Examples: mia serve; mia serve --corpus docs/ --model qwen3 --port 8000")(serve)
app.command(epilog="Example: mia mcp --corpus docs/ --model qwen3")(mcp)
app.add_typer(token.app, name="token", cls=_Listing)
app.command()(config)
app.command()(doctor)


def main() -> None:
    """The door of the program: every `MiaError` ends as a message and an exit status; bugs keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its code instead of a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except MiaError as error:
        sys.exit(output.show_error(error))
    except KeyboardInterrupt:
        output.note("Stopped.")
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        if error.errno == errno.ENOSPC:
            output.note("The output could not be written: no space left.")
        # The reader of our output has gone (`mia … | head`); nothing is left to say, not even at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
