"""`mia demo`: the whole line on our own documents, with recorded models.

What the models say was written by hand and is replayed; everything else is what every other command uses: the index,
the search, the store, the memory, the checked citations and the judge. The settings are fixed, whatever the machine has
installed or the environment says, because the recording was written for what these settings find. It is an error when a
call has no entry, an entry no call, or a recorded quote does not stand in what was found.
"""

from __future__ import annotations

import asyncio
import json as json_format
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mia
from mia.cli import options, output
from mia.errors import ConfigError, CorpusError, MiaError, ReplayMismatch, StoreError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from mia.config import Config
    from mia.models import Models
    from mia.models.base import ChatModel
    from mia.types import Attempt, Episode, Memory, Step, Task, Verdict

    Played = tuple[Episode, tuple[Memory, ...]]
    """A question's episode, and what the memory holds because of it."""

PAUSE = 0.05
"""Seconds between two lines, where somebody is watching."""

_MARK = "# Made by `mia demo`, which begins afresh in this folder each time."


def demo(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Option("--home", help="A folder to keep it in, made afresh.", show_default=".mia/demo")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="No pauses between lines.")] = False,
    json: output.JsonFlag = False,
) -> None:
    """Watch ten questions being researched, judged and remembered, without a model.

    The models' words are recorded, and were written by hand. What happens goes to stderr, the table at the end to
    stdout; the folder is kept, to look around in.
    """
    from mia.evals.tasks import read_tasks
    from mia.models import build_models

    folder = folder or options.shared(context).config().home / "demo"
    data = demo_data()
    prepare(folder, data)
    config = demo_config(folder, data)
    tasks = read_tasks(data / "questions.jsonl")
    models = build_models(config.models)
    console = output.console()
    pause = 0.0 if fast or json or not console.is_terminal else PAUSE
    begun = time.monotonic()

    def show(number: int, played: Played) -> None:
        for row in tell(number, *played):
            console.print(row)
            time.sleep(pause)

    for row in introduction(data):
        console.print(row)
    played = asyncio.run(play(config, tasks, models, show))
    seconds = time.monotonic() - begun
    if json:
        output.result_json(_page(played, folder, data, seconds))
    else:
        output.result_console().print(summary(played))
        for row in farewell(played, folder, seconds):
            console.print(row, soft_wrap=True)  # A command that is broken in two cannot be copied.
    check(models.executor, played)


# ── what runs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def demo_data() -> Path:
    """The folder of the documents, questions and recording: in a wheel inside the package, else beside it."""
    package = Path(mia.__file__).parent
    for folder in (package / "examples" / "solar_system", package.parent / "examples" / "solar_system"):
        if (folder / "recording.jsonl").is_file():
            return folder
    raise CorpusError(
        "the documents of the demonstration are not installed.",
        wanted=f"examples/solar_system in '{package}' or beside it",
        hint="run it from a checkout of the repository",
    )


def demo_config(folder: Path, data: Path) -> Config:
    """The settings, whatever file or environment says: words only, and the embedder that every machine has."""
    from mia.config import (
        Config,
        JudgeSettings,
        LineSettings,
        MemorySettings,
        ModelSettings,
        ModelsSettings,
        SearchSettings,
    )

    # `model_construct`: the sections are valid, and neither environment nor file is read.
    return Config.model_construct(
        home=folder,
        models=ModelsSettings(default=ModelSettings(provider="replay", path=str(data / "recording.jsonl"))),
        line=LineSettings(judge="each"),
        memory=MemorySettings(embedder="hashing"),
        search=SearchSettings(corpus=(str(data / "docs"),), vectors="off"),
        judge=JudgeSettings(kind="reference"),
    )


def prepare(folder: Path, data: Path) -> None:
    """Make the folder, or empty its memory; leave a settings file with which other commands can look around in it.

    Raises ConfigError for a folder that holds other things, StoreError if it cannot be written.
    """
    settings = folder / "mia.toml"
    page = (
        f'{_MARK}\nhome = {_quoted(folder.resolve())}\n\n[memory]\nembedder = "hashing"\n\n'
        f'[search]\ncorpus = [{_quoted((data / "docs").resolve())}]\nvectors = "off"\n'
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ours = settings.is_file() and settings.read_text(encoding="utf-8", errors="replace").startswith(_MARK)
        if not ours and any(folder.iterdir()):
            raise ConfigError(
                f"the folder '{folder}' holds something that is not of a demonstration.",
                wanted="a new folder, an empty one, or one that `mia demo` made",
                hint="mia demo --home ANOTHER",
            )
        for name in ("memory.db", "memory.db-wal", "memory.db-shm"):
            (folder / name).unlink(missing_ok=True)
        settings.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write in the folder '{folder}': {error.strerror}.") from error


async def play(
    config: Config, tasks: Sequence[Task], models: Models, show: Callable[[int, Played], None]
) -> list[Played]:
    """Answer and absorb one question after the other, so that each finds what those before it left."""
    from mia.episode import absorb, answer
    from mia.models.ledger import Ledger
    from mia.team import build_team

    team = build_team(config, models=models)
    played: list[Played] = []
    try:
        for number, task in enumerate(tasks, start=1):
            ledger = Ledger(task.question.id)
            episode = await answer(task, team, ledger)
            played.append((episode, await absorb(episode, team, ledger)))
            show(number, played[-1])
    finally:
        await team.close()
    return played


def check(replay: ChatModel, played: Sequence[Played]) -> None:
    """Raises ReplayMismatch unless recording and run match in every call and quote, MiaError if a stage failed."""
    from mia.models.replay import ReplayModel

    assert isinstance(replay, ReplayModel)
    replay.assert_exhausted()
    for episode, _ in played:
        for failure in episode.failures:
            raise MiaError(f"{episode.question.id}: {failure.stage} failed: {failure.message}")
        for attempt in episode.attempts:
            for passage_id, quote in _unfound(attempt):
                raise ReplayMismatch(f"{episode.question.id}: nothing that was found holds “{quote}” [{passage_id}].")


def _unfound(attempt: Attempt) -> list[tuple[str, str]]:
    """The quotes of an answer that did not hold."""
    from mia.agents.protocol import read_reply

    claimed = read_reply(attempt.trace.steps[-1].text).evidence if attempt.trace.steps else ()
    citations = attempt.answer.citations if attempt.answer else ()
    held = {(citation.passage_id, citation.quote) for citation in citations if citation.origin == "model"}
    return [evidence for evidence in claimed if evidence not in held]


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────────


def introduction(data: Path) -> Iterator[RenderableType]:
    """What is recorded here and what is real; before anything else."""
    from rich.text import Text

    yield Text("Recorded: every word of the models below was written by hand, and is replayed.", style="bold yellow")
    documents = len(list((data / "docs").iterdir()))
    yield Text(
        f"Real: the index of {documents} documents, the searches, the memory and its store, the citations, the judge. "
        "The figures at the end show how the line works; they say nothing about any model.\n"
        'With a real model: mia ask "…" --corpus ./docs --base-url URL --model NAME   (mia doctor finds one)',
        style="dim",
    )


def tell(number: int, episode: Episode, memories: Sequence[Memory]) -> Iterator[RenderableType]:
    """The life of one question, a row at a time."""
    yield ""
    yield _row(f"{number:>2}", episode.question.text, "bold", number=True)
    yield from _tell_recall(episode)
    for count, attempt in enumerate(episode.attempts):
        if attempt.plan is not None:
            name, style = ("replan", "magenta") if count else ("plan", "")
            yield _row(name, attempt.plan.text, style=style)
        for step in attempt.trace.steps:
            yield from _tell_search(step)
        yield _row("answer", attempt.answer.text if attempt.answer else "none", style="bold")
        if attempt.reflection is not None:
            again = attempt.reflection.replan
            word = "replan." if again else "the answer stands."
            yield _row("reflect", f"{word} {attempt.reflection.thinking}", style="yellow" if again else "dim")
    for citation in episode.answer.citations if episode.answer else ():
        yield _row("source", f"“{citation.quote}” [{citation.passage_id}]", style="dim")
    yield from _tell_verdicts(episode)
    for memory in memories:
        steps = len(memory.workflow.splitlines())
        yield _row("remember", f"a workflow of {steps} steps, judged {memory.judgement}", style="dim")


def _tell_recall(episode: Episode) -> Iterator[RenderableType]:
    recall = episode.recall
    if recall is None or not recall.shown:
        yield _row("recall", "nothing fits" if recall and recall.considered else "the memory is empty", style="dim")
        return
    for memory in recall.shown:
        style = "green" if memory.judgement == "correct" else "red"
        similarity = memory.parts["similarity"]
        yield _row("recall", f"{similarity:.2f} {memory.judgement}: {memory.question}", style, one_line=True)


def _tell_search(step: Step) -> Iterator[RenderableType]:
    if step.tool_call is None or step.observation is None:
        return
    yield _row("search", " | ".join(str(query) for query in step.tool_call.arguments.get("query_list", ())))
    titles = " · ".join(passage.title for passage in step.observation.passages)
    yield _row("", f"→ {titles or step.observation.text}", style="cyan")


def _tell_verdicts(episode: Episode) -> Iterator[RenderableType]:
    from rich.text import Text

    first, final = map(_verdict, _first_and_final(episode))
    replanned = len(episode.attempts) > 1
    yield _row("judge", Text.assemble("first answer ", first, ", final answer ", final) if replanned else final)


def summary(played: Sequence[Played]) -> RenderableType:
    """The table at the end: what each question was shown, and how its first and its final answer were judged."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    episodes = [episode for episode, _ in played]
    firsts, finals = zip(*map(_first_and_final, episodes), strict=True)
    table = Table(box=SIMPLE_HEAD, show_footer=True, footer_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    # Only this column may shrink: its texts are cut, the others are shown whole.
    table.add_column("question", "correct")
    table.add_column("memories", no_wrap=True)
    table.add_column("replan", str(sum(len(episode.attempts) > 1 for episode in episodes)), no_wrap=True)
    table.add_column("first answer", f"{_count_correct(firsts)} of {len(episodes)}", no_wrap=True)
    table.add_column("final answer", f"{_count_correct(finals)} of {len(episodes)}", no_wrap=True)
    for number, episode in enumerate(episodes, start=1):
        verdicts = (_verdict(verdict) for verdict in _first_and_final(episode))
        replanned = "yes" if len(episode.attempts) > 1 else ""
        question = Text(output.visible(episode.question.text), no_wrap=True, overflow="ellipsis")
        table.add_row(str(number), question, _memories(episode), replanned, *verdicts)
    return table


def farewell(played: Sequence[Played], folder: Path, seconds: float) -> Iterator[RenderableType]:
    """What is left, and what to type next."""
    from rich.text import Text

    kept = [memory.judgement for _, memories in played for memory in memories]
    yield Text(
        f"{len(kept)} memories ({kept.count('correct')} correct, {kept.count('incorrect')} incorrect) after "
        f"{seconds:.1f} s, kept in {folder}. To look around in it:"
    )
    command = f"mia --config {shlex.quote(str(folder / 'mia.toml'))}"
    for rest, what in (
        ("show last", "the last episode, opened up"),
        ("memory list", "what was learned, and how it fared"),
        ("memory why last", "why it was shown what it was shown"),
        ('memory search "born where?"', "the most similar questions"),
    ):
        yield Text.assemble((f"  {command} {rest}", "cyan"), (f"   {what}", "dim"))


def _row(
    label: str, content: str | Text, style: str = "", *, number: bool = False, one_line: bool = False
) -> RenderableType:
    """A label and what belongs to it, which wraps beside the label or is cut at the end of the line."""
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=2 if number else 12, style="bold" if number else "dim", no_wrap=True)
    row.add_column()
    text = Text(output.visible(content), style=style) if isinstance(content, str) else content
    if one_line:
        text.no_wrap, text.overflow = True, "ellipsis"
    row.add_row(label if number else f"    {label}", text)
    return row


_COLOURS = {"correct": "bold green", "incorrect": "bold red"}


def _first_and_final(episode: Episode) -> tuple[Verdict | None, Verdict | None]:
    return episode.attempts[0].verdict, episode.verdict


def _verdict(verdict: Verdict | None) -> Text:
    from rich.text import Text

    said = verdict.outcome.value.replace("_", " ") if verdict else "unjudged"
    return Text(said, style=_COLOURS.get(said, ""))


def _count_correct(verdicts: Sequence[Verdict | None]) -> int:
    return sum(verdict is not None and verdict.correct for verdict in verdicts)


def _memories(episode: Episode) -> str:
    shown = [memory.judgement for memory in episode.recall.shown] if episode.recall else []
    incorrect = shown.count("incorrect")
    return f"{len(shown) or 'none'}" + (f", {incorrect} incorrect" if incorrect else "")


def _quoted(path: Path) -> str:
    """A path as a TOML string: JSON writes the same escapes."""
    return json_format.dumps(str(path), ensure_ascii=False)


def _page(played: Sequence[Played], folder: Path, data: Path, seconds: float) -> dict[str, Any]:
    """The demonstration as data; the episodes whole, as they are in the store."""
    firsts, finals = zip(*(_first_and_final(episode) for episode, _ in played), strict=True)
    return {
        "note": "The models' replies are recorded, and were written by hand; the figures say nothing about any model.",
        "recording": str(data / "recording.jsonl"),
        "home": str(folder),
        "questions": len(played),
        "first_correct": _count_correct(firsts),
        "final_correct": _count_correct(finals),
        "replanned": sum(len(episode.attempts) > 1 for episode, _ in played),
        "memories": [memory.id for _, memories in played for memory in memories],
        "seconds": round(seconds, 3),
        "episodes": [episode.model_dump(mode="json") for episode, _ in played],
    }
