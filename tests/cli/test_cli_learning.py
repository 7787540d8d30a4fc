"""`mia run --learn`: what it refuses before anything is asked, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import Program

from mia.cli.learning import rows

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"


@pytest.fixture
def questions(program: Program) -> Path:
    """Six questions, in the folder of the program."""
    path = Path("questions.jsonl")
    lines = [{"id": f"q{n}", "question": f"Who found moon {n}?", "answers": ["Huygens"]} for n in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def learn(questions: Path, endpoint: str, *more: str) -> tuple[str | Path, ...]:
    return ("run", questions, "--corpus", DOCS, "--base-url", endpoint, "--model", "slow", "--learn", *more)


@pytest.mark.parametrize(
    ("canary", "options", "said"),
    [
        (16, (), "learn.canary = 1"),
        (2, (), "does not run in this process"),
        (2, ("--unsupervised", "--judge", "reference"), "--judge peer"),
        (2, ("--frozen",), "the memory is frozen"),
        (2, ("--into", "memory", "--no-memory"), "there is no memory"),
        (2, ("--into", "memory", "--no-plan"), "line.plan = true"),
        (2, ("--into", "memory", "--replan", "never"), 'line.replan = "reflect"'),
        (2, ("--into", "everything"), "learn.into"),
        (2, ("--samples", "0"), "samples"),
    ],
)
def test_what_cannot_learn_is_refused_and_leaves_no_folder(
    program: Program, questions: Path, endpoint: str, canary: int, options: tuple[str, ...], said: str
) -> None:
    Path("mia.toml").write_text(f"[learn]\ncanary = {canary}\n")
    ended = program(*learn(questions, endpoint, *options))
    assert (ended.code, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not Path("runs").exists()


def test_what_was_learnt_is_told() -> None:
    page = {
        "version": "",
        "questions": 4,
        "held_out": 2,
        "tries": 16,
        "dropped": 1,
        "updates": 1,
        "versions_kept": 0,
        "waiting": 3,
        "correct_by_epoch": [[1, 4], [2, 4]],
    }
    told = dict(rows(page))
    assert told["learnt from"] == "4 questions, 16 tries (1 gave no sample)"
    assert told["answers now"] == "the model as it came"
    assert told["correct, pass by pass"] == "1 of 4, 2 of 4"
    assert told["waits to be learnt"] == "3 questions"
    assert "correct, pass by pass" not in dict(rows({**page, "correct_by_epoch": [[1, 4]]}))
