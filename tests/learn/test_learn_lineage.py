"""Lineage: the whole chain from any link of it, through real stores; and what a bad version left put aside."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from memory.past import episode
from test_learn_adapters import BASE, rollout, writes

from mia.config import MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import RecordError
from mia.learn.adapters import AdapterStore
from mia.learn.lineage import Lineage, find_version, left_behind, lineage, quarantine
from mia.memory.manager import MemoryManager
from mia.models.ledger import Ledger
from mia.store import open_store
from mia.types import Episode, MemoryState, Question, Role


@dataclass
class Past:
    """One question after the other, as a stream leaves them."""

    manager: MemoryManager
    planner: AdapterStore

    @property
    def stores(self) -> tuple[AdapterStore, ...]:
        return (self.planner,)

    def answer(self, text: str, *, shown: tuple[str, ...] = (), learn: bool = True) -> Episode:
        """Answered by the current version, kept, and remembered."""
        current = self.planner.current()
        done = episode(question=Question.of(f"Who wrote {text}?"), shown=shown).evolve(
            adapters={Role.PLANNER: current.name} if current else {}
        )
        self.manager.store.save_episode(done)
        if learn:
            asyncio.run(self.manager.remember([done], Ledger(done.id)))
        return done

    def update(self, *episodes: Episode, reward: float = 1.0) -> str:
        """A version that is made of these episodes, and answers from then on."""
        current = self.planner.current()
        name = current.name if current else ""
        samples = [rollout(reward, episode=one.id, version=name, group=one.question.id) for one in episodes]
        return self.planner.promote(self.planner.create(name, writes(), samples).name).name

    def made_of(self, done: Episode) -> str:
        (memory,) = self.manager.store.memories_of([done.id])
        return memory.id

    def trace(self, reference: str) -> Lineage:
        return lineage(reference, self.stores, self.manager.store)


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    manager = MemoryManager(open_store(tmp_path / "memory.db"), HashingEmbedder(), MemorySettings(floor=0.1))
    yield Past(manager, AdapterStore(tmp_path / "adapters" / "planner", BASE, Role.PLANNER))
    manager.close_now()


def ids(episodes: tuple[object, ...]) -> list[str]:
    return [one.id for one in episodes]  # type: ignore[attr-defined]


def test_the_chain_from_each_of_its_links(past: Past) -> None:
    first = past.answer("the diary")
    lesson = past.made_of(first)
    second = past.answer("the letters", shown=(lesson,))
    third = past.answer("the poems")
    one = past.update(second, third, reward=0.5)
    fourth = past.answer("the songs")
    two = past.update(fourth)
    fifth = past.answer("the plays")

    from_memory = past.trace(lesson)
    assert (from_memory.kind, from_memory.origin, from_memory.memories) == ("memory", first.id, (lesson,))
    assert ids(from_memory.episodes) == [second.id]
    assert [(row.row.episode_id, row.row.reward, row.version) for row in from_memory.rewards] == [(second.id, 0.5, one)]
    assert [version.name for version in from_memory.versions] == [one]
    assert ids(from_memory.answered) == [fourth.id]
    assert from_memory.answered[0].made == (past.made_of(fourth),)
    assert from_memory.answered[0].adapters == {Role.PLANNER: one}

    from_episode = past.trace(second.id)
    assert (from_episode.kind, from_episode.memories) == ("episode", (lesson,))
    assert (from_episode.rewards, from_episode.answered) == (from_memory.rewards, from_memory.answered)
    assert from_episode.episodes[0].outcome == "correct"

    from_rollout = past.trace(from_memory.rewards[0].row.id)
    assert (from_rollout.kind, from_rollout.episodes) == ("rollout", from_episode.episodes)
    assert from_rollout.answered == from_memory.answered

    from_version = past.trace(two)
    assert (from_version.kind, from_version.parents) == ("version", (one,))
    assert ids(from_version.episodes) == [fourth.id]
    assert ids(from_version.answered) == [fifth.id]
    assert past.trace("v2") == past.trace("current") == from_version
    assert past.trace("last").subject == fifth.id
    assert past.trace(first.id[:-1]).subject == first.id or first.id[:-1] == second.id[:-1]


def test_lineage_outlives_a_prune_and_the_memory(past: Past, tmp_path: Path) -> None:
    first = past.answer("the diary")
    one = past.update(first)
    second = past.answer("the letters")
    past.update(second)
    past.update(past.answer("the poems"))
    assert one in past.planner.prune(1)
    assert ids(past.trace(one).answered) == [second.id]
    # Without the memory store, what the rollouts say is left.
    alone = lineage(one, past.stores, None)
    assert [(episode.id, episode.known) for episode in alone.episodes] == [(first.id, False)]
    assert [(episode.id, episode.known) for episode in alone.answered] == [(second.id, False)]
    assert lineage(second.id, past.stores, None).kind == "episode"
    # What another scope holds is named by its id alone.
    elsewhere = lineage(one, past.stores, past.manager.store, scope="acme")
    assert elsewhere.answered == alone.answered


def test_what_nothing_or_several_have_as_their_id(past: Past, tmp_path: Path) -> None:
    first = past.answer("the diary")
    past.update(first, past.answer("the letters"))
    with pytest.raises(RecordError, match="no version, rollout or episode has the id 'nobody'"):
        past.trace("nobody")
    with pytest.raises(RecordError, match="nothing has the id 'nobody'"):
        lineage("nobody", past.stores, None)
    with pytest.raises(RecordError, match="several things have an id that begins with 'ep-'"):
        past.trace("ep-")
    executor = AdapterStore(tmp_path / "adapters" / "executor", BASE, Role.EXECUTOR)
    executor.create("", writes(), [])
    with pytest.raises(RecordError, match="version of the planner and of the executor"):
        find_version("v1", (past.planner, executor))
    assert find_version(executor.get("v1").name, (past.planner, executor))[0] is executor
    with pytest.raises(RecordError, match="no version 'v7'"):
        find_version("v7", (past.planner, executor))


def test_what_a_rolled_back_version_left_is_put_aside(past: Past) -> None:
    first = past.answer("the diary")
    good = past.update(first)
    second = past.answer("the letters")
    bad = past.update(second)
    poisoned = [past.made_of(past.answer(what)) for what in ("the poems", "the songs")]
    sound = [past.made_of(done) for done in (first, second)]
    done = past.planner.rollback()
    assert (done.rolled_back, done.now) == ((bad,), good)
    store = past.manager.store
    assert left_behind(done.rolled_back, past.stores, store) == tuple(poisoned)
    assert set(quarantine(done.rolled_back, past.stores, store)) == set(poisoned)
    states = {id: memory.state for id, memory in store.memories([*poisoned, *sound]).items()}
    assert states == dict.fromkeys(poisoned, MemoryState.QUARANTINED) | dict.fromkeys(sound, MemoryState.ACTIVE)
    (change, *_) = store.audit(memory_id=poisoned[0], limit=1)
    assert (change.action, change.reason) == ("quarantine", f"made by {bad}, which was rolled back")
    assert quarantine(done.rolled_back, past.stores, store) == (), "once"
    assert past.manager.restore(poisoned) == tuple(poisoned)
    # A version whose folder was removed by hand is still known by the episodes that name it.
    shutil.rmtree(past.planner.get(bad).folder.parent)
    assert left_behind([bad], past.stores, store) == tuple(poisoned)
