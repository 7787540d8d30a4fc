"""What waits for a model is tried again at its own time, later and later, and what can never succeed not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from past import episode

from mia.config import MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ContextOverflow, ModelUnavailable
from mia.memory.manager import MemoryManager
from mia.memory.retrying import Retried
from mia.models.ledger import Ledger
from mia.models.scripted import ScriptedModel
from mia.store import open_store
from mia.store.base import Waiting
from mia.store.sqlite import SqliteStore
from mia.types import Question

WORKFLOW = '1. find the moon ("largest moon of Saturn" → Titan)'
DOWN = ModelUnavailable("down")
TOO_LONG = ContextOverflow("the prompt is longer than the window")


@dataclass
class Clock:
    """The time, moved on by hand."""

    now: float

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(time.time())
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with open_store(tmp_path / "memory.db") as store:
        yield store


def manager(store: SqliteStore, *said: Any, **settings: Any) -> MemoryManager:
    return MemoryManager(store, HashingEmbedder(), MemorySettings(**settings), ScriptedModel({"manager": said}))


def ledger() -> Ledger:
    return Ledger("q")


def about(topic: str) -> Any:
    return episode(question=Question.of(f"Which {topic} came in 1910?"))


async def test_each_entry_has_its_own_time_and_the_wait_doubles(store: SqliteStore, clock: Clock) -> None:
    memory = manager(store, *[DOWN] * 4, WORKFLOW)
    begun = clock.now
    await memory.remember([episode()], ledger())
    tried = []
    # A clock that ticks every ten seconds for half an hour.
    for _ in range(180):
        clock.now += 10
        before = store.queue()
        done = await memory.retry_due(ledger())
        if done.failed or done.done:
            tried.append((round(clock.now - begun), before[0].attempts))
    assert tried == [(60, 1), (180, 2), (420, 3), (900, 4)]
    assert store.queue() == ()
    assert [one.workflow for one in memory.list()] == [WORKFLOW]


async def test_questions_that_come_meanwhile_make_no_try_come_sooner(store: SqliteStore, clock: Clock) -> None:
    memory = manager(store, DOWN, *[WORKFLOW] * 6)
    (rough,) = await memory.remember([episode()], ledger())
    for topic in ("comet", "ship", "king"):
        await memory.remember([about(topic)], ledger())
    (waiting,) = store.queue()
    assert (waiting.subject, waiting.attempts) == (rough.id, 1)
    clock.now += 61
    # Beside a question it is tried, too: not every line is a server.
    await memory.remember([about("war")], ledger())
    assert store.queue() == ()
    assert {one.workflow for one in memory.list()} == {WORKFLOW}


async def test_many_at_once_try_an_entry_once(store: SqliteStore, clock: Clock) -> None:
    memory = manager(store, *[DOWN] * 9)
    await memory.remember([episode()], ledger())
    clock.now += 61
    done = await asyncio.gather(*(memory.retry_due(ledger()) for _ in range(8)))
    assert sum(one.failed for one in done) == 1
    (waiting,) = store.queue()
    assert waiting.attempts == 2


@pytest.mark.parametrize("later", [False, True], ids=["at once", "at the second try"])
async def test_what_is_too_long_for_the_window_is_given_up_and_stays_to_be_seen(
    store: SqliteStore, clock: Clock, later: bool
) -> None:
    memory = manager(store, *([DOWN] if later else []), TOO_LONG, WORKFLOW)
    (rough,) = await memory.remember([episode()], ledger())
    if later:
        clock.now += 61
        assert (await memory.retry_due(ledger())).failed == 1

    def waiting() -> Waiting:
        (one,) = store.queue()
        return one

    assert (waiting().given_up, waiting().error, waiting().subject) == (True, TOO_LONG.got, rough.id)
    attempts = waiting().attempts
    for _ in range(400):
        clock.now += 86_400
        await memory.retry_due(ledger())
    assert waiting().attempts == attempts
    # The rules have written it meanwhile; whoever has another model now asks for it.
    assert memory.show(rough.id).provenance.compressed_by == "rules"
    assert (await memory.retry(ledger())).done == 1
    assert store.queue() == ()


async def test_what_is_learnt_from_at_this_moment_is_not_taken_up_again(store: SqliteStore, clock: Clock) -> None:
    model = ScriptedModel({"manager": [WORKFLOW]}, delay=0.5)
    memory = MemoryManager(store, HashingEmbedder(), MemorySettings(), model)
    learning = asyncio.create_task(memory.remember([episode()], ledger()))
    while not store.queue():  # noqa: ASYNC110  # On the disk.
        await asyncio.sleep(0.01)
    clock.now += 3_600
    assert await memory.retry_due(ledger()) == Retried()
    assert len(store.queue()) == 1
    assert [one.workflow for one in await learning] == [WORKFLOW]
    assert store.queue() == ()
