"""`mia token`: shown once, listed without secrets, taken back at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import Program

pytest.importorskip("fastapi", reason="the extra `service` is not installed")


def test_a_token_is_printed_alone_and_once(program: Program) -> None:
    made = program("token", "add", "ann", "--scope", "acme/ann", "--days", "30")
    assert made.code == 0
    assert made.stdout.startswith("mia_")
    assert len(made.stdout.strip()) == 47
    assert made.stdout.strip() not in made.stderr
    listed = program("token", "list")
    assert listed.stdout.startswith("ann\tacme/ann\tuntil ")
    (one,) = json.loads(program("token", "list", "--json").stdout)
    assert (one["name"], one["scope"]) == ("ann", "acme/ann")
    assert "sha256" not in one


def test_a_token_without_a_scope_is_for_everything(program: Program) -> None:
    program("token", "add", "root")
    assert program("token", "list").stdout == "root\teverything\tfor ever\n"


def test_a_token_is_taken_back(program: Program) -> None:
    program("token", "add", "ann")
    assert program("token", "remove", "ann").code == 0
    assert program("token", "list").stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "ann", "--scope", "../x"),
        ("add", "ann", "--scope", "a/b/c/d"),
        ("add", "ann", "--days", "0"),
        ("add", "ann", "--days", "nan"),
        ("add", ""),
        ("add", "ann smith"),
        ("add", "ann\nben"),
        ("add", "--", "-x"),
        ("add", "a;b"),
        ("add", "a" * 101),
        ("remove", "nobody"),
    ],
)
def test_a_misuse_ends_with_status_2_and_makes_nothing(program: Program, arguments: tuple[str, ...]) -> None:
    ended = program("token", *arguments)
    assert ended.code == 2
    assert ended.stdout == ""
    assert program("token", "list").stdout == ""


def test_a_name_that_no_shell_takes_as_one_word_is_refused_with_one_that_fits(program: Program) -> None:
    ended = program("token", "add", "ann smith <ann@acme>")
    assert "a token cannot be called 'ann smith <ann@acme>'" in ended.stderr
    assert "mia token add ann-smith-ann@acme" in ended.stderr
    for name in ("ann-smith-ann@acme", "acme/research", "Änne", "a", "ci.2_x"):
        assert program("token", "add", name).code == 0


def test_a_broken_file_is_named_and_left_alone(program: Program) -> None:
    program("token", "add", "ann")
    path = Path(".mia/tokens.json")
    path.write_text("{")
    for arguments in (("list",), ("add", "ben"), ("remove", "ann")):
        ended = program("token", *arguments)
        assert ended.code == 2
        assert "tokens.json" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert path.read_text() == "{"
