"""`search`: what the model may ask, and how it reads what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mia.errors import CorpusError, ToolError
from mia.tools.base import BadArguments, ToolContext
from mia.tools.search import SearchTool
from mia.types import Passage, Question

CONTEXT = ToolContext(Question.of("Who found Titan?"))
TITAN = Passage(id="t-1", title="Titan", text="Titan is a moon of Saturn.")
RHEA = Passage(id="r-1", text="Rhea has no title.")


class Shelf:
    """An engine over a few passages, by the query's words."""

    name = "shelf"

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[tuple[list[str], int]] = []
        self.closed = False

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.asked.append((list(queries), k))
        if self.failure is not None:
            raise self.failure
        return [[passage for passage in (TITAN, RHEA) if passage.id[0] in query.casefold()[:2]] for query in queries]

    async def close(self) -> None:
        self.closed = True


async def test_results_are_grouped_by_query() -> None:
    observation = await SearchTool(Shelf(), k=2).call({"query_list": ["t", "r", "x"]}, CONTEXT)
    assert observation.text == (
        "Query: t\n\n[t-1] Titan\nTitan is a moon of Saturn.\n\n"
        "Query: r\n\n[r-1]\nRhea has no title.\n\n"
        "Query: x\n\nNothing was found for this query."
    )
    assert observation.ok
    assert observation.passages == (TITAN, RHEA)


async def test_one_batch_is_one_question_to_the_engine() -> None:
    engine = Shelf()
    await SearchTool(engine, k=5).call({"query_list": [" t  one ", "t one", "r"]}, CONTEXT)
    assert engine.asked == [(["t one", "r"], 5)]


async def test_a_passage_that_two_queries_find_is_printed_once() -> None:
    observation = await SearchTool(Shelf()).call({"query_list": ["ta", "tb"]}, CONTEXT)
    assert observation.text.endswith("Query: tb\n\n[t-1] Titan\n(shown above)")
    assert observation.text.count(TITAN.text) == 1
    assert observation.passages == (TITAN,)


async def test_what_an_engine_returns_has_bounds_and_is_cited_as_it_was_shown() -> None:
    class Endless(Shelf):
        async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
            return [[Passage(id="i" * 9_999, title="t" * 9_999, text="x" * 3_500_000)] * 99 for _ in queries]

    observation = await SearchTool(Endless()).call({"query_list": ["q"]}, CONTEXT)
    assert len(observation.text) < 20_000
    (passage,) = observation.passages
    assert passage.text.endswith("xxx … [3,496,000 characters cut]")
    assert passage.text in observation.text
    assert f"[{passage.id}] {passage.title}\n" in observation.text


async def test_two_texts_under_one_id_are_both_shown() -> None:
    """As a web search does: one page, another snippet for another query."""

    class Web(Shelf):
        async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
            return [[Passage(id="https://a.example", text=f"about {query}")] for query in queries]

    observation = await SearchTool(Web()).call({"query_list": ["moons", "rings"]}, CONTEXT)
    assert [passage.text for passage in observation.passages] == ["about moons", "about rings"]
    assert "about rings" in observation.text


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"query_list": []}, {"query_list": "titan"}, {"query_list": None}, {"query_list": {"a": 1}},
        {"query": "titan"}, {"query_list": ["titan", ""]}, {"query_list": ["  "]}, {"query_list": ["titan", 7]},
        {"query_list": [["titan"]]},
        {"query_list": ["titan"], "k": 10}, {"query_list": [f"query {number}" for number in range(9)]},
        {"query_list": ["x" * 401]},
    ],
)  # fmt: skip
async def test_wrong_arguments_are_refused_before_the_engine_is_asked(arguments: dict[str, Any]) -> None:
    engine = Shelf()
    with pytest.raises(BadArguments) as caught:
        await SearchTool(engine).call(arguments, CONTEXT)
    assert "query_list" in str(caught.value) or "up to" in str(caught.value)
    assert not engine.asked


@pytest.mark.parametrize(
    "failure", [ToolError("the server is down."), CorpusError("the index is gone.", hint="mia index")]
)
async def test_an_engine_that_fails_is_a_tool_error_and_is_asked_again(failure: ToolError | CorpusError) -> None:
    engine = Shelf(failure)
    tool = SearchTool(engine)
    for _ in range(2):
        with pytest.raises(ToolError, match=failure.got):
            await tool.call({"query_list": ["t"]}, CONTEXT)
    engine.failure = None
    assert (await tool.call({"query_list": ["t"]}, CONTEXT)).passages == (TITAN,)


async def test_the_engine_is_closed_with_its_tool() -> None:
    engine = Shelf()
    await SearchTool(engine).close()
    assert engine.closed
