"""docs/world.md says what the world does and what its room measures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mia.statistics import Interval
from mia.world.facts import World
from mia.world.language import RELATION, SOURCES, TYPES, read_query, read_question
from mia.world.questions import HOP_WEIGHTS
from mia.world.room import RUNGS, Row, room
from mia.world.seeds import SPLITS

PAGE = (Path(__file__).parents[2] / "docs" / "world.md").read_text(encoding="utf-8")


def test_the_page_names_what_there_is() -> None:
    assert ", ".join(SOURCES) in PAGE
    assert ", ".join(TYPES) in PAGE
    assert f"{len(RELATION)} relations" in PAGE
    for seeds in SPLITS.values():
        assert f"| {seeds.start} to {seeds.stop - 1} |" in PAGE
    first, second, third, last = (round(100 * weight) for weight in HOP_WEIGHTS)
    assert f"({first}, {second}, {third} and {last} in a hundred)" in PAGE
    assert read_query(re.findall(r'"(birthplace of [^"]+ in [^"]+)"', PAGE)[0])
    assert read_question(re.findall(r'mia ask "([^"]+)"', PAGE)[0])


def test_every_rung_has_its_line() -> None:
    for rung in RUNGS:
        assert f"\n| {_named(rung.name, rung.control)} | " in PAGE
        assert rung.control or f"\n- **{rung.name}** " in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("shifted", [False, True])
def test_the_figures_are_those_that_are_measured(shifted: bool) -> None:
    lines = {line.split(" | ")[0][2:]: line for line in PAGE.splitlines() if line.startswith("| ")}
    for row in room([World.make(seed, shifted=shifted) for seed in range(600_000, 600_024)], 60):
        assert _spread(row.interval) in lines[_named(row.rung.name, row.rung.control)]
        for number, (name, step) in enumerate(row.steps.items()):
            beside = number == 0 and not row.rung.control
            line = lines[row.rung.name if beside else f"{row.rung.name} over {name}"]
            assert _spread(step, "+") in line
        assert _halves(row) in lines[_named(row.rung.name, row.rung.control)]


def _named(name: str, control: bool) -> str:
    return f"*{name}*" if control else name


def _halves(row: Row) -> str:
    first, second = row.halves
    return f"{100 * first:.0f} → {100 * second:.0f}"


def _spread(interval: Interval | None, sign: str = "") -> str:
    assert interval is not None
    return f"{100 * interval.estimate:{sign}.1f} ± {100 * (interval.high - interval.estimate):.1f}"
