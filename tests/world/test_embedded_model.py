"""What the checkpoint that comes with MIA can do, role by role, on worlds that training has not seen.

The one place with figures of this very checkpoint: whoever trains another one looks here. The full measurement, over
more worlds, is in the model card (`mia world measure`).
"""

from __future__ import annotations

import asyncio
import json

import pytest
from embedded_team import embedded_model, needs_embedded_model

from mia.learn.warmup.measure import ABILITIES, QUESTIONS_PER_WORLD, Share, measure
from mia.models.local import EMBEDDED
from mia.world.facts import World
from mia.world.seeds import TEST, TRAIN

pytestmark = needs_embedded_model

WORLDS = 6
LARGEST = 8_000_000
"""Bytes of the weights."""

LEAST = {
    "executor follows an oracle's plan": 0.9,
    "executor says unknown in a wrong source": 0.9,
    "planner writes the route found in memory": 0.9,
    "planner reflects": 0.95,
    "planner replans elsewhere": 0.9,
    "manager writes the workflow": 0.8,
    "judge agrees with the truth": 0.9,
}
"""Shares that must be reached: below those in the card, for few worlds leave much to chance."""


@pytest.fixture(scope="module")
def shares() -> dict[str, Share]:
    async def measured() -> dict[str, Share]:
        model = embedded_model()
        found = await measure(model, [World.make(seed) for seed in TEST[-WORLDS:]])
        await model.close()
        return found

    return asyncio.run(measured())


def test_every_ability_has_a_least_share() -> None:
    whole = {name for name in ABILITIES if not name.startswith(" ")}
    assert LEAST.keys() == whole


@pytest.mark.parametrize("ability", LEAST)
def test_it_can_do_what_the_line_needs(ability: str, shares: dict[str, Share]) -> None:
    share = shares[ability]
    assert share.of >= WORLDS * QUESTIONS_PER_WORLD / 3
    assert share.value >= LEAST[ability], f"{share.right} of {share.of}"


def test_it_is_small_and_says_how_it_was_made() -> None:
    assert (EMBEDDED / "model.safetensors").stat().st_size <= LARGEST
    config = json.loads((EMBEDDED / "config.json").read_text())
    assert config["mia_format"] == 1
    recipe = config["mia_recipe"]
    assert {"seed", "steps", "shards", "rate"} <= recipe.keys()
    assert recipe["shards"] * recipe.get("worlds_per_shard", 1) <= len(TRAIN)
