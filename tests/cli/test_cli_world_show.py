"""`mia world show`: a world counted, and questions that can be asked in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import Program

from mia.config import WORLD_SEED
from mia.evals.tasks import read_tasks
from mia.world.facts import World
from mia.world.questions import tasks


def test_the_world_that_is_asked_by_default(program: Program) -> None:
    ended = program("world", "show")
    assert ended.code == 0
    world, stream = World.make(WORLD_SEED), tasks(World.make(WORLD_SEED), 10)
    lines = ended.stdout.splitlines()
    assert lines[0] == f"world       {WORLD_SEED}, a world of the split 'demonstration'"
    for relation, kept in world.keeping.items():
        (row,) = [line.replace("*", "") for line in lines if line.startswith(f"{relation} ")]
        assert row.split()[4:] == [kept.source, kept.patchy, *([kept.via] if kept.via else [])]
    assert lines[-10:] == [
        f"{number:>3}  {task.question.text}  {task.references[0]}" for number, task in enumerate(stream, start=1)
    ]
    assert ended.stderr.strip() == f'To ask: mia ask "{stream[0].question.text}"'


def test_another_world_says_how_to_ask_in_it(program: Program) -> None:
    ended = program("world", "show", "--seed", "600000", "--questions", "3")
    assert ended.stdout.startswith("world       600000, a world of the split 'test'")
    assert ended.stderr.startswith('To ask: MIA_SEARCH__WORLD=600000 mia ask "')
    shifted = program("world", "show", "--seed", "600000", "--questions", "0", "--shifted")
    assert "a shifted world" in shifted.stdout
    assert "questions" not in shifted.stdout
    assert shifted.stderr == ""


def test_the_configured_world_is_shown(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIA_SEARCH__WORLD", "600007")
    ended = program("world", "show", "--questions", "1")
    assert ended.stdout.startswith("world       600007,")
    assert ended.stderr.startswith('To ask: mia ask "')


def test_json(program: Program) -> None:
    ended = program("world", "show", "--seed", "600001", "--questions", "5", "--json")
    page = json.loads(ended.stdout)
    world = World.make(600_001)
    assert (page["seed"], page["split"], page["shifted"], page["questions"]) == (600_001, "test", False, 5)
    assert page["keeping"] == {
        relation: {"source": kept.source, "patchy": kept.patchy, "via": kept.via}
        for relation, kept in world.keeping.items()
    }
    assert page["stream"] == [
        {"question": task.question.text, "answer": task.references[0]} for task in tasks(world, 5)
    ]
    assert sum(page["documents"].values()) == len(world.documents)


def test_a_seed_that_makes_no_world_is_refused(program: Program) -> None:
    ended = program("world", "show", "--seed", "1000000")
    assert (ended.code, ended.stdout) == (2, "")
    assert "there is no world 1000000" in ended.stderr


def test_questions_are_written_for_a_run_and_over_no_file(program: Program) -> None:
    ended = program("world", "show", "--seed", "7", "--questions", "3", "--out", "my questions.jsonl")
    assert ended.code == 0
    assert "MIA_SEARCH__WORLD=7 mia run 'my questions.jsonl'" in ended.stderr
    assert read_tasks(Path("my questions.jsonl")) == tasks(World.make(7), 3)
    again = program("world", "show", "--out", "my questions.jsonl")
    assert again.code == 2
    assert "not there yet" in again.stderr
    assert len(read_tasks(Path("my questions.jsonl"))) == 3
