"""`mia run --learn`, killed by kill -9 again and again: no question is lost, and none learnt twice."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from embedded_team import needs_embedded_model
from nursery import Nursery, Worker

from mia.config import WORLD_SEED
from mia.learn.adapters import AdapterStore, State
from mia.learn.spool import read_lines
from mia.store import open_store
from mia.world.facts import World
from mia.world.questions import tasks

pytestmark = needs_embedded_model

QUESTIONS, CANARY = 18, 2
PATIENCE = 300.0
OPTIONS = ("--learn", "--samples", "3", "--learn-batch", "4", "--concurrency", "4")
SETTINGS = {"MIA_LEARN__CANARY": str(CANARY), "MIA_LEARN__REPORT": "first", "MIA_LEARN__CANARY_MARGIN": "1"}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    stream = tasks(World.make(WORLD_SEED), QUESTIONS)
    path.write_text(
        "\n".join(
            json.dumps({"id": task.question.id, "question": task.question.text, "answers": task.references})
            for task in stream
        )
    )
    return path


def start(nursery: Nursery, folder: Path, questions: Path, *more: str) -> Worker:
    arguments = ["--home", folder / "home", "run", questions, "--out", folder / "run", *OPTIONS, *more]
    return nursery.start("cli", arguments=[*map(str, arguments)], settings=SETTINGS)


def scored(folder: Path) -> int:
    return len(read_lines(folder / "run" / "learning" / "scores.jsonl"))


def being_written(folder: Path) -> bool:
    """A version is just being made."""
    return any((folder / "home" / "world" / "adapters" / "planner" / "versions").glob(".planner-*"))


def test_kill_9_again_and_again_loses_nothing_and_learns_nothing_twice(
    torch_nursery: Nursery, tmp_path: Path, questions: Path
) -> None:
    chance = random.Random(7)
    moments: list[Callable[[], bool]] = [
        lambda: scored(tmp_path) >= 4,
        lambda: being_written(tmp_path),
        lambda: scored(tmp_path) >= 12,
    ]
    before: list[dict[str, object]] = []
    for number, moment in enumerate(moments):
        run = start(torch_nursery, tmp_path, questions, *(["--resume"] if number else []))
        _wait(run, moment)
        time.sleep(chance.random() * 0.05)
        helpers = psutil.Process(run.pid).children()
        run.kill()
        # The process that trains does not outlive the one that answers.
        _, left = psutil.wait_procs(helpers, PATIENCE)
        assert not left
        # What was scored stays as it was.
        lines = read_lines(tmp_path / "run" / "learning" / "scores.jsonl")
        assert lines[: len(before)] == before
        before = lines

    ended = start(torch_nursery, tmp_path, questions, "--resume", "--json").ended()
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    page = json.loads(ended.stdout)
    assert (page["answered"], page["learning"]["waiting"]) == (QUESTIONS, 0)

    once = Counter({task.question.id: 1 for task in tasks(World.make(WORLD_SEED), QUESTIONS)})
    lines = read_lines(tmp_path / "run" / "learning" / "scores.jsonl")
    assert Counter(str(line["question_id"]) for line in lines) == once
    log = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert Counter(episode["question"]["id"] for episode in log) == once
    assert {line["episode_id"] for line in lines} == {episode["id"] for episode in log}

    store = AdapterStore.open(tmp_path / "home" / "world" / "adapters" / "planner")
    versions = store.versions()
    assert versions
    assert {version.state for version in versions} == {State.PROMOTED}
    learnt = Counter(id for version in versions for id in version.rollouts)
    assert set(learnt.values()) == {1}
    canary = {str(line["question_id"]) for line in lines if line["canary"]}
    assert len(canary) == CANARY
    groups = {row.group.split("/")[1] for version in versions for row in store.rollouts(version.name)}
    assert not groups & canary

    with open_store(tmp_path / "home" / "world" / "memory.db") as kept:
        assert kept.check().sound
        assert kept.queue() == ()
        sources = {one.provenance.episode_id for one in kept.list_memories(None, limit=1_000)}
        episodes = {one.id: one.question.id for one in kept.list_episodes(limit=1_000)}
    assert sources <= episodes.keys()
    # All tries of a question are kept, and those of the canary are not.
    assert Counter(episodes.values()) == Counter({id: 3 for id in once if id not in canary})


def _wait(run: Worker, moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not moment():
        assert time.monotonic() < deadline
        assert psutil.pid_exists(run.pid)
        time.sleep(0.002)
