"""`mia world text`: a long text of a world, with a question about it, to try a reader on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mia.cli import options, output
from mia.errors import ConfigError


def text(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The new file for the text.")],
    tokens: Annotated[int, typer.Option(min=64, help="Of the text, about: four bytes to a token.")] = 8_000,
    facts: Annotated[int, typer.Option(min=1, max=2, help="Facts that the question asks for.")] = 1,
    number: Annotated[int, typer.Option(min=0, help="Which of the world's texts.")] = 0,
    seed: Annotated[
        int | None, typer.Option(help="The seed of the world.", show_default="search.world: where `mia ask` asks")
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Write a long text in which a few facts are told that a question asks for, anywhere among thousands of others."""
    from mia.reader.chunks import EstimatedTokens
    from mia.world.facts import World
    from mia.world.longtexts import make_text

    seed = options.shared(context).config().search.world if seed is None else seed
    made = make_text(World.make(seed), number, tokens, EstimatedTokens().count, facts=facts)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(made.text)
    except OSError as error:
        raise ConfigError(
            f"the text cannot be written to '{out}' ({error.strerror}).",
            wanted="a file that is not there yet, in a folder that can be written to",
        ) from error
    if json:
        output.result_json(
            {
                "id": made.id,
                "tokens": made.tokens,
                "question": made.question,
                "answer": made.answer,
                "depths": list(made.depths),
            }
        )
        return
    places = " and ".join(f"{depth:.0%}" for depth in made.depths)
    output.result(f"question    {made.question}\nanswer      {made.answer}, told at {places} of the text")
    output.note(f"To have it read: mia read {shlex.quote(str(out))} {shlex.quote(made.question)}")
