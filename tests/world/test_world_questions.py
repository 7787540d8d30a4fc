"""The stream of questions: of the world, never the same one again, and nowhere answered by itself."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia.world.facts import World
from mia.world.language import RELATION, Chain, read_question
from mia.world.questions import HOP_WEIGHTS, chains, tasks

worlds = st.builds(lambda seed, shifted: World.make(seed, shifted=shifted), st.integers(0, 999_999), st.booleans())


def visited(world: World, chain: Chain) -> list[str]:
    return [world.answer(Chain(chain.entity, chain.relations[:hops])) for hops in range(len(chain.relations) + 1)]


@settings(deadline=None, max_examples=15)
@given(worlds, st.integers(0, 99))
def test_chains_meet_in_type_and_never_come_back_to_where_they_were(world: World, seed: int) -> None:
    for chain in islice(chains(world, seed), 60):
        assert chain.entity in world.entities[RELATION[chain.relations[0]].subject]
        assert all(RELATION[one].object == RELATION[other].subject for one, other in pairwise(chain.relations))
        way = visited(world, chain)
        assert len(set(way)) == len(way)


@settings(deadline=None, max_examples=15)
@given(worlds, st.integers(0, 99))
def test_no_question_of_a_stream_is_asked_twice_in_other_words(world: World, seed: int) -> None:
    asked = [read_question(task.question.text) for task in tasks(world, 120, seed)]
    assert len(set(asked)) == len(asked)


@settings(deadline=None, max_examples=15)
@given(worlds)
def test_tasks_carry_the_truth_and_the_question_does_not(world: World) -> None:
    for task, chain in zip(tasks(world, 60), chains(world), strict=False):
        assert read_question(task.question.text) == chain
        assert task.references == (world.answer(chain),)
        assert task.references[0] not in task.question.text


def test_no_answer_is_the_answer_to_much() -> None:
    for seed in range(40):
        answers = Counter(task.references[0] for task in tasks(World.make(seed), 120))
        assert max(answers.values()) <= 12


def test_hops_and_paraphrases_are_asked_as_often_as_is_said() -> None:
    texts = [task.question.text for seed in range(60) for task in tasks(World.make(seed), 60)]
    hops = Counter(len(chain.relations) for text in texts if (chain := read_question(text)))
    for number, weight in enumerate(HOP_WEIGHTS, start=1):
        # 3,600 questions: four standard deviations are 0.033. Few one-hop questions are new after a while.
        assert hops[number] / len(texts) == pytest.approx(weight, abs=0.035)
    forms = Counter("What" if text.startswith("What is") else text.split()[0][:4] for text in texts)
    assert forms["What"] + forms["Name"] + forms["Star"] == pytest.approx(0.75 * len(texts), rel=0.05)


def test_other_seeds_ask_other_questions_and_longer_streams_begin_the_same() -> None:
    world = World.make(600_000)
    assert tasks(world, 20) == tasks(world, 40)[:20]
    assert tasks(world, 20, seed=1) != tasks(world, 20)
    ids = [task.question.id for seed in (0, 1) for task in tasks(world, 20, seed)]
    ids += [task.question.id for task in tasks(World.make(600_000, shifted=True), 20)]
    assert len(set(ids)) == 60


def test_a_stream_goes_on_when_all_short_questions_were_asked() -> None:
    assert len(list(islice(chains(World.make(1)), 2_000))) == 2_000


def test_short_questions_are_those_of_the_stream_without_the_longer_ones() -> None:
    world = World.make(7)
    short = [chain for chain in islice(chains(world), 400) if len(chain.relations) <= 2][:60]
    assert [read_question(task.question.text) for task in tasks(world, 60, hops=2)] == short
    assert {len(chain.relations) for chain in short} == {1, 2}
