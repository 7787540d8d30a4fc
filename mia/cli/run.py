"""`mia run`: a stream of questions into a folder, resumable."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import options, output
from mia.cli.endpoints import Advice, advise
from mia.errors import ConfigError

if TYPE_CHECKING:
    from mia.cli.learning import Learning
    from mia.config import Config
    from mia.evals.run import Progress, Run, Runner
    from mia.evals.summary import Summary
    from mia.team import Team
    from mia.types import Task


NOTE_SECONDS = 10.0
"""How often a run without a terminal says where it stands."""


def run(
    context: typer.Context,
    questions: Annotated[Path, typer.Argument(help='JSON Lines: {"question": …, "answers": […], "id": …}; also .gz.')],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder.", show_default="runs/<name of the file>")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Questions at a time.", show_default="8")] = None,
    corpus: options.Corpus = None,
    index: options.Index = None,
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    replay: options.Replay = None,
    record: options.Record = None,
    plan: options.Plan = None,
    replan: options.Replan = None,
    memory: options.UseMemory = None,
    frozen: options.Frozen = None,
    judge: options.JudgeKind = None,
    max_calls: options.MaxCalls = None,
    tool: options.Tool = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop the run at so many tokens.")] = None,
    max_money: Annotated[float | None, typer.Option(min=0, help="Stop the run at so many US dollars.")] = None,
    learn: Annotated[
        bool | None,
        typer.Option("--learn/--no-learn", help="Learn from the stream while answering it.", show_default="off"),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Tries of each question.", show_default="4")] = None,
    learn_batch: Annotated[
        int | None, typer.Option(min=1, help="Questions between two updates.", show_default="32")
    ] = None,
    unsupervised: Annotated[
        bool, typer.Option("--unsupervised", help="Learn by peer review, without references.")
    ] = False,
    into: Annotated[
        str | None, typer.Option(help="What to learn into: both, memory, weights or nothing.", show_default="both")
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Answer a file of questions, remembering each.

    Every finished question is one line of episodes.jsonl in the run's folder. Ctrl-C finishes the questions under way
    and stops; a second one stops at once. Either way `--resume` goes on, and no question is lost or asked twice.

    With --learn each question is tried several times, and the Planner's weights learn in a process beside this one. The
    first questions (`learn.canary`) are held out, to examine each new version with.

    With nothing configured at all, the small embedded model answers in the offline world (see `mia world show`).
    """
    from mia.cli.embedded import announce_embedded, check_askable, embedded_default
    from mia.cli.passages import shows_passages
    from mia.evals.tasks import read_tasks

    config = options.shared(context).config(
        options.team_flags(
            corpus=corpus,
            index=index,
            model=model,
            base_url=base_url,
            replay=replay,
            record=record,
            plan=plan,
            replan=replan,
            memory=memory,
            frozen=frozen,
            judge=judge or ("peer" if unsupervised else None),
            max_calls=max_calls,
            tool=tool,
        )
        | {
            "learn.enabled": learn,
            "learn.samples": samples,
            "learn.batch": learn_batch,
            "learn.supervised": False if unsupervised else None,
            "learn.into": into,
        }
        | {"run.concurrency": concurrency, "budget.run.tokens": max_tokens, "budget.run.money": max_money}
    )
    tasks = read_tasks(questions)[:limit]
    typed = sys.argv[1:]
    if shows_passages(config):
        raise _no_model(asyncio.run(advise(config, typed)))
    embedded = embedded_default(config)
    if embedded is not None:
        config = embedded
        asyncio.run(check_askable([task.question for task in tasks], config, typed))
        asyncio.run(announce_embedded(config, typed))
    folder = out or Path("runs") / questions.name.removesuffix(".gz").removesuffix(".jsonl")
    progress = asyncio.run(_run(folder, tasks, config, resume=resume, json=json))
    if progress.stopped or progress.unanswered:
        raise typer.Exit(1)


def _no_model(advice: Advice) -> ConfigError:
    return ConfigError(
        "no model is named, and a run keeps answers, not passages.",
        wanted=f"a model: {advice.says} (without one, `mia ask` and `mia search` show what the documents hold)",
        hint=advice.command,
    )


async def _run(folder: Path, tasks: list[Task], config: Config, *, resume: bool, json: bool) -> Progress:
    from mia.cli.index import announce_first_use
    from mia.evals.run import open_run
    from mia.team import build_team

    if config.learn.enabled:
        return await _learn(folder, tasks, config, resume=resume, json=json)
    # The team first: settings that build none must not leave a run behind.
    announce_first_use(config)
    team = build_team(config)
    try:
        opened = open_run(folder, tasks, config, resume=resume)
        _register(folder, config)
        if opened.done:
            output.note(f"{len(opened.done)} of {len(tasks)} questions are answered already.")
        progress = await _answer(opened, tasks, team, config)
        if json:
            output.result_json(_page(progress, folder))
        else:
            _show(progress, folder)
        team.check_replays(progress.answered)
        return progress
    finally:
        await team.close()


def _register(folder: Path, config: Config) -> None:
    """The folder will hold copies of the store's episodes: whoever erases them must find it."""
    from mia.store import open_store

    with open_store(config.store_path, redact=config.memory.redact) as store:
        store.register_copy(folder)


async def _learn(folder: Path, tasks: list[Task], config: Config, *, resume: bool, json: bool) -> Progress:
    from mia.cli import learning
    from mia.cli.index import announce_first_use
    from mia.evals.run import open_run
    from mia.learn.online import check
    from mia.learn.opening import build_training, learning_models
    from mia.models import build_models
    from mia.team import build_team

    # As for any run: settings that build nothing must not leave a folder behind.
    learning.check(config, tasks)
    announce_first_use(config)
    models = build_models(config.models)
    try:
        team = build_team(config, models=learning_models(models, config))
        try:
            training = build_training(models.planner, config, folder / learning.FOLDER)
            check(team, config.learn, training)
            opened = open_run(folder, tasks, config, resume=resume)
            _register(folder, config)
            if opened.done:
                output.note(f"{len(opened.done)} of {len(tasks)} questions are answered already.")
            with _bar(opened, len(tasks)) as on_progress:
                run = learning.Learning(opened, tasks, team, models.planner, training, config, on_progress)
                progress = await _until_interrupted(run)
        finally:
            await team.close()
    finally:
        await models.close()
    page = run.page()
    if json:
        output.result_json({**_page(progress, folder), "learning": page})
    else:
        _show(progress, folder, learning.rows(page), beside="other tries, choosing, examining and remembering")
    return progress


async def _answer(opened: Run, tasks: list[Task], team: Team, config: Config) -> Progress:
    from mia.evals.run import Runner
    from mia.team import budget

    with _bar(opened, len(tasks)) as on_progress:
        runner = Runner(
            opened,
            tasks,
            team,
            concurrency=config.run.concurrency,
            question_budget=budget(config.budget.question),
            run_budget=budget(config.budget.run),
            on_progress=on_progress,
        )
        return await _until_interrupted(runner)


@contextmanager
def _bar(opened: Run, total: int) -> Iterator[Callable[[Progress], None]]:
    """A bar of progress on stderr; without a terminal, a line now and then."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[say]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=output.console(), transient=True) as bar:
        shown = bar.add_task("run", total=total, completed=len(opened.done), say="")
        noted = time.monotonic()

        def on_progress(progress: Progress) -> None:
            nonlocal noted
            if not bar.console.is_terminal and time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                output.note(f"{progress.summary.answered} of {progress.total} answered · {_say(progress.summary)}")
            bar.update(shown, completed=progress.summary.answered, say=_say(progress.summary))

        yield on_progress


async def _until_interrupted(runner: Runner | Learning) -> Progress:
    """First Ctrl-C: finish what is under way. Second: cancel it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupted() -> None:
        if runner.progress.stopped:
            task.cancel()
            return
        output.warn("Finishing the questions under way; Ctrl-C again stops at once.")
        runner.stop("stopped by Ctrl-C")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        return await runner.run()
    except asyncio.CancelledError:
        output.warn("Stopped at once; --resume goes on.")
        raise KeyboardInterrupt from None


def _say(summary: Summary) -> str:
    accuracy, usage = summary.accuracy, summary.usage
    shares = f"{accuracy.estimate:.0%} correct" if accuracy else "nothing judged"
    cost = f" · ${usage.cost:.2f}" if usage.cost else ""
    return f"{shares} · {usage.tokens:,} tokens{cost}"


def _page(progress: Progress, folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "stopped": progress.stopped,
        "unanswered": progress.unanswered,
        **progress.summary.as_dict(),
    }


def _show(
    progress: Progress, folder: Path, more: Sequence[tuple[str, str]] = (), *, beside: str = "remembering"
) -> None:
    """`beside`: what calls beside those of the answers were for."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in [*_rows(progress, beside), *more]:
        table.add_row(name, value)
    output.result_console().print(table)
    for question_id, why in list(progress.unanswered.items())[:5]:
        output.warn(f"not asked: {question_id}: {why}")
    if progress.stopped or progress.unanswered:
        output.warn(f"Not finished{f': {progress.stopped}' if progress.stopped else ''}. Add --resume to go on.")
    output.note(f"episodes: {folder / 'episodes.jsonl'} · mia show --from {folder / 'episodes.jsonl'} ID")


def _rows(progress: Progress, beside: str) -> list[tuple[str, str]]:
    page: dict[str, Any] = progress.summary.as_dict()
    rows = [("questions", f"{page['answered']} of {progress.total} answered")]
    if page["accuracy"] is not None:
        low, high = page["accuracy_95"]
        rows.append(
            (
                "correct",
                f"{page['correct']} of {page['judged']}: {page['accuracy']:.1%} (95 %: {low:.1%} to {high:.1%})",
            )
        )
    if page["answered"] - page["judged"]:
        rows.append(("unjudged", str(page["answered"] - page["judged"])))
    rows += [(f"mean {name}", f"{value:.3f}") for name, value in page["scores"].items()]
    rows.append(("replanned", str(page["replans"])))
    rows.append(("with memories", str(page["with_memory"])))
    cost = f", ${page['cost']:.4f}" if page["cost"] else ""
    tokens = page["prompt_tokens"] + page["completion_tokens"]
    remembering, unfinished = page["remembering"]["calls"], page["unfinished"]["calls"]
    of_which = f" ({remembering:,} of the calls for {beside})" if remembering else ""
    of_which += f" ({unfinished:,} of the calls for questions that stayed open)" if unfinished else ""
    rows.append(
        ("spent", f"{output.plural(page['calls'], 'model call')}, {output.plural(tokens, 'token')}{cost}{of_which}")
    )
    rows += [(f"stopped: {name}", str(count)) for name, count in page["stops"].items() if name != "answered"]
    rows += [(f"failed in {name}", str(count)) for name, count in page["failures"].items()]
    return rows
