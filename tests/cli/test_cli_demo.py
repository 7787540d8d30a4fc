"""`mia demo`: which demonstration it chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Program

from mia.cli import embedded

RECORDED = "Recorded: every word of the models below was written by hand, and is replayed."


def test_the_recording_is_played_where_it_is_asked_for(program: Program) -> None:
    ended = program("demo", "--recorded")
    assert ended.code == 0
    assert ended.stderr.splitlines()[0] == RECORDED
    assert "9 of 10" in ended.stdout
    # In the home of the working folder, unless told otherwise.
    assert Path(".mia/demo/memory.db").is_file()


def test_without_the_library_one_line_says_why_a_recording_follows(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_LIBRARIES", ("json", "no_such_library"))
    ended = program("--home", "elsewhere", "demo")
    assert ended.code == 0
    why, first, *_ = ended.stderr.splitlines()
    assert "'no_such_library'" in why
    assert "[local]" in why
    assert first == RECORDED
    assert Path("elsewhere/demo/memory.db").is_file()
    # Whoever asked for the recording is told nothing about what he did not ask for.
    assert program("demo", "--recorded").stderr.splitlines()[0] == RECORDED
