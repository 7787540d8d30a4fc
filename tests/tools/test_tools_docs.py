"""The example in docs/tools.md runs offline and prints what the page says; the page names every tool and limit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mia.tools.addresses import WEB_PORTS
from mia.tools.fetch import FetchLimits, FetchTool
from mia.tools.images import ImageSearchTool
from mia.tools.lookup import LookupTool
from mia.tools.search import MAX_QUERIES, MAX_QUERY_CHARACTERS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "tools.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(code) == len(printed) == 1
    ran = subprocess.run(
        [sys.executable, "-c", code[0]], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert (ran.stdout, ran.stderr) == (printed[0], "")


def test_every_tool_has_a_section() -> None:
    for name in ("search", *(tool.schema.name for tool in (LookupTool, FetchTool, ImageSearchTool))):
        assert f"\n## {name}\n" in PAGE


def test_the_limits_are_those_of_the_code() -> None:
    limits = FetchLimits()
    for said in (
        f"Up to {MAX_QUERIES} queries of up to {MAX_QUERY_CHARACTERS} characters",
        f"{limits.bytes >> 20} MiB",
        f"{limits.connect_seconds:g} s; {limits.silent_seconds:g} s; {limits.seconds:g} s",
        f"| redirects | {limits.redirects} |",
        f"{limits.characters:,} characters",
    ):
        assert said in PAGE
    security = (DOCS / "security.md").read_text(encoding="utf-8")
    assert ", ".join(str(port) for port in sorted(WEB_PORTS)) in security
