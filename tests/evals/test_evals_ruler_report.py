"""Tables and picture, from results whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mia.evals.ruler.plot import draw
from mia.evals.ruler.report import Cell, band_of, markdown, report, short, tables, write
from mia.evals.ruler.results import Result
from mia.statistics import clustered, wilson
from mia.types import Usage


def result(
    task: str, length: int, number: int, hits: tuple[float, ...], depths: tuple[float, ...] = (), **more: object
) -> Result:
    page = {
        "task": task,
        "length": length,
        "number": number,
        "tokens": length + 3,
        "references": ("x",),
        "answer": "x",
        "score": sum(hits) / len(hits),
        "depths": depths,
        "hits": hits if depths else (),
        "usage": Usage(calls=2, prompt_tokens=10 * length, completion_tokens=5),
        "seconds": 1.0,
    }
    return Result.model_validate({**page, **more})


RESULTS = [
    *(result("single", 8192, number, (float(number < 9),), (number / 10,)) for number in range(10)),
    *(result("single", 16384, number, (float(number < 5),), (number / 10,)) for number in range(10)),
    result("multi", 8192, 0, (1.0, 0.0, 1.0, 0.0), (0.0, 0.05, 0.5, 1.0)),
    result("multi", 8192, 1, (1.0, 1.0, 1.0, 1.0), (0.1, 0.3, 0.5, 0.99), failure="ContextOverflow"),
    result("counting", 8192, 0, (1.0, 0.0)),
]


def test_intervals() -> None:
    assert Cell.of([]) is None
    cell = Cell.of([1.0] * 9 + [0.0])
    assert cell is not None
    assert (cell.accuracy, cell.low, cell.high) == wilson(9, 10)
    fractions = Cell.of([0.5, 1.0, 0.75])
    assert fractions is not None
    expected = clustered([[0.5], [1.0], [0.75]])
    assert expected is not None
    assert (fractions.accuracy, fractions.low) == (expected.estimate, expected.low)
    assert fractions.high == 1.0  # The t interval reaches above it.
    assert Cell.of([0.5]) == Cell(0.5, None, None, 1)


def test_by_length() -> None:
    found = report(RESULTS)
    assert found.lengths == (8192, 16384)
    rows = {row.name: row.by_length for row in found.rows}
    assert list(rows) == ["single", "multi", "counting", "all"]
    assert rows["single"][8192].accuracy == pytest.approx(0.9)
    assert rows["multi"][8192].accuracy == pytest.approx(0.75)
    assert 16384 not in rows["multi"]
    assert rows["all"][8192].accuracy == pytest.approx((9 + 1.5 + 0.5) / 13)
    assert rows["all"][8192].items == 13


def test_by_depth() -> None:
    assert [band_of(depth) for depth in (0.0, 0.199, 0.2, 0.99, 1.0)] == [0, 0, 1, 4, 4]
    bands = report(RESULTS).by_depth
    assert [row.name for row in bands] == ["0–20 %", "20–40 %", "40–60 %", "60–80 %", "80–100 %"]
    # single: depths 0.0 and 0.1; the two places of one multi item count as one, of 1/2; the other multi's place.
    assert bands[0].by_length[8192].accuracy == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    # single: 0.8 right, 0.9 wrong; multi: 1.0 wrong, 0.99 right.
    assert bands[4].by_length[8192].accuracy == pytest.approx(2 / 4)
    assert bands[4].by_length[16384].accuracy == 0.0
    assert report([RESULTS[-1]]).by_depth == ()


def test_as_text_and_json(tmp_path: Path) -> None:
    found = report(RESULTS, settings={"method": "reader", "seed": 0})
    text = markdown(found)
    assert "| task | 8K | 16K |" in text
    assert "| single | 90.0 (60–98) | 50.0 (24–76) |" in text
    assert "| counting | 50.0 | – |" in text
    assert "ContextOverflow 1" in text
    assert "Measured with method reader, seed 0." in text
    for table in tables(found):
        assert all(len(row) == len(table.columns) for row in table.rows)
    write(found, tmp_path)
    page = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert page["tasks"][0]["by_length"]["8192"]["items"] == 10
    assert page["costs"][0]["calls"] == 2
    assert (tmp_path / "report.md").read_text(encoding="utf-8").strip() == text.strip()


def test_lengths_are_short() -> None:
    assert [short(length) for length in (50, 1000, 1024, 8192, 524_288, 1 << 20, 3_500_000)] == [
        "50",
        "1,000",
        "1K",
        "8K",
        "512K",
        "1M",
        "3,500,000",
    ]


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = draw(report(RESULTS), tmp_path / "report.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
    assert draw(report([RESULTS[-1]]), tmp_path / "one.png").exists()
