"""Eight processes write and recall on one store: no update is lost, nobody is locked out, and each sees what the others
have done as soon as they have done it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from memory.past import TITAN, episode
from memory_work import about, manager
from nursery import Nursery

from mia.memory import cache
from mia.models.ledger import Ledger
from mia.types import MemoryState, Question

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs processes of POSIX")

PROCESSES = 8
ROUNDS = 9


def test_what_one_has_remembered_or_forgotten_the_next_one_knows(nursery: Nursery, tmp_path: Path) -> None:
    """They stand in a ring, and each hands to the next what it has just done; see `memory_work.ring`."""
    path = tmp_path / "memory.db"
    memory = manager(path)
    (common,) = asyncio.run(memory.remember([episode()], Ledger(TITAN.id)))
    pipes = [os.pipe() for _ in range(PROCESSES)]
    workers = [
        nursery.start(
            "ring",
            stdin=pipes[place][0],
            stdout=pipes[(place + 1) % PROCESSES][1],
            path=str(path),
            name=f"process{place}",
            common=common.id,
            rounds=ROUNDS,
        )
        for place in range(PROCESSES)
    ]
    for worker in workers:
        # No AssertionError, and no "database is locked".
        assert worker.wait() == 0, worker.stderr.read()
    counted = memory.show(common.id)
    assert counted.uses == 1 + PROCESSES * ROUNDS
    assert counted.wins == 1 + PROCESSES * (ROUNDS // 2)
    forgotten = PROCESSES * ((ROUNDS + 2) // 3)
    assert memory.store.count_memories() == 1 + PROCESSES * ROUNDS - forgotten
    assert memory.store.count_memories(states=[MemoryState.FORGOTTEN]) == forgotten
    assert asyncio.run(memory.recall(TITAN)).considered == 1 + PROCESSES * ROUNDS - forgotten
    assert memory.store.check().sound
    assert cache.verify(memory.store, "default") == []
    memory.close_now()


def test_eight_that_remember_the_same_questions_leave_one_memory_of_each(nursery: Nursery, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    workers = [nursery.start("same_questions", path=str(path), rounds=ROUNDS) for _ in range(PROCESSES)]
    acknowledged = [id for worker in workers for id in worker.finish()]
    memory = manager(path)
    stored = {one.id: one.question for one in memory.list(limit=999)}
    assert sorted(stored.values()) == sorted(about("everybody", number).text for number in range(ROUNDS))
    assert set(acknowledged) == set(stored)
    # Every episode is kept, and every one has been learnt from.
    episodes = [one.id for one in memory.store.list_episodes(limit=999)]
    assert len(episodes) == PROCESSES * ROUNDS
    assert memory.store.absorbed(episodes) == set(episodes)
    assert memory.store.check().sound
    memory.close_now()


def test_a_recall_that_begins_after_remember_returned_sees_it(nursery: Nursery, tmp_path: Path) -> None:
    """Four followers keep the store open and have nothing else to do; each is asked the moment the writer is done."""
    path = tmp_path / "memory.db"
    memory = manager(path)
    followers = [nursery.start("follow", path=str(path)) for _ in range(4)]
    for number in range(25):
        question = Question.of(f"Which comet came in the year {1900 + number}?")
        (new,) = asyncio.run(memory.remember([episode(question=question)], Ledger(question.id)))
        for follower in followers:
            follower.say(question.text)
        assert all(new.id in follower.hear().split() for follower in followers)
        memory.forget([new.id])
        for follower in followers:
            follower.say(question.text)
        assert not any(new.id in follower.hear().split() for follower in followers)
        memory.restore([new.id])
        for follower in followers:
            follower.say(question.text)
        assert all(new.id in follower.hear().split() for follower in followers)
    memory.close_now()
