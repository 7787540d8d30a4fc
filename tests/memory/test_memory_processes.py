"""Several processes on one store, and a writer that is killed: nothing acknowledged is lost, and everybody sees it."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import memory_worker
import pytest
from past import TITAN, episode

from mia.models.ledger import Ledger
from mia.types import Question


def start(path: Path, order: str, name: str = "", count: int = 0, credited: str = "") -> subprocess.Popen[str]:
    script = Path(memory_worker.__file__)
    arguments = [sys.executable, str(script), str(path), order, name, str(count), *([credited] if credited else [])]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


async def test_a_writer_killed_at_any_moment_loses_nothing_that_was_acknowledged(path: Path) -> None:
    moments = random.Random(20260404)
    acknowledged: list[str] = []
    for round in range(6):
        with start(path, "write", f"round {round}", 100_000) as writer:
            assert writer.stdout is not None
            acknowledged.append(writer.stdout.readline().strip())
            killer = threading.Timer(moments.uniform(0, 0.3), writer.send_signal, [signal.SIGKILL])
            killer.start()
            lines = writer.stdout.read().splitlines(keepends=True)
            # A line without its end was not acknowledged in full.
            acknowledged += [line.strip() for line in lines if line.endswith("\n")]
            killer.join()
        assert writer.returncode == -signal.SIGKILL
    manager = memory_worker.manager(path)
    stored = {memory.id: memory for memory in manager.list(limit=1_000_000)}
    assert len(acknowledged) > 20
    assert set(acknowledged) <= set(stored)
    # At most one write was under way at each kill.
    assert len(stored) <= len(acknowledged) + 6
    assert (await manager.recall(TITAN)).considered == len(stored)
    await manager.close()
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
        absorbed = {row[0] for row in file.execute("SELECT id FROM episodes WHERE absorbed")}
    file.close()
    assert {memory.provenance.episode_id for memory in stored.values()} == absorbed


async def test_two_writers_lose_no_update(path: Path) -> None:
    manager = memory_worker.manager(path)
    (shared,) = await manager.remember([episode()], Ledger(TITAN.id))
    writers = [start(path, "write", name, 30, shared.id) for name in ("Ada", "Grace")]
    outputs = [writer.communicate(timeout=60)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    stored = {memory.id for memory in manager.list(limit=999)}
    assert stored == {shared.id, *outputs[0], *outputs[1]}
    assert len(stored) == 61
    credited = manager.show(shared.id)
    assert (credited.uses, credited.wins) == (61, 31)
    assert (await manager.recall(TITAN)).considered == 61
    await manager.close()


async def test_two_writers_of_the_same_questions_leave_one_memory_each(path: Path) -> None:
    writers = [start(path, "write", "Ada", 20) for _ in range(2)]
    acknowledged = [id for writer in writers for id in writer.communicate(timeout=60)[0].split()]
    assert [writer.returncode for writer in writers] == [0, 0]
    manager = memory_worker.manager(path)
    stored = manager.list(limit=999)
    assert sorted(memory.id for memory in stored) == sorted(acknowledged)
    assert len({memory.question for memory in stored}) == len(stored) == 20
    await manager.close()


async def test_what_one_process_remembers_the_next_recall_of_another_sees(path: Path) -> None:
    manager = memory_worker.manager(path)
    with start(path, "follow") as follower:
        assert follower.stdin is not None
        assert follower.stdout is not None
        for number in range(20):
            question = Question.of(f"Which comet came in the year {1900 + number}?")
            (memory,) = await manager.remember([episode(question=question)], Ledger(question.id))
            follower.stdin.write(f"{question.text}\n")
            follower.stdin.flush()
            assert memory.id in follower.stdout.readline().split()
    assert follower.returncode == 0
    await manager.close()


async def test_a_remember_that_is_broken_off_while_it_waits_does_not_keep_the_memory_from_closing(path: Path) -> None:
    with start(path, "cancel") as worker:
        try:
            assert worker.communicate(timeout=20)[0] == "closed True\n"
        finally:
            worker.kill()
    manager = memory_worker.manager(path)
    assert len(manager.list()) == 1
    await manager.close()
