"""`mia run` with nothing configured: the embedded model answers a file of questions in the offline world.

Real processes, interrupted once and twice, killed in the middle; and two of them on one store. No question is lost or
answered twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model
from nursery import Nursery, Worker

from mia.config import WORLD_SEED
from mia.memory import cache
from mia.store import open_store
from mia.world.facts import World
from mia.world.questions import tasks

pytestmark = needs_embedded_model

QUESTIONS = 16
STORE = Path("home", "world", "memory.db")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "questions.jsonl", seed=0)


def write(path: Path, seed: int) -> Path:
    stream = tasks(World.make(WORLD_SEED), QUESTIONS, seed)
    path.write_text(
        "\n".join(
            json.dumps({"id": task.question.id, "question": task.question.text, "answers": task.references})
            for task in stream
        )
    )
    return path


def ids(seed: int = 0) -> Counter[str]:
    return Counter(task.question.id for task in tasks(World.make(WORLD_SEED), QUESTIONS, seed))


def start(nursery: Nursery, folder: Path, questions: Path, *more: str, out: str = "run") -> Worker:
    arguments = ["--home", folder / "home", "run", questions, "--out", folder / out, "--concurrency", "4", *more]
    return nursery.start("cli", arguments=[*map(str, arguments)])


def answered(folder: Path, out: str = "run") -> list[str]:
    path = folder / out / "episodes.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [json.loads(line)["question"]["id"] for line in whole]


def wait_for(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(answered(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_store(folder: Path, expected: Counter[str]) -> None:
    """Every question's episode once, absorbed, and a memory of each; the store and its cache sound."""
    with sqlite3.connect(folder / STORE) as connection:
        rows = connection.execute("SELECT question_id, absorbed FROM episodes").fetchall()
    assert Counter(id for id, _ in rows) == expected
    assert all(absorbed for _, absorbed in rows)
    with open_store(folder / STORE) as store:
        assert store.check().sound
        assert cache.verify(store, "default") == []
        learnt = {one.provenance.episode_id for one in store.list_memories(None, limit=1_000)}
        assert learnt <= {one.id for one in store.list_episodes(limit=1_000)}
        assert len(learnt) > QUESTIONS / 2


def finish(nursery: Nursery, folder: Path, questions: Path) -> None:
    """Let the run come to its end, and check that everything is there once."""
    ended = start(nursery, folder, questions, "--resume", "--json").ended()
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads(ended.stdout)["answered"] == QUESTIONS
    assert Counter(answered(folder)) == ids()
    assert_store(folder, ids())


def test_kill_9_again_and_again_loses_nothing(torch_nursery: Nursery, tmp_path: Path, questions: Path) -> None:
    chance = random.Random(20)
    before = 0
    for number in range(2):
        worker = start(torch_nursery, tmp_path, questions, *(["--resume"] if number else []))
        wait_for(tmp_path, before + 2)
        time.sleep(chance.random() * 0.05)
        worker.kill()
        now = answered(tmp_path)
        assert len(now) >= before
        assert max(Counter(now).values()) == 1
        before = len(now)
    assert before < QUESTIONS
    finish(torch_nursery, tmp_path, questions)
    # What was answered before the kills can be opened like the rest.
    with sqlite3.connect(tmp_path / STORE) as connection:
        (first,) = connection.execute("SELECT id FROM episodes ORDER BY id LIMIT 1").fetchone()
    shown = torch_nursery.mia("--home", tmp_path / "home" / "world", "show", first, "--json")
    assert json.loads(shown.stdout)["question"]["id"] in ids()


def test_ctrl_c_once_finishes_what_is_under_way(torch_nursery: Nursery, tmp_path: Path, questions: Path) -> None:
    worker = start(torch_nursery, tmp_path, questions)
    wait_for(tmp_path, 3)
    os.kill(worker.pid, signal.SIGINT)
    ended = worker.ended()
    assert ended.code == 1, ended.stderr
    assert "Finishing the questions under way" in ended.stderr
    assert "--resume" in ended.stderr
    assert 3 <= len(answered(tmp_path)) < QUESTIONS
    finish(torch_nursery, tmp_path, questions)


def test_ctrl_c_twice_stops_now(torch_nursery: Nursery, tmp_path: Path, questions: Path) -> None:
    worker = start(torch_nursery, tmp_path, questions)
    wait_for(tmp_path, 3)
    os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.02)
    os.kill(worker.pid, signal.SIGINT)
    begun = time.monotonic()
    ended = worker.ended()
    assert ended.code in (1, 130), ended.stderr
    assert time.monotonic() - begun < 5
    assert "Traceback" not in ended.stderr
    finish(torch_nursery, tmp_path, questions)


def test_a_resume_under_other_settings_names_them(torch_nursery: Nursery, tmp_path: Path, questions: Path) -> None:
    assert start(torch_nursery, tmp_path, questions, "--limit", "2").ended().code == 0
    ended = start(torch_nursery, tmp_path, questions, "--limit", "2", "--resume", "--max-calls", "3").ended()
    assert ended.code == 2
    assert "executor.max_calls" in ended.stderr
    ended = start(torch_nursery, tmp_path, questions, "--limit", "2").ended()
    assert ended.code == 2
    assert "add --resume" in ended.stderr


def test_two_runs_in_one_folder_are_refused(torch_nursery: Nursery, tmp_path: Path, questions: Path) -> None:
    first = start(torch_nursery, tmp_path, questions)
    wait_for(tmp_path, 1)
    # It must not come to its end before the other has begun.
    os.kill(first.pid, signal.SIGSTOP)
    second = start(torch_nursery, tmp_path, questions, "--resume").ended()
    assert second.code == 1, second.stderr
    assert "another process" in second.stderr
    os.kill(first.pid, signal.SIGCONT)
    assert first.ended().code == 0
    assert Counter(answered(tmp_path)) == ids()


def test_two_processes_share_one_memory(torch_nursery: Nursery, tmp_path: Path, questions: Path) -> None:
    others = write(tmp_path / "others.jsonl", seed=1)
    workers = [
        start(torch_nursery, tmp_path, questions, out="first"),
        start(torch_nursery, tmp_path, others, out="second"),
    ]
    for worker in workers:
        ended = worker.ended()
        assert ended.code == 0, ended.stderr
        assert "locked" not in ended.stderr
    assert Counter(answered(tmp_path, "first")) == ids()
    assert Counter(answered(tmp_path, "second")) == ids(1)
    assert_store(tmp_path, ids() + ids(1))
    # Each was shown what the other had learnt.
    with open_store(tmp_path / STORE) as store:
        made = {one.id: one.provenance.episode_id for one in store.list_memories(None, limit=1_000)}
        episodes = {one.id: store.load_episode(one.id) for one in store.list_episodes(limit=1_000)}
    stream_of = {id: episode.question.id in ids(1) for id, episode in episodes.items()}
    borrowed = {
        stream_of[id]
        for id, episode in episodes.items()
        for one in (episode.recall.shown if episode.recall else ())
        if one.memory_id in made and stream_of[made[one.memory_id]] != stream_of[id]
    }
    assert borrowed == {False, True}
