"""A long text tells what its question asks for exactly once, anywhere; and a perfect reader of it is never wrong."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest

from mia.errors import ConfigError
from mia.world.facts import World
from mia.world.language import PARAPHRASES, UNKNOWN, sentences
from mia.world.longtexts import (
    Fact,
    LongText,
    answer_from,
    facts_in,
    make_text,
    note_facts,
    read_asking,
    write_asking,
)


def words(text: str) -> int:
    return len(text.split())


world = cache(World.make)


def made(seed: int, number: int = 0, tokens: int = 400, facts: int = 2) -> LongText:
    return make_text(world(seed), number, tokens, words, facts=facts)


def test_the_same_arguments_give_the_same_text_and_others_another() -> None:
    assert made(1) == made(1)
    assert len({made(1).text, made(2).text, made(1, 1).text, made(1, facts=1).text}) == 4


@pytest.mark.parametrize("facts", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_asked_for_is_true_and_is_told_once(seed: int, facts: int) -> None:
    text = made(seed, facts=facts)
    assert len(text.facts) == facts
    assert read_asking(text.question) == tuple(fact.asked for fact in text.facts)
    told = Counter(facts_in(text.text))
    for fact, depth in zip(text.facts, text.depths, strict=True):
        assert world(seed).facts[fact.relation][fact.entity] == fact.value
        assert told[fact] == 1
        assert not any(other.asked == fact.asked and other != fact for other in told)
        start = round(depth * len(text.text))
        assert text.text[start:].startswith(f"{fact}.")
    assert text.answer == ", ".join(fact.value for fact in text.facts)


def test_the_two_facts_of_a_question_do_not_lead_to_each_other() -> None:
    for number in range(50):
        one, other = made(number % 5, number).facts
        assert one.relation != other.relation
        assert len({one.entity, one.value, other.entity, other.value}) == 4


@pytest.mark.parametrize("tokens", [60, 500, 4_000])
def test_a_text_has_the_tokens_that_were_asked_for(tokens: int) -> None:
    text = made(3, tokens=tokens)
    assert text.tokens == words(text.text)
    assert tokens <= text.tokens < tokens + 8  # A sentence.


def test_facts_stand_at_every_depth_alike() -> None:
    depths = [depth for number in range(300) for depth in made(number % 5, number, tokens=200).depths]
    assert all(0 <= depth < 1 for depth in depths)
    fifths = Counter(int(5 * depth) for depth in depths)
    # 120 are expected in each, with a standard deviation of 9.8.
    assert all(80 < fifths[fifth] < 160 for fifth in range(5)), fifths


def test_others_of_the_same_relation_and_of_the_same_entity_stand_around() -> None:
    text = made(5, tokens=8_000, facts=1)
    (fact,) = text.facts
    told = set(facts_in(text.text))
    assert sum(other.relation == fact.relation for other in told) > 5
    assert sum(other.entity == fact.entity for other in told) > 1
    assert " is kept by " in text.text


@pytest.mark.parametrize("paraphrase", range(PARAPHRASES))
def test_every_question_is_read_back(paraphrase: int) -> None:
    one, two = ("mayor", "Melotu"), ("birthplace", "Kavori")
    assert read_asking(write_asking([one], paraphrase)) == (one,)
    assert read_asking(write_asking([one, two], paraphrase)) == (one, two)


def test_what_is_no_question_asks_for_nothing() -> None:
    assert read_asking("Who lit the lamp?") == ()


def test_a_note_goes_on_with_what_the_memory_holds() -> None:
    question = write_asking([("mayor", "Melotu"), ("birthplace", "Kavori")], 0)
    first = note_facts(question, "(nothing)", "Kavori has birthplace Dato. mayor of Dato is Rina.")
    assert first == "mayor of Melotu is unknown\nbirthplace of Kavori is Dato"
    assert answer_from(question, first) == f"\\boxed{{{UNKNOWN}, Dato}}"
    second = note_facts(question, first, "mayor of Melotu is Bado. mayor of Melotu is kept by waterway.")
    assert second == "mayor of Melotu is Bado\nbirthplace of Kavori is Dato"
    assert note_facts(question, second, "birthplace of Rina is Melotu.") == second
    assert answer_from(question, second) == "\\boxed{Bado, Dato}"


def test_facts_are_read_in_both_directions() -> None:
    fact = Fact("mayor", "Melotu", "Bado")
    for sentence in sentences("Melotu", "mayor", "Bado"):
        assert list(facts_in(f"x. {sentence}. y")) == [fact]
    assert list(facts_in("mayor of Melotu is unknown")) == []


def test_a_perfect_reader_answers_whatever_the_sections() -> None:
    chance = random.Random(7)
    for seed in range(30):
        text = made(seed)
        memory, rest = "", text.text.split(". ")
        while rest:
            size = chance.randint(1, 12)
            memory, rest = note_facts(text.question, memory, ". ".join(rest[:size])), rest[size:]
        assert answer_from(text.question, memory) == f"\\boxed{{{text.answer}}}"


@pytest.mark.parametrize(("tokens", "facts"), [(400, 3), (400, 0), (1, 2)])
def test_a_text_that_cannot_be_made_is_refused(tokens: int, facts: int) -> None:
    with pytest.raises(ConfigError):
        made(1, tokens=tokens, facts=facts)
