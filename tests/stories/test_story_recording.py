"""Recorded work that is broken off or repeated: it goes on, and the recording then replays whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from shelf import ShelfTool, call

from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import ExecutorSettings, LineSettings, load_config
from mia.episode import answer
from mia.evals.run import Runner, open_run
from mia.judges.reference import ReferenceJudge
from mia.models.base import ChatModel, ChatRequest
from mia.models.ledger import Ledger
from mia.models.replay import Recorder, RecordingWriter, ReplayModel
from mia.models.scripted import ScriptedModel
from mia.team import Team
from mia.types import Question, Task

TASKS = [Task(question=Question.of(f"Where? ({n})", id=f"q{n}"), references=("The Hague",)) for n in range(4)]


def team(model: ChatModel) -> Team:
    executor = Executor(model, [ShelfTool()], ExecutorSettings())
    return Team(executor=executor, planner=Planner(model), judge=ReferenceJudge(), line=LineSettings())


def speaker(place: str, *, searches: int, delay: float = 0.0, halfway: asyncio.Event | None = None) -> ScriptedModel:
    def speak(request: ChatRequest) -> str:
        if halfway is not None and len(model.requests) == 20:
            halfway.set()
        if request.purpose == "plan":
            return "1. Look up Titan."
        if request.purpose == "reflect":
            return "no"
        if request.turn < searches:
            return call("titan")
        return f"<answer>{place}</answer>"

    model = ScriptedModel(speak, delay=delay)
    return model


async def run(folder: Path, model: ChatModel, *, resume: bool = False) -> int:
    opened = open_run(folder, TASKS, load_config(), resume=resume)
    progress = await Runner(opened, TASKS, team(model), concurrency=2).run()
    assert not progress.unanswered
    return progress.summary.answered


async def test_a_recorded_run_that_was_broken_off_goes_on_and_replays(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    # Broken off in the middle of questions that took more turns than they will take the second time.
    halfway = asyncio.Event()
    first = speaker("Leiden", searches=12, delay=0.005, halfway=halfway)
    running = asyncio.create_task(run(tmp_path / "run", Recorder(first, RecordingWriter(path))))
    await halfway.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(path.read_text().splitlines()) > 10

    again = Recorder(speaker("The Hague", searches=1), RecordingWriter(path))
    assert await run(tmp_path / "run", again, resume=True) == len(TASKS)

    replay = ReplayModel(path)
    assert await run(tmp_path / "replayed", replay) == len(TASKS)
    replay.assert_exhausted()


async def test_a_question_asked_twice_into_one_recording_replays_as_it_was_last_answered(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    for place, searches in (("Leiden", 3), ("The Hague", 1)):
        model = Recorder(speaker(place, searches=searches), RecordingWriter(path))
        episode = await answer(TASKS[0], team(model), Ledger("q0"))
        assert episode.answer is not None
        assert episode.answer.text == place
    replay = ReplayModel(path)
    episode = await answer(TASKS[0], team(replay), Ledger("q0"))
    assert episode.answer is not None
    assert episode.answer.text == "The Hague"
    replay.assert_exhausted()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_a_disk_that_fills_while_recording_ends_as_a_question_that_was_not_put(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "recording.jsonl")
    writer.path = Path("/dev/full")
    episode = await answer(TASKS[0], team(Recorder(speaker("The Hague", searches=1), writer)), Ledger("q0"))
    assert episode.stop is not None
    assert episode.stop.reason.unheard
    assert "No space left" in episode.stop.sentence
    assert [failed.stage for failed in episode.failures] == ["plan", "execute"]
