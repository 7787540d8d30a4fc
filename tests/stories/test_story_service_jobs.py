"""A job of a server that learns while it answers, killed by kill -9 between an answer and the note of it: the answer is
found after the restart, no model is asked for it again, and it is learnt from once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `service` is not installed")

from service.test_service_core import Telling, learning, task, until
from service_team import WORKFLOW

from mia.learn.spool import Spool, read_lines
from mia.memory.manager import MemoryManager
from mia.models.base import ChatRequest, TokenReply
from mia.service.core import LEARNING
from mia.service.durable import Durable, JobState
from mia.store import open_store
from mia.store.audit import is_credit

QUESTIONS = ("What was found first?", "What was found second?")
KILLS = {
    # Nothing but the spool holds the answer.
    "before the memory": (MemoryManager, "remember"),
    # The memory holds it, and the spool does not know that.
    "after the memory": (Spool, "finish"),
    # Everything holds it, but for the job.
    "before the note": (Durable, "finish_item"),
}


class Counting(Telling):
    """Tells for which of the questions it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    async def complete(self, request: ChatRequest) -> TokenReply:
        self.asked[request.question_id] += 1
        return await super().complete(request)


def answer_until_killed(home: Path, place: str) -> None:
    """Submit a job; its first answer meets the death."""
    owner, name = KILLS[place]

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def work() -> None:
        async with learning(home) as service:
            # What the first question is shown, and credits.
            await service.remember("default", QUESTIONS[0], WORKFLOW, "correct")
            setattr(owner, name, die)
            await service.submit([task(question) for question in QUESTIONS], "default")
            await asyncio.sleep(60)

    os.environ["MIA_RUN__CONCURRENCY"] = "1"
    asyncio.run(work())


@pytest.mark.parametrize("place", KILLS)
async def test_an_answer_that_a_death_kept_from_being_noted_is_found(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=answer_until_killed, args=(tmp_path, place))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL

    monkeypatch.setenv("MIA_RUN__CONCURRENCY", "1")
    model = Counting()
    async with learning(tmp_path, model) as service:
        (job,) = service.durable.jobs()
        await until(lambda: service.durable.job(job.id).state is JobState.FINISHED)
        items = service.durable.items(job.id)
        assert [item.state for item in items] == ["answered", "answered"]
        assert all(item.prompt_tokens for item in items)
        for item in items:
            found = await service.episode(item.episode_id)
            assert found is not None
            assert found[0].question.text == item.question
    # Compressing what had not been learnt yet is the only call that the first one may cost.
    first, second = (model.asked[item.question_id] for item in items)
    assert first <= (3 if place == "before the memory" else 0)
    assert second > 9
    scores = read_lines(tmp_path / LEARNING / "scores.jsonl")
    assert [score["episode_id"] for score in scores] == [item.episode_id for item in items]
    with open_store(tmp_path / "memory.db") as store:
        # Three tries of each, once.
        assert store.count_episodes() == 6
        credits = Counter(change.reason for change in store.audit(limit=1_000) if is_credit(change))
        assert credits[items[0].episode_id] == 1
        assert set(credits.values()) == {1}
