"""The offline example of docs/ruler.md does what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mia.evals.ruler import suite

PAGE = (Path(__file__).parents[2] / "docs" / "ruler.md").read_text(encoding="utf-8")


def test_the_example(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    reader, direct = re.findall(r"\| niah_single_2 \| (.*) \|", ended.stdout)
    assert reader == "100.0 (57–100) | 100.0 (57–100) | 100.0 (57–100)"
    assert direct == "100.0 (57–100) | 0.0 (0–43) | 0.0 (0–43)"
    for cells in re.findall(r"^niah_single_2 +(.*)$", PAGE, re.MULTILINE):
        assert re.sub(r" {2,}", " | ", cells) in (reader, direct)


def test_every_task_is_told_of() -> None:
    told = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE))
    assert told == set(suite.MAKERS) - {"hotpotqa"}
