"""A measurement from the settings to the tables: what `mia eval ruler` and `mia eval ruler-hotpotqa` have in common."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mia.cli import output
from mia.errors import ConfigError, MissingExtra, StoreError

if TYPE_CHECKING:
    from mia.config import Config
    from mia.evals.ruler.items import Sources, Work
    from mia.evals.ruler.methods import MethodSettings
    from mia.evals.ruler.report import Report
    from mia.evals.ruler.runner import Progress, Runner
    from mia.models.base import ChatModel

NOTE_SECONDS = 10.0
"""How often a measurement without a terminal says where it stands."""


@dataclass(frozen=True)
class Measurement:
    """What to ask, how, and where to keep it."""

    works: Sequence[Work]
    sources: Callable[[Callable[[str], int]], Sources]
    """From a count of tokens."""
    method: MethodSettings
    tokenizer: Path | None
    folder: Path
    unit: str
    ray: str | None


def method_settings(config: Config, kind: str, temperature: float, top_p: float) -> MethodSettings:
    """Raises ConfigError for an unknown kind."""
    from mia.evals.ruler.methods import MethodSettings
    from mia.types import Role

    if kind not in ("reader", "direct"):
        raise ConfigError(f"there is no method '{kind}'.", wanted="reader or direct")
    return MethodSettings(
        kind="direct" if kind == "direct" else "reader",
        model=config.models.of(Role.READER),
        reader=config.reader,
        temperature=temperature,
        top_p=top_p,
    )


def write_items(works: Sequence[Work], sources: Sources, path: Path) -> None:
    """The items as JSON Lines, for other programs. Raises ConfigError, StoreError."""
    from mia.evals.ruler import suite

    try:
        with path.open("w", encoding="utf-8") as file:
            for work in works:
                item = asdict(suite.make(work, sources))
                json.dump({**item.pop("work"), **item}, file, ensure_ascii=False)
                file.write("\n")
    except OSError as error:
        raise StoreError(f"cannot write '{path}': {error.strerror}.") from error
    output.note(f"{len(works):,} items: {path}")


def measure(measurement: Measurement, config: Config, *, json: bool) -> None:
    """Ask all that is open, keep it, and show what it comes to; exit status 1 where something stayed open."""
    found, progress = asyncio.run(_measure(measurement, config))
    from mia.evals.ruler.report import write

    if found.costs:
        write(found, measurement.folder)
        _draw(found, measurement.folder / "report.png")
    if json:
        page = {"stopped": progress.stopped, "unanswered": progress.unanswered, **found.as_dict()}
        output.result_json({"folder": str(measurement.folder), **page})
    else:
        _show(found)
    for id, why in list(progress.unanswered.items())[:5]:
        output.warn(f"not asked: {id}: {why}")
    output.note(f"{progress.answered:,} of {progress.total:,} items answered; {measurement.folder}")
    if progress.answered < progress.total:
        why = f": {progress.stopped}" if progress.stopped else ""
        output.warn(f"Not finished{why}. The same command goes on: {shlex.join(['mia', *sys.argv[1:]])}")
        raise typer.Exit(1)


async def _measure(measurement: Measurement, config: Config) -> tuple[Report, Progress]:
    from mia.evals.ruler.methods import method_of
    from mia.evals.ruler.ray import Cluster
    from mia.evals.ruler.report import report
    from mia.evals.ruler.results import ResultLog
    from mia.evals.ruler.runner import Evaluate, Evaluator, Runner
    from mia.evals.ruler.tokens import read_tokenizer
    from mia.reader.chunks import token_counter
    from mia.team import budget

    with ExitStack() as stack:
        model = _model(config, measurement.method)
        try:
            counter = read_tokenizer(measurement.tokenizer) if measurement.tokenizer else token_counter(model)
            sources = measurement.sources(counter.count)
            method = method_of(measurement.method, model, counter=counter)
            settings = {
                "method": method.name,
                "model": model.name,
                "temperature": measurement.method.temperature,
                "top_p": measurement.method.top_p,
                "seed": sources.seed,
                "counted_in": counter.name,
                "essays": sources.essays.digest or sources.essays.name,
                "questions": sources.corpus.digest if sources.corpus else "",
            }
            made_under = {**settings, "prompts": method.prompts, "reader": _reader_page(measurement.method)}
            log = ResultLog.open(measurement.folder, made_under)
            stack.callback(log.close)
            evaluate: Evaluate
            if measurement.ray is not None:
                cluster = Cluster(
                    measurement.ray, sources, measurement.method, counter, concurrency=config.run.concurrency
                )
                stack.callback(cluster.close)
                evaluate = cluster
            else:
                evaluate = Evaluator(
                    sources, method, budget=budget(config.budget.question), run_budget=budget(config.budget.run)
                )
            with _bar(len(measurement.works)) as on_progress:
                runner = Runner(
                    log,
                    measurement.works,
                    evaluate,
                    concurrency=config.run.concurrency,
                    on_progress=on_progress,
                )
                progress = await _until_interrupted(runner)
        finally:
            await model.close()
        results = [log.results[work] for work in measurement.works if work in log.results]
        return report(results, unit=measurement.unit, settings=settings), progress


def _model(config: Config, settings: MethodSettings) -> ChatModel:
    from mia.models import build_model
    from mia.models.replay import Recorder, RecordingWriter

    model = build_model(settings.model, section="reader")
    return Recorder(model, RecordingWriter(Path(config.models.record))) if config.models.record else model


def _reader_page(settings: MethodSettings) -> dict[str, Any]:
    """What of the reader's settings the answers depend on."""
    return settings.reader.model_dump(mode="json") if settings.kind == "reader" else {}


@contextmanager
def _bar(total: int) -> Iterator[Callable[[Progress], None]]:
    """A bar at a terminal, a line now and then elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = output.console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    noted = time.monotonic()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("items", total=total)

        def on_progress(progress: Progress) -> None:
            nonlocal noted
            bar.update(task, completed=progress.answered)
            if not console.is_terminal and time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                output.note(f"{progress.answered:,} of {progress.total:,} items answered")

        yield on_progress


async def _until_interrupted(runner: Runner) -> Progress:
    """First Ctrl-C: finish what is under way. Second: cancel it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupted() -> None:
        if runner.progress.stopped:
            task.cancel()
            return
        output.warn("Finishing the items under way; Ctrl-C again stops at once.")
        runner.stop("stopped by Ctrl-C")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        return await runner.run()
    except asyncio.CancelledError:
        output.warn("Stopped at once; the same command goes on.")
        raise KeyboardInterrupt from None


def _draw(found: Report, path: Path) -> None:
    """The picture; a measurement without matplotlib is none the worse."""
    from mia.evals.ruler.plot import draw

    try:
        draw(found, path)
    except MissingExtra as error:
        output.warn(f"No picture: {error}")


def _show(found: Report) -> None:
    from rich.table import Table

    from mia.evals.ruler.report import notes, tables

    if not found.costs:
        return
    console = output.result_console()
    for page in tables(found):
        table = Table(title=page.title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for number, column in enumerate(page.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
        for row in page.rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for note in notes(found):
        output.note(note)
