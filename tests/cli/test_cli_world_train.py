"""`mia world train`: an empty folder becomes a model with its card; Ctrl-C loses nothing."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from program import Program
from tiny_training import OPTIONS, TINY, run

from mia.cli.world.train import train
from mia.learn.warmup.steps import read_metrics
from mia.learn.warmup.train import Recipe

QUIET = (*OPTIONS, "--measure-worlds", "0")
# Those of the tiny recipe that are no options keep their defaults.
RECIPE = dataclasses.replace(TINY, warmup=Recipe().warmup, copy_steps=Recipe().copy_steps)


def test_an_empty_folder_becomes_a_model_with_card_and_curves(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mia.world import preset

    # A model of eight steps writes noise without end.
    monkeypatch.setitem(preset.MODEL, "max_tokens", 8)
    ended = program("world", "train", "--out", "made", *OPTIONS, "--measure-worlds", "1")
    assert ended.code == 0
    assert ended.stdout.startswith("made/model: 8 steps, ")
    assert "executor follows an oracle's plan" in " ".join(ended.stdout.split())
    assert "dialogues: 2 of 2\n" in ended.stderr
    assert "steps: 8 of 8 · loss " in ended.stderr
    assert Path("made/curves.png").read_bytes().startswith(b"\x89PNG")
    # The weights are those that the trainer makes of this recipe.
    wanted = run(tmp_path / "wanted", RECIPE)
    assert wanted is not None
    assert Path("made/model/model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()
    card = Path("made/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "1 validation worlds from seed 500000" in card
    # What the card says to type makes the same again: it is the same recipe, and nothing is left to do.
    command = card.partition("```\n")[2].partition("\n```")[0].split()
    assert command[:5] == ["mia", "world", "train", "--out", "made"]
    again = program(*command[1:], "--measure-worlds", "0", "--json")
    page = json.loads(again.stdout)
    assert (again.code, page["model"], page["step"], page["abilities"]) == (0, "made/model", 8, {})


def test_without_matplotlib_there_is_a_model_all_the_same(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = program("world", "train", "--out", "made", *QUIET)
    assert ended.code == 0
    assert "No curves" in ended.stderr
    assert "[plots]" in ended.stderr
    assert Path("made/MODEL_CARD.md").is_file()
    assert not Path("made/curves.png").exists()


def interrupted_once(ready: Callable[[], bool], number: signal.Signals = signal.SIGINT) -> None:
    """Have this process interrupted as soon as something is so."""

    def interrupt() -> None:
        while not ready():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()


def test_an_interrupt_saves_the_step_and_says_how_to_go_on(program: Program) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    folder, command = Path("made"), ("world", "train", "--out", "made", *QUIET, "--steps", "100000")
    for number in (signal.SIGTERM, signal.SIGINT):
        rows = len(read_metrics(folder))
        interrupted_once(lambda rows=rows: len(read_metrics(folder)) > rows, number)
        ended = program(*command)
        assert (ended.code, ended.stdout) == (130, "")
        assert f"The same command goes on: mia {' '.join(command)}" in ended.stderr
        assert not (folder / "model").exists()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    # The second time it began where the first one ended, and not where a checkpoint is due.
    begun = re.search(r"^steps: (\d+) of 100,000$", ended.stderr, re.MULTILINE)
    assert begun is not None
    assert 20 <= int(begun[1]) < 200


def test_an_interrupt_among_the_dialogues_ends_at_once(program: Program) -> None:
    interrupted_once(Path("made/lessons").is_dir)
    ended = program("world", "train", "--out", "made", *QUIET, "--worlds-per-shard", "10000")
    assert ended.code == 130
    assert "The same command goes on" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rate", "nan"), "rate is nan"),
        (("--rate", "-1"), "rate is -1.0"),
        (("--shards", "6000"), "at most 500,000 worlds"),
        (("--out", "file"), "cannot hold a training"),
    ],
)
def test_what_cannot_be_trained_is_a_misuse(program: Program, arguments: tuple[str, ...], says: str) -> None:
    Path("file").write_text("")
    ended = program("world", "train", "--out", "made", *arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert says in ended.stderr


def test_the_help_tells_the_true_defaults() -> None:
    recipe = dataclasses.asdict(Recipe())
    told = {}
    for name, parameter in inspect.signature(train, eval_str=True).parameters.items():
        if name in recipe:
            (option,) = [one for one in parameter.annotation.__metadata__ if isinstance(one, typer.models.OptionInfo)]
            told[name] = float(str(option.show_default))
    assert len(told) == 7
    assert told == {name: recipe[name] for name in told}
