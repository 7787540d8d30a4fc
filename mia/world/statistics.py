"""What a world is like, counted: where its documents are, which relations lie where one expects them, what is asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice

from mia.world.facts import FAVOURITE, World
from mia.world.language import SOURCES
from mia.world.questions import MOST_HOPS, chains


@dataclass(frozen=True)
class WorldStatistics:
    """Counts of one world and of the first questions of its stream."""

    entities: dict[str, int]
    """By type."""
    documents: dict[str, int]
    """By source."""
    relations: int
    at_favourite: int
    """Relations whose true source is their favourite over all worlds."""
    via: int
    """Relations that are kept under another entity."""
    rumours: int
    """What the patchy sources say."""
    wrong_rumours: int
    questions: int
    hops: dict[int, int]
    """Number of relations in a question → questions."""
    questions_via: int
    """Questions with a relation that is kept under another entity."""


def count(world: World, questions: int) -> WorldStatistics:
    """`questions`: how many of the stream to count."""
    kept = world.keeping
    sources = Counter(document.source for document in world.documents)
    asked = list(islice(chains(world), questions))
    hops = Counter(len(chain.relations) for chain in asked)
    rumours = [
        (said, world.facts[relation][subject])
        for relation, told in world.rumours.items()
        for subject, said in told.items()
    ]
    return WorldStatistics(
        entities={kind: len(names) for kind, names in world.entities.items()},
        documents={source: sources[source] for source in SOURCES},
        relations=len(kept),
        at_favourite=sum(keeping.source == FAVOURITE[relation] for relation, keeping in kept.items()),
        via=sum(bool(keeping.via) for keeping in kept.values()),
        rumours=len(rumours),
        wrong_rumours=sum(said != truth for said, truth in rumours),
        questions=len(asked),
        hops={number: hops[number] for number in range(1, MOST_HOPS + 1)},
        questions_via=sum(any(kept[relation].via for relation in chain.relations) for chain in asked),
    )
