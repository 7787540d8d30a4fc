"""Whatever is written in the world's small language is read back as it was meant, and nothing else is."""

from __future__ import annotations

import itertools
import re

import pytest
import spoken
from hypothesis import given, settings
from hypothesis import strategies as st

from mia.agents.protocol import read_final_reply, read_reply
from mia.memory import present
from mia.types import Memory
from mia.world.language import (
    NOTHING,
    PARAPHRASES,
    RELATION,
    RELATIONS,
    SOURCES,
    SYLLABLES,
    TYPES,
    UNKNOWN,
    UNTOLD,
    Chain,
    Outcome,
    Query,
    Route,
    RouteStep,
    Try,
    pointer,
    read_answer,
    read_memories,
    read_plan,
    read_query,
    read_question,
    read_results,
    read_thought,
    read_trajectory,
    read_workflow,
    sentences,
    thought,
    write_answer,
    write_call,
    write_plan,
    write_question,
    write_workflow,
)


@given(spoken.chains, st.integers(0, PARAPHRASES - 1))
def test_questions(chain: Chain, paraphrase: int) -> None:
    assert read_question(write_question(chain, paraphrase)) == chain


@given(spoken.chains)
def test_paraphrases_differ_in_more_than_their_beginning(chain: Chain) -> None:
    texts = {write_question(chain, paraphrase) for paraphrase in range(PARAPHRASES)}
    assert len(texts) == PARAPHRASES
    assert all(chain.entity in text and all(relation in text for relation in chain.relations) for text in texts)


def test_questions_that_read_like_a_person_wrote_them() -> None:
    chain = Chain("Kavori", ("birthplace", "mayor"))
    assert [write_question(chain, paraphrase) for paraphrase in range(PARAPHRASES)] == [
        "What is the mayor of the birthplace of Kavori?",
        "Name the mayor of the birthplace of Kavori.",
        "Kavori's birthplace and its mayor?",
        "Starting from Kavori, find the birthplace, then the mayor.",
    ]


@given(spoken.routes)
def test_plans(route: Route) -> None:
    assert read_plan(write_plan(route)) == route


@given(spoken.queries)
def test_queries(query: Query) -> None:
    assert read_query(str(query)) == query


@given(spoken.queries, spoken.names, spoken.names, st.integers(0, 1))
def test_results_say_something_of_the_very_entity_and_relation_alone(
    query: Query, value: str, other: str, direction: int
) -> None:
    entity, wanted = query.entity, query.step.wanted
    said = sentences(entity, wanted, value)[direction]
    assert read_results(query, said) == Outcome("found", value)
    assert read_results(query, f"Query: {query}\n\n[1] {other}\n{said}\n") == Outcome("found", value)
    assert read_results(query, f"Query: {query}\n\nNothing was found for this query.") == NOTHING
    if other != entity:
        assert read_results(query, sentences(other, wanted, value)[direction]) == NOTHING
    for relation in RELATION:
        if relation != wanted:
            assert read_results(query, sentences(entity, relation, value)[direction]) == NOTHING


@given(spoken.names, spoken.relations, spoken.relations, spoken.sources, spoken.names)
def test_pointers(entity: str, relation: str, via: str, source: str, other: str) -> None:
    query = Query(RouteStep(relation, source), entity)
    assert read_results(query, pointer(entity, relation, via)) == Outcome("kept", via)
    if other != entity:
        assert read_results(query, pointer(other, relation, via)) == NOTHING
    assert read_results(Query(RouteStep(relation, source, via), entity), pointer(entity, relation, via)) == NOTHING


@given(spoken.queries, spoken.outcomes)
def test_turns_of_the_executor_are_turns_of_the_line(query: Query, outcome: Outcome) -> None:
    note = thought(query, outcome)
    assert read_thought(note) == outcome
    searched = read_reply(write_call(note, query))
    assert searched.call is not None
    assert (searched.call.name, searched.call.arguments) == ("search", {"query_list": [str(query)]})
    assert (searched.thinking, searched.fault) == (note, "")
    said = read_final_reply(write_answer(note, query.entity))
    assert said.answer == query.entity


def test_a_beginning_notes_no_outcome() -> None:
    assert read_thought("start Kavori") == read_thought("at Kavori") == NOTHING


@given(st.lists(st.tuples(spoken.queries, spoken.outcomes), max_size=5), spoken.names)
def test_trajectories(rounds: list[tuple[Query, Outcome]], answer: str) -> None:
    notes = ["start Kavori", *(thought(query, outcome) for query, outcome in rounds)]
    lines = [
        f"Round {number}\nReasoning: {note}\nCall: search {{'query_list': ['{query}']}}\nResult: Query: {query}"
        for number, (note, (query, _)) in enumerate(zip(notes, rounds, strict=False), start=1)
    ]
    text = "\n\n".join([*lines, f"Round {len(notes)}\nReasoning: {notes[-1]}", f"Answer: {answer}"])
    assert read_trajectory(text) == [Try(query, outcome) for query, outcome in rounds]
    assert read_answer(text) == answer
    assert read_answer(text.replace("Answer: ", "It answered: ") + ".") == answer


def test_a_search_without_a_note_is_no_try() -> None:
    assert read_trajectory("Round 1\nReasoning: start Kavori\nCall: search mayor of Kavori in census") == []
    assert read_answer("Round 1\nReasoning: start Kavori") == ""


def told(tries: list[Try]) -> list[Try]:
    """What a workflow keeps of tries: of a pair, not the entity between."""
    kept = list(tries)
    for number, (one, after) in enumerate(itertools.pairwise(tries)):
        leads_on = after.query.step.via == one.query.step.wanted and after.query.entity == one.outcome.what
        if leads_on and one.outcome.kind == after.outcome.kind == "found" and kept[number].query.entity != UNTOLD:
            kept[number] = Try(kept[number].query, Outcome("found", UNTOLD))
            kept[number + 1] = Try(Query(after.query.step, UNTOLD), after.outcome)
    return kept


@given(spoken.tries)
def test_workflows(tries: list[Try]) -> None:
    assert read_workflow(write_workflow(tries)) == told(tries)


def test_a_route_over_another_entity_is_one_line() -> None:
    waterway = Try(Query(RouteStep("waterway", "gazette"), "Melotu"), Outcome("found", "Ruso"))
    mayor = Try(Query(RouteStep("mayor", "census", "waterway"), "Ruso"), Outcome("found", "Xanu"))
    assert (
        write_workflow([waterway, mayor])
        == "1. find mayor via waterway: waterway in gazette, mayor in census (Melotu → Xanu)"
    )
    assert (
        write_plan([waterway.query.step, mayor.query.step])
        == "1. find mayor via waterway: waterway in gazette, mayor in census"
    )


def test_what_failed_is_told_in_other_words() -> None:
    nothing = Try(Query(RouteStep("mayor", "ledger"), "Melotu"), NOTHING)
    kept = Try(Query(RouteStep("mayor", "census"), "Melotu"), Outcome("kept", "waterway"))
    assert (
        write_workflow([nothing, kept])
        == "1. mayor not in ledger (Melotu)\n2. mayor kept by waterway in census (Melotu)"
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), spoken.tries.filter(bool)), max_size=4))
def test_memories_as_the_line_shows_them(remembered: list[tuple[bool, list[Try]]]) -> None:
    memories = [
        Memory(
            id=f"mem-{number:020d}",
            question="Kavori's mayor?",
            workflow=write_workflow(tries),
            judgement="correct" if right else "incorrect",
            created_at=0.0,
            updated_at=0.0,
        )
        for number, (right, tries) in enumerate(remembered)
    ]
    shown = list(read_memories(present.for_planner(memories)))
    assert sorted(shown, key=repr) == sorted(((right, told(tries)) for right, tries in remembered), key=repr)


@given(st.text())
def test_no_text_is_too_strange_to_read(text: str) -> None:
    query = Query(RouteStep("mayor", "census"), "Kavori")
    assert read_results(query, text) == NOTHING
    assert read_question(text) is None
    assert read_query(text) is None
    assert list(read_memories(text)) == []
    assert (read_plan(text), read_workflow(text), read_trajectory(text)) == ((), [], [])


@pytest.mark.parametrize(
    "text",
    ["", "What is love?", "Name the mayor.", "Who is Kavori?", "mayor of kavori?", "What is the king of Kavori?"],
)
def test_other_questions_are_not_read(text: str) -> None:
    assert read_question(text) is None


def test_words_cannot_be_taken_for_one_another() -> None:
    words = [*RELATION, *SOURCES, UNKNOWN, "nothing", "found", "kept", "find", "via", "in", "of", "is", "has", "by"]
    assert len(set(words)) == len(words)
    name = re.compile(rf"(?:{'|'.join(SYLLABLES)}){{2,3}}")
    assert name.fullmatch("kavori")
    assert not [word for word in words if name.fullmatch(word)]


def test_every_type_can_be_left_and_all_but_films_can_be_reached() -> None:
    assert {relation.subject for relation in RELATIONS} == set(TYPES)
    assert {relation.object for relation in RELATIONS} == {*TYPES} - {"film"}
    assert len(RELATION) == len(RELATIONS) == 20
