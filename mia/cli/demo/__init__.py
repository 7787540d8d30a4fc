"""`mia demo`: the whole line at work, on a machine without key, network or GPU.

The embedded model works in the offline world (`world`), whatever is configured. Where the libraries that run a model
are missing, and where `--recorded` asks for it, a recording is played instead (`recorded`): its words were written by
hand, all else is real.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mia.cli import options, output
from mia.cli.embedded import missing_library
from mia.errors import install_hint


def demo(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Option("--home", help="A folder to keep it in, made afresh.", show_default=".mia/demo")
    ] = None,
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Ten questions over documents, with words written by hand and no model.")
    ] = False,
    fast: Annotated[bool, typer.Option("--fast", help="No pauses between lines.")] = False,
    json: output.JsonFlag = False,
) -> None:
    """Watch a small model plan, search, fail, remember and replan, and what that brings; within two minutes.

    What happens goes to stderr, the table at the end to stdout; the folder is kept, to open every episode again.
    """
    home = folder or options.shared(context).config().home / "demo"
    missing = missing_library()
    if missing and not recorded:
        output.warn(
            f"The Python package '{missing}', which the small model needs, is not installed: a recording follows. "
            f"For the model: {install_hint('local')}"
        )
    # Nobody watches a pipe.
    paced = output.console().is_terminal and not fast and not json
    if recorded or missing:
        from mia.cli.demo import recorded as recorded_demo

        recorded_demo.demonstrate(home, paced=paced, json=json)
    else:
        from mia.cli.demo import world as world_demo

        world_demo.demonstrate(home, paced=paced, json=json)
