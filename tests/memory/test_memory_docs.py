"""docs/memory.md does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mia.cli import memory

PAGE = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_example_runs_offline(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '<memory judgement="correct">' in done.stdout
    assert "'value': 0.5" in done.stdout
    assert done.stdout.rstrip().endswith("2 Who discovered Saturn's largest moon?")


def test_the_page_names_every_command() -> None:
    named = set(re.findall(r"^mia memory (\w+)", PAGE, re.MULTILINE))
    assert named == {
        command.name or command.callback.__name__ for command in memory.app.registered_commands if command.callback
    }
