"""docs/memory-exchange.md does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mia.memory.exchange.pages import read_page, write_page

PAGE = (Path(__file__).parents[2] / "docs" / "memory-exchange.md").read_text(encoding="utf-8")


def test_the_example_runs_offline(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('1 new from openai\n1. search ("Titan moon"')
    assert [path.suffix for path in (tmp_path / "notes").iterdir()] == [".md"]


def test_the_page_shown_is_a_page_as_it_is_written() -> None:
    (shown,) = re.findall(r"```\n(---\n.*?)```", PAGE, re.DOTALL)
    assert write_page(read_page(shown.encode()).memory) == shown
