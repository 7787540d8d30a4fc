"""Counts of a world against counts by other means."""

from __future__ import annotations

from collections import Counter

from mia.world.facts import FAVOURITE, World
from mia.world.language import pointer, read_question
from mia.world.questions import tasks
from mia.world.statistics import count


def test_counts_of_a_world_and_of_its_stream() -> None:
    world = World.make(600_001)
    counts = count(world, 80)
    via = {relation for relation, kept in world.keeping.items() if kept.via}
    assert via
    assert sum(counts.entities.values()) == 60
    # Every relation is written down twice for each of ten entities; one kept elsewhere has a pointer besides.
    assert sum(counts.documents.values()) == 20 * 2 * 10 + len(via) * 10 == len(world.documents)
    assert counts.documents == Counter(document.source for document in world.documents)
    pointers = {pointer(subject, name, world.keeping[name].via) for name in via for subject in world.facts[name]}
    assert len(pointers & {document.text for document in world.documents}) == 10 * counts.via
    assert counts.at_favourite == sum(FAVOURITE[name] == kept.source for name, kept in world.keeping.items())
    assert counts.rumours == 200
    assert 70 < counts.wrong_rumours < 130
    chains = [read_question(task.question.text) for task in tasks(world, 80)]
    assert counts.hops == Counter(len(chain.relations) for chain in chains if chain)
    assert counts.questions_via == sum(bool(via & {*chain.relations}) for chain in chains if chain)


def test_no_questions_are_no_hops() -> None:
    counts = count(World.make(1), 0)
    assert (counts.questions, counts.questions_via, set(counts.hops.values())) == (0, 0, {0})
