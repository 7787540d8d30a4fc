"""`mia run`: a table or JSON on stdout, exit statuses, and a folder that mistakes leave free."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from program import Program

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"


@pytest.fixture
def questions(program: Program) -> Path:
    """Six questions, in the folder of the program."""
    path = Path("questions.jsonl")
    lines = [{"id": f"q{n}", "question": f"Who found moon {n}?", "answers": ["Huygens"]} for n in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def ask(questions: Path, endpoint: str, *more: str) -> tuple[str | Path, ...]:
    return ("run", questions, "--corpus", DOCS, "--base-url", endpoint, "--model", "slow", *more)


def test_a_run_prints_its_table_and_json_prints_nothing_else(program: Program, questions: Path, endpoint: str) -> None:
    ended = program(*ask(questions, endpoint, "--limit", "2"))
    assert ended.code == 0
    assert "2 of 2 answered" in ended.stdout
    assert "2 of 2: 100.0%" in ended.stdout
    assert "for remembering" in ended.stdout
    assert "episodes.jsonl" in ended.stderr
    assert len(Path("runs/questions/episodes.jsonl").read_text().splitlines()) == 2
    ended = program(*ask(questions, endpoint, "--limit", "2", "--resume", "--json"))
    page = json.loads(ended.stdout)
    assert (ended.code, page["answered"], page["correct"], page["unanswered"]) == (0, 2, 2, {})
    assert "2 of 2 questions are answered already" in ended.stderr


def test_misuse_exits_with_2(program: Program, questions: Path, endpoint: str) -> None:
    assert program(*ask(questions, endpoint, "--limit", "0")).code == 2
    assert program(*ask(Path("gone.jsonl"), endpoint)).code == 2
    Path("broken.jsonl").write_text('{"question": "a", "id": true}\n')
    broken = program(*ask(Path("broken.jsonl"), endpoint))
    assert (broken.code, broken.stdout) == (2, "")
    assert "line 1: its 'id'" in broken.stderr
    assert program(*ask(questions, endpoint, "--limit", "1")).code == 0
    taken = program(*ask(questions, endpoint, "--limit", "1"))
    assert (taken.code, taken.stdout) == (2, "")
    assert "add --resume" in taken.stderr


def test_a_first_mistake_leaves_the_folder_free(program: Program, questions: Path, endpoint: str) -> None:
    nameless = program("run", questions, "--corpus", DOCS)
    assert (nameless.code, nameless.stdout) == (2, "")
    assert "no model is named" in nameless.stderr
    hint = nameless.stderr.splitlines()[-1].removeprefix("  Try: ")
    assert shlex.split(hint)[:5] == ["mia", "run", str(questions), "--corpus", str(DOCS)]
    assert " --model " in hint
    assert not Path("runs").exists()
    Path("mia.toml").write_text("[models.default]\nmax_attempts = 1\n")
    silent = program("run", questions, "--corpus", DOCS, "--base-url", "http://127.0.0.1:9/v1", "--model", "gone")
    assert silent.code == 1
    assert program(*ask(questions, endpoint)).code == 0


def test_what_could_not_be_asked_is_named_and_exits_with_1(program: Program, questions: Path) -> None:
    Path("mia.toml").write_text("[models.default]\nmax_attempts = 1\n")
    ended = program(*ask(questions, "http://127.0.0.1:9/v1", "--concurrency", "1", "--json"))
    page = json.loads(ended.stdout)
    assert ended.code == 1
    assert "in a row could not be asked" in page["stopped"]
    assert list(page["unanswered"]) == ["q0", "q1", "q2"]
    assert page["unfinished"]["calls"] == page["calls"] > 0


def test_a_recording_must_fit(program: Program, questions: Path, endpoint: str) -> None:
    recording = Path("rec.jsonl")
    # Without memory, since what is recalled depends on which question ends first.
    recorded = ask(questions, endpoint, "--no-memory", "--record", str(recording), "--out", "a")
    assert program(*recorded).code == 0
    replay = ("run", questions, "--corpus", DOCS, "--no-memory", "--replay", recording, "--out")
    assert program(*replay, "b").code == 0

    lines = [json.loads(line) for line in recording.read_text().splitlines()]
    more = {**lines[-1], "question_id": "q2", "turn": 7}
    recording.write_text("".join(json.dumps(line) + "\n" for line in [*lines, more]))
    ended = program(*replay, "c")
    assert ended.code == 1
    assert "6 of 6 answered" in ended.stdout
    assert "1 recorded calls were not asked for" in ended.stderr
    assert program(*replay, "c", "--resume").code == 0  # Nothing was asked, so nothing is missing.

    gap = [line for line in lines if (line.get("question_id"), line.get("purpose")) != ("q3", "reflect")]
    recording.write_text("".join(json.dumps(line) + "\n" for line in gap))
    ended = program(*replay, "d", "--concurrency", "1")
    assert (ended.code, ended.stdout) == (1, "")
    assert "the recording has no call q3 · planner/reflect turn 0" in ended.stderr
    answered = [json.loads(line)["question"]["id"] for line in Path("d/episodes.jsonl").read_text().splitlines()]
    assert answered == ["q0", "q1", "q2"]
