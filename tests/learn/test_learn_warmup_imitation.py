"""The reader's warm-up: an adapter that learns the teacher's words, and a folder that any end leaves whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model
from safetensors.numpy import load_file

from mia.config import ReaderSettings
from mia.errors import ConfigError, LearnError
from mia.learn.warmup.imitation import Recipe, imitate
from mia.learn.warmup.steps import Progress, read_metrics
from mia.models import build_model
from mia.models.local import EMBEDDED
from mia.world import preset
from mia.world.seeds import TRAIN

TINY = Recipe(steps=4, batch_tokens=512, rank=2, warmup=1)
SETTINGS = ReaderSettings(**preset.READER)

pytestmark = needs_embedded_model


def run(
    folder: Path,
    recipe: Recipe = TINY,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    reader: ReaderSettings = SETTINGS,
) -> Path | None:
    return imitate(folder, recipe, reader, on_progress=on_progress, stop=stop, save_every=2)


def weights(adapter: Path | None) -> dict[str, list[float]]:
    assert adapter is not None
    return {name: value.ravel().tolist() for name, value in load_file(adapter / "adapter_model.safetensors").items()}


def test_an_adapter_learns_the_teachers_words_and_the_base_stays(tmp_path: Path) -> None:
    before = (EMBEDDED / "model.safetensors").read_bytes()
    told: list[Progress] = []
    recipe = dataclasses.replace(TINY, steps=24, batch_tokens=512, rank=8, rate=1e-2)
    adapter = run(tmp_path, recipe, on_progress=told.append)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [20, 24]
    assert rows[1]["loss"] < 0.7 * rows[0]["loss"]
    assert (told[0].done, told[-1].done, told[-1].total) == (0, 24, 24)
    assert (EMBEDDED / "model.safetensors").read_bytes() == before
    build_model(preset.model_settings(adapter=str(adapter)))


def test_a_stopped_warm_up_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    steps = iter((False, False, True))
    assert run(tmp_path / "stopped", stop=lambda: next(steps)) is None
    assert not (tmp_path / "stopped" / "adapter").exists()
    gone_on = run(tmp_path / "stopped")
    assert weights(gone_on) == weights(whole)
    # Once more: nothing is left to do, and not a byte changes.
    assert gone_on is not None
    before = (gone_on / "adapter_model.safetensors").stat()
    assert run(tmp_path / "stopped") == gone_on
    assert (gone_on / "adapter_model.safetensors").stat() == before


def test_a_folder_of_another_warm_up_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    for recipe in (dataclasses.replace(TINY, rate=1.0), dataclasses.replace(TINY, steps=5)):
        with pytest.raises(ConfigError, match="another training"):
            run(tmp_path, recipe)
    with pytest.raises(ConfigError, match="chunk_tokens"):
        run(tmp_path, reader=SETTINGS.model_copy(update={"chunk_tokens": 80}))


def test_a_broken_checkpoint_is_told_with_its_cure(tmp_path: Path) -> None:
    steps = iter((False, True))
    assert run(tmp_path, stop=lambda: next(steps)) is None
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(LearnError, match="cannot be read") as raised:
        run(tmp_path)
    assert "rm " in str(raised.value)


def test_a_loss_that_is_no_number_ends_it_before_the_weights_are_touched(tmp_path: Path) -> None:
    with pytest.raises(LearnError, match="the loss became"):
        run(tmp_path, dataclasses.replace(TINY, rate=1e30, steps=6))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"first_seed": TRAIN.stop}, {"rank": 0}]
)
def test_a_recipe_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(TINY, **wrong)  # type: ignore[arg-type]
