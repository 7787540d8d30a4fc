"""`lookup`: sentence after sentence, with no memory but the steps."""

from __future__ import annotations

from typing import Any

import pytest

from mia.tools.base import BadArguments, ToolContext
from mia.tools.lookup import LookupTool
from mia.types import Observation, Passage, Question, Step, ToolCall

TITAN = Passage(
    id="t-1",
    title="Titan",
    text="Titan is a moon of Saturn. It was found by C. Huygens in 1655.\nIts air is thick; TITAN is cold. 土卫。冷。",
)
RHEA = Passage(id="r-1", text="Rhea is a moon of Saturn.")


class Run:
    """The steps of a run, and lookups that add to them as the Executor does."""

    def __init__(self) -> None:
        self.steps: tuple[Step, ...] = ()

    def add(self, name: str, arguments: dict[str, Any], observation: Observation) -> None:
        step = Step(
            index=len(self.steps),
            text="",
            tool_call=ToolCall(name=name, arguments=arguments),
            observation=observation,
        )
        self.steps = (*self.steps, step)

    def search(self, *passages: Passage) -> None:
        self.add("search", {"query_list": ["moons"]}, Observation(text="…", passages=passages))

    async def lookup(self, term: str) -> Observation:
        context = ToolContext(Question.of("Who found Titan?"), self.steps)
        observation = await LookupTool().call({"term": term}, context)
        self.add("lookup", {"term": term}, observation)
        return observation


async def test_the_same_term_again_gives_the_next_sentence() -> None:
    run = Run()
    run.search(TITAN, RHEA)
    assert (await run.lookup("moon")).text == "(Result 1 / 2) [t-1] Titan\nTitan is a moon of Saturn."
    assert (await run.lookup(" MOON ")).text == "(Result 2 / 2) [r-1]\nRhea is a moon of Saturn."
    assert (await run.lookup("moon")).text == "No more results for 'moon': there were 2."
    assert (await run.lookup("moon")).ok


async def test_terms_are_counted_apart_and_sentences_end_where_they_end() -> None:
    run = Run()
    run.search(TITAN)
    assert "(Result 1 / 2)" in (await run.lookup("titan")).text
    assert (await run.lookup("Huygens")).text.endswith("\nIt was found by C. Huygens in 1655.")
    assert (await run.lookup("titan")).text.endswith("\nIts air is thick; TITAN is cold.")
    assert (await run.lookup("冷")).text.endswith("\n冷。")


async def test_a_result_is_a_passage_that_can_be_cited() -> None:
    run = Run()
    run.search(TITAN)
    (passage,) = (await run.lookup("1655")).passages
    assert (passage.id, passage.title) == ("t-1", "Titan")
    assert passage.text == "It was found by C. Huygens in 1655."


async def test_a_new_search_begins_anew_and_its_own_passages_are_looked_into() -> None:
    run = Run()
    run.search(TITAN, RHEA)
    await run.lookup("moon")
    run.search(RHEA)
    assert "(Result 1 / 1) [r-1]" in (await run.lookup("moon")).text
    assert (await run.lookup("Huygens")).text == "No sentence of the latest results contains 'huygens'."


async def test_steps_that_brought_nothing_are_passed_over() -> None:
    run = Run()
    run.search(TITAN)
    await run.lookup("moon")
    run.add("fetch", {"url": "http://a.example"}, Observation(text="fetch failed", ok=False, error="tool_failed"))
    run.add("lookup", {"term": 7}, Observation(text="wrong", ok=False, error="bad_arguments"))
    run.steps = (*run.steps, Step(index=9, text="no call"))
    assert "No more results" in (await run.lookup("moon")).text


async def test_before_any_search_there_is_nothing_to_look_into() -> None:
    assert "search first" in (await Run().lookup("moon")).text


@pytest.mark.parametrize("arguments", [{}, {"term": ""}, {"term": " "}, {"term": 1}, {"term": "a", "n": 2}])
async def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArguments, match='"term"'):
        await LookupTool().call(arguments, ToolContext(Question.of("Who?")))
