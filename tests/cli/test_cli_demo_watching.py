"""Questions lived in front of somebody."""

from __future__ import annotations

import time

import pytest

from mia.cli import output
from mia.cli.demo.watching import show


def test_rows_come_one_by_one_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    output.console.cache_clear()
    show(["first", "second"], 0.5)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "first\nsecond\n")
    assert slept == [0.5, 0.5]
