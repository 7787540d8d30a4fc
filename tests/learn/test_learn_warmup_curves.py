"""The curves of a training are a picture; without matplotlib there are none, and it is said how to get it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mia.errors import LearnError, MissingExtra
from mia.learn.warmup.curves import draw
from mia.learn.warmup.steps import read_metrics

ROWS = [{"step": 20, "loss": 5.0, "rate": 0.1, "tokens": 100, "seconds": 1}]


def test_a_picture_is_drawn(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = draw(read_metrics(finished), tmp_path / "curves.png", chance=6.0)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size > 5_000


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match="matplotlib") as raised:
        draw(ROWS, tmp_path / "curves.png", chance=6.0)
    assert "[plots]" in raised.value.hint


def test_without_metrics_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(LearnError, match="no metrics"):
        draw([], tmp_path / "curves.png", chance=6.0)
