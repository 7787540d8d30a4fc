"""A run that is interrupted: Ctrl-C once, twice, kill -9 at any moment. No question is lost or answered twice.

Real processes, the real command, a real endpoint on loopback, a real index, memory and log.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"
SERVER = Path(__file__).with_name("slow_endpoint.py")
QUESTIONS = 40


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """An endpoint that answers every call after 20 ms, and counts the plans it was asked for."""
    with subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.terminate()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"id": f"q{n}", "question": f"Who found moon {n}?", "answers": ["Huygens"]} for n in range(QUESTIONS)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def start(folder: Path, questions: Path, endpoint: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mia.cli.main", "--home", str(folder / "home"), "run", str(questions)]
    command += ["--out", str(folder / "run"), "--corpus", str(DOCS), "--base-url", endpoint, "--model", "slow"]
    environment = {**os.environ, "MIA_SEARCH__VECTORS": "off", "MIA_MEMORY__EMBEDDER": "hashing"}
    return subprocess.Popen(
        [*command, "--concurrency", "4", *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answered(folder: Path) -> list[str]:
    path = folder / "run" / "episodes.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [json.loads(line)["question"]["id"] for line in whole]


def wait_for(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(answered(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(folder: Path, questions: Path, endpoint: str, *, resume: bool = True) -> None:
    """Let the run come to its end, and check that everything is there once."""
    process = start(folder, questions, endpoint, *(["--resume"] if resume else []))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert Counter(answered(folder)) == Counter(f"q{n}" for n in range(QUESTIONS))
    with sqlite3.connect(folder / "home" / "memory.db") as store:
        episodes = store.execute("SELECT COUNT(*), COUNT(DISTINCT question_id), SUM(absorbed) FROM episodes").fetchone()
    assert episodes == (QUESTIONS, QUESTIONS, QUESTIONS)


def test_ctrl_c_once_finishes_what_is_under_way(tmp_path: Path, questions: Path, endpoint: str) -> None:
    process = start(tmp_path, questions, endpoint)
    wait_for(tmp_path, 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Finishing the questions under way" in errors
    assert "--resume" in errors
    assert 5 <= len(answered(tmp_path)) < QUESTIONS
    finish(tmp_path, questions, endpoint)


def test_ctrl_c_twice_stops_now(tmp_path: Path, questions: Path, endpoint: str) -> None:
    process = start(tmp_path, questions, endpoint)
    wait_for(tmp_path, 5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (1, 130), errors
    assert time.monotonic() - begun < 5
    assert "Traceback" not in errors
    finish(tmp_path, questions, endpoint)


def test_kill_9_again_and_again_loses_nothing(tmp_path: Path, questions: Path, endpoint: str) -> None:
    chance = random.Random(20)
    before = 0
    for round_number in range(4):
        process = start(tmp_path, questions, endpoint, *(["--resume"] if round_number else []))
        wait_for(tmp_path, min(before + 3, QUESTIONS - 5))
        time.sleep(chance.random() * 0.3)
        process.kill()
        process.communicate()
        now = answered(tmp_path)
        assert len(now) >= before
        assert len(set(now)) == len(now)
        before = len(now)
    finish(tmp_path, questions, endpoint)


def test_a_resume_under_other_settings_names_them(tmp_path: Path, questions: Path, endpoint: str) -> None:
    process = start(tmp_path, questions, endpoint)
    process.communicate(timeout=60)
    process = start(tmp_path, questions, endpoint, "--resume", "--max-calls", "3")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "executor.max_calls" in errors
    process = start(tmp_path, questions, endpoint)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "add --resume" in errors


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, questions: Path, endpoint: str) -> None:
    first = start(tmp_path, questions, endpoint)
    wait_for(tmp_path, 2)
    second = start(tmp_path, questions, endpoint, "--resume")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "another process" in errors
    first.communicate(timeout=120)
    assert Counter(answered(tmp_path)) == Counter(f"q{n}" for n in range(QUESTIONS))
