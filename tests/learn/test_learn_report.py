"""The report of a training says what it brought, and says so too where it brought nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mia.errors import LearnError, MissingExtra
from mia.learn.report import draw, in_short, write_report
from mia.learn.stages import Held, StageResult

BEFORE = Held(0, {"500000": [1.0, 0.0], "500001": [0.0, 0.0]})
BETTER = Held(5, {"500000": [1.0, 1.0], "500001": [1.0, 0.0]})
WORSE = Held(5, {"500000": [0.0, 0.0], "500001": [0.0, 0.0]})


def result(folder: Path, *exams: Held, best: int, ended_early: bool = False) -> StageResult:
    return StageResult("planner", folder / "adapter", 5, best, exams, 120.0, ended_early)


def row(step: int, **others: Any) -> dict[str, Any]:
    return {
        "step": step,
        "reward": step / 10,
        "accuracy": 0.25,
        "replans": 0.5,
        "parts": {"final": step / 5},
        "rollouts": 16,
        "dropped": {"all rewards equal": 4},
        "seconds": 2.0,
        "divergence": 0.01,
        "entropy": 0.3,
        "gradient_norm": 0.2,
    } | others


def test_a_gain_is_told_in_pairs_and_with_intervals(tmp_path: Path) -> None:
    said = in_short(result(tmp_path, BEFORE, BETTER, best=5))
    # Worlds: 0.5 and 0 before, 1 and 0.5 after; both gained 0.5.
    assert said.startswith("planner: 25.0 % (")
    assert ", 75.0 % (" in said
    assert said.endswith("after 5 steps; in pairs +50.0 (+50.0 to +50.0) points.")


def test_a_training_that_brought_nothing_says_so(tmp_path: Path) -> None:
    assert "brought nothing" in in_short(result(tmp_path, BEFORE, WORSE, best=0))
    assert "no exam was held" in in_short(result(tmp_path, best=5))


def test_the_report_holds_exams_steps_what_was_dropped_and_the_settings(tmp_path: Path) -> None:
    page = {"stage": "planner", "learn": {"rate": 0.001, "reward": "a|b"}, "source": {"ids": ["a", "b"]}}
    path = write_report(
        tmp_path,
        result(tmp_path, BEFORE, BETTER, best=5, ended_early=True),
        [row(step) for step in range(1, 6)],
        page,
        "mia learn planner --out here",
    )
    text = path.read_text(encoding="utf-8")
    for line in (
        "# Training of the Planner",
        "mia learn planner --out here",
        "| 5 | 75.0 % ",
        "| +50.0 (+50.0 to +50.0) | kept |",
        "The training ended early",
        "| reward | 0.300 | 0.300 |",
        "| reward: final | 0.600 | 0.600 |",
        "80 rollouts got a reward.",
        "Nothing was learnt from: all rewards equal: 20.",
        "| learn.rate | 0.001 |",
        "| learn.reward | a\\|b |",
        "| source.ids | 2 of them |",
        "flatters a little",
    ):
        assert line in text, line
    assert list(tmp_path.iterdir()) == [path]


def test_first_and_last_steps_are_told_apart(tmp_path: Path) -> None:
    rows = [row(step, reward=0.0 if step <= 10 else 1.0) for step in range(1, 21)]
    rows[0]["reward"] = None
    path = write_report(tmp_path, result(tmp_path, best=5), rows, {}, "mia")
    text = path.read_text(encoding="utf-8")
    assert "| reward | 0.000 | 1.000 |" in text
    assert "## Exams" not in text


def test_the_curves_are_a_picture_with_and_without_exams(tmp_path: Path) -> None:
    rows = [row(step) for step in range(1, 4)]
    rows[1]["reward"] = None
    for exams in ([BEFORE, BETTER], [Held(0, {"1": [1.0]})], []):
        path = draw(rows, exams, tmp_path / "curves.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5_000


def test_steps_without_a_learner_are_drawn_too(tmp_path: Path) -> None:
    bare = {"step": 1, "reward": None, "accuracy": None}
    assert draw([bare], [], tmp_path / "curves.png").is_file()


def test_nothing_to_draw_is_named(tmp_path: Path) -> None:
    with pytest.raises(LearnError, match="no steps to draw"):
        draw([], [BEFORE], tmp_path / "curves.png")


def test_without_matplotlib_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match="matplotlib"):
        draw([row(1)], [], tmp_path / "curves.png")
