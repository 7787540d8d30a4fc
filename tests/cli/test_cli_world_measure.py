"""`mia world measure`: the table of abilities of a model that was really trained, if only a little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import Program
from tiny_training import run

from mia.learn.warmup.measure import ABILITIES, QUESTIONS_PER_WORLD
from mia.world.seeds import VALIDATION


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows next to nothing: its turns are noise until they are cut off."""
    finished = run(tmp_path_factory.mktemp("training"))
    assert finished is not None
    return finished


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise has no end; a few tokens of it are enough."""
    from mia.world import preset

    monkeypatch.setitem(preset.MODEL, "max_tokens", 8)


@pytest.mark.usefixtures("short")
def test_every_ability_has_a_line_with_its_interval(program: Program, model: Path) -> None:
    ended = program("world", "measure", "--model", model, "--worlds", "1")
    assert ended.code == 0
    assert "trained on" not in ended.stderr
    for name in ABILITIES:
        assert name.strip() in " ".join(ended.stdout.split())
    # Of a part there may be no case in one world.
    parts = sum(name.startswith(" ") for name in ABILITIES)
    assert len(ABILITIES) - parts <= ended.stdout.count("0.0% to ") <= len(ABILITIES)


@pytest.mark.usefixtures("short")
def test_for_programs(program: Program, model: Path) -> None:
    ended = program("world", "measure", "--model", model, "--worlds", "1", "--first-seed", "5", "--shifted", "--json")
    page = json.loads(ended.stdout)
    assert (ended.code, page["worlds"], page["first_seed"], page["shifted"]) == (0, 1, 5, True)
    assert "may have been trained on" in ended.stderr
    assert list(page["abilities"]) == list(ABILITIES)
    follows = page["abilities"]["executor follows an oracle's plan"]
    assert (follows["right"], follows["of"], follows["share"]) == (0, QUESTIONS_PER_WORLD, 0.0)
    assert follows["share_95"] == pytest.approx([0.0, 0.49], abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--split", "nowhere"), "no split 'nowhere'"),
        (("--first-seed", "-1"), "no world -1"),
        (("--first-seed", "1000000"), "no world 1000000"),
        (("--first-seed", str(VALIDATION.stop - 1), "--worlds", "2"), "not all of the split 'validation'"),
        (("--split", "test", "--first-seed", str(VALIDATION.start)), "not all of the split 'test'"),
        (("--split", "validation", "--worlds", "1000000"), "not all of the split 'validation'"),
        (("--model", "nothing-here", "--worlds", "1"), "nothing-here"),
    ],
)
def test_what_cannot_be_measured_is_a_misuse(program: Program, arguments: tuple[str, ...], says: str) -> None:
    ended = program("world", "measure", *arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert says in ended.stderr
