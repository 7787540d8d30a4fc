"""`mia world train`: make the embedded model, from nothing but seeds."""

from __future__ import annotations

import json as json_format
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import output
from mia.cli.world.measure import measure_folder, page, table
from mia.errors import MissingExtra

if TYPE_CHECKING:
    from mia.learn.warmup.measure import Share
    from mia.learn.warmup.steps import Progress
    from mia.learn.warmup.train import Recipe

NOTE_SECONDS = 10.0
"""How often a training without a terminal says where it stands."""


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="The training's folder; one that holds a part goes on.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of AdamW.", show_default="8200")] = None,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="0.003")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, dialogues and order.", show_default="1")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Shards of dialogues.", show_default="12")] = None,
    worlds_per_shard: Annotated[int | None, typer.Option(min=1, help="Worlds in each.", show_default="100")] = None,
    tokenizer_worlds: Annotated[
        int | None, typer.Option(min=1, help="Worlds that the tokenizer is made from.", show_default="24")
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a step.", show_default="3072")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that build dialogues.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the steps. Another number rounds otherwise.")] = 1,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    measure_worlds: Annotated[
        int, typer.Option(min=0, help="Validation worlds to measure the model on; 0 for none.")
    ] = 50,
    json: output.JsonFlag = False,
) -> None:
    """Make the small model of the offline world: dialogues of a teacher, a tokenizer, a training, a model card.

    The folder then holds model/ (for --model, or models.*.path), MODEL_CARD.md, curves.png and metrics.jsonl. Ctrl-C
    ends the step under way and saves; the same command goes on from there, and comes to the same weights.
    """
    from mia.learn.warmup.train import Recipe

    given = {
        "steps": steps,
        "rate": rate,
        "seed": seed,
        "shards": shards,
        "worlds_per_shard": worlds_per_shard,
        "tokenizer_worlds": tokenizer_worlds,
        "batch_tokens": batch_tokens,
    }
    recipe = Recipe(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    try:
        finished = _train(out, recipe, processes=processes, threads=threads, save_every=save_every)
    except KeyboardInterrupt:
        finished = None
    if finished is None:
        output.warn(f"Stopped. The same command goes on: {shlex.join(['mia', *sys.argv[1:]])}")
        raise typer.Exit(130)
    _draw(out)
    shares = _measure(finished, measure_worlds, threads) if measure_worlds else {}
    card = _card(out, recipe, shares, measure_worlds, processes=processes, threads=threads)
    _tell(out, finished, shares, json=json)
    output.note(f"card: {card}")


def _train(out: Path, recipe: Recipe, *, processes: int, threads: int, save_every: int) -> Path | None:
    from mia.learn.warmup.train import train

    with _watching() as watch, _stopping(watch) as stopping:
        return train(
            out,
            recipe,
            on_progress=watch,
            stop=lambda: stopping.asked,
            break_off=lambda: stopping.asked,
            save_every=save_every,
            processes=processes,
            threads=threads,
        )


# ── while it trains ───────────────────────────────────────────────────────────────────────────────────────────────


class _Watch:
    """Shows where a training stands: a bar at a terminal, a line now and then elsewhere."""

    def __init__(self, bar: Any, interactive: bool) -> None:
        self.stage = ""
        self._bar = bar
        self._interactive = interactive
        self._noted = time.monotonic()
        self._task: Any = None

    def __call__(self, progress: Progress) -> None:
        begins = progress.stage != self.stage
        if begins:
            self.stage = progress.stage
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(progress.stage, total=progress.total, say="")
        says = _say(progress)
        self._bar.update(self._task, completed=progress.done, say=says)
        ends = progress.done == progress.total
        if not self._interactive and (begins or ends or time.monotonic() - self._noted > NOTE_SECONDS):
            self._noted = time.monotonic()
            output.note(f"{progress.stage}: {progress.done:,} of {progress.total:,}{f' · {says}' if says else ''}")


def _say(progress: Progress) -> str:
    if progress.loss is None:
        return ""
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
    left = progress.seconds / progress.done * (progress.total - progress.done)
    return f"loss {progress.loss:.3f} · {speed:,.0f} tokens/s · {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


@contextmanager
def _watching() -> Iterator[_Watch]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    console = output.console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[say]}"))
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Watch(bar, console.is_terminal)


class _Stopping:
    """What Ctrl-C asks for: while steps are taken, to end after this one; else, and the second time, at once."""

    def __init__(self, watch: _Watch) -> None:
        self.asked = False
        self._watch = watch

    def interrupted(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if again or self._watch.stage != "steps":
            raise KeyboardInterrupt


@contextmanager
def _stopping(watch: _Watch) -> Iterator[_Stopping]:
    stopping = _Stopping(watch)
    before = {number: signal.signal(number, stopping.interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ── when it is done ───────────────────────────────────────────────────────────────────────────────────────────────


def _draw(out: Path) -> None:
    """The curves; a training without matplotlib is none the worse."""
    from mia.learn.warmup.curves import draw
    from mia.learn.warmup.initialisation import loss_at_chance
    from mia.learn.warmup.steps import read_metrics

    config = json_format.loads((out / "model" / "config.json").read_text(encoding="utf-8"))
    try:
        draw(read_metrics(out), out / "curves.png", chance=loss_at_chance(config["vocab_size"]))
    except MissingExtra as error:
        output.warn(f"No curves: {error}")


def _measure(model: Path, worlds: int, threads: int) -> dict[str, Share]:
    from mia.world.facts import World
    from mia.world.seeds import VALIDATION

    try:
        return measure_folder(model, [World.make(seed) for seed in VALIDATION[:worlds]], threads=threads)
    except KeyboardInterrupt:
        output.warn(f"The model is finished and not measured: mia world measure --model {shlex.quote(str(model))}")
        raise typer.Exit(130) from None


def _card(out: Path, recipe: Recipe, shares: Mapping[str, Share], worlds: int, *, processes: int, threads: int) -> Path:
    from mia.learn.warmup.card import write_card
    from mia.world.seeds import VALIDATION

    options = {
        "out": out.resolve().name,
        "steps": recipe.steps,
        "rate": recipe.rate,
        "seed": recipe.seed,
        "shards": recipe.shards,
        "worlds-per-shard": recipe.worlds_per_shard,
        "tokenizer-worlds": recipe.tokenizer_worlds,
        "batch-tokens": recipe.batch_tokens,
        "processes": processes,
        "threads": threads,
    }
    command = shlex.join(
        ["mia", "world", "train", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    )
    return write_card(out, command, shares, f"{worlds} validation worlds from seed {VALIDATION.start}")


def _tell(out: Path, model: Path, shares: Mapping[str, Share], *, json: bool) -> None:
    from mia.learn.warmup.steps import read_metrics

    last = read_metrics(out)[-1]
    if json:
        output.result_json({"model": str(model), **last, **page(shares)})
        return
    output.result(
        f"{model}: {last['step']:,} steps, {last['tokens']:,} tokens in {_duration(last['seconds'])}, "
        f"loss {last['loss']:.4f}"
    )
    if shares:
        output.result_console().print(table(shares))
