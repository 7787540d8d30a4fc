"""A stream of questions in one world: the embedded model remembers what it tried, and plans by it later.

Nothing is scripted: models, search, memory, store and judge are real, and what must hold is counted over the stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from embedded_team import answer_all, live_all, needs_embedded_model, settings
from nursery import Nursery

import mia
from mia.config import Config
from mia.store import open_store
from mia.transcript import render_attempts
from mia.types import Episode, Memory, MemoryState, Question, Task
from mia.world.facts import World
from mia.world.language import Chain, Route, read_plan, read_question, read_trajectory, write_workflow
from mia.world.questions import tasks
from mia.world.teacher import routes_in_memory

pytestmark = needs_embedded_model

QUESTIONS = 40
SETTLED = 6
"""Questions side by side: what each of them learns, only the next group knows."""


@dataclass(frozen=True)
class Life:
    """What a stream left behind."""

    home: Path
    episodes: list[Episode]
    unaided: list[Episode]
    """The same questions with the memory off."""

    def memories(self) -> dict[str, Memory]:
        """All that the store holds, whatever their state."""
        with open_store(self.home / "memory.db") as store:
            assert store.check().sound
            return {one.id: one for one in store.list_memories(None, states=list(MemoryState), limit=1_000)}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    home = tmp_path_factory.mktemp("life")
    config = settings(home)
    stream = short(config, QUESTIONS)

    async def live() -> Life:
        team = mia.build_team(config)
        episodes = await live_all(stream, team, at_once=SETTLED)
        await team.close()
        alone = mia.build_team(settings(home / "unaided", memory__enabled=False, line__replan="never"))
        unaided = await answer_all(stream, alone)
        await alone.close()
        return Life(home, episodes, unaided)

    return asyncio.run(live())


def short(config: Config, count: int, seed: int = 0) -> list[Task]:
    """The first questions of a stream with one or two hops: some are answered without help."""
    stream = tasks(World.make(config.search.world), 4 * count, seed)
    return [task for task in stream if len(chain_of(task.question).relations) <= 2][:count]


def chain_of(question: Question) -> Chain:
    chain = read_question(question.text)
    assert chain is not None
    return chain


def remembered(episodes: Iterable[Episode]) -> Iterator[tuple[Episode, Route]]:
    """Each episode, once for each relation of its question that a memory shown to the Planner had found: that route."""
    for episode in episodes:
        assert episode.recall is not None
        known = routes_in_memory(episode.recall.for_planner)
        for relation in chain_of(episode.question).relations:
            if relation in known:
                yield episode, known[relation]


def takes(episode: Episode, route: Route) -> bool:
    """Whether its first plan takes this route, step after step."""
    plan = episode.attempts[0].plan
    written = read_plan(plan.text) if plan is not None else ()
    return any(written[start : start + len(route)] == route for start in range(len(written)))


def test_every_judged_question_becomes_a_memory_of_all_that_was_tried(life: Life) -> None:
    memories = {one.provenance.episode_id: one for one in life.memories().values()}
    assert not [episode.failures for episode in life.episodes if episode.failures]
    assert set(memories) == {episode.id for episode in life.episodes}
    judged = {id: memory.judgement for id, memory in memories.items()}
    assert judged == {
        episode.id: "correct" if episode.verdict and episode.verdict.correct else "incorrect"
        for episode in life.episodes
    }
    assert len(set(judged.values())) == 2
    # The embedded Manager writes them down: each search with what came of it, the failed ones too.
    exact = [
        memories[episode.id].workflow == write_workflow(read_trajectory(render_attempts(episode.attempts)))
        for episode in life.episodes
    ]
    assert sum(exact) >= 0.9 * QUESTIONS
    assert any(" not in " in memory.workflow for memory in memories.values())


def test_plans_take_the_routes_that_memories_found(life: Life) -> None:
    cases = list(remembered(life.episodes))
    assert len(cases) >= 10
    followed = sum(takes(episode, route) for episode, route in cases)
    assert followed >= 0.9 * len(cases)
    # Not by chance, and not because it knew these routes anyway.
    unaided = {episode.question.id: episode for episode in life.unaided}
    guessed = sum(takes(unaided[episode.question.id], route) for episode, route in cases)
    assert guessed <= followed - 0.2 * len(cases)


def test_credits_move_with_the_verdicts(life: Life) -> None:
    memories = life.memories()
    shown: dict[str, list[bool]] = {id: [] for id in memories}
    for episode in life.episodes:
        assert episode.recall is not None
        assert episode.verdict is not None
        for one in episode.recall.shown:
            shown[one.memory_id].append(episode.verdict.correct)
    assert sum(map(len, shown.values())) >= QUESTIONS
    for id, outcomes in shown.items():
        memory = memories[id]
        assert (memory.uses, memory.wins) == (1 + len(outcomes), 1 + sum(outcomes)), id
    assert any(memory.wins > 1 for memory in memories.values())
    assert any(memory.wins < memory.uses for memory in memories.values())


def test_why_tells_what_each_memory_covered(life: Life, nursery: Nursery) -> None:
    """The memories that are shown share out the question's words: none repeats what those before it cover."""
    several = [episode for episode in life.episodes if episode.recall and len(episode.recall.shown) >= 3]
    episode = several[-1]
    ended = nursery.mia("--home", life.home, "memory", "why", episode.id)
    assert ended.code == 0, ended.stderr
    assert "coverage, the share of the question's words that it adds" in " ".join(ended.stdout.split())
    page = json.loads(nursery.mia("--home", life.home, "memory", "why", episode.id, "--json").stdout)["recall"]
    assert page["weights"]["coverage"] > 0
    for judgement in ("correct", "incorrect"):
        covered = [one["parts"]["coverage"] for one in page["shown"] if one["judgement"] == judgement]
        assert all(0 <= share <= 1 for share in covered)
        assert sum(covered) <= 1 + 1e-9
    assert any(one["parts"]["coverage"] > 0 for one in page["shown"])


async def test_a_frozen_memory_helps_and_learns_nothing(life: Life) -> None:
    before = life.memories()
    config = settings(life.home, memory__frozen=True)
    team = mia.build_team(config)
    again = await live_all(short(config, 8, seed=1), team, at_once=8)
    await team.close()
    assert life.memories() == before
    assert sum(takes(episode, route) for episode, route in remembered(again)) >= 3
    with open_store(life.home / "memory.db") as store:
        assert [store.load_episode(episode.id).question for episode in again] == [one.question for one in again]
