"""Questions of a world: chains of 1–4 relations that meet in type, each in one of four paraphrases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from mia.types import Question, Task
from mia.world.facts import World
from mia.world.language import PARAPHRASES, RELATIONS, TYPES, Chain, write_question

MOST_HOPS = 4
HOP_WEIGHTS = (0.2, 0.35, 0.3, 0.15)
"""How often a question has 1, 2, 3, 4 hops."""


def chains(world: World, seed: int = 0) -> Iterator[Chain]:
    """Chains without end, none of them twice in a row of a thousand or so; the same seed gives the same stream."""
    chance = random.Random(f"questions {world.seed} {world.shifted} {seed}")
    seen: set[Chain] = set()
    while True:
        chain = _chain(world, chance)
        if chain in seen and len(seen) < 1_000:
            continue
        seen.add(chain)
        yield chain


def _chain(world: World, chance: random.Random) -> Chain:
    hops = chance.choices(range(1, MOST_HOPS + 1), HOP_WEIGHTS)[0]
    kind = chance.choice(TYPES)
    entity = chance.choice(world.entities[kind])
    relations: list[str] = []
    visited = {entity}
    at = entity
    for _ in range(hops):
        # A chain that comes back to where it was would be answered without looking.
        ways = [
            relation
            for relation in RELATIONS
            if relation.subject == kind and world.facts[relation.name][at] not in visited
        ]
        if not ways:
            break
        relation = chance.choice(ways)
        relations.append(relation.name)
        at, kind = world.facts[relation.name][at], relation.object
        visited.add(at)
    return Chain(entity, tuple(relations)) if relations else _chain(world, chance)


def tasks(world: World, count: int, seed: int = 0, *, hops: int = MOST_HOPS) -> list[Task]:
    """The first questions of a world's stream, each with its answer as reference; `hops`: those of more relations are
    left out."""
    chance = random.Random(f"paraphrases {world.seed} {seed}")
    made: list[Task] = []
    short = (chain for chain in chains(world, seed) if len(chain.relations) <= hops)
    for number, chain in enumerate(islice(short, count), start=1):
        question = Question(
            id=f"world-{world.seed}{'s' if world.shifted else ''}-{seed}-{number:03}",
            text=write_question(chain, chance.randrange(PARAPHRASES)),
        )
        made.append(Task(question=question, references=(world.answer(chain),)))
    return made
