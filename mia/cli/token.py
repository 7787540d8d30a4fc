"""`mia token`: who may ask a server."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from mia.cli import options, output

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make and take back the tokens of `mia serve`.")


@app.command(epilog="Example: mia token add ann --scope acme/research/ann --days 90")
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    scope: Annotated[
        str | None,
        typer.Option(help="What it sees: this scope and below.", show_default="everything, and may administer"),
    ] = None,
    days: Annotated[float | None, typer.Option(min=0.001, help="So long it is valid.", show_default="for ever")] = None,
) -> None:
    """Make a token. It is shown once, and kept as a hash alone."""
    from mia.service.auth import add_token, tokens_path

    path = tokens_path(options.shared(context).config())
    output.result(add_token(path, name, scope=scope, days=days))
    output.note(f"Send it as 'Authorization: Bearer …'; it is not shown again. Its hash is in {path}.")


@app.command("list")
def list_(context: typer.Context, json: output.JsonFlag = False) -> None:
    """The tokens that there are, without what they are."""
    from mia.service.auth import read_tokens, tokens_path

    tokens = read_tokens(tokens_path(options.shared(context).config()))
    if json:
        output.result_json([{key: value for key, value in asdict(one).items() if key != "sha256"} for one in tokens])
        return
    for one in tokens:
        ends = "for ever" if one.expires_at is None else time.strftime("until %Y-%m-%d", time.localtime(one.expires_at))
        output.result(f"{one.name}\t{one.scope or 'everything'}\t{ends}")


@app.command(epilog="Example: mia token remove ann")
def remove(context: typer.Context, name: Annotated[str, typer.Argument(help="Whose it is.")]) -> None:
    """Take a token back; it counts no more from the next request on."""
    from mia.service.auth import remove_token, tokens_path

    remove_token(tokens_path(options.shared(context).config()), name)
    output.note(f"The token '{name}' is taken back.")
