"""`mia world measure`: what a model can do of each role, on worlds that it has not seen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import output
from mia.cli.memory.progress import measuring
from mia.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from mia.learn.warmup.measure import Share
    from mia.world.facts import World


def measure(
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="A model's folder.", show_default="the embedded model"),
    ] = None,
    worlds: Annotated[int, typer.Option(min=1, help="How many worlds.")] = 100,
    split: Annotated[
        str | None,
        typer.Option(help="train, validation, test or demonstration.", show_default="that of --first-seed"),
    ] = None,
    first_seed: Annotated[
        int | None, typer.Option(help="The first of them.", show_default="the first of the split; of validation")
    ] = None,
    shifted: Annotated[bool, typer.Option("--shifted", help="Worlds without favourite sources.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the model.")] = 1,
    json: output.JsonFlag = False,
) -> None:
    """Measure what a model can do of each role.

    Every figure is a share of cases in which the truth is known; the model is asked through the agents of the line.
    Worlds of the test split are for the last look alone: choose nothing by them.
    """
    from mia.world.facts import World
    from mia.world.seeds import TRAIN

    seeds = _seeds(worlds, split, first_seed)
    if seeds.start in TRAIN:
        output.warn("These worlds may have been trained on: their figures say little about others.")
    shares = measure_folder(model, [World.make(seed, shifted=shifted) for seed in seeds], threads=threads)
    if json:
        output.result_json({"worlds": worlds, "first_seed": seeds.start, "shifted": shifted, **page(shares)})
        return
    output.result_console().print(table(shares))


def measure_folder(folder: Path | None, worlds: Sequence[World], *, threads: int) -> dict[str, Share]:
    """The shares of the model in a folder (None: the embedded one), with progress on stderr. Raises ConfigError."""
    from mia.learn.warmup.measure import measure
    from mia.models import build_model
    from mia.world import preset

    settings = preset.model_settings(path=str(folder or ""), threads=threads)

    async def run() -> dict[str, Share]:
        model = build_model(settings)
        try:
            with measuring("measuring") as on_case:
                return await measure(model, worlds, concurrency=settings.batch, on_case=on_case)
        finally:
            await model.close()

    return asyncio.run(run())


def table(shares: Mapping[str, Share]) -> Table:
    """For people: a line for each ability."""
    from rich.table import Table

    from mia.learn.warmup.measure import ABILITIES

    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("ability", "right", "95 %", "cases"):
        drawn.add_column(name, justify="left" if name == "ability" else "right", no_wrap=name != "ability")
    for name, share in shares.items():
        interval = share.interval
        if interval is None:
            drawn.add_row(f"{name}\n[dim]{ABILITIES[name]}[/dim]", "–", "–", "0")
            continue
        spread = f"{interval.low:.1%} to {interval.high:.1%}"
        drawn.add_row(f"{name}\n[dim]{ABILITIES[name]}[/dim]", f"{interval.estimate:.1%}", spread, f"{share.of:,}")
    return drawn


def page(shares: Mapping[str, Share]) -> dict[str, Any]:
    """For programs: right, of, share and its 95 % interval, by ability."""
    return {
        "abilities": {
            name: {
                "right": share.right,
                "of": share.of,
                "share": share.value if share.of else None,
                "share_95": list(share.interval[1:]) if share.interval else None,
            }
            for name, share in shares.items()
        }
    }


def _seeds(worlds: int, split: str | None, first: int | None) -> range:
    """Seeds of one split. Raises ConfigError."""
    from mia.world.seeds import SPLITS, split_of

    if split is not None and split not in SPLITS:
        raise ConfigError(f"there is no split '{split}'.", wanted=", ".join(SPLITS))
    name = split or (split_of(first) if first is not None else "validation")
    allowed = SPLITS[name]
    seeds = range(allowed.start if first is None else first, (allowed.start if first is None else first) + worlds)
    if seeds[0] not in allowed or seeds[-1] not in allowed:
        raise ConfigError(
            f"the worlds {seeds[0]} to {seeds[-1]} are not all of the split '{name}'.",
            wanted=f"seeds from {allowed.start} to {allowed.stop - 1}",
            hint=f"--first-seed {allowed.start}",
        )
    return seeds
