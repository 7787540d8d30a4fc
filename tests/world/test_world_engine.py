"""The engine of a world: it finds what the documents say of a query, in the source that is named, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from mia.types import Passage
from mia.world import preset
from mia.world.engine import WorldEngine
from mia.world.facts import World, WorldDocument
from mia.world.language import RELATIONS, SOURCES, Query, RouteStep, read_results


@pytest.fixture(scope="module")
def engine() -> WorldEngine:
    world = World.make(600_001)
    assert any(kept.via for kept in world.keeping.values())
    return WorldEngine(world)


def askable(world: World) -> list[Query]:
    """Every query that can bring something, and those to other sources for one entity of each relation."""
    queries = []
    for relation in RELATIONS:
        kept = world.keeping[relation.name]
        subjects = world.entities[relation.subject]
        for source in SOURCES:
            asked = subjects if source in (kept.source, kept.patchy) else subjects[:1]
            queries += [Query(RouteStep(relation.name, source), subject) for subject in asked]
        if kept.via:
            step = RouteStep(relation.name, kept.source, kept.via)
            queries += [Query(step, keeper) for keeper in world.facts[kept.via].values()]
    return queries


def says(query: Query, passages: list[Passage]) -> object:
    return read_results(query, "\n".join(passage.text for passage in passages))


@pytest.mark.parametrize(("k", "least"), [(preset.PASSAGES, 0.99), (2, 1.0)])
async def test_it_finds_what_there_is_to_find(engine: WorldEngine, k: int, least: float) -> None:
    queries = askable(engine.world)
    results = await engine.search([str(query) for query in queries], k)
    right = [says(query, found) == engine.world.look_up(query) for query, found in zip(queries, results, strict=True)]
    assert sum(right) / len(right) >= least


async def test_passages_are_of_the_source_that_is_named(engine: WorldEngine) -> None:
    for source in SOURCES:
        (found,) = await engine.search([f"is has kept {source.upper()}"], 50)
        assert found
        assert all(passage.source == f"world 600001, {source}" for passage in found)
        assert len({passage.id for passage in found}) == len(found)
        texts = {document.text for document in engine.world.documents if document.source == source}
        assert {passage.text for passage in found} <= texts


@pytest.mark.parametrize("text", ["mayor of {} in", "mayor of {} in census and ledger", "mayor of {} in censuses", ""])
async def test_a_query_that_names_no_source_or_several_finds_nothing(engine: WorldEngine, text: str) -> None:
    city = engine.world.entities["city"][0]
    assert await engine.search([text.format(city)], 5) == [[]]


@pytest.mark.parametrize("k", [0, -1])
async def test_who_wants_no_passage_gets_none(engine: WorldEngine, k: int) -> None:
    assert await engine.search([str(askable(engine.world)[0])] * 2, k) == [[], []]


async def test_a_source_that_is_named_twice_is_named(engine: WorldEngine) -> None:
    kept, city = engine.world.keeping["mayor"], engine.world.entities["city"][0]
    query = f"mayor of {city} in {kept.patchy}"
    once, twice = await engine.search([query, f"{query}, the {kept.patchy}"], 1)
    assert once == twice != []


async def test_the_title_weighs_more_than_the_text() -> None:
    text = "twin of Lima is Kavori"
    documents = (
        WorldDocument("census", "Lima", text),
        WorldDocument("census", "Kavori", text),
        WorldDocument("census", "Melo", text),
    )
    engine = WorldEngine(_Shelf(documents))  # type: ignore[arg-type]
    found = await engine.search(["twin of Kavori in census", "twin of Lima in census"], 3)
    assert [passages[0].title for passages in found] == ["Kavori", "Lima"]


class _Shelf:
    """A world that is nothing but its documents."""

    seed = 0

    def __init__(self, documents: tuple[WorldDocument, ...]) -> None:
        self.documents = documents


@pytest.mark.parametrize(
    "text",
    [
        'census "',
        "census AND (",
        "census:*",
        "source:census OR *",
        "census \x00\ud800\u202e",
        "census " + "a" * 100_000,
        "census " + " ".join(f"w{number}" for number in range(3_000)),
        "census ٣ 漢字 É ²",
        "census -- ^4 ~2 [a TO z] {b} /x/",
    ],
)
async def test_hostile_text_is_text(engine: WorldEngine, text: str) -> None:
    (found,) = await engine.search([text], 3)
    assert all(passage.source == "world 600001, census" for passage in found)


async def test_words_of_a_query_language_change_nothing(engine: WorldEngine) -> None:
    kept, city = engine.world.keeping["mayor"], engine.world.entities["city"][3]
    query = Query(RouteStep("mayor", kept.patchy), city)
    plain, dressed = await engine.search([str(query), f'+"mayor" (of {city})^9 && "in": {kept.patchy}* !'], 1)
    assert plain == dressed
    assert says(query, plain) == engine.world.look_up(query)


async def test_batches_and_questions_side_by_side_get_their_own_results(engine: WorldEngine) -> None:
    queries = [str(query) for query in askable(engine.world)[:40]]
    batch = await engine.search(queries, 2)
    alone = await asyncio.gather(*(engine.search([query], 2) for query in queries))
    assert batch == [found for (found,) in alone]
    assert await engine.search([], 2) == []


async def test_two_engines_of_one_world_agree(engine: WorldEngine) -> None:
    queries = [str(query) for query in askable(engine.world)[::7]]
    assert await WorldEngine(World.make(600_001)).search(queries, 5) == await engine.search(queries, 5)
    assert engine.name == "world 600001"
