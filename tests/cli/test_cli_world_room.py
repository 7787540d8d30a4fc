"""`mia world room`: the table of symbolic planners, for people and for programs."""

from __future__ import annotations

import json

import pytest
from program import Program

from mia.world.facts import World
from mia.world.room import RUNGS, room


def test_a_line_for_each_planner_and_each_comparison(program: Program) -> None:
    ended = program("world", "room", "--worlds", "3", "--questions", "8", "--first-seed", "500000")
    assert ended.code == 0
    assert "█" not in ended.stdout
    lines = [line.rstrip() for line in ended.stdout.splitlines()]
    assert lines[0].split() == ["planner", "accuracy", "step", "halves", "searches"]
    rows = room([World.make(seed) for seed in range(500_000, 500_003)], 8)
    for row in rows:
        (line,) = [line for line in lines if line.startswith(f"{row.rung.name}  ")]
        assert f" {100 * row.accuracy:.1f} ± " in line
        assert line.endswith(f"{row.searches:.1f}")
    comparisons = sum(len(rung.over) for rung in RUNGS)
    inline = sum(bool(rung.over) for rung in RUNGS if not rung.control)
    assert sum(line.startswith("  over ") for line in lines) == comparisons - inline
    assert "controls" in lines


def test_a_terminal_has_bars_where_there_is_room(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from mia.cli import output

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for columns, bars in (("120", True), ("80", False)):
        monkeypatch.setenv("COLUMNS", columns)
        output.result_console.cache_clear()
        ended = program("world", "room", "--worlds", "2", "--questions", "4")
        assert ("█" in ended.stdout) is bars
    output.result_console.cache_clear()


def test_json(program: Program) -> None:
    arguments = ("--worlds", "2", "--questions", "6", "--first-seed", "600010", "--shifted", "--json")
    page = json.loads(program("world", "room", *arguments).stdout)
    assert {name: page[name] for name in page if name != "rows"} == {
        "worlds": 2,
        "first_seed": 600_010,
        "questions": 6,
        "shifted": True,
    }
    rows = room([World.make(seed, shifted=True) for seed in (600_010, 600_011)], 6)
    assert [row["name"] for row in page["rows"]] == [rung.name for rung in RUNGS]
    for said, row in zip(page["rows"], rows, strict=True):
        assert said["accuracy"] == row.accuracy
        assert said["by_world"] == list(row.by_world)
        assert said["steps"].keys() == set(row.rung.over)
        assert all(
            step["estimate_95"][0] <= step["estimate"] <= step["estimate_95"][1] for step in said["steps"].values()
        )


def test_a_single_world_has_figures_and_no_intervals(program: Program) -> None:
    ended = program("world", "room", "--worlds", "1", "--questions", "2")
    assert ended.code == 0
    assert "±" not in ended.stdout


def test_worlds_beyond_the_last_are_refused(program: Program) -> None:
    ended = program("world", "room", "--first-seed", "999990")
    assert (ended.code, ended.stdout) == (2, "")
    assert "there is no world 1000013" in ended.stderr
