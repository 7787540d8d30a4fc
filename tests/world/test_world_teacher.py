"""The teacher plays every role of the real line: as an oracle it is never wrong, and as a teacher it is mediocre in
exactly the ways that are said."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from mia.agents.planner import Planner
from mia.config import (
    Config,
    ExecutorSettings,
    JudgeSettings,
    LineSettings,
    MemorySettings,
    ModelsSettings,
    ReaderSettings,
    SearchSettings,
)
from mia.episode import absorb, answer
from mia.judges.peer import PeerJudge
from mia.learn.warmup.past import Past
from mia.memory import present
from mia.memory.compress import Compressor
from mia.models import Models
from mia.models.ledger import Ledger
from mia.reader.read import Reader
from mia.reader.texts import TextSource
from mia.reader.trace import ChunkRead, Told
from mia.team import Team, build_team
from mia.transcript import render_attempts
from mia.types import Answer, Attempt, Episode, Outcome, Plan, Question, Recall, Task
from mia.world import language, preset
from mia.world.engine import WorldEngine
from mia.world.facts import FAVOURITE, World
from mia.world.language import (
    SOURCES,
    UNKNOWN,
    Chain,
    Query,
    Route,
    RouteStep,
    Try,
    read_plan,
    read_question,
    read_trajectory,
    read_workflow,
    write_plan,
    write_question,
    write_workflow,
)
from mia.world.longtexts import make_text
from mia.world.questions import tasks
from mia.world.teacher import KNOWN, Teacher, asked, routes_in_memory


def line(world: World, teacher: Teacher, home: Path, *, memory: bool = False, **settings: object) -> Team:
    config = Config(
        home=home,
        models=ModelsSettings(default=preset.model_settings()),
        line=LineSettings.model_validate(settings),
        executor=ExecutorSettings(max_calls=40),
        memory=MemorySettings.model_validate(preset.MEMORY | {"enabled": memory}),
        search=SearchSettings(engine="world", k=preset.PASSAGES),
        judge=JudgeSettings(kind="reference"),
    )
    models = Models(planner=teacher, executor=teacher, manager=teacher, judge=teacher)
    return build_team(config, models=models, engine=WorldEngine(world))


async def ask(team: Team, asked: list[Task]) -> list[Episode]:
    return [await answer(task, team, Ledger(task.question.id)) for task in asked]


def right(episode: Episode) -> bool:
    return episode.verdict is not None and episode.verdict.correct


def chain_of(question: Question) -> Chain:
    chain = read_question(question.text)
    assert chain is not None
    return chain


def searches(episode: Episode) -> list[Query]:
    return [one.query for one in read_trajectory(render_attempts(episode.attempts))]


@pytest.mark.parametrize(("seed", "shifted"), [(600_000, False), (600_003, True)])
async def test_the_oracle_is_always_right_through_the_real_line(seed: int, shifted: bool, tmp_path: Path) -> None:
    world = World.make(seed, shifted=shifted)
    assert any(kept.via for kept in world.keeping.values())
    team = line(world, Teacher(random.Random(0), oracle=world), tmp_path)
    episodes = await ask(team, tasks(world, 40))
    await team.close()
    assert all(right(episode) for episode in episodes)
    assert all(len(episode.attempts) == 1 for episode in episodes)
    for episode in episodes:
        chain = chain_of(episode.question)
        assert tuple(query.step for query in searches(episode)) == world.oracle(chain)


async def test_without_a_plan_it_asks_no_source_twice_for_the_same(tmp_path: Path) -> None:
    world = World.make(600_000)
    team = line(world, Teacher(random.Random(1)), tmp_path, plan=False, replan="never")
    episodes = await ask(team, tasks(world, 20))
    await team.close()
    assert sum(len(searches(episode)) for episode in episodes) > 60
    for episode in episodes:
        assert len(set(searches(episode))) == len(searches(episode))


async def test_a_replan_takes_up_where_the_first_attempt_failed_and_repeats_nothing(tmp_path: Path) -> None:
    world = World.make(600_000)
    team = line(world, Teacher(random.Random(2)), tmp_path, max_reflections=3)
    episodes = await ask(team, tasks(world, 30))
    await team.close()
    replanned = [episode for episode in episodes if len(episode.attempts) > 1]
    assert len(replanned) > 10
    for episode in episodes:
        assert len(set(searches(episode))) == len(searches(episode))
        tries = read_trajectory(render_attempts(episode.attempts))
        for before, after in pairwise(tries):
            if before.outcome.kind == "found":
                assert after.query.entity == before.outcome.what
            if before.outcome.kind == "kept":
                assert after.query == Query(
                    RouteStep(before.outcome.what, after.query.step.source), before.query.entity
                )
    assert any(right(episode) for episode in replanned)


async def test_it_follows_what_it_remembers_and_its_manager_writes_what_was_done(tmp_path: Path) -> None:
    world = World.make(600_000)
    team = line(world, Teacher(random.Random(3)), tmp_path, memory=True)
    followed = 0
    for task in tasks(world, 25):
        episode = await answer(task, team, Ledger(task.question.id))
        for memory in await absorb(episode, team, Ledger(task.question.id)):
            assert read_workflow(memory.workflow) == read_trajectory(render_attempts(episode.attempts))
        chain = chain_of(task.question)
        assert episode.recall is not None
        assert episode.attempts[0].plan is not None
        planned = read_plan(episode.attempts[0].plan.text)
        for relation, route in routes_in_memory(episode.recall.for_planner).items():
            if relation in chain.relations:
                followed += 1
                assert any(planned[at : at + len(route)] == route for at in range(len(planned)))
    await team.close()
    assert followed > 5


def test_it_knows_the_favourites_of_six_relations() -> None:
    assert len(set(KNOWN)) == 6
    assert set(KNOWN) < set(FAVOURITE)


async def planned(teacher: Teacher, chain: Chain, recall: Recall) -> Route:
    question = Question.of(write_question(chain, 0))
    return read_plan((await Planner(teacher, style="compact").plan(question, recall, "", Ledger("test"))).plan.text)


async def test_it_guesses_where_it_knows_nothing() -> None:
    teacher = Teacher(random.Random(4))
    known = next(name for name in KNOWN)
    unknown = next(name for name in FAVOURITE if name not in KNOWN)
    plans = [await planned(teacher, Chain("Kavori", (known, unknown)), Recall()) for _ in range(60)]
    assert {plan[0] for plan in plans} == {RouteStep(known, FAVOURITE[known])}
    assert {plan[1].source for plan in plans} == set(SOURCES)


def remembering(*memories: tuple[bool, list[Try]]) -> Recall:
    past = Past(World.make(1), random.Random(0)).recalled(Chain("Kavori", ("mayor",)))
    template = next(iter(past))
    made = [
        template.evolve(
            id=f"mem-{number:020d}",
            workflow=write_workflow(tries),
            judgement="correct" if correct else "incorrect",
        )
        for number, (correct, tries) in enumerate(memories)
    ]
    return Recall(for_planner=present.for_planner(made))


def found(step: RouteStep) -> Try:
    return Try(Query(step, "Lima"), language.Outcome("found", "Melo"))


async def test_memories_of_wrong_answers_teach_it_nothing() -> None:
    step = RouteStep("mayor", "ledger")
    teacher = Teacher(random.Random(5), favourites={"mayor": "census"})
    chain = Chain("Kavori", ("mayor",))
    assert await planned(teacher, chain, remembering((False, [found(step)]))) == (RouteStep("mayor", "census"),)
    assert await planned(teacher, chain, remembering((True, [found(step)]))) == (step,)


async def test_it_takes_a_route_over_another_entity_as_a_whole() -> None:
    route = (RouteStep("waterway", "almanac"), RouteStep("mayor", "ledger", "waterway"))
    recall = remembering((True, [found(step) for step in route]))
    assert await planned(Teacher(random.Random(6)), Chain("Kavori", ("mayor",)), recall) == route


async def test_it_judges_by_what_the_trajectory_shows(tmp_path: Path) -> None:
    world = World.make(600_000)
    team = line(world, Teacher(random.Random(7), oracle=world), tmp_path)
    judge = PeerJudge(Teacher(random.Random(8)), style="compact")
    task = tasks(world, 1)[0]
    (episode,) = await ask(team, [task])
    await team.close()
    attempt, chain = episode.attempts[0], chain_of(task.question)
    longer = Question.of(write_question(Chain(chain.entity, (*chain.relations, "mayor")), 0))

    async def outcome(question: Question, judged: Attempt) -> Outcome:
        return (await judge.judge(Task(question=question), judged, Ledger("test"))).outcome

    assert await outcome(task.question, attempt) is Outcome.CORRECT
    assert await outcome(task.question, attempt.evolve(answer=Answer(text=UNKNOWN))) is Outcome.INCORRECT
    assert await outcome(task.question, attempt.evolve(answer=Answer(text="Nobody"))) is Outcome.INCORRECT
    assert await outcome(longer, attempt) is Outcome.INCORRECT


async def test_the_manager_keeps_failed_tries(tmp_path: Path) -> None:
    world = World.make(600_000)
    kept = world.keeping["mayor"]
    empty = next(source for source in SOURCES if source not in (kept.source, kept.patchy))
    question = Question.of(write_question(Chain(world.entities["city"][0], ("mayor",)), 1))
    team = line(world, Teacher(random.Random(9)), tmp_path)
    plan = Plan(text=write_plan((RouteStep("mayor", empty),)))
    execution = await team.executor.execute(question, plan, "", Ledger("test"))
    await team.close()
    assert execution.answer is not None
    assert execution.answer.text == UNKNOWN
    episode = Episode(
        id="ep-1",
        question=question,
        started_at=0.0,
        attempts=(Attempt(plan=plan, trace=execution.trace, answer=execution.answer),),
        answer=execution.answer,
    )
    compressed = await Compressor(Teacher(random.Random(9)), style="compact").compress(episode, Ledger("test"))
    assert compressed.workflow == f"1. mayor not in {empty} ({world.entities['city'][0]})"


def test_a_prompt_without_a_question_of_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="no question"):
        asked("<question>\nWhat is love?\n</question>")


async def test_it_reads_a_long_text_without_an_error_and_keeps_what_is_asked_for() -> None:
    told: list[Told] = []
    reader = Reader(Teacher(random.Random(1)), ReaderSettings(**preset.READER), style="compact")
    made = make_text(World.make(7), 0, 1_000, reader.counter.count, facts=2)
    with TextSource.of(made.text) as source:
        (reading,) = await reader.read([Question.of(made.question)], source, on_told=told.append)
    assert reading.answer == made.answer
    assert reading.memory == "\n".join(str(fact) for fact in made.facts)
    assert (reading.cut, reading.kept, reading.failure) == (0, 0, None)
    # What was found is never lost again.
    found = [one.memory.count("unknown") for one in told if isinstance(one, ChunkRead)]
    assert found == sorted(found, reverse=True)
