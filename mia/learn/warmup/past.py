"""A past that a world never had: memories of questions that somebody searched for who knew half of its sources."""

from __future__ import annotations

import random
from collections.abc import Iterator

from mia.types import Memory, Provenance, Review
from mia.world.facts import World
from mia.world.language import PARAPHRASES, SOURCES, Chain, Query, RouteStep, Try, write_question, write_workflow
from mia.world.questions import chains

_SIZE = 16
"""Questions that it holds."""


class Past:
    """What could be remembered of a world."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        stream = chains(world, chance.randrange(1 << 30))
        self._memories = [(chain, self._remember(chain)) for chain, _ in zip(stream, range(_SIZE), strict=False)]

    def recalled(self, chain: Chain) -> list[Memory]:
        """Up to three memories of correct answers and one of an incorrect one; most of them share a relation."""
        anything = [memory for _, memory in self._memories]
        near = [memory for other, memory in self._memories if set(chain.relations) & set(other.relations)]
        chosen: list[Memory] = []
        for judgement, most in (("correct", 3), ("incorrect", 1)):
            wanted = self._chance.randint(0, most)
            around = near if self._chance.random() < 0.8 else anything
            pool = [memory for memory in around if memory.judgement == judgement]
            chosen += self._chance.sample(pool, min(wanted, len(pool)))
        return chosen

    def _remember(self, chain: Chain) -> Memory:
        """What is left of a search by somebody who knows half of the true sources."""
        tries, at, found = [], chain.entity, True
        for relation in chain.relations:
            entity = at
            for step in self._tries(relation):
                query = Query(step, entity)
                outcome = self._world.look_up(query)
                tries.append(Try(query, outcome))
                if outcome.kind == "found":
                    entity = outcome.what
                    if step.relation == relation:
                        break
            else:
                found = False
                break
            at = entity
        right = found and at == self._world.answer(chain)
        text = write_question(chain, self._chance.randrange(PARAPHRASES))
        leaned = ("mem-00000000000000000000",) if self._chance.random() < 0.3 else ()
        return Memory(
            id=f"mem-{self._chance.getrandbits(80):020x}",
            question=text,
            workflow=write_workflow(tries),
            judgement="correct" if right else "incorrect",
            reviews=self._reviews() if self._chance.random() < 0.15 else (),
            provenance=Provenance(leaned_on=leaned),
            created_at=0.0,
            updated_at=0.0,
        )

    def _tries(self, relation: str) -> Iterator[RouteStep]:
        """Steps to one relation, until it is found or hope is lost: wrong sources first, at times."""
        route = self._world.route(relation)
        guess = self._chance.choice(SOURCES) if self._chance.random() < 0.45 else ""
        if guess:
            yield RouteStep(relation, guess)
            if self._chance.random() < 0.3:
                return
        if len(route) == 2 and guess != route[-1].source and self._chance.random() < 0.7:
            yield RouteStep(relation, route[-1].source)
        yield from route

    def _reviews(self) -> tuple[Review, ...]:
        good = self._chance.random() < 0.6
        return (
            Review(
                reviewer="reasoning",
                score=9 if good else 2,
                reason="every step was taken" if good else "a step is missing",
            ),
            Review(
                reviewer="sourcing",
                score=9 if good else 2,
                reason="the answer was found" if good else "the answer was not found",
            ),
            Review(reviewer="validity", score=9, reason="it names an answer"),
        )
