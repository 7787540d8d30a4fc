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
    reader, direct = re.findall(r"```markdown\n(.*?)```", PAGE, re.DOTALL)
    printed = _untimed(ended.stdout)
    first = printed.index("# Accuracy over long texts", 1)
    assert printed[:first].strip() == _untimed(reader).strip()
    assert direct.strip() in printed[first:]


def _untimed(report: str) -> str:
    """Without the seconds, which are the machine's."""
    return re.sub(r"\d+\.\d\d( \| [^|]+ \|)$", r"…\1", report, flags=re.MULTILINE)


def test_every_task_is_told_of() -> None:
    told = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE))
    assert told == set(suite.MAKERS) - {"hotpotqa"}
