"""`mia show`: an episode from the store or from a run's file, as text or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from program import Program

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"


def test_what_was_asked_is_shown(program: Program, endpoint: str) -> None:
    asked = program("ask", "Who found Titan?", "--corpus", DOCS, "--base-url", endpoint, "--model", "slow", "--id", "q")
    assert asked.code == 0
    shown = program("show")
    assert (shown.code, shown.stderr) == (0, "")
    for part in ("# Who found Titan?", "## Plan", "1. Search for the moon.", "## Answer: Huygens", "## Spent"):
        assert part in shown.stdout
    page = json.loads(program("show", "last", "--json").stdout)
    assert page["question"]["id"] == "q"
    Path("episodes.jsonl").write_text(json.dumps(page) + "\n")
    assert program("show", "q", "--from", "episodes.jsonl").stdout == shown.stdout


def test_what_is_not_there_is_said_on_stderr(program: Program, endpoint: str) -> None:
    empty = program("show", "--json")
    assert (empty.code, empty.stdout) == (1, "")
    assert empty.stderr.startswith("Error: ")
    assert program("show", "--from", "gone.jsonl").code == 2
    Path("episodes.jsonl").write_text("{}\n")
    assert program("show", "--from", "episodes.jsonl").code == 2
