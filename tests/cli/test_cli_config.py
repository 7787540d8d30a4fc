"""`mia config`: a page that can be kept as mia.toml and says the same again."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from program import Program


def test_the_page_can_be_kept_and_says_the_same_again(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIA_EXECUTOR__MAX_CALLS", "7")
    monkeypatch.setenv("MIA_MODELS__DEFAULT__API_KEY", "a-secret-key")
    page = program("config")
    assert (page.code, page.stderr) == (0, "")
    assert tomllib.loads(page.stdout)["executor"]["max_calls"] == 7
    assert "a-secret-key" not in page.stdout
    monkeypatch.delenv("MIA_EXECUTOR__MAX_CALLS")
    Path("mia.toml").write_text(page.stdout)
    assert program("config").stdout == page.stdout
    assert json.loads(program("config", "--json").stdout)["executor"]["max_calls"] == 7


def test_a_wrong_page_exits_with_2(program: Program) -> None:
    Path("mia.toml").write_text("[executor]\nmax_cals = 7\n")
    ended = program("config")
    assert (ended.code, ended.stdout) == (2, "")
    assert "max_cals" in ended.stderr
    assert program("--config", "gone.toml", "config").code == 2
    assert program("config", "--nonsense").code == 2
