"""The clock jumps: a day back, to 1970, forward to 2100, and home. Memories keep the order in which they came, each
clock recalls what it may, what waits is done in the end, a rollback to a number undoes what came after it; and nothing
is lost."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from memory_work import about, manager
from nursery import Nursery

from mia.models.ledger import Ledger
from mia.store import open_store
from mia.types import MemoryState

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs processes of POSIX")

DAY = 86_400.0
NOW = time.time()
CLOCKS = {
    "first": NOW,
    "yesterday": NOW - DAY,
    "dead battery": 1_000.0,
    "far ahead": NOW + 75 * 365 * DAY,
    "home again": NOW + 60,
}
SIZE = 4
"""Questions that are remembered under each clock; one more waits for its embedder, until the next process comes."""


@pytest.fixture
def lived(nursery: Nursery, tmp_path: Path) -> tuple[Path, list[list[str]], list[int]]:
    """A store that has seen all clocks; what was said under each, and the number of its last change after each."""
    path = tmp_path / "memory.db"
    said, numbers = [], []
    for name, now in CLOCKS.items():
        said.append(nursery.do("live_at", path=str(path), now=now, name=name, size=SIZE))
        with open_store(path) as store:
            numbers.append(store.audit(limit=1)[0].sequence)
    return path, said, numbers


def test_memories_keep_the_order_in_which_they_came(lived: tuple[Path, list[list[str]], list[int]]) -> None:
    path, said, _ = lived
    came = [line.split(" ")[0] for lines in said for line in lines]
    with open_store(path) as store:
        listed = [memory.id for memory in store.list_memories(None, limit=999)]
        # Between them are those that had waited, and came when the embedder was back.
        assert [id for id in reversed(listed) if id in set(came)] == came
        assert [memory.id for memory, _ in store.export(None)] == listed[::-1]
        changes = store.audit(limit=999)
        assert [change.sequence for change in changes] == sorted((one.sequence for one in changes), reverse=True)
        assert store.check().sound


def test_each_clock_recalls_what_has_just_been_remembered(lived: tuple[Path, list[list[str]], list[int]]) -> None:
    _, said, _ = lived
    assert all(line.split(" ")[1] == "True" for lines in said for line in lines), said
    considered = [[int(line.split(" ")[2]) for line in lines] for lines in said]
    # From 2100, all of today has run out; here again, it has not.
    assert max(considered[3]) < max(considered[2])
    assert min(considered[4]) > max(considered[2])


def test_what_waited_under_a_wild_clock_is_done_by_the_next_process(
    lived: tuple[Path, list[list[str]], list[int]],
) -> None:
    path, _, _ = lived
    memory = manager(path)
    # All but the last one were done by those who came after them, two after each question.
    waiting = memory.store.queue()
    assert [memory.store.load_episode(one.subject).question for one in waiting] == [about("home again", SIZE)]
    retried = asyncio.run(memory.retry(Ledger("late")))
    assert (retried.done, retried.failed, retried.dropped) == (1, 0, 0)
    episodes = memory.store.list_episodes(limit=999)
    assert len(episodes) == len(CLOCKS) * (SIZE + 1)
    assert memory.store.absorbed([one.id for one in episodes]) == {one.id for one in episodes}
    assert memory.store.count_memories() == len(episodes)
    memory.close_now()


def test_a_rollback_to_a_number_undoes_what_came_after_it(lived: tuple[Path, list[list[str]], list[int]]) -> None:
    path, said, numbers = lived
    with open_store(path) as store:
        everything = {memory.id for memory in store.list_memories(None, limit=999)}
        for place in (3, 1, 0):
            store.rollback(numbers[place])
            left = {memory.id for memory in store.list_memories(None, limit=999)}
            expected = {line.split(" ")[0] for lines in said[: place + 1] for line in lines}
            assert expected <= left
            assert not left & {line.split(" ")[0] for lines in said[place + 1 :] for line in lines}
            assert store.check().sound
        forgotten = store.list_memories(None, limit=999, states=[MemoryState.FORGOTTEN])
        assert {memory.id for memory in forgotten} | left == everything


def test_a_credit_counts_under_any_clock(nursery: Nursery, lived: tuple[Path, list[list[str]], list[int]]) -> None:
    path, said, _ = lived
    id = said[0][0].split(" ")[0]
    for number, now in enumerate(CLOCKS.values()):
        nursery.do("credit_at", path=str(path), now=now, group=f"g{number}", shown=id)
    with open_store(path) as store:
        credited = store.memory(id)
        assert (credited.uses, credited.wins) == (1 + len(CLOCKS), 1 + len(CLOCKS))
        assert [change.reason for change in store.audit(limit=len(CLOCKS))] == ["g4", "g3", "g2", "g1", "g0"]


def test_commands_show_any_time(nursery: Nursery, lived: tuple[Path, list[list[str]], list[int]]) -> None:
    path, said, _ = lived
    home = ("--home", path.parent)
    for command in (("list", "-k", 99), ("stats",), ("audit",), ("check",), ("queue",)):
        ended = nursery.mia(*home, "memory", *command)
        assert ended.code == 0, ended.stderr
    for lines in said:
        ended = nursery.mia(*home, "memory", "show", lines[0].split(" ")[0])
        assert ended.code == 0, ended.stderr
