"""The judge is down, and its verdict comes later: until then an episode is kept and teaches nothing; then it becomes a
memory once, and what it had been shown is credited once, however often the verdict is told and whoever is killed."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import pytest
from memory.past import TITAN, episode
from memory_work import about, manager
from nursery import Nursery

from mia.models.ledger import Ledger
from mia.store import open_store
from mia.store.base import Change
from mia.types import Outcome, Verdict

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")

SIZE = 12


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[Path, str, list[str]]:
    """A store, the memory in it, and episodes that were shown it and that nobody could judge."""
    path = tmp_path / "memory.db"
    memory = manager(path)
    (shown,) = asyncio.run(memory.remember([episode()], Ledger(TITAN.id)))
    unjudged = [
        episode(Outcome.UNJUDGED, question=about("the judge", number), shown=[shown.id]) for number in range(SIZE)
    ]
    for one in unjudged:
        for _ in range(2):
            assert asyncio.run(memory.remember([one], Ledger(one.question.id))) == ()
        assert one.verdict is not None
        assert asyncio.run(memory.credit(one.id, frozenset([shown.id]), one.verdict)) == 0
    memory.close_now()
    return path, shown.id, [one.id for one in unjudged]


def assert_learnt(path: Path, shown: str, episodes: list[str], *, wins: int, judgement: str) -> None:
    """One memory for each episode, and the one that they were shown counted once for each."""
    with open_store(path) as store:
        memories = {one.provenance.episode_id: one for one in store.list_memories(None, limit=999) if one.id != shown}
        assert sorted(memories) == sorted(episodes)
        assert {one.judgement for one in memories.values()} == {judgement}
        assert all(one.provenance.leaned_on == (shown,) for one in memories.values())
        assert store.count_memories() == 1 + len(episodes)
        assert store.absorbed(episodes) == set(episodes)
        verdict = Verdict(outcome=Outcome(judgement), judge="late")
        assert all(store.load_episode(id).verdict == verdict for id in episodes)
        credited = store.memory(shown)
        assert (credited.uses, credited.wins) == (1 + len(episodes), 1 + wins)
        assert store.check().sound


def last_change(path: Path) -> Change:
    with open_store(path) as store:
        return store.audit(limit=1)[0]


def test_nothing_is_learnt_before_the_verdict(nursery: Nursery, waiting: tuple[Path, str, list[str]]) -> None:
    path, shown, episodes = waiting
    nursery.do("judge_late", path=str(path), episodes=episodes, outcome="unjudged", shown=[shown])
    with open_store(path) as store:
        assert [one.id for one in store.list_memories(None, limit=99)] == [shown]
        assert store.count_episodes() == 1 + SIZE
        assert store.absorbed(episodes) == frozenset()
        assert (store.memory(shown).uses, store.memory(shown).wins) == (1, 1)


def test_a_verdict_that_is_told_again_and_again_by_processes_that_are_killed_counts_once(
    nursery: Nursery, waiting: tuple[Path, str, list[str]]
) -> None:
    path, shown, episodes = waiting
    moments = random.Random(9)
    told = {"path": str(path), "episodes": episodes, "outcome": "correct", "shown": [shown]}
    for _ in range(8):
        worker = nursery.start("judge_late", **told, slowly=0.01)
        time.sleep(moments.uniform(0, 0.3))
        worker.kill()
    first = dict(line.split(" ") for line in nursery.do("judge_late", **told))
    assert_learnt(path, shown, episodes, wins=SIZE, judgement="correct")
    before = last_change(path)
    # Told again, the same memories are named, and nothing changes.
    for _ in range(3):
        assert dict(line.split(" ") for line in nursery.do("judge_late", **told)) == first
    assert last_change(path) == before
    assert_learnt(path, shown, episodes, wins=SIZE, judgement="correct")


def test_a_verdict_that_four_processes_tell_at_once_counts_once(
    nursery: Nursery, waiting: tuple[Path, str, list[str]]
) -> None:
    path, shown, episodes = waiting
    told = {"path": str(path), "episodes": episodes, "outcome": "incorrect", "shown": [shown]}
    workers = [nursery.start("judge_late", **told) for _ in range(4)]
    for worker in workers:
        assert worker.wait() == 0, worker.stderr.read()
    assert_learnt(path, shown, episodes, wins=0, judgement="incorrect")


def test_a_later_verdict_takes_the_place_of_the_earlier_credit(
    nursery: Nursery, waiting: tuple[Path, str, list[str]]
) -> None:
    path, shown, episodes = waiting
    for outcome, wins in (("incorrect", 0), ("correct", SIZE), ("correct", SIZE), ("incorrect", 0)):
        nursery.do("judge_late", path=str(path), episodes=episodes, outcome=outcome, shown=[shown])
        with open_store(path) as store:
            assert (store.memory(shown).uses, store.memory(shown).wins) == (1 + SIZE, 1 + wins)
            # What an episode taught was drawn from its first verdict, and is not drawn twice.
            assert store.count_memories() == 1 + SIZE
            assert store.check().sound
