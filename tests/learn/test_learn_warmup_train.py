"""The trainer: the same weights whatever interrupts it, and a clear word for every folder it cannot use."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TINY, run

from mia.errors import ConfigError, LearnError
from mia.learn.warmup import initialisation
from mia.learn.warmup.steps import Progress, read_metrics
from mia.learn.warmup.train import FORMAT, Recipe
from mia.world.seeds import TRAIN

KILLED_AT_STEP_5 = """
import os, signal, sys
from pathlib import Path
from tiny_training import run

asked = 0

def stop():
    global asked
    asked += 1
    if asked == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

run(Path(sys.argv[1]), stop=stop)
"""


def checkpoint(folder: Path) -> dict[str, Any]:
    kept: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return kept


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, however deep."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_as_if_uninterrupted(folder: Path, finished: Path) -> None:
    now, wanted = checkpoint(folder), checkpoint(finished)
    assert wanted["step"] == TINY.steps
    for kept in (now, wanted):
        del kept["seconds"]
    assert same(now, wanted)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder / "model" / file).read_bytes() == (finished / "model" / file).read_bytes()
    rows = [[{**row, "seconds": 0} for row in read_metrics(one)] for one in (folder, finished)]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four_steps")
    assert stopped_after(4, folder) is None
    return folder


@pytest.fixture
def started(four_steps: Path, tmp_path: Path) -> Path:
    """A folder of its own with a training that was stopped after its fourth step."""
    return shutil.copytree(four_steps, tmp_path / "started")


def stopped_after(steps: int, folder: Path) -> Path | None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == steps

    return run(folder, stop=stop)


# ── going on ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_training_that_was_stopped_twice_comes_to_the_same_weights(started: Path, finished: Path) -> None:
    # The last checkpoint by itself is that of step 3: what was asked to stop saved the fourth.
    assert checkpoint(started)["step"] == 4
    assert not (started / "model").exists()
    assert stopped_after(2, started) is None
    assert checkpoint(started)["step"] == 6
    assert run(started) == started / "model"
    assert_as_if_uninterrupted(started, finished)


def test_a_training_that_was_killed_in_mid_step_comes_to_the_same_weights(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "killed"
    script = [sys.executable, "-c", KILLED_AT_STEP_5, str(folder)]
    ended = subprocess.run(script, env={"PYTHONPATH": str(Path(__file__).parents[1])}, check=False)
    assert ended.returncode == -9
    assert checkpoint(folder)["step"] == 3
    # Its lock died with it.
    assert run(folder) == folder / "model"
    assert_as_if_uninterrupted(folder, finished)


def test_going_on_with_what_is_finished_takes_no_step_and_writes_the_same_model(finished: Path) -> None:
    before = (finished / "model" / "model.safetensors").read_bytes()
    told: list[Progress] = []
    assert run(finished, on_progress=told.append) == finished / "model"
    assert (finished / "model" / "model.safetensors").read_bytes() == before
    assert [(one.stage, one.done, one.total) for one in told] == [("dialogues", 2, 2), ("steps", 8, 8)]


def test_metrics_that_a_crash_tore_are_cut_back_to_the_checkpoint(started: Path, finished: Path) -> None:
    row = {"step": 4, "loss": 1.0, "rate": 0.1, "tokens": 5, "seconds": 1}
    (started / "metrics.jsonl").write_text(
        "\n".join([json.dumps(row), "\0\0\0", "[1]", "{}", json.dumps(row | {"step": 6}), '{"step": 8, "lo'])
    )
    assert [kept["step"] for kept in read_metrics(started)] == [4, 6]
    run(started)
    assert [kept["step"] for kept in read_metrics(started)] == [4, 8]
    assert read_metrics(started)[0] == row
    assert (started / "metrics.jsonl").read_text().count("\n") == 2
    # The mean of the losses since the last line of an uninterrupted one: kept in the checkpoint.
    assert read_metrics(started)[1]["loss"] == read_metrics(finished)[0]["loss"]


def test_what_a_kill_left_half_written_is_made_anew(started: Path, finished: Path) -> None:
    (started / "checkpoint.pt.tmp").write_bytes(b"half")
    (started / "model.tmp").mkdir()
    (started / "model.tmp" / "stale.txt").write_text("half")
    shard = started / "lessons" / "shard-0000.npz"
    shard.write_bytes(shard.read_bytes()[:1_000])
    run(started)
    assert not (started / "model" / "stale.txt").exists()
    assert_as_if_uninterrupted(started, finished)


# ── what cannot go on ─────────────────────────────────────────────────────────────────────────────────────────────


def test_two_trainings_into_one_folder_are_refused(tmp_path: Path) -> None:
    refused: list[ConfigError] = []

    def again(progress: Progress) -> None:
        if not refused:
            with pytest.raises(ConfigError, match="another process is training into") as raised:
                run(tmp_path)
            refused.append(raised.value)

    assert run(tmp_path, on_progress=again) == tmp_path / "model"
    assert "--out" in refused[0].hint


def test_another_recipe_is_refused_and_told_apart(started: Path, finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"differs in rate \(0\.003 there, 0\.01 now\), seed \(1 there, 2 now\)"):
        run(started, replace(TINY, rate=0.01, seed=2))
    # Nothing happened to the training that is there.
    run(started)
    assert_as_if_uninterrupted(started, finished)


def test_a_recipe_from_before_a_setting_existed_had_its_default(tmp_path: Path) -> None:
    recipe = replace(TINY, worlds_per_shard=Recipe().worlds_per_shard, shards=1)
    kept = dataclasses.asdict(recipe)
    del kept["worlds_per_shard"]
    (tmp_path / "recipe.json").write_text(json.dumps(kept))

    class Reached(Exception):
        """The recipe was accepted."""

    def reached(progress: Progress) -> None:
        raise Reached

    with pytest.raises(Reached):
        run(tmp_path, recipe, on_progress=reached)
    with pytest.raises(ConfigError, match=r"worlds_per_shard \(100 there, 1 now\)"):
        run(tmp_path, replace(recipe, worlds_per_shard=1))


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '"text"', "\0"])
def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ConfigError, match=r"recipe\.json"):
        run(tmp_path)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def spoil(content: bytes) -> bytes:
    return b"\0" * 4096 + content[4096:]


def empty(content: bytes) -> bytes:
    return b""


def text(content: bytes) -> bytes:
    return b"not a checkpoint\n" * 100


@pytest.mark.parametrize("fault", [cut, spoil, empty, text])
def test_a_checkpoint_that_cannot_be_read_is_told_of_and_kept(started: Path, fault: Callable[[bytes], bytes]) -> None:
    path = started / "checkpoint.pt"
    broken = fault(path.read_bytes())
    path.write_bytes(broken)
    with pytest.raises(LearnError, match="cannot be read") as raised:
        run(started)
    assert f"rm '{path}'" in raised.value.hint
    assert path.read_bytes() == broken


def test_after_deleting_it_the_steps_begin_anew(started: Path, finished: Path) -> None:
    (started / "checkpoint.pt").unlink()
    run(started)
    assert_as_if_uninterrupted(started, finished)


def test_a_checkpoint_of_other_shapes_is_refused(started: Path) -> None:
    kept = checkpoint(started)
    torch.save(kept | {"model": initialisation.build(40, 1).state_dict()}, started / "checkpoint.pt")
    with pytest.raises(LearnError, match="cannot be read"):
        run(started)
    torch.save({"model": kept["model"]}, started / "checkpoint.pt")
    with pytest.raises(LearnError, match="cannot be read"):
        run(started)


def test_a_loss_that_explodes_is_told_of_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    exploding = replace(TINY, rate=1e30)
    with pytest.raises(LearnError, match="loss became") as raised:
        run(tmp_path, exploding, save_every=1)
    assert "--rate" in raised.value.hint
    kept = checkpoint(tmp_path)
    assert 1 <= kept["step"] < TINY.steps
    assert all(torch.isfinite(weight).all() for weight in kept["model"].values())
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[(name, 0) for name in ("steps", "batch_tokens", "shards", "worlds_per_shard", "tokenizer_worlds", "warmup")],
        *[("rate", value) for value in (0.0, -1.0, float("nan"), float("inf"))],
        ("clip", float("nan")),
        ("shards", len(TRAIN)),
        *[("seed", value) for value in (-1, 2**63)],
    ],
)
def test_a_recipe_that_means_nothing_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError):
        Recipe(**{setting: value})  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot hold a training"):
            run(folder)


# ── what comes out ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_model_is_what_transformers_reads_and_says_what_made_it(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    words = AutoTokenizer.from_pretrained(finished / "model")
    assert model.config.vocab_size == len(words)
    assert (model.config.mia_format, model.config.mia_recipe) == (FORMAT, dataclasses.asdict(TINY))
    kept = checkpoint(finished)["model"]
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())
    untrained = initialisation.build(len(words), TINY.seed)
    assert not torch.equal(untrained.model.norm.weight, model.model.norm.weight)
    # Everybody may read it, whoever packs it.
    assert all(file.stat().st_mode & 0o044 for file in (finished / "model").iterdir())


def test_it_learns(tmp_path: Path) -> None:
    losses: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.loss is not None:
            losses.append(progress.loss)

    recipe = replace(TINY, steps=120, copy_steps=1, shards=1, batch_tokens=128)
    run(tmp_path, recipe, on_progress=watch, save_every=200)
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 1


def test_the_seed_decides(tmp_path: Path, finished: Path) -> None:
    run(tmp_path, replace(TINY, seed=2))
    assert not same(checkpoint(tmp_path)["model"], checkpoint(finished)["model"])
