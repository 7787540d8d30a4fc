"""Many questions at once: company changes nothing but the time that it takes.

The embedded model samples for all of them in one batch. What an episode says is the same to the last letter whoever is
asked beside it, in whichever order, and whoever leaves early.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from embedded_team import answer_all, embedded_model, everybody, needs_embedded_model, settings

import mia
from mia.events import Event, StepFinished
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.team import Team
from mia.types import Episode, Task
from mia.world.facts import World
from mia.world.questions import tasks

pytestmark = needs_embedded_model

QUESTIONS = 32
"""At once; every second one of them is also asked on its own."""
_OF_THE_MOMENT = {"id", "seconds", "started_at", "config"}
"""What an episode says of when and where it was, at any depth."""

Content = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return embedded_model()


@pytest.fixture
def team(model: ChatModel, tmp_path: Path) -> Team:
    config = settings(tmp_path, memory__enabled=False)
    return mia.build_team(config, models=everybody(model))


@pytest.fixture(scope="module")
def stream() -> list[Task]:
    """With references left out: the judge is the model too."""
    made = tasks(World.make(900_001), QUESTIONS)
    return [Task(question=task.question) for task in made]


@pytest.fixture(scope="module")
def alone(model: ChatModel, stream: list[Task], tmp_path_factory: pytest.TempPathFactory) -> list[Content]:
    """Every second question on its own, after the one before."""
    team = mia.build_team(settings(tmp_path_factory.mktemp("alone"), memory__enabled=False), models=everybody(model))

    async def one_by_one() -> list[Episode]:
        episodes = [(await answer_all([task], team))[0] for task in stream[::2]]
        await team.close()
        return episodes

    return [content(episode) for episode in asyncio.run(one_by_one())]


def content(episode: Episode) -> Content:
    """All of it but when and where it was."""
    assert not episode.failures

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(inner) for key, inner in value.items() if key not in _OF_THE_MOMENT}
        return [timeless(inner) for inner in value] if isinstance(value, list) else value

    page = timeless(episode.model_dump(mode="json"))
    assert isinstance(page, dict)
    return page | {"question": episode.question.id}


async def test_all_at_once_is_each_alone(team: Team, stream: list[Task], alone: list[Content]) -> None:
    together = [content(episode) for episode in await answer_all(stream, team)]
    assert together[::2] == alone
    # There is something to be different in.
    assert len({str(page["attempts"]) for page in together}) == QUESTIONS
    assert sum(len(page["attempts"]) == 2 for page in together) > QUESTIONS / 4


async def test_another_order_and_other_company_change_nothing(
    team: Team, stream: list[Task], alone: list[Content]
) -> None:
    strangers = [Task(question=task.question) for task in tasks(World.make(900_001), 16, seed=5)]
    mixed = [*stream[::4], *strangers]
    random.Random(4).shuffle(mixed)
    expected = {page["question"]: page for page in alone}
    seen = {episode.question.id: content(episode) for episode in await answer_all(mixed, team)}
    assert len(seen) == len(mixed)
    for task in stream[::4]:
        assert seen[task.question.id] == expected[task.question.id]


async def test_one_that_is_cancelled_in_the_middle_leaves_the_others_alone(
    team: Team, stream: list[Task], alone: list[Content]
) -> None:
    leaving = 4
    begun = asyncio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, StepFinished):
            begun.set()

    running = [
        asyncio.create_task(
            mia.answer(task, team, Ledger(task.question.id, **({"on_event": on_event} if number == leaving else {})))
        )
        for number, task in enumerate(stream[:12])
    ]
    await begun.wait()
    running[leaving].cancel()
    done = await asyncio.gather(*running, return_exceptions=True)
    assert isinstance(done.pop(leaving), asyncio.CancelledError)
    answered = {episode.question.id: content(episode) for episode in done if isinstance(episode, Episode)}
    assert len(answered) == 11
    for page in alone[:6]:
        assert answered.get(page["question"], page) == page
    # Its place in the batch is free, and it can be asked again.
    assert [content(episode) for episode in await answer_all([stream[leaving]], team)] == [alone[leaving // 2]]
