"""The example in docs/judges.md runs offline and prints what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(code) == len(printed) == 1
    ran = subprocess.run([sys.executable, "-c", code[0]], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.stderr) == (printed[0], "")
