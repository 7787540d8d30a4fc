"""A world: entities, facts, and where each fact is written down, all from one seed.

In every world each relation has one *true* source (its favourite over all worlds with probability 0.6, else any), and
one *patchy* source, which has a document for every entity too and is wrong half the time, with nothing to give it away.
No other source has anything. Weights can learn the favourites; only experience can learn a world. Some relations are
kept under another entity in their true source, which then says so ("mayor of Melotu is kept by waterway"): an
intermediate entity must be found first. In a *shifted* world there are no favourites.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mia.world.language import (
    NOTHING,
    RELATION,
    RELATIONS,
    SOURCES,
    SYLLABLES,
    TYPES,
    Chain,
    Outcome,
    Query,
    Route,
    RouteStep,
    pointer,
    sentences,
)

ENTITIES_PER_TYPE = 10
FAVOURITE_SHARE = 0.6
"""Worlds in which a relation's true source is its favourite, beside those where chance picks it."""
PATCHY_ERRORS = 0.5
VIA_SHARE = 0.15
"""Relations that are kept under another entity, on average."""

_FAVOURITES_SEED = 4604


def _favourites() -> dict[str, str]:
    """About equally many for every source."""
    chance = random.Random(_FAVOURITES_SEED)
    shuffled = chance.sample(RELATIONS, len(RELATIONS))
    return {relation.name: SOURCES[number % len(SOURCES)] for number, relation in enumerate(shuffled)}


FAVOURITE = _favourites()
"""Each relation's favourite source over all worlds."""


@dataclass(frozen=True)
class Keeping:
    """How one relation is written down in a world."""

    source: str
    patchy: str
    via: str = ""
    """In the true source it is kept under the entity that this relation leads to."""


@dataclass(frozen=True)
class WorldDocument:
    """A short sentence in a source, under the name of the entity that it is about."""

    source: str
    title: str
    text: str


@dataclass(frozen=True)
class World:
    """Facts and documents; the same seed makes the same world anywhere."""

    seed: int
    shifted: bool
    entities: dict[str, tuple[str, ...]]
    """By type."""
    facts: dict[str, dict[str, str]]
    """Relation → subject → object; each relation is a bijection."""
    keeping: dict[str, Keeping]
    """By relation."""
    rumours: dict[str, dict[str, str]]
    """Relation → subject → what the patchy source says."""

    @classmethod
    def make(cls, seed: int, *, shifted: bool = False) -> World:
        chance = random.Random(f"world {seed} {shifted}")
        names = _names(chance, ENTITIES_PER_TYPE * len(TYPES))
        entities = {kind: tuple(names[number :: len(TYPES)]) for number, kind in enumerate(TYPES)}
        facts: dict[str, dict[str, str]] = {}
        rumours: dict[str, dict[str, str]] = {}
        for relation in RELATIONS:
            subjects, objects = entities[relation.subject], entities[relation.object]
            facts[relation.name] = _bijection(chance, subjects, objects)
            rumours[relation.name] = {
                subject: chance.choice([name for name in objects if name not in (value, subject)])
                if chance.random() < PATCHY_ERRORS
                else value
                for subject, value in facts[relation.name].items()
            }
        return cls(seed, shifted, entities, facts, _keeping(chance, shifted), rumours)

    def answer(self, chain: Chain) -> str:
        """The truth. Raises KeyError for a chain that this world does not have."""
        entity = chain.entity
        for relation in chain.relations:
            entity = self.facts[relation][entity]
        return entity

    def route(self, relation: str) -> Route:
        """The steps that find a relation in this world."""
        kept = self.keeping[relation]
        last = RouteStep(relation, kept.source, kept.via)
        return (RouteStep(kept.via, self.keeping[kept.via].source), last) if kept.via else (last,)

    def oracle(self, chain: Chain) -> Route:
        """The plan that finds the answer of a chain."""
        return tuple(step for relation in chain.relations for step in self.route(relation))

    def look_up(self, query: Query) -> Outcome:
        """What a search that misses nothing finds: the meaning of the documents, without an engine."""
        step, kept = query.step, self.keeping[query.step.relation]
        if step.via:
            if step.source != kept.source or step.via != kept.via:
                return NOTHING
            keepers = {keeper: subject for subject, keeper in self.facts[step.via].items()}
            if query.entity not in keepers:
                return NOTHING
            return Outcome("found", self.facts[step.relation][keepers[query.entity]])
        if query.entity not in self.facts[step.relation]:
            return NOTHING
        if step.source == kept.patchy:
            return Outcome("found", self.rumours[step.relation][query.entity])
        if step.source != kept.source:
            return NOTHING
        return Outcome("kept", kept.via) if kept.via else Outcome("found", self.facts[step.relation][query.entity])

    @cached_property
    def documents(self) -> tuple[WorldDocument, ...]:
        """All that is written down, source by source."""
        return tuple(sorted(self._write(), key=lambda document: (document.source, document.title, document.text)))

    def _write(self) -> Iterator[WorldDocument]:
        chance = random.Random(f"documents {self.seed}")
        for relation, facts in self.facts.items():
            kept = self.keeping[relation]
            for subject, value in facts.items():
                rumour = self.rumours[relation][subject]
                yield WorldDocument(kept.patchy, subject, chance.choice(sentences(subject, relation, rumour)))
                if not kept.via:
                    yield WorldDocument(kept.source, subject, chance.choice(sentences(subject, relation, value)))
                    continue
                keeper, wanted = self.facts[kept.via][subject], f"{relation} via {kept.via}"
                yield WorldDocument(kept.source, subject, pointer(subject, relation, kept.via))
                yield WorldDocument(kept.source, keeper, chance.choice(sentences(keeper, wanted, value)))


def _names(chance: random.Random, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(chance.choices(SYLLABLES, k=chance.choice((2, 3, 3)))).capitalize()] = None
    return list(names)


def _bijection(chance: random.Random, subjects: tuple[str, ...], objects: tuple[str, ...]) -> dict[str, str]:
    """Every subject gets an object of its own, and never itself."""
    while True:
        shuffled = chance.sample(objects, len(objects))
        if all(subject != value for subject, value in zip(subjects, shuffled, strict=True)):
            return dict(zip(subjects, shuffled, strict=True))


def _keeping(chance: random.Random, shifted: bool) -> dict[str, Keeping]:
    kept: dict[str, Keeping] = {}
    indirect = {relation.name for relation in RELATIONS if chance.random() < VIA_SHARE}
    for relation in RELATIONS:
        favoured = not shifted and chance.random() < FAVOURITE_SHARE
        source = FAVOURITE[relation.name] if favoured else chance.choice(SOURCES)
        patchy = chance.choice([other for other in SOURCES if other != source])
        ways = [
            other.name
            for other in RELATIONS
            if other.subject == RELATION[relation.name].subject and other != relation and other.name not in indirect
        ]
        via = chance.choice(ways) if relation.name in indirect and ways else ""
        kept[relation.name] = Keeping(source, patchy, via)
    return kept
