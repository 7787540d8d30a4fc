"""Peer review by the embedded model: right where the trajectory decides, and silent, never wrong, where it is down.

No question has a reference; the truth is known by the world alone.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from embedded_team import answer_all, embedded_model, everybody, live_all, needs_embedded_model, settings

import mia
from mia.errors import ModelUnavailable
from mia.models.base import ChatRequest
from mia.models.scripted import ScriptedModel
from mia.store import open_store
from mia.transcript import render_attempts
from mia.types import Episode, Outcome, Task
from mia.world.facts import World
from mia.world.language import read_question, read_trajectory
from mia.world.questions import tasks

pytestmark = needs_embedded_model

QUESTIONS = 40


def without_references(world: World, count: int) -> list[Task]:
    return [Task(question=task.question) for task in tasks(world, count)]


def is_right(world: World, episode: Episode) -> bool:
    chain = read_question(episode.question.text)
    assert chain is not None
    return episode.answer is not None and episode.answer.text == world.answer(chain)


def believed_a_rumour(world: World, episode: Episode) -> bool:
    """A wrong document looks like any other: no judge that sees the trajectory alone can tell."""
    for one in read_trajectory(render_attempts(episode.attempts)):
        step = one.query.step
        patchy = not step.via and step.source == world.keeping[step.relation].patchy
        if patchy and one.outcome.kind == "found":
            return True
    return False


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[Episode]]:
    config = settings(tmp_path_factory.mktemp("judged"), memory__enabled=False)
    world = World.make(config.search.world)

    async def answer() -> list[Episode]:
        team = mia.build_team(config)
        episodes = await answer_all(without_references(world, QUESTIONS), team)
        await team.close()
        return episodes

    return world, asyncio.run(answer())


def test_verdicts_agree_with_the_truth_where_the_trajectory_decides(judged: tuple[World, list[Episode]]) -> None:
    world, episodes = judged
    decided = [episode for episode in episodes if not believed_a_rumour(world, episode)]
    agree = []
    for episode in decided:
        assert episode.verdict is not None
        assert episode.verdict.judge == "peer"
        agree.append(episode.verdict.correct is is_right(world, episode))
    assert len(decided) >= QUESTIONS / 3
    assert 0 < sum(is_right(world, episode) for episode in decided) < len(decided)
    assert sum(agree) >= 0.9 * len(decided)


def test_three_reviews_and_a_reason_are_kept(judged: tuple[World, list[Episode]]) -> None:
    _, episodes = judged
    for episode in episodes:
        assert episode.verdict is not None
        if episode.verdict.outcome is Outcome.UNJUDGED:
            continue
        assert {review.reviewer for review in episode.verdict.reviews} == {"reasoning", "sourcing", "validity"}
        assert episode.verdict.reason
        assert not episode.verdict.fallback


async def test_without_its_judge_the_line_answers_and_learns_nothing_false(tmp_path: Path) -> None:
    def down(request: ChatRequest) -> str:
        raise ModelUnavailable("the judge is down.")

    config = settings(tmp_path)
    world = World.make(config.search.world)
    model = embedded_model()
    team = mia.build_team(config, models=everybody(model, judge=ScriptedModel(down)))
    episodes = await live_all(without_references(world, 8), team, at_once=8)
    await team.close()
    await model.close()
    assert any(is_right(world, episode) for episode in episodes)
    for episode in episodes:
        assert episode.answer is not None
        assert episode.verdict is not None
        assert episode.verdict.outcome is Outcome.UNJUDGED
        assert "only 0 of 3 reviewers" in episode.verdict.reason
        assert [failure.stage for failure in episode.failures] == ["judge"]
    with open_store(tmp_path / "memory.db") as store:
        assert store.count_memories() == 0
        assert len(store.list_episodes(limit=99)) == len(episodes)
