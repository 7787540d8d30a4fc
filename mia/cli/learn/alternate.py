"""`mia learn alternate`: both stages in turn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.cli.learn.options import Options, takes_options

if TYPE_CHECKING:
    from mia.cli.learn.watching import Watch
    from mia.learn.stages import Stage, StageResult
    from mia.types import Role


@takes_options(Options)
def alternate(
    context: typer.Context,
    options: Options,
    rounds: Annotated[int, typer.Option(min=1, help="Executor and Planner once each is a round.")] = 1,
) -> None:
    """Train Executor and Planner in turn, each beside the other as it is by then.

    The folder holds a training for each stage: 1-executor, 1-planner, 2-executor, … --steps counts for each of them.
    Ctrl-C ends the step under way and saves; the same command goes on from there.
    """
    _train(context, options, rounds)


def _train(context: typer.Context, wanted: Options, rounds: int) -> None:
    from mia.cli.learn.stage import page, tell
    from mia.cli.learn.training import train, until_stopped
    from mia.learn.stages import alternate

    shared = options.shared(context)

    async def all_rounds(watch: Watch) -> list[StageResult] | None:
        async def one(stage: Stage, folder: Path, weights: Mapping[Role, Path]) -> StageResult | None:
            return await train(stage, wanted, shared, folder, weights, watch)

        return await alternate(rounds, wanted.out, one)

    results = until_stopped(all_rounds)
    if wanted.json:
        output.result_json([page(result) for result in results])
    else:
        for result in results:
            tell(result)
