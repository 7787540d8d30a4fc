"""A training of seconds, as the tests of the warm-up and of its commands take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mia.learn.warmup.dialogues import Dialogue
from mia.learn.warmup.steps import Progress
from mia.learn.warmup.train import Recipe, train
from mia.types import Message

TINY = Recipe(steps=8, batch_tokens=256, shards=2, worlds_per_shard=1, tokenizer_worlds=1, warmup=2, copy_steps=4)
OPTIONS = (
    *("--steps", "8", "--batch-tokens", "256", "--shards", "2", "--worlds-per-shard", "1"),
    *("--tokenizer-worlds", "1", "--processes", "1"),
)
"""The same sizes for `mia world train`."""

Words = Any
"""A tokenizer of transformers."""


def run(
    folder: Path,
    recipe: Recipe = TINY,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    save_every: int = 3,
    processes: int = 1,
) -> Path | None:
    """Train with one thread."""
    return train(folder, recipe, on_progress=on_progress, stop=stop, save_every=save_every, processes=processes)


def said(dialogues: Iterable[Dialogue]) -> list[Message]:
    return [turn.message for dialogue in dialogues for turn in dialogue.turns]
