"""Long texts of a world: a few facts that a question asks for, each told once, anywhere among the world's other facts.

A text is sentences as the world's documents have them, thousands of them if wanted: facts, over and over, and at times
a note that a relation is kept elsewhere. Facts about the same entity, and the same relation of other entities, stand
all around those that are asked for, so that only entity and relation together tell them. Where a fact stands is drawn
evenly over the text. Of the two directions in which documents state a fact, texts take the one that begins with the
relation: the other one a model as small as the embedded one did not learn to look up (benchmarks/LOG.md).

A question asks for one fact, or for two that have nothing to do with each other; its answer names what they tell, in
the order of the question.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mia.errors import ConfigError
from mia.world.facts import World
from mia.world.language import (
    PARAPHRASES,
    RELATION,
    UNKNOWN,
    Chain,
    pointer,
    read_question,
    sentences,
    write_question,
)

MOST_FACTS = 2
"""That a question asks for."""
_POINTERS = 0.08
"""Sentences that tell where a relation is kept, and no fact."""
_PARAGRAPH = range(4, 13)
"""Sentences of a paragraph."""

Asked = tuple[str, str]
"""A relation and the entity that it is asked of."""

_RELATIONS = "|".join(RELATION)
_ENTITY = r"[A-Z][a-z]+"
_TOLD = re.compile(rf"\b(?:({_RELATIONS}) of ({_ENTITY}) is ({_ENTITY})|({_ENTITY}) has ({_RELATIONS}) ({_ENTITY}))\b")
_PAIR = re.compile(rf"\b({_RELATIONS}) of ({_ENTITY})\b")


@dataclass(frozen=True)
class Fact:
    relation: str
    entity: str
    value: str

    @property
    def asked(self) -> Asked:
        return self.relation, self.entity

    def __str__(self) -> str:
        """As texts tell it and a reader notes it."""
        return sentences(self.entity, self.relation, self.value)[0]


@dataclass(frozen=True)
class LongText:
    """A text, and a question about it."""

    id: str
    text: str
    question: str
    facts: tuple[Fact, ...]
    """What is asked for, in the order of the question."""
    depths: tuple[float, ...]
    """For each where its sentence begins, as a share of the text: in [0, 1)."""
    tokens: int

    @property
    def answer(self) -> str:
        return write_values(fact.value for fact in self.facts)


def make_text(world: World, number: int, tokens: int, count: Callable[[str], int], *, facts: int = 1) -> LongText:
    """The text of a number in a world, of about so many tokens as `count` counts them: more by less than a sentence.

    `facts`: what its question asks for, 1 or 2. The same arguments give the same text. Raises ConfigError for another
    number of facts, and for a text that has no room for them.
    """
    if not 1 <= facts <= MOST_FACTS:
        raise ConfigError(f"a question of {facts} facts.", wanted=f"1 to {MOST_FACTS}")
    chance = random.Random(f"long text {world.seed} {world.shifted} {number} {tokens} {facts}")
    every = [Fact(relation, entity, value) for relation, told in world.facts.items() for entity, value in told.items()]
    asked = _independent(chance, every, facts)
    wanted = [f"{fact}. " for fact in asked]
    told = sum(count(sentence) for sentence in wanted)
    fillers: list[str] = []
    others = [fact for fact in every if fact not in asked]
    while told < tokens:
        fillers.append(_filler(chance, others, every))
        told += count(fillers[-1])
    if len(fillers) < facts:
        raise ConfigError(f"{tokens} tokens are too few for a text with {facts} facts.", wanted="some sentences more")
    places = [chance.randrange(len(fillers) + 1) for _ in wanted]
    text, starts = _write(chance, fillers, wanted, places)
    return LongText(
        id=f"text-{world.seed}{'s' if world.shifted else ''}-{number}",
        text=text,
        question=write_asking([fact.asked for fact in asked], chance.randrange(PARAPHRASES)),
        facts=tuple(asked),
        depths=tuple(start / len(text) for start in starts),
        tokens=told,
    )


def _independent(chance: random.Random, every: Sequence[Fact], count: int) -> list[Fact]:
    """Facts of different entities and relations: neither leads to the other."""
    while True:
        found = chance.sample(every, count)
        names = [name for fact in found for name in (fact.entity, fact.value)]
        if len({fact.relation for fact in found}) == count and len(set(names)) == len(names):
            return found


def _filler(chance: random.Random, others: Sequence[Fact], every: Sequence[Fact]) -> str:
    if chance.random() >= _POINTERS:
        return f"{chance.choice(others)}. "
    about = chance.choice(every)
    ways = [relation.name for relation in RELATION.values() if relation.subject == RELATION[about.relation].subject]
    return pointer(about.entity, about.relation, chance.choice(ways)) + ". "


def _write(
    chance: random.Random, fillers: Sequence[str], wanted: Sequence[str], places: Sequence[int]
) -> tuple[str, list[int]]:
    """The text, with each wanted sentence before the filler of its place; and where those begin."""
    told: list[tuple[str, int]] = [(sentence, -1) for sentence in fillers]
    for number in sorted(range(len(wanted)), key=lambda number: -places[number]):
        told.insert(places[number], (wanted[number], number))
    pieces: list[str] = []
    starts = [0] * len(wanted)
    length, left = 0, chance.choice(_PARAGRAPH)
    for sentence, number in told:
        if number >= 0:
            starts[number] = length
        left -= 1
        if not left:
            sentence, left = f"{sentence.rstrip()}\n", chance.choice(_PARAGRAPH)
        pieces.append(sentence)
        length += len(sentence)
    return "".join(pieces), starts


# ── questions and notes ───────────────────────────────────────────────────────────────────────────────────────────


def write_asking(asked: Sequence[Asked], paraphrase: int) -> str:
    """A question for one fact, as the world asks it; or for two, in one of two ways."""
    if len(asked) == 1:
        ((relation, entity),) = asked
        return write_question(Chain(entity, (relation,)), paraphrase)
    pairs = " and the ".join(f"{relation} of {entity}" for relation, entity in asked)
    return f"Name the {pairs}." if paraphrase % 2 else f"What is the {pairs}?"


def read_asking(question: str) -> tuple[Asked, ...]:
    """What a question asks for, in its order; nothing if it is none of these."""
    if len(pairs := tuple(_PAIR.findall(question))) > 1:
        return pairs
    chain = read_question(question)
    return ((chain.relations[0], chain.entity),) if chain is not None else ()


def facts_in(text: str) -> Iterator[Fact]:
    """The facts that are told, in either direction, in their order."""
    for relation, entity, value, other_entity, other_relation, other_value in _TOLD.findall(text):
        yield Fact(relation or other_relation, entity or other_entity, value or other_value)


def write_values(values: Iterable[str]) -> str:
    return ", ".join(values)


def note_facts(question: str, memory: str, chunk: str) -> str:
    """The memory that a perfect reader writes: a line for each fact that the question asks for, in its order, with
    what memory and chunk tell of it, or "unknown". A small model copies such lines well, since each begins as the
    sentence that it looks for does."""
    known = {fact.asked: fact.value for text in (chunk, memory) for fact in facts_in(text)}
    return "\n".join(str(Fact(*asked, known.get(asked, UNKNOWN))) for asked in read_asking(question))


def answer_from(question: str, memory: str) -> str:
    """The answer of a perfect reader, in a box; "unknown" stands for what the memory does not tell."""
    known = {fact.asked: fact.value for fact in facts_in(memory)}
    return f"\\boxed{{{write_values(known.get(asked, UNKNOWN) for asked in read_asking(question))}}}"
