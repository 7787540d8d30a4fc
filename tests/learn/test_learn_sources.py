"""Questions to learn from: streams of worlds whose memories grow, and lists; and exams that no training sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model

import mia
from mia.config import ModelsSettings
from mia.errors import ConfigError, LearnError, StoreError
from mia.learn.sources import (
    Exam,
    ExamWorlds,
    Situation,
    Source,
    TaskExam,
    TaskSource,
    WorldExam,
    Worlds,
    WorldSource,
    side_by_side,
)
from mia.learn.stages import frozen_models
from mia.models import Models
from mia.models.ledger import Ledger
from mia.models.scripted import ScriptedModel
from mia.team import Team, build_team
from mia.types import Episode, Outcome, Question, Task, Verdict
from mia.world import preset
from mia.world.facts import World
from mia.world.language import read_question
from mia.world.questions import tasks
from mia.world.seeds import TEST, TRAIN, VALIDATION

FIRST = 1_000


def ignore(done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    """The embedded model in all roles."""
    made = frozen_models(ModelsSettings(default=preset.model_settings()))
    yield made
    await made.close()


async def answered(situations: Sequence[Situation]) -> list[tuple[Situation, list[Episode]]]:
    """Each question once, greedily."""
    episodes = await asyncio.gather(
        *(mia.answer(one.task, one.team, Ledger(one.task.question.id)) for one in situations)
    )
    return [(situation, [episode]) for situation, episode in zip(situations, episodes, strict=True)]


async def step(source: Source, count: int) -> list[str]:
    """Ids of the questions of one step, of which nothing came."""
    situations = await source.draw(count)
    await source.absorb([(one, []) for one in situations])
    return [one.task.question.id for one in situations]


def ids(seed: int, count: int) -> list[str]:
    return [task.question.id for task in tasks(World.make(seed), count)]


def hops(task: Task) -> int:
    chain = read_question(task.question.text)
    assert chain is not None
    return len(chain.relations)


# ── worlds ────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_embedded_model
class TestStreams:
    async def test_each_world_asks_its_questions_in_order_and_the_next_world_takes_its_place(
        self, models: Models
    ) -> None:
        source = WorldSource(Worlds(FIRST, streams=2, questions=2, staggered=False), models)
        await source.prepare(ignore)
        drawn = [await step(source, 2) for _ in range(3)]
        await source.close()
        first, second, third = ids(FIRST, 2), ids(FIRST + 1, 2), ids(FIRST + 2, 1)
        assert drawn == [[first[0], second[0]], [first[1], second[1]], [*third, *ids(FIRST + 3, 1)]]

    async def test_fewer_questions_than_worlds_take_turns(self, models: Models) -> None:
        source = WorldSource(Worlds(FIRST, streams=3, questions=5, staggered=False), models)
        await source.prepare(ignore)
        drawn = [await step(source, 2) for _ in range(3)]
        await source.close()
        one, two, three = (ids(FIRST + number, 2) for number in range(3))
        assert drawn == [[one[0], two[0]], [three[0], one[1]], [two[1], three[1]]]

    async def test_more_questions_than_worlds_are_refused(self, models: Models) -> None:
        source = WorldSource(Worlds(FIRST, streams=1, questions=5, staggered=False), models)
        await source.prepare(ignore)
        with pytest.raises(ConfigError, match="asked one after the other"):
            await source.draw(2)
        await source.close()

    async def test_the_memory_grows_along_the_stream_and_is_the_same_for_all_rollouts_of_a_question(
        self, models: Models
    ) -> None:
        source = WorldSource(Worlds(FIRST, streams=1, questions=5, staggered=False), models)
        await source.prepare(ignore)
        (young,) = await source.draw(1)
        groups = await answered([young])
        assert groups[0][1][0].recall is not None
        assert groups[0][1][0].recall.shown == ()
        await source.absorb(groups)
        (old,) = await source.draw(1)
        memory = old.team.memory
        assert memory is not None
        before = await memory.recall(old.task.question)
        assert len(before.shown) == 1
        # Whatever is remembered meanwhile, a situation shows what it showed.
        episode = await mia.answer(old.task, old.team, Ledger(old.task.question.id))
        await memory.remember([episode], Ledger(old.task.question.id))
        assert await memory.recall(old.task.question) == before
        await source.close()

    async def test_staggered_streams_begin_with_memories_of_all_ages(self, models: Models) -> None:
        told: list[tuple[int, int]] = []
        source = WorldSource(Worlds(FIRST, streams=2, questions=4), models)
        await source.prepare(lambda done, total: told.append((done, total)))
        young, old = await source.draw(2)
        assert told == [(1, 2), (2, 2)]
        assert [young.task.question.id, old.task.question.id] == [ids(FIRST, 1)[0], ids(FIRST + 1, 3)[2]]
        shown = [await one.team.memory.recall(one.task.question) for one in (young, old) if one.team.memory]
        assert [recall.considered for recall in shown] == [0, 2]
        await source.close()

    async def test_what_was_saved_goes_on_with_the_same_questions_and_memories(
        self, models: Models, tmp_path: Path
    ) -> None:
        worlds = Worlds(FIRST, streams=2, questions=3, hops=1, staggered=False)
        source = WorldSource(worlds, models)
        await source.prepare(ignore)
        await source.absorb(await answered(await source.draw(2)))
        await source.save(tmp_path)
        wanted = await source.draw(2)
        shown = [(await one.team.memory.recall(one.task.question)).for_planner for one in wanted if one.team.memory]
        # What happens after it does not reach what was saved.
        await source.absorb(await answered(wanted))
        await source.close()
        again = WorldSource(worlds, models)
        await again.restore(tmp_path)
        found = await again.draw(2)
        assert [one.task for one in found] == [one.task for one in wanted]
        assert [hops(one.task) for one in found] == [1, 1]
        assert [
            (await one.team.memory.recall(one.task.question)).for_planner for one in found if one.team.memory
        ] == shown
        assert all(shown)
        await again.absorb(await answered(found))
        await step(again, 2)
        assert await step(again, 2) == [*ids(FIRST + 2, 1), *ids(FIRST + 3, 1)]
        assert [hops(one.task) for one in await again.draw(2)] == [1, 1]
        await again.close()

    async def test_a_torn_checkpoint_is_named(self, models: Models, tmp_path: Path) -> None:
        (tmp_path / "streams.json").write_text('{"next_seed": 7', encoding="utf-8")
        with pytest.raises(LearnError, match="streams of worlds"):
            await WorldSource(Worlds(FIRST), models).restore(tmp_path)

    async def test_an_exam_begins_with_empty_memories_each_time_and_marks_every_question(self, models: Models) -> None:
        exam: Exam = WorldExam(ExamWorlds(worlds=2, questions=2), models)
        shown: list[int] = []

        async def answering(situation: Situation) -> Episode:
            episode = await mia.answer(situation.task, situation.team, Ledger(situation.task.question.id))
            assert episode.recall is not None
            shown.append(episode.recall.considered)
            return episode

        told: list[int] = []
        first = await exam.hold(answering, lambda done, total: told.append(done))
        second = await exam.hold(answering, ignore)
        assert first == second
        assert {name: len(marks) for name, marks in first.items()} == {"500000": 2, "500001": 2}
        assert sorted(shown) == [0, 0, 0, 0, 1, 1, 1, 1]
        assert told == [1, 2, 3, 4]


@pytest.mark.parametrize("first", [TRAIN.stop - 1, VALIDATION.start, TEST.start, -1])
def test_only_worlds_for_training_are_trained_on(first: int) -> None:
    with pytest.raises(ConfigError, match="not all for training"):
        Worlds(first, streams=2)


@pytest.mark.parametrize("name", ["streams", "questions", "hops"])
def test_worlds_without_questions_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        Worlds(TRAIN.start, **{name: 0})


@pytest.mark.parametrize("first", [VALIDATION.stop - 1, TEST.start, TRAIN.stop - 1])
def test_only_worlds_for_validation_are_for_exams(first: int) -> None:
    with pytest.raises(ConfigError, match="not all for validation"):
        ExamWorlds(worlds=2, first_seed=first)


def test_a_single_world_is_no_exam_since_it_has_no_interval() -> None:
    with pytest.raises(ConfigError, match="no exam"):
        ExamWorlds(worlds=1)


# ── lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def listed(count: int) -> list[Task]:
    return [Task(question=Question.of(f"question {number}?"), references=("4",)) for number in range(count)]


def team() -> Team:
    """It is never asked."""
    model = ScriptedModel({})
    config = mia.load_config(flags={"memory.enabled": False})
    return build_team(config, models=Models(model, model, model, model), tools=[])


class TestLists:
    async def test_a_pass_asks_each_question_once_and_the_next_one_in_another_order(self) -> None:
        everything = listed(6)
        source = TaskSource(everything, team())
        passes = [[name for _ in range(3) for name in await step(source, 2)] for _ in range(2)]
        wanted = sorted(task.question.id for task in everything)
        assert [sorted(one) for one in passes] == [wanted, wanted]
        assert passes[0] != passes[1]

    async def test_no_step_holds_a_question_twice(self) -> None:
        source = TaskSource(listed(5), team())
        steps = [await step(source, 3) for _ in range(20)]
        assert all(len(set(drawn)) == 3 for drawn in steps)
        assert len({name for drawn in steps for name in drawn}) == 5

    async def test_another_seed_is_another_order(self) -> None:
        assert await step(TaskSource(listed(9), team()), 9) != await step(TaskSource(listed(9), team(), seed=2), 9)

    async def test_what_was_saved_goes_on_where_it_was(self, tmp_path: Path) -> None:
        source, again = TaskSource(listed(5), team()), TaskSource(listed(5), team())
        for _ in range(4):
            await step(source, 2)
        await source.save(tmp_path)
        await again.restore(tmp_path)
        assert [await step(again, 2) for _ in range(5)] == [await step(source, 2) for _ in range(5)]

    async def test_a_torn_place_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "questions.json").write_text("{}", encoding="utf-8")
        with pytest.raises(LearnError, match="the place in the list"):
            await TaskSource(listed(5), team()).restore(tmp_path)

    async def test_more_questions_than_there_are_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="of a list of 2"):
            await TaskSource(listed(2), team()).draw(3)
        with pytest.raises(ConfigError, match="no questions"):
            TaskSource([], team())
        with pytest.raises(ConfigError, match="no exam"):
            TaskExam(listed(1), team())

    async def test_an_exam_leaves_out_what_nobody_could_judge(self) -> None:
        everything = listed(3)
        outcomes = dict(
            zip(
                [task.question.id for task in everything],
                [Outcome.CORRECT, Outcome.UNJUDGED, Outcome.NOT_ATTEMPTED],
                strict=True,
            )
        )

        async def answering(situation: Situation) -> Episode:
            question = situation.task.question
            verdict = Verdict(outcome=outcomes[question.id], judge="test")
            return Episode(id="ep-1", question=question, started_at=0.0, seconds=0.0, attempts=(), verdict=verdict)

        marks = await TaskExam(everything, team()).hold(answering, ignore)
        assert marks == {everything[0].question.id: [1.0], everything[2].question.id: [0.0]}


# ── side by side ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_side_by_side_keeps_the_order_and_raises_the_error_itself() -> None:
    ended: list[str] = []

    async def value(number: int) -> int:
        await asyncio.sleep(0.01 * (3 - number))
        return number

    async def failing() -> int:
        raise StoreError("the disk is gone.")

    async def waiting() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")
        return 0

    assert await side_by_side(value(number) for number in range(3)) == [0, 1, 2]
    with pytest.raises(StoreError, match="disk is gone"):
        await side_by_side([waiting(), failing()])
    assert ended == ["cancelled"]
