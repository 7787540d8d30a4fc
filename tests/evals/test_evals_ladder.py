"""The ladder: rungs are what they are called, nothing else changes a figure, and what was measured is kept."""

from __future__ import annotations

import fcntl
import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steady_teacher import SteadyTeacher, dying_models, steady_models

from mia.errors import ConfigError, MissingExtra, ModelUnavailable, RecordError, StoreError
from mia.evals.ladder import (
    RUNGS,
    VARIANTS,
    FreshSources,
    LadderSettings,
    Progress,
    choose,
    digest,
    run_ladder,
)
from mia.evals.ladder_plot import draw
from mia.evals.ladder_report import Figure, Report, markdown, report, tables, write
from mia.evals.ladder_results import RESULTS, Answered, Result
from mia.models.base import ChatRequest
from mia.statistics import clustered, paired
from mia.tools.base import BadArguments, ToolContext
from mia.tools.search import SearchTool
from mia.types import Observation, Question, Role, Step
from mia.world import preset
from mia.world.engine import WorldEngine
from mia.world.facts import World
from mia.world.language import RELATION, SOURCES, Query, RouteStep, read_query
from mia.world.questions import tasks
from mia.world.seeds import TEST

SMALL = LadderSettings(worlds=2, questions=5)
SEED = TEST.start


def answers(results: tuple[Result, ...]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """What was measured, without the seconds."""
    return {
        (result.rung, result.seed): [one.model_dump(exclude={"seconds"}) for one in result.questions]
        for result in results
    }


@pytest.fixture(scope="module")
def climbed() -> tuple[Result, ...]:
    return run_ladder(replace(SMALL, rungs=(*RUNGS, *VARIANTS)), make_models=steady_models)


# ── the rungs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rungs_by_name_come_in_order_and_with_what_they_need() -> None:
    assert [rung.name for rung in choose(["plan", "no-plan"])] == ["no-plan", "plan"]
    assert [rung.name for rung in choose(["no-plan-fair"])] == ["no-plan-fair", "plan-memory-replan"]
    with pytest.raises(ConfigError, match="no rung 'paln'"):
        choose(["plan", "paln"])
    names = [rung.name for rung in (*RUNGS, *VARIANTS)]
    assert len(set(names)) == len(names)
    assert all(over in names for rung in (*RUNGS, *VARIANTS) for over in rung.over)


def test_each_rung_is_what_it_is_called(climbed: tuple[Result, ...]) -> None:
    by_rung: dict[str, list[Answered]] = defaultdict(list)
    for result in climbed:
        assert len(result.questions) == SMALL.questions
        by_rung[result.rung] += result.questions
    assert all(one.executor_calls <= one.hops + 1 and one.replans == 0 for one in by_rung["no-plan"])
    full = by_rung["plan-memory-replan"]
    assert all(
        one.executor_calls <= other.executor_calls for one, other in zip(by_rung["no-plan-fair"], full, strict=True)
    )
    assert all(one.replans == 0 for name in ("plan", "plan-memory", "no-plan-fair") for one in by_rung[name])
    assert all(one.replans <= 1 for one in full)
    assert any(one.replans == 1 for one in full)
    assert any(one.replans > 1 for one in by_rung["three-replans"])
    assert all(one.unreadable == one.failures == 0 for one in full)
    for result in climbed:
        assert result.config["memory"]["enabled"] == (
            result.rung in ("plan-memory", "plan-memory-replan", "three-replans", "no-coverage", "verdict-replan")
        )
    weights = {result.rung: result.config["memory"]["coverage_weight"] for result in climbed}
    assert weights["no-coverage"] == 0.0 < weights["plan-memory-replan"] == preset.MEMORY["coverage_weight"]


def test_with_a_plan_that_knows_the_world_every_answer_is_correct() -> None:
    oracle = SteadyTeacher(oracle=World.make(SEED))
    (result,) = run_ladder(replace(SMALL, worlds=1, questions=12, rungs=choose(["plan"])), make_models=oracle.for_all)
    assert all(one.correct for one in result.questions)
    assert any(one.via for one in result.questions)


def test_with_memory_questions_are_asked_in_order_and_see_what_came_before() -> None:
    asked: list[ChatRequest] = []
    small = replace(SMALL, worlds=1, questions=4, rungs=choose(["plan-memory"]))
    run_ladder(small, make_models=SteadyTeacher(watch=asked.append).for_all)
    ids = [task.question.id for task in tasks(World.make(SEED), small.questions)]
    assert list(dict.fromkeys(request.question_id for request in asked)) == ids
    assert [request.question_id for request in asked] == sorted(request.question_id for request in asked)
    plans = [request.messages[-1].content for request in asked if request.purpose == "plan"]
    assert [plan.count("<memory ") for plan in plans][:2] == [0, 1]
    assert Role.JUDGE not in {request.role for request in asked}


def test_without_memory_nothing_is_remembered() -> None:
    asked: list[ChatRequest] = []
    small = replace(SMALL, worlds=1, rungs=choose(["plan-replan"]))
    run_ladder(small, make_models=SteadyTeacher(watch=asked.append).for_all)
    assert not any("<memory " in request.messages[-1].content for request in asked)
    assert Role.MANAGER not in {request.role for request in asked}


# ── no source twice ───────────────────────────────────────────────────────────────────────────────────────────────

WORLD = World.make(SEED)
ENGINE = WorldEngine(WORLD)
QUESTION = Question.of("What is the mayor of Kavori?")


def fresh() -> FreshSources:
    return FreshSources(SearchTool(ENGINE, preset.PASSAGES))


async def ask(tool: FreshSources, steps: list[Step], *queries: str) -> str:
    """One call after those before it; its results."""
    context = ToolContext(question=QUESTION, steps=tuple(steps))
    observation = await tool.call({"query_list": list(queries)}, context)
    steps.append(Step(index=len(steps), text="", observation=observation))
    return observation.text


async def test_a_source_is_not_asked_twice_for_the_same() -> None:
    city = WORLD.entities["city"][0]
    query = f"mayor of {city} in {SOURCES[4]}"
    steps: list[Step] = []
    texts = [await ask(fresh(), steps, query) for _ in SOURCES]
    named = [text.splitlines()[0] for text in texts]
    turned = (*SOURCES[4:], *SOURCES[:4])
    assert named == [f"Query: mayor of {city} in {source}" for source in turned]
    found = {source for source, text in zip(turned, texts, strict=True) if "Nothing was found" not in text}
    kept = WORLD.keeping["mayor"]
    assert {kept.source, kept.patchy} <= found
    assert await ask(fresh(), steps, query) == f"Query: {query}\n\nNothing was found for this query."


async def test_other_relations_and_entities_are_other_things() -> None:
    first, second = WORLD.entities["city"][:2]
    steps: list[Step] = []
    for query in (f"mayor of {first} in ledger", f"twin of {first} in ledger", f"mayor of {second} in ledger"):
        assert (await ask(fresh(), steps, query)).startswith(f"Query: {query}\n")


async def test_what_is_no_query_of_the_world_is_left_to_the_search() -> None:
    steps: list[Step] = []
    assert await ask(fresh(), steps, "the weather") == "Query: the weather\n\nNothing was found for this query."
    for wrong in ({}, {"query_list": "mayor"}, {"query_list": []}, {"query_list": [1]}, {"query_list": ["a"], "k": 1}):
        with pytest.raises(BadArguments):
            await fresh().call(wrong, ToolContext(question=QUESTION))


QUERIES = st.builds(
    lambda relation, number, source: str(
        Query(RouteStep(relation, source), WORLD.entities[RELATION[relation].subject][number])
    ),
    st.sampled_from(("mayor", "twin")),
    st.integers(0, 1),
    st.sampled_from(SOURCES),
)


@given(st.lists(st.lists(QUERIES, min_size=1, max_size=4, unique=True), max_size=12))
@settings(max_examples=40, deadline=None)
async def test_whatever_is_asked_no_source_is_searched_twice(calls: list[list[str]]) -> None:
    searched: list[str] = []

    class Counting(SearchTool):
        async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
            searched.extend(arguments["query_list"])
            return await super().call(arguments, context)

    steps: list[Step] = []
    for queries in calls:
        text = await ask(FreshSources(Counting(ENGINE, 1)), steps, *queries)
        assert text.count("Query: ") == len(queries)
    assert len(set(searched)) == len(searched)
    wanted = defaultdict(set)
    for queries in calls:
        for query in map(read_query, queries):
            assert query is not None
            wanted[query.step.relation, query.entity].add(query.step.source)
    for query in map(read_query, searched):
        assert query is not None
        wanted[query.step.relation, query.entity].discard(query.step.source)
    assert not any(wanted.values()), "a source that was named was never asked"


# ── nothing else changes a figure ─────────────────────────────────────────────────────────────────────────────────


def test_neither_processes_nor_concurrency_change_a_result(climbed: tuple[Result, ...]) -> None:
    everything = answers(climbed)
    names = [rung.name for rung in RUNGS]
    expected = {key: value for key, value in everything.items() if key[0] in names}
    assert answers(run_ladder(SMALL, processes=2, make_models=steady_models)) == expected
    alone = replace(SMALL, model=preset.model_settings(batch=1))
    assert answers(run_ladder(alone, make_models=steady_models)) == expected
    (one, *_) = run_ladder(
        replace(SMALL, first_seed=SEED + 1, worlds=1, rungs=choose(["plan-memory"])), make_models=steady_models
    )
    assert answers((one,)) == {("plan-memory", SEED + 1): everything["plan-memory", SEED + 1]}


@pytest.mark.parametrize(("first", "count"), [(SEED - 1, 2), (500_000, 1), (0, 24), (TEST.stop - 1, 2), (-5, 3)])
def test_worlds_that_are_not_all_test_worlds_are_refused(first: int, count: int) -> None:
    with pytest.raises(ConfigError, match="not all test worlds"):
        run_ladder(replace(SMALL, first_seed=first, worlds=count), make_models=steady_models)


def test_a_process_that_dies_is_told_and_not_waited_for() -> None:
    with pytest.raises(ModelUnavailable, match="ended with the status 9"):
        run_ladder(SMALL, processes=2, make_models=dying_models)


# ── what was measured is kept ─────────────────────────────────────────────────────────────────────────────────────


def unreachable_after(calls: int) -> SteadyTeacher:
    left = iter(range(calls))

    def watch(request: ChatRequest) -> None:
        if next(left, None) is None:
            raise ModelUnavailable("the endpoint went away.")

    return SteadyTeacher(watch=watch)


PAIR = replace(SMALL, rungs=choose(["no-plan", "no-plan-fair"]))


@pytest.mark.parametrize("purpose", ["plan", "execute", "reflect", "replan", "compress"])
def test_what_a_model_was_not_there_for_is_no_measurement(tmp_path: Path, purpose: str) -> None:
    def watch(request: ChatRequest) -> None:
        if request.purpose == purpose:
            raise ModelUnavailable("the endpoint went away.")

    full = replace(SMALL, worlds=1, questions=3, rungs=choose(["plan-memory-replan"]))
    with pytest.raises(ModelUnavailable, match="went away"):
        run_ladder(full, folder=tmp_path, make_models=SteadyTeacher(watch=watch).for_all)
    assert len((tmp_path / RESULTS).read_text().splitlines()) == 1


def test_a_ladder_that_broke_off_goes_on_and_ends_the_same(tmp_path: Path, climbed: tuple[Result, ...]) -> None:
    with pytest.raises(ModelUnavailable, match="went away"):
        run_ladder(PAIR, folder=tmp_path, make_models=unreachable_after(100).for_all)
    kept = len((tmp_path / RESULTS).read_text().splitlines()) - 1
    assert kept < 6
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"rung": "no-plan", "se')  # What a crash leaves.
    told: list[Progress] = []
    results = run_ladder(
        PAIR,
        folder=tmp_path,
        make_models=steady_models,
        on_progress=lambda progress: told.append(replace(progress)),
    )
    assert (told[0].results, told[0].of_questions) == (kept, (6 - kept) * SMALL.questions)
    assert (told[-1].results, told[-1].questions) == (6, told[0].of_questions)
    expected = {key: value for key, value in answers(climbed).items() if key in answers(results)}
    assert answers(results) == expected
    assert len(expected) == 6


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    one_world = replace(SMALL, worlds=1, rungs=choose(["no-plan"]))
    run_ladder(one_world, folder=tmp_path, make_models=steady_models)
    more = replace(SMALL, worlds=2, rungs=choose(["no-plan", "plan"]))
    asked: list[ChatRequest] = []
    results = run_ladder(more, folder=tmp_path, make_models=SteadyTeacher(watch=asked.append).for_all)
    assert [(result.seed, result.rung) for result in results] == [
        (seed, name) for seed in (SEED, SEED + 1) for name in ("no-plan", "plan")
    ]
    first_world = [request for request in asked if request.question_id.startswith(f"world-{SEED}-")]
    assert any(request.purpose == "plan" for request in first_world)
    assert all("<plan>" in request.messages[1].content for request in first_world if request.purpose == "execute")
    assert run_ladder(more, folder=tmp_path, make_models=unreachable_after(0).for_all) == results


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"questions": 6}, "questions"),
        ({"shifted": True}, "shifted"),
        ({"weights": "another"}, "weights"),
        ({"model": preset.model_settings(max_tokens=200)}, "models.default.max_tokens"),
        ({"rungs": (replace(choose(["plan"])[0], line={"replan": "verdict"}),)}, "line.replan"),
    ],
)
def test_other_settings_are_refused_in_a_folder(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    small = replace(SMALL, worlds=1, rungs=choose(["plan"]))
    run_ladder(small, folder=tmp_path, make_models=steady_models)
    before = (tmp_path / RESULTS).read_bytes()
    with pytest.raises(ConfigError, match=named):
        run_ladder(replace(small, **change), folder=tmp_path, make_models=steady_models)
    assert (tmp_path / RESULTS).read_bytes() == before


def test_how_fast_a_model_is_served_is_no_other_setting(tmp_path: Path) -> None:
    small = replace(SMALL, worlds=1, rungs=choose(["plan"]))
    results = run_ladder(small, folder=tmp_path, make_models=steady_models)
    other = replace(small, model=preset.model_settings(batch=4, threads=2))
    assert run_ladder(other, folder=tmp_path, make_models=unreachable_after(0).for_all) == results


def test_one_process_writes_a_folder_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / RESULTS).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process"):
            run_ladder(PAIR, folder=tmp_path, make_models=steady_models)


@pytest.mark.parametrize("line", ["not JSON", "[]", '{"rung": "plan"}', "3"])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, line: str) -> None:
    small = replace(SMALL, worlds=1, rungs=choose(["plan"]))
    run_ladder(small, folder=tmp_path, make_models=steady_models)
    with (tmp_path / RESULTS).open("a") as file:
        file.write(line + "\n")
    before = (tmp_path / RESULTS).read_bytes()
    with pytest.raises(RecordError, match="line 3"):
        run_ladder(small, folder=tmp_path, make_models=steady_models)
    assert (tmp_path / RESULTS).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        run_ladder(PAIR, folder=tmp_path / "file", make_models=steady_models)


def test_a_digest_tells_weights_apart(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = digest(tmp_path)
    assert digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert digest(tmp_path) != first
    with pytest.raises(ConfigError, match="cannot read the model"):
        digest(tmp_path / "nowhere")


# ── what it comes to ──────────────────────────────────────────────────────────────────────────────────────────────


def answered(correct: bool, *, hops: int = 1, via: bool = False) -> Answered:
    return Answered(
        correct=correct,
        hops=hops,
        via=via,
        executor_calls=2,
        searches=1,
        prompt_tokens=100,
        completion_tokens=10,
        replans=0,
        unreadable=1,
        failures=0,
        stop="answered",
        seconds=0.5,
    )


def made(streams: dict[str, list[list[bool]]]) -> Report:
    """A report of rungs whose answers are these, by world."""
    worlds = len(next(iter(streams.values())))
    length = len(next(iter(streams.values()))[0])
    ladder = LadderSettings(worlds=worlds, questions=length, rungs=choose(streams))
    return report(
        ladder,
        [
            Result(
                rung=name,
                seed=seed,
                seconds=1.0,
                config={},
                questions=tuple(answered(right, hops=1 + place % 2, via=place == 0) for place, right in enumerate(one)),
            )
            for name, stream in streams.items()
            for seed, one in zip(ladder.seeds, stream, strict=True)
        ],
    )


def test_figures_of_a_ladder_computed_by_hand() -> None:
    found = made(
        {
            "no-plan": [[True, False, False, False], [False, False, False, False], [False, False, True, False]],
            "plan": [[True, True, False, False], [False, False, True, True], [True, True, True, True]],
        }
    )
    below, above = found.rows
    assert (below.accuracy, above.accuracy) == (
        Figure(*clustered([[0.25], [0.0], [0.25]])),  # type: ignore[misc]
        Figure(*clustered([[0.5], [0.5], [1.0]])),  # type: ignore[misc]
    )
    assert above.first_half == Figure(*clustered([[1.0], [0.0], [1.0]]))  # type: ignore[misc]
    (step,) = found.steps
    assert (step.rung, step.over) == ("plan", "no-plan")
    assert step.all == Figure(*paired([0.25, 0.0, 0.25], [0.5, 0.5, 1.0]))  # type: ignore[misc]
    assert step.second_half == Figure(*paired([0.0, 0.0, 0.5], [0.0, 1.0, 1.0]))  # type: ignore[misc]
    assert above.by_hops[2] == Figure(*clustered([[1, 0], [0, 1], [1, 1]]))  # type: ignore[misc]
    assert 3 not in above.by_hops
    assert above.with_via == Figure(*clustered([[1], [0], [1]]))  # type: ignore[misc]
    assert (above.searches, above.prompt_tokens, above.unreadable, above.stops) == (1, 100, 12, {"answered": 12})


@given(
    st.integers(1, 6).flatmap(
        lambda length: st.lists(
            st.tuples(*2 * [st.lists(st.booleans(), min_size=length, max_size=length)]), min_size=2, max_size=6
        )
    )
)
def test_a_step_is_the_difference_of_two_rungs_and_halves_make_the_whole(
    worlds: list[tuple[list[bool], list[bool]]],
) -> None:
    found = made({"no-plan": [one for one, _ in worlds], "plan": [other for _, other in worlds]})
    below, above = found.rows
    assert below.accuracy is not None
    assert above.accuracy is not None
    (step,) = found.steps
    assert step.all is not None
    assert step.all.value == pytest.approx(above.accuracy.value - below.accuracy.value)
    length = len(worlds[0][0])
    halves = [(above.first_half, length // 2), (above.second_half, length - length // 2)]
    whole = sum(figure.value * share for figure, share in halves if figure is not None) / length
    assert whole == pytest.approx(above.accuracy.value)
    json.dumps(found.as_dict(), allow_nan=False)
    assert markdown(found).count("\n| plan |") == 3


def test_one_world_has_figures_and_no_intervals() -> None:
    (row,) = made({"plan": [[True, False]]}).rows
    assert row.accuracy == Figure(0.5, None, None)


def test_the_report_lists_the_rungs_that_need_what_was_learnt(tmp_path: Path, climbed: tuple[Result, ...]) -> None:
    found = report(replace(SMALL, rungs=(*RUNGS, *VARIANTS)), climbed)
    write(found, tmp_path)
    page = json.loads((tmp_path / "ladder.json").read_text())
    learnt = [row for row in page["rungs"] if row["accuracy"] is None]
    assert [row["rung"] for row in learnt] == ["planner-rl", "ttl"]
    assert {step["over"] for step in page["steps"] if step["rung"] == "plan-memory-replan"} == {
        "plan-memory",
        "plan-replan",
        "no-plan-fair",
    }
    text = (tmp_path / "ladder.md").read_text()
    assert "| + Planner RL | – | – | – |" in text
    for table in tables(found):
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert f"## {table.title}\n" in text


@pytest.mark.parametrize("worlds", [1, 3])
def test_the_picture_is_a_png(tmp_path: Path, worlds: int) -> None:
    found = made({"no-plan": worlds * [[True, False]], "plan": worlds * [[True, True]]})
    path = draw(found, tmp_path / "ladder.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    with pytest.raises(StoreError, match="cannot write"):
        draw(found, tmp_path / "nowhere" / "ladder.png")


def test_without_matplotlib_the_picture_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"\[plots\]"):
        draw(made({"plan": [[True]]}), tmp_path / "ladder.png")


def test_the_page_names_every_rung_and_file() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ladder.md").read_text(encoding="utf-8")
    for name in (*(rung.name for rung in (*RUNGS, *VARIANTS)), RESULTS, "ladder.md", "ladder.json", "ladder.png"):
        assert f"`{name}`" in page
