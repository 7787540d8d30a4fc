"""The real program in this process: what it prints where, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import Ended, Program

from mia.cli import main

SERVER = Path(__file__).parents[1] / "stories" / "slow_endpoint.py"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """`mia …` in a folder of its own, through the door that turns errors into exits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIA_SEARCH__VECTORS", "off")
    monkeypatch.setenv("MIA_MEMORY__EMBEDDER", "hashing")

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mia", *map(str, arguments)])
        code = 0
        try:
            main.main()
        except SystemExit as left:
            code = int(left.code or 0)
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A chat endpoint on loopback that plans, searches once and answers "Huygens"."""
    with subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.terminate()
