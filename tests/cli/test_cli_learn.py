"""`mia learn`: a stage, or both in turn, from one command; any end of it loses no more than the step under way."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model
from program import Program

from mia.cli.learn.options import Options
from mia.cli.learn.training import FULL_RATE
from mia.evals.ladder import digest
from mia.learn.stages import read_exams, read_metrics
from mia.learn.warmup.train import Recipe
from mia.models import build_model
from mia.world import preset
from mia.world.facts import World
from mia.world.questions import tasks
from mia.world.seeds import TRAIN

SMALL = (
    *("--questions-per-step", "2", "--samples", "2", "--rank", "2", "--questions-per-world", "2"),
    *("--exam-worlds", "2", "--exam-questions", "1", "--save-every", "1"),
)
WITHOUT_EXAMS = (*SMALL, "--exam-worlds", "0")


@pytest.fixture(autouse=True)
def _short_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(preset.MODEL, "max_tokens", 64)


def page(folder: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((Path(folder) / "stage.json").read_text(encoding="utf-8"))
    return found


@needs_embedded_model
@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_told_before_anything_is_trained(
    program: Program, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    ended = program("learn", "planner", "--out", "made", f"--{tracker}", *SMALL)
    assert ended.code == 1
    assert ".[trackers]" in ended.stderr
    assert not list(Path("made").glob("*.jsonl"))


@needs_embedded_model
def test_a_stage_leaves_weights_a_report_and_curves(program: Program) -> None:
    command = ("learn", "planner", "--out", "made", "--steps", "2", "--exam-every", "1", *SMALL)
    ended = program(*command, "--json")
    assert ended.code == 0
    told = json.loads(ended.stdout)
    assert (told["stage"], told["steps"], told["weights"]) == ("planner", 2, "made/adapter")
    assert [row["step"] for row in read_metrics(Path("made"))] == [1, 2]
    assert [held.step for held in read_exams(Path("made"))] == [0, 1, 2]
    assert "planner: memories ahead: 1 of 1" in ended.stderr
    assert "planner: exam: 2 of 2" in ended.stderr
    assert "planner: steps: 2 of 2 · reward " in ended.stderr
    assert Path("made/curves.png").read_bytes().startswith(b"\x89PNG")
    report = Path(told["report"]).read_text(encoding="utf-8")
    assert "mia learn planner --out made --steps 2" in report
    # The adapter is one that the line can answer with.
    build_model(preset.model_settings(adapter=told["weights"]))
    # The worlds are those that the warm-up did not use, and the settings what was typed.
    recipe = Recipe()
    assert page("made")["source"]["first_seed"] == TRAIN.start + recipe.shards * recipe.worlds_per_shard  # type: ignore[index]
    assert page("made")["learn"]["rank"] == 2  # type: ignore[index]
    # Once more: nothing is left to do.
    again = program(*command)
    assert again.code == 0
    assert again.stdout.startswith(("planner: ", "2 steps of planner brought nothing"))
    assert "steps: " not in again.stderr


@needs_embedded_model
def test_all_weights_are_trained_at_a_rate_of_their_own(program: Program) -> None:
    ended = program("learn", "executor", "--out", "made", "--steps", "1", "--weights", "full", *WITHOUT_EXAMS)
    assert ended.code == 0
    assert "no exam was held" in ended.stdout
    assert page("made")["learn"]["rate"] == FULL_RATE  # type: ignore[index]
    build_model(preset.model_settings(path="made/model"))


@needs_embedded_model
@pytest.mark.slow
def test_in_turn_each_role_meets_what_the_other_has_learnt(program: Program) -> None:
    command = ("learn", "alternate", "--out", "both", "--rounds", "1", "--steps", "1", *WITHOUT_EXAMS, "--json")
    ended = program(*command)
    assert ended.code == 0
    assert [one["weights"] for one in json.loads(ended.stdout)] == ["both/1-executor/adapter", "both/1-planner/adapter"]
    assert page("both/1-executor")["begins"] == {}
    assert page("both/1-planner")["begins"] == {"executor": digest(Path("both/1-executor/adapter"))}
    # A second round begins where the first one ended.
    more = program(*command[:4], "--rounds", "2", *command[6:])
    assert more.code == 0
    assert page("both/2-executor")["begins"] == {
        "executor": digest(Path("both/1-executor/adapter")),
        "planner": digest(Path("both/1-planner/adapter")),
    }


@needs_embedded_model
def test_questions_of_ones_own_are_learnt_from_and_some_are_held_out(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**preset.MODEL, "max_tokens": 64}.items():
        monkeypatch.setenv(f"MIA_MODELS__DEFAULT__{name.upper()}", str(value))
    monkeypatch.setenv("MIA_SEARCH__ENGINE", "world")
    monkeypatch.setenv("MIA_SEARCH__WORLD", "7")
    lines = [
        json.dumps({"id": task.question.id, "question": task.question.text, "answers": list(task.references)})
        for task in tasks(World.make(7), 6)
    ]
    Path("questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ended = program(
        *("learn", "planner", "--out", "made", "--questions", "questions.jsonl", "--steps", "1"),
        *("--questions-per-step", "2", "--samples", "2", "--exam-questions", "2", "--exam-every", "1"),
    )
    assert ended.code == 0, ended.stderr
    asked, held_out = page("made")["source"]["ids"], page("made")["exam"]["ids"]  # type: ignore[index]
    assert (len(asked), len(held_out)) == (4, 2)
    assert not set(asked) & set(held_out)


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def stepped(folder: str) -> Callable[[], bool]:
    return lambda: bool(read_metrics(Path(folder)))


def when(ready: Callable[[], bool], act: Callable[[], None]) -> None:
    def wait() -> None:
        while not ready():
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


@needs_embedded_model
def test_ctrl_c_ends_the_step_under_way_and_the_same_command_goes_on(program: Program) -> None:
    command = ("learn", "planner", "--out", "made", "--steps", "200", *WITHOUT_EXAMS)
    when(stepped("made"), lambda: os.kill(os.getpid(), signal.SIGINT))
    ended = program(*command)
    assert ended.code == 130
    assert "Ending the step under way" in ended.stderr
    assert "Stopped. The same command goes on: mia learn planner --out made" in ended.stderr
    taken = len(read_metrics(Path("made")))
    assert [path.name for path in Path("made").glob("checkpoint-*")] == [f"checkpoint-{taken:06}"]
    again = program(*command[:4], "--steps", str(taken + 1), *WITHOUT_EXAMS)
    assert again.code == 0
    assert f"planner: steps: {taken} of {taken + 1}" in again.stderr
    assert len(read_metrics(Path("made"))) == taken + 1


@needs_embedded_model
def test_a_killed_training_goes_on_from_its_checkpoint(program: Program) -> None:
    command = ("learn", "planner", "--out", "made", *WITHOUT_EXAMS)
    begin = f"from mia.world import preset; preset.MODEL.update({preset.MODEL}); from mia.cli import main; main.main()"
    with subprocess.Popen(
        [sys.executable, "-c", begin, *command, "--steps", "200"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        when(stepped("made"), process.kill)
        assert process.wait() == -signal.SIGKILL
    (kept,) = [path for path in Path("made").glob("checkpoint-*") if path.suffix != ".tmp"]
    taken = int(kept.name.removeprefix("checkpoint-"))
    ended = program(*command, "--steps", str(taken + 1))
    assert ended.code == 0
    assert [row["step"] for row in read_metrics(Path("made"))] == list(range(1, taken + 2))


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_role_behind_an_endpoint_cannot_learn(program: Program) -> None:
    Path("questions.jsonl").write_text('{"question": "Who?", "answers": ["she"]}', encoding="utf-8")
    ended = program("learn", "planner", "--out", "made", "--questions", "questions.jsonl")
    assert ended.code == 2
    assert "asked over an endpoint" in ended.stderr
    assert not Path("made").exists()


@needs_embedded_model
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--planner", "."), "neither an adapter nor a model"),
        (("--executor", "."), "neither an adapter nor a model"),
        (("--weights", "half"), "weights"),
        (("--first-seed", "600000"), "not all for training"),
        (("--worlds", "1"), "2 questions of 1 worlds"),
        (("--rate", "-1"), "rate"),
    ],
)
def test_what_cannot_be_trained_is_named(program: Program, options: tuple[str, ...], why: str) -> None:
    ended = program("learn", "planner", "--out", "made", *WITHOUT_EXAMS, *options)
    assert ended.code == 2
    assert why in ended.stderr


def test_an_adapter_is_no_beginning_for_all_weights(program: Program) -> None:
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}", encoding="utf-8")
    ended = program("learn", "planner", "--out", "made", "--planner", "adapter", "--weights", "full")
    assert ended.code == 2
    assert "all weights are to be trained" in ended.stderr


@pytest.mark.parametrize("command", ["executor", "planner", "alternate"])
def test_all_commands_take_the_same_options(program: Program, command: str) -> None:
    ended = program("learn", command, "--help")
    assert ended.code == 0
    for option in dataclasses.fields(Options):
        assert f"--{option.name.replace('_', '-')}" in ended.stdout
    assert ("--rounds" in ended.stdout) == (command == "alternate")
