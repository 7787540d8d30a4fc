"""Streams are lived in order and kept, and the rows of the table are what their episodes say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from demo_stage import WORLD, stream, teachers
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mia.cli.demo.folder import STREAMS
from mia.cli.demo.streams import Row, measure
from mia.cli.demo.world import table
from mia.evals.ladder import choose
from mia.store import open_store
from mia.world.facts import World
from mia.world.questions import tasks

RUNG, *_ = choose(["plan"])
WORLDS = st.integers(1, 4).flatmap(
    lambda half: st.lists(
        st.tuples(*[st.booleans()] * (2 * half)),  # type: ignore[arg-type]
        min_size=2,
        max_size=5,
    )
)


async def test_a_stream_goes_on_where_it_stood(tmp_path: Path) -> None:
    lived = stream(tmp_path)
    told: list[tuple[str, int, str]] = []
    try:
        await lived.live(
            2,
            on_question=lambda number, task: told.append(("asked", number, task.question.id)),
            on_played=lambda number, played: told.append(("played", number, played.episode.question.id)),
        )
        assert len(lived.episodes) == 2
        await lived.live()
    finally:
        await lived.close()
    names = [task.question.id for task in tasks(WORLD, 6)]
    assert told == [(what, number, names[number - 1]) for number in (1, 2) for what in ("asked", "played")]
    assert [episode.question.id for episode in lived.episodes] == names
    recalls = [episode.recall for episode in lived.episodes]
    # One workflow a question: each finds what those before it left.
    assert [recall and recall.considered for recall in recalls] == list(range(6))


async def test_without_memory_the_order_of_the_stream_is_kept_all_the_same(tmp_path: Path) -> None:
    lived = stream(tmp_path, "plan", questions=20)
    played: list[str] = []
    try:
        await lived.live(on_played=lambda number, one: played.append(one.episode.question.id))
    finally:
        await lived.close()
    names = [task.question.id for task in tasks(WORLD, 20)]
    assert [episode.question.id for episode in lived.episodes] == names
    # They were asked side by side.
    assert played != names
    assert sorted(played) == names
    assert all(episode.recall is None for episode in lived.episodes)


async def test_every_stream_is_measured_and_kept(tmp_path: Path) -> None:
    worlds = [WORLD, World.make(900_002)]
    rungs = choose(["plan", "plan-memory-replan"])
    told: list[str] = []
    begun = stream(tmp_path, questions=4)
    try:
        await begun.live(1)
        rows = await measure(
            rungs,
            worlds,
            4,
            tmp_path,
            teachers(),
            begun=begun,
            on_played=lambda number, played: told.append(played.episode.question.id),
        )
    finally:
        await begun.close()
    assert len(told) == 2 * 2 * 4 - 1
    assert [row.rung.name for row in rows] == ["plan", "plan-memory-replan"]
    for row in rows:
        for world, correct in zip(worlds, row.correct, strict=True):
            watched = world is WORLD and row.rung.remembers
            home = tmp_path if watched else tmp_path / STREAMS / f"{world.seed}-{row.rung.name}"
            with open_store(home / "memory.db", create=False) as store:
                kept = {episode.question.id: episode for episode in store.list_episodes(limit=100)}
            verdicts = [kept[task.question.id].verdict for task in tasks(world, 4)]
            assert correct == tuple(verdict is not None and verdict.correct for verdict in verdicts)
            assert all((episode.recall is not None) is row.rung.remembers for episode in kept.values())


@given(WORLDS)
def test_the_halves_are_two_halves_of_the_accuracy(correct: list[tuple[bool, ...]]) -> None:
    row = Row(RUNG, tuple(correct))
    assert row.accuracy is not None
    assert row.halves is not None
    assert sum(row.halves) / 2 == pytest.approx(row.accuracy.estimate)
    mirrored = Row(RUNG, tuple(world[::-1] for world in correct))
    assert mirrored.halves == row.halves[::-1]


def test_streams_of_one_question_have_no_halves() -> None:
    row = Row(RUNG, ((True,), (False,)))
    assert row.accuracy is not None
    assert row.halves is None
    console = Console(file=io.StringIO(), width=80)
    console.print(table([row]))
    assert isinstance(console.file, io.StringIO)
    assert "–" in console.file.getvalue()


@given(WORLDS)
def test_a_step_is_the_difference_of_two_rows(correct: list[tuple[bool, ...]]) -> None:
    row, nothing = Row(RUNG, tuple(correct)), Row(RUNG, tuple((False,) * len(world) for world in correct))
    step, back = row.step(nothing), nothing.step(row)
    assert step is not None
    assert back is not None
    assert step == row.accuracy
    assert back.estimate == pytest.approx(-step.estimate)


def test_one_world_has_no_interval() -> None:
    row = Row(RUNG, ((True, False),))
    assert row.accuracy is None
    assert row.step(row) is None
    assert row.halves == (1.0, 0.0)
