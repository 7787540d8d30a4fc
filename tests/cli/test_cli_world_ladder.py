"""`mia world ladder`: the command, with a real model in this process that knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models.tiny_model import write_model
from program import Program

from mia.evals.ladder import RUNGS, VARIANTS

LADDER = ("world", "ladder", "--worlds", "1", "--questions", "1", "--rungs", "no-plan,plan", "--processes", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


def test_a_ladder_leaves_its_files_and_is_not_climbed_again(program: Program, model: str) -> None:
    arguments = (*LADDER, "--model", model, "--out", "ladder")
    first = program(*arguments)
    assert first.code == 0, first.stderr
    for line in ("Correct answers, %", "plan, against no plan", "+ Planner RL", "Spent on a question"):
        assert line in first.stdout
    assert "+ Planner RL: not measured" in first.stderr
    assert {path.name for path in Path("ladder").iterdir()} == {
        "ladder.jsonl",
        "ladder.json",
        "ladder.md",
        "ladder.png",
    }
    page = json.loads(Path("ladder/ladder.json").read_text())
    rungs = {row["rung"]: row for row in page["rungs"]}
    assert rungs["plan"]["accuracy"]["value"] == 0.0
    assert rungs["plan"]["unreadable"] > 0, "its replies mean nothing"
    again = program(*arguments, "--json")
    assert again.code == 0
    told = json.loads(again.stdout)
    assert told.pop("seconds") >= 0
    assert told == page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--first-seed", "0"), "not all test worlds"),
        (("--first-seed", "899999", "--worlds", "2"), "not all test worlds"),
        (("--rungs", "plan,everest"), "no rung 'everest'"),
        (("--rungs", ","), "no rung"),
        (("--model", "nowhere"), "cannot read the model"),
    ],
)
def test_misuse_is_told_before_anything_is_asked(program: Program, arguments: tuple[str, ...], said: str) -> None:
    ended = program(*LADDER, *arguments, "--out", "ladder")
    assert ended.code == 2
    assert said in ended.stderr
    assert not Path("ladder").exists()


def test_other_settings_in_a_folder_are_refused_by_name(program: Program, model: str) -> None:
    assert program(*LADDER, "--model", model, "--out", "ladder").code == 0
    ended = program(*LADDER, "--model", model, "--out", "ladder", "--shifted")
    assert ended.code == 2
    assert "shifted" in ended.stderr


def test_help_names_every_rung(program: Program) -> None:
    # Lines may break at the hyphens of a name.
    told = "".join(program("world", "ladder", "--help").stdout.split())
    assert all(rung.name in told for rung in (*RUNGS, *VARIANTS))
