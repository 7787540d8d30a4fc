"""`mia demo --recorded`: the whole line on our own documents, with recorded models.

What the models say was written by hand and is replayed; everything else is what every other command uses: the index,
the search, the store, the memory, the checked citations and the judge. The recording was written for what its settings
find. It is an error when a call has no entry, an entry no call, or a recorded quote does not stand in what was found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mia
from mia.cli import output
from mia.cli.demo import folder as demo_folder
from mia.cli.demo.telling import count_correct, first_and_final, tell, tell_question, verdict_text
from mia.cli.demo.watching import Played, show
from mia.cli.demo.watching import play as play_in_order
from mia.errors import CorpusError, MiaError, ReplayMismatch

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mia.config import Config
    from mia.models import Models
    from mia.models.base import ChatModel
    from mia.types import Attempt, Episode, Task

PAUSE = 0.05
"""Seconds between two lines, where somebody is watching."""


def demonstrate(home: Path, *, paced: bool, json: bool) -> None:
    """The whole of it. Raises MiaError, ReplayMismatch among others."""
    from mia.evals.tasks import read_tasks
    from mia.models import build_models

    data = demo_data()
    config = prepare(home, data)
    tasks = read_tasks(data / "questions.jsonl")
    models = build_models(config.models)
    pause = PAUSE if paced else 0.0
    begun = time.monotonic()

    def on_played(number: int, played: Played) -> None:
        show((*tell_question(number, played.episode.question.text), *tell(played)), pause)

    show(introduction(data), 0.0)
    played = asyncio.run(play(config, tasks, models, on_played))
    seconds = time.monotonic() - begun
    if json:
        output.result_json(_page(played, home, data, seconds))
    else:
        output.result_console().print(summary(played))
        for row in farewell(played, home, seconds):
            output.console().print(row, soft_wrap=True)  # A command that is broken in two cannot be copied.
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


def prepare(home: Path, data: Path) -> Config:
    """Make the folder (`mia.cli.demo.folder`). The settings: words only, and the embedder that every machine has."""
    from mia.config import JudgeSettings, LineSettings, ModelSettings, ModelsSettings

    config = demo_folder.prepare(
        home,
        {
            "memory": {"embedder": "hashing"},
            "search": {"corpus": [str((data / "docs").resolve())], "vectors": "off"},
        },
    )
    # Not in the file: whoever asks another question there is to name a model, and has no reference.
    return config.model_copy(
        update={
            "models": ModelsSettings(default=ModelSettings(provider="replay", path=str(data / "recording.jsonl"))),
            "line": LineSettings(judge="each"),
            "judge": JudgeSettings(kind="reference"),
        }
    )


async def play(
    config: Config, tasks: Sequence[Task], models: Models, on_played: Callable[[int, Played], None]
) -> list[Played]:
    """All the questions in order, each told of once it is absorbed."""
    from mia.team import build_team

    team = build_team(config, models=models)
    try:
        return await play_in_order(team, tasks, on_played=on_played)
    finally:
        await team.close()


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


def summary(played: Sequence[Played]) -> RenderableType:
    """The table at the end: what each question was shown, and how its first and its final answer were judged."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    episodes = [episode for episode, _ in played]
    firsts, finals = zip(*map(first_and_final, episodes), strict=True)
    table = Table(box=SIMPLE_HEAD, show_footer=True, footer_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    # Only this column may shrink: its texts are cut, the others are shown whole.
    table.add_column("question", "correct")
    table.add_column("memories", no_wrap=True)
    table.add_column("replan", str(sum(len(episode.attempts) > 1 for episode in episodes)), no_wrap=True)
    table.add_column("first answer", f"{count_correct(firsts)} of {len(episodes)}", no_wrap=True)
    table.add_column("final answer", f"{count_correct(finals)} of {len(episodes)}", no_wrap=True)
    for number, episode in enumerate(episodes, start=1):
        verdicts = (verdict_text(verdict) for verdict in first_and_final(episode))
        replanned = "yes" if len(episode.attempts) > 1 else ""
        question = Text(output.visible(episode.question.text), no_wrap=True, overflow="ellipsis")
        table.add_row(str(number), question, _memories(episode), replanned, *verdicts)
    return table


def farewell(played: Sequence[Played], home: Path, seconds: float) -> Iterator[RenderableType]:
    """What is left, and what to type next."""
    from rich.text import Text

    kept = [memory.judgement for _, memories in played for memory in memories]
    yield Text(
        f"{len(kept)} memories ({kept.count('correct')} correct, {kept.count('incorrect')} incorrect) after "
        f"{seconds:.1f} s, kept in {home}. To look around in it:"
    )
    yield from demo_folder.commands(
        home,
        (
            ("show last", "the last episode, opened up"),
            ("memory list", "what was learned, and how it fared"),
            ("memory why last", "why it was shown what it was shown"),
            ('memory search "born where?"', "the most similar questions"),
        ),
    )


def _memories(episode: Episode) -> str:
    shown = [memory.judgement for memory in episode.recall.shown] if episode.recall else []
    incorrect = shown.count("incorrect")
    return f"{len(shown) or 'none'}" + (f", {incorrect} incorrect" if incorrect else "")


def _page(played: Sequence[Played], home: Path, data: Path, seconds: float) -> dict[str, Any]:
    """The demonstration as data; the episodes whole, as they are in the store."""
    firsts, finals = zip(*(first_and_final(episode) for episode, _ in played), strict=True)
    return {
        "note": "The models' replies are recorded, and were written by hand; the figures say nothing about any model.",
        "recording": str(data / "recording.jsonl"),
        "home": str(home),
        "questions": len(played),
        "first_correct": count_correct(firsts),
        "final_correct": count_correct(finals),
        "replanned": sum(len(episode.attempts) > 1 for episode, _ in played),
        "memories": [memory.id for _, memories in played for memory in memories],
        "seconds": round(seconds, 3),
        "episodes": [episode.model_dump(mode="json") for episode, _ in played],
    }
