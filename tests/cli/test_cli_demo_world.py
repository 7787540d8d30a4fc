"""`mia demo`: the first questions of a world are told, three rungs are measured, and everything can be opened again.

A symbolic model plays the roles where only the telling matters; the embedded one where it is there.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from demo_stage import WORLD, teachers
from program import Program
from rich.console import Console

from mia.cli.demo import world as demo
from mia.cli.demo.folder import STREAMS
from mia.config import load_config
from mia.models.local import EMBEDDED
from mia.world.questions import tasks

SMALL = demo.Size(watched=3, worlds=2, questions=6)


def shown_in(home: Path, size: demo.Size = SMALL) -> demo.Shown:
    return asyncio.run(demo.demonstrate_with(teachers(), demo.prepare(home), size, pause=0.0))


def test_the_first_questions_are_told_live_and_none_is_picked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = shown_in(tmp_path)
    told = re.findall(r"^ (\d)  (.+)$", capsys.readouterr().err, re.MULTILINE)
    questions = [task.question.text for task in tasks(WORLD, 6)]
    assert told == [(str(number), text) for number, text in enumerate(questions[:3], start=1)]
    assert [played.episode.question.text for played in shown.watched] == questions[:3]


def test_the_table_goes_to_stdout_and_all_else_to_stderr(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mia.models.build_models", lambda settings: teachers())
    monkeypatch.setattr(demo, "FULL_SIZE", SMALL)
    monkeypatch.setenv("COLUMNS", "100")
    ended = program("demo", "--home", tmp_path)
    assert ended.code == 0
    first, *_ = ended.stderr.splitlines()
    assert first.startswith("A language model of about a million parameters")
    for word in ("recall", "plan", "search", "answer", "judge", "remember"):
        assert f"    {word} " in ended.stderr
    assert "say nothing about a large model" in ended.stderr
    rows = [line for line in ended.stdout.splitlines() if line.strip()]
    assert len(rows) == 1 + 1 + len(demo.RUNGS)  # head, rule, rungs
    assert "\x1b" not in ended.stdout + ended.stderr


def test_every_rung_is_measured_on_the_same_questions(tmp_path: Path) -> None:
    shown = shown_in(tmp_path)
    assert [row.rung.name for row in shown.rows] == list(demo.RUNGS)
    assert [[len(world) for world in row.correct] for row in shown.rows] == [[6, 6]] * 3
    # What was watched counts, and is not asked again.
    watched = [played.episode.verdict for played in shown.watched]
    assert list(shown.rows[-1].correct[0][:3]) == [verdict is not None and verdict.correct for verdict in watched]
    page = demo.page(shown)
    assert page["watched"]["final_correct"] == sum(shown.rows[-1].correct[0][:3])
    assert page["measured"]["worlds"] == [900_001, 900_002]
    for row, told in zip(shown.rows, page["measured"]["rungs"], strict=True):
        assert told["correct"] == [sum(world) for world in row.correct]
        assert told["accuracy_95"]["estimate"] == pytest.approx(sum(told["correct"]) / 12)
    first, *others = page["measured"]["rungs"]
    assert first["step_95"] is None
    for below, told in zip(page["measured"]["rungs"], others, strict=False):
        gained = told["accuracy_95"]["estimate"] - below["accuracy_95"]["estimate"]
        assert told["step_95"]["estimate"] == pytest.approx(gained)
    assert json.loads(json.dumps(page)) is not None


@pytest.mark.parametrize("width", [88, 120])
def test_the_table_fits_a_terminal(width: int, tmp_path: Path) -> None:
    shown = shown_in(tmp_path)
    console = Console(file=io.StringIO(), width=width)
    console.print(demo.table(shown.rows))
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    for row in shown.rows:
        assert row.accuracy is not None
        assert row.halves is not None
        first, second = (f"{100 * half:.0f}" for half in row.halves)
        (line,) = (line for line in lines if line.strip().startswith(f"{row.rung.title}  "))
        assert f"{100 * row.accuracy.estimate:.0f} (" in line
        assert f"{first} → {second}" in line


def test_every_episode_can_be_opened_with_what_the_farewell_says(tmp_path: Path, program: Program) -> None:
    home = tmp_path / "demo"
    shown = shown_in(home)
    farewell = Console(file=io.StringIO(), width=1000)
    for row in demo.farewell(shown):
        farewell.print(row, soft_wrap=True)
    assert isinstance(farewell.file, io.StringIO)
    said = farewell.file.getvalue()
    settings = home / "mia.toml"
    for command in ("show last", "memory list", "memory why last", "ask "):
        assert f"mia --config {settings} {command}" in said
    for command in (("show", "last"), ("memory", "why", "last")):
        assert tasks(WORLD, 6)[-1].question.text in program("--config", settings, *command).stdout
    for played in shown.watched:
        opened = json.loads(program("--config", settings, "show", played.episode.id, "--json").stdout)
        assert opened == played.episode.model_dump(mode="json")
    assert len(json.loads(program("--config", settings, "memory", "list", "--json").stdout)) == 6
    other = f"mia --home {home / STREAMS / '900002-plan-memory-replan'} show last"
    assert other in said
    assert program(*other.split()[1:]).stdout.startswith(f"# {tasks(shown.worlds[1], 6)[-1].question.text}")
    # A question that nobody asked yet.
    assert f'ask "{tasks(WORLD, 7)[-1].question.text}"' in said


def test_the_settings_are_fixed_whatever_the_machine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_they_are = demo.prepare(tmp_path)
    monkeypatch.setenv("MIA_MODELS__PLANNER__PROVIDER", "openai")
    monkeypatch.setenv("MIA_MEMORY__ENABLED", "false")
    monkeypatch.setenv("MIA_SEARCH__K", "9")
    assert demo.prepare(tmp_path) == as_they_are
    assert (as_they_are.search.engine, as_they_are.search.world) == ("world", 900_001)
    assert as_they_are.models.default.provider == "local"
    monkeypatch.undo()
    # The file for other commands says the same, but for what only the demonstration has: right answers.
    kept = load_config(tmp_path / "mia.toml")
    assert (kept.models, kept.search, kept.memory) == (as_they_are.models, as_they_are.search, as_they_are.memory)
    assert kept.judge.kind == "auto"


@pytest.mark.skipif(
    find_spec("torch") is None or not (EMBEDDED / "model.safetensors").exists(), reason="no torch, or no checkpoint"
)
def test_the_embedded_model_lives_through_it(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FULL_SIZE", demo.Size(watched=2, worlds=2, questions=3))
    home = tmp_path / "demo"
    ended = program("demo", "--home", home, "--json")
    assert ended.code == 0, ended.stderr
    page = json.loads(ended.stdout)
    assert sum(rung["failures"] for rung in page["measured"]["rungs"]) == 0
    assert page["watched"]["questions"] == 2
    assert any(attempt["answer"] for episode in page["watched"]["episodes"] for attempt in episode["attempts"])
    # The next question of the world, with what was learned, by the model as its own judge.
    question = tasks(WORLD, 4)[-1].question.text
    asked = program("--config", home / "mia.toml", "ask", question, "--json")
    assert asked.code == 0, asked.stderr
    episode = json.loads(asked.stdout)
    assert episode["recall"]["considered"] == 3
    assert episode["verdict"]["judge"] == "peer"
