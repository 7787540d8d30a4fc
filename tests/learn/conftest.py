"""Dialogues, a tokenizer and a training, all tiny, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import Words, run, said

from mia.learn.warmup import tokenizer
from mia.learn.warmup.dialogues import Dialogue, dialogues
from mia.world.facts import World


@pytest.fixture(scope="session")
def taught() -> list[Dialogue]:
    """What the teacher says in one world."""
    return dialogues(World.make(3), 1)


@pytest.fixture(scope="session")
def words() -> Words:
    """A tokenizer of four worlds."""
    return tokenizer.build(
        tokenizer.vocabulary(said([one for seed in range(10, 14) for one in dialogues(World.make(seed), 1)]))
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder) == folder / "model"
    return folder
