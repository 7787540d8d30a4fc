"""`mia ask`: one question, answered and remembered."""

from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.cli.stages import StageLines

if TYPE_CHECKING:
    from mia.config import Config
    from mia.types import Episode, Memory, Task, Usage, Verdict


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    corpus: options.Corpus = None,
    index: options.Index = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image that the question is about. Repeatable.")] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="A right answer, for the judge's eyes only. Repeatable.")
    ] = None,
    id: Annotated[str, typer.Option(help="An id for the question (recordings and image caches go by it).")] = "",
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    replay: options.Replay = None,
    record: options.Record = None,
    plan: options.Plan = None,
    replan: options.Replan = None,
    memory: options.UseMemory = None,
    frozen: options.Frozen = None,
    judge: options.JudgeKind = None,
    withhold: Annotated[
        bool | None, typer.Option("--withhold", help="Hold back an answer whose support is weak (with --judge trust).")
    ] = None,
    max_calls: options.MaxCalls = None,
    tool: options.Tool = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the models' text as it comes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the answer.")] = False,
    json: output.JsonFlag = False,
) -> None:
    """Answer one question, and learn from it.

    The answer alone goes to stdout; what happens on the way to stderr. `mia show last` opens all of it up again.

    Without a model, the passages that the documents hold are shown instead, and the exit status is 1, as wherever there
    is no answer. With nothing configured at all, the small embedded model answers in the offline world (see
    `mia world show`).
    """
    from mia.cli.embedded import announce_embedded, check_askable, embedded_default
    from mia.cli.passages import EXIT_STATUS, show_passages, shows_passages
    from mia.evals.tasks import make_task
    from mia.types import Image

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
            judge=judge,
            max_calls=max_calls,
            tool=tool,
        )
        | {"judge.withhold": withhold}
    )
    images = tuple(Image.from_file(path) for path in image or ())
    task = make_task(question, id=id, images=images, references=reference or ())
    typed = sys.argv[1:]
    if shows_passages(config):
        show_passages(task.question.text, config, typed, quiet=quiet, json=json)
        raise typer.Exit(EXIT_STATUS)
    embedded = embedded_default(config)
    show_again = options.shared(context).command("show")
    if embedded is not None:
        config = embedded
        asyncio.run(check_askable([task.question], config, typed))
        asyncio.run(announce_embedded(config, typed))
        # What it answers is kept in a home of its own.
        show_again = shlex.join(("mia", "--home", str(config.home), "show"))
    lines = None if quiet else StageLines(stream=stream)
    episode = asyncio.run(_ask(task, config, lines, stream=stream, json=json, show_again=show_again))
    if episode.answer is None:
        raise typer.Exit(1)


async def _ask(
    task: Task, config: Config, lines: StageLines | None, *, stream: bool, json: bool, show_again: str
) -> Episode:
    from mia.cli.index import announce_first_use
    from mia.episode import absorb, answer
    from mia.events import ignore
    from mia.models.ledger import Ledger
    from mia.team import budget, build_team

    on_event = lines or ignore
    announce_first_use(config)
    team = build_team(config)
    try:
        ledger = Ledger(task.question.id, budget=budget(config.budget.question), on_event=on_event, stream=stream)
        episode = await answer(task, team, ledger)
        team.check_replays()
        try:
            # Shown before it is absorbed: the answer does not wait for the memory.
            if json:
                output.result_json(episode.model_dump(mode="json"))
            else:
                _show(episode, quiet=lines is None)
        finally:
            # Absorbed even where nobody reads it (a closed pipe, a full disk): it was paid for.
            memories = await absorb(episode, team, ledger)
        if lines is not None:
            _show_end(episode, memories, ledger.total, show_again)
        team.check_replays([task.question.id])
    finally:
        await team.close()
    return episode


def _show(episode: Episode, *, quiet: bool) -> None:
    if episode.answer is not None:
        output.result(episode.answer.text)
    elif episode.withheld:
        output.warn(f"The answer is held back: {_why_held_back(episode.verdict)}")
    else:
        output.warn(f"No answer: {episode.stop.sentence if episode.stop else 'the line did not run'}")
    if quiet:
        return
    for citation in episode.answer.citations if episode.answer else ():
        output.note(f"source  [{citation.passage_id}] “{citation.quote}”")


def _show_end(episode: Episode, memories: tuple[Memory, ...], spent: Usage, show_again: str) -> None:
    """What was kept, what all of it cost (the answer, and remembering it), and the command that shows it again."""
    if memories:
        output.note(f"remember {memories[0].judgement} workflow {memories[0].id}")
    cost = f", ${spent.cost:.4f}" if spent.cost else ""
    remembering = spent.calls - episode.total_usage.calls
    of_which = f" ({remembering} for remembering)" if remembering else ""
    output.note(
        f"total   {output.plural(spent.calls, 'model call')}{of_which}, {output.plural(spent.tokens, 'token')}{cost}, "
        f"{episode.seconds:.1f} s · {show_again} {episode.id}"
    )


def _why_held_back(verdict: Verdict | None) -> str:
    if verdict is not None and verdict.support is not None:
        return verdict.support.reason
    said = (verdict.fallback or verdict.reason) if verdict is not None else ""
    return said or "its support was not judged."
