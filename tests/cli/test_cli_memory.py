"""`mia memory`: list, show, search, add."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mia.cli import memory
from mia.cli.options import Shared
from mia.errors import RecordError, StoreError

RHEA = ("--question", "Who found the moon Rhea?", "--workflow", "1. look (Rhea → Cassini)", "--judgement", "correct")
COMET = (
    "--question",
    "Which comet came in 1910?",
    "--workflow",
    "1. guess (→ \x1b[31mEncke)",
    "--judgement",
    "incorrect",
)


class Memory:
    """Runs `mia memory …` in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *arguments: str) -> Result:
        result = CliRunner().invoke(memory.app, arguments, obj=Shared(config_file=None, home=self.home))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


@pytest.fixture
def mia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setenv("MIA_MEMORY__EMBEDDER", "hashing")
    monkeypatch.chdir(tmp_path)
    return Memory(tmp_path / "home")


@pytest.mark.parametrize("command", [("list",), ("search", "moon")])
def test_an_empty_memory_says_so_kindly_and_makes_no_file(mia: Memory, command: tuple[str, ...]) -> None:
    result = mia(*command)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Nothing remembered yet" in result.stderr
    as_json = mia(*command, "--json")
    assert (json.loads(as_json.stdout), as_json.stderr) == ([], "")
    assert not mia.home.exists()


def test_added_listed_shown_and_found(mia: Memory) -> None:
    rhea = mia("add", *RHEA, "--plan", "1. Look.").stdout.strip()
    comet = json.loads(mia("add", *COMET, "--json").stdout)["id"]

    listed = mia("list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [comet, rhea]
    assert "won 1 of 1" in listed[0]
    first = mia("list", "-k", "1")
    assert len(first.stdout.splitlines()) == 1
    assert "1 of 2" in first.stderr
    assert [page["id"] for page in json.loads(mia("list", "--json").stdout)] == [comet, rhea]

    shown = mia("show", rhea).stdout
    for part in ("# Who found the moon Rhea?", "1. look (Rhea → Cassini)", "## Plan\n1. Look.", "by hand"):
        assert part in shown
    assert json.loads(mia("show", rhea, "--json").stdout)["replaced_by"] is None

    found = mia("search", "found Rhea").stdout.splitlines()
    assert [line.split()[1] for line in found] == [rhea, comet]
    pages = json.loads(mia("search", "found Rhea", "-k", "1", "--json").stdout)
    assert [page["memory"]["id"] for page in pages] == [rhea]
    assert 0 < pages[0]["similarity"] < 1


def test_what_a_memory_holds_cannot_drive_the_terminal(mia: Memory) -> None:
    comet = mia("add", *COMET).stdout.strip()
    shown = mia("show", comet).stdout
    assert "\x1b" not in shown
    assert "\\x1b[31mEncke" in shown


def test_scopes_are_apart(mia: Memory) -> None:
    mia("add", *RHEA, "--scope", "a")
    assert mia("list").stdout == ""
    assert len(mia("list", "--scope", "a").stdout.splitlines()) == 1
    assert mia("search", "Rhea", "--scope", "b").stdout == ""


def test_a_near_duplicate_is_told_of(mia: Memory) -> None:
    first = mia("add", *RHEA)
    longer = [*RHEA[:3], "1. look (Rhea → Cassini)\n2. look again", *RHEA[4:]]
    again = mia("add", *longer)
    assert again.stdout == first.stdout
    assert "Kept the memory that was there" in again.stderr
    shorter = mia("add", *RHEA[:3], "1. know", *RHEA[4:]).stdout.strip()
    assert f"replaced by {shorter}" in mia("show", first.stdout.strip()).stdout
    assert len(mia("list").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [("add",), ("add", *RHEA[:5], "maybe"), ("list", "-k", "0"), ("show",), ("search",)],
    ids=["nothing", "judgement", "k", "id", "text"],
)
def test_misuse_exits_with_2(mia: Memory, arguments: tuple[str, ...]) -> None:
    assert mia(*arguments).exit_code == 2


def test_what_is_not_there_is_said(mia: Memory) -> None:
    with pytest.raises(StoreError, match="no memory at"):
        mia("show", "mem-1")
    mia("add", *RHEA)
    with pytest.raises(RecordError, match="no memory 'mem-1'"):
        mia("show", "mem-1")
    with pytest.raises(RecordError, match="without a workflow"):
        mia("add", *RHEA[:3], " ", *RHEA[4:])
