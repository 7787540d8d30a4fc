"""The example in docs/reader.md runs offline and prints what the page says; its numbers are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mia.config import ReaderSettings
from mia.models.scripted import ScriptedModel
from mia.reader.read import CUT_MARK, Reader
from mia.search.documents import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "reader.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_says() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(code) == len(printed) == 1
    ran = subprocess.run([sys.executable, "-c", code[0]], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.stderr) == (printed[0], "")


def test_the_numbers_are_those_of_the_code() -> None:
    settings, limits = ReaderSettings(), Limits()
    for said in (
        f"`reader.chunk_tokens` ({settings.chunk_tokens})",
        f"`reader.memory_tokens` ({settings.memory_tokens})",
        f"`reader.tool_tokens` ({settings.tool_tokens:,})",
        f"{limits.file_bytes >> 20} MiB; {limits.page.html_characters // 10**6} million characters",
        f"{limits.page.pdf_pages:,} pages or {limits.page.pdf_seconds:g} s",
        f"{limits.line_bytes >> 20} MiB a line",
        f"`{CUT_MARK.strip()}`",
        *(f"`{name}`" for name in ("max_tokens", "reply_tokens")),
    ):
        assert said in PAGE
    total = re.search(r"prompt (\d+) \+ memory", PAGE)
    assert total is not None
    reader = Reader(ScriptedModel(lambda request: "", context_window=int(total.group(1)) + 1024 + 5000 + 1024))
    reader.check_window("Who lit the lamp?")
