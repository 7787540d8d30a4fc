"""Symbolic planners: each does what is said of it, and a belief about sources is what Bayes' rule makes of tries."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from mia.world.facts import FAVOURITE, World
from mia.world.language import NOTHING, SOURCES, UNKNOWN, Chain, Outcome, Query, RouteStep, Try
from mia.world.questions import chains
from mia.world.room import RUNGS, Belief, Ideal, Oracle, Prior, Remembered, play, recall, room
from mia.world.teacher import KNOWN

GUESSED = next(name for name in sorted(FAVOURITE) if name not in KNOWN)


def tried(relation: str, source: str, outcome: Outcome, *, via: str = "", entity: str = "Lima") -> Try:
    return Try(Query(RouteStep(relation, source, via), entity), outcome)


def found(relation: str, source: str, *, via: str = "", entity: str = "Lima") -> Try:
    return tried(relation, source, Outcome("found", "Melo"), via=via, entity=entity)


def right(*tries: Try) -> Remembered:
    return Remembered(tries, "Melo", right=True)


def wrong(*tries: Try) -> Remembered:
    return Remembered(tries, "Melo", right=False)


def unknown(*tries: Try) -> Remembered:
    return Remembered(tries, UNKNOWN, right=False)


def others(*sources: str) -> list[str]:
    return [source for source in SOURCES if source not in sources]


# ── planners ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_prior_is_the_teachers() -> None:
    planners = [Prior([], random.Random(seed)) for seed in range(60)]
    assert {planner.route(KNOWN[0], ()) for planner in planners} == {(RouteStep(KNOWN[0], FAVOURITE[KNOWN[0]]),)}
    assert {planner.route(GUESSED, ())[0].source for planner in planners} == set(SOURCES)


def test_the_prior_tries_no_source_twice_and_follows_a_pointer() -> None:
    here: list[Try] = []
    planner = Prior([], random.Random(0))
    for _ in SOURCES:
        (step,) = planner.route(GUESSED, here)
        here.append(tried(GUESSED, step.source, NOTHING))
    assert {one.query.step.source for one in here} == set(SOURCES)
    pointing = tried("mayor", "ledger", Outcome("kept", "waterway"))
    keeper, last = planner.route("mayor", [pointing, tried("waterway", "census", NOTHING)])
    assert (keeper.relation, last) == ("waterway", RouteStep("mayor", "ledger", "waterway"))
    assert keeper.source != "census"


def test_the_prior_takes_routes_from_right_answers_alone_whole_and_the_first() -> None:
    over = (found("waterway", "gazette"), found("mayor", "ledger", via="waterway"))
    chance = random.Random(0)
    assert Prior([right(*over)], chance).route("mayor", ()) == tuple(one.query.step for one in over)
    assert Prior([right(found("mayor", "census")), right(*over)], chance).route("mayor", ()) == (
        RouteStep("mayor", "census"),
    )
    guesses = {Prior([wrong(*over)], random.Random(seed)).route("mayor", ()) for seed in range(60)}
    assert len(guesses) > 1
    assert all(len(route) == 1 for route in guesses)


def test_the_ideal_knows_all_favourites_and_no_empty_source() -> None:
    for relation, favourite in FAVOURITE.items():
        assert Ideal([], random.Random(1)).route(relation, ()) == (RouteStep(relation, favourite),)
        failed = unknown(tried(relation, favourite, NOTHING))
        ((step,),) = [Ideal([failed], random.Random(1)).route(relation, ())]
        assert step.source != favourite
        here = [tried(relation, step.source, NOTHING)]
        ((again,),) = [Ideal([failed], random.Random(1)).route(relation, here)]
        assert again.source not in (favourite, step.source)


def test_the_ideal_believes_what_worked_twice_and_not_what_was_found_out() -> None:
    source = others(FAVOURITE["mayor"])[0]
    confirmed = [right(found("mayor", source, entity=name)) for name in ("Lima", "Kavo", "Rupi")]
    assert Ideal(confirmed, random.Random(0)).route("mayor", ()) == (RouteStep("mayor", source),)
    refuted = [wrong(found("mayor", FAVOURITE["mayor"]))]
    assert Ideal(refuted, random.Random(0)).route("mayor", ())[0].source != FAVOURITE["mayor"]


def test_the_ideal_goes_where_a_pointer_of_a_failed_attempt_points() -> None:
    source = others(FAVOURITE["mayor"])[0]
    memory = unknown(tried("mayor", source, Outcome("kept", "waterway")))
    assert Ideal([memory], random.Random(0)).route("mayor", ()) == (
        RouteStep("waterway", FAVOURITE["waterway"]),
        RouteStep("mayor", source, "waterway"),
    )


# ── beliefs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def sources_of(belief: Belief, relation: str) -> dict[str, float]:
    return {source: round(belief.true(relation, source), 6) for source in SOURCES}


def test_before_anything_is_seen_there_are_the_favourites() -> None:
    belief = Belief()
    for relation, favourite in FAVOURITE.items():
        expected = {source: 0.4 / 6 + 0.6 * (source == favourite) for source in SOURCES}
        assert sources_of(belief, relation) == pytest.approx(expected, abs=1e-5)
        # Where it is not true, a source is the patchy one with probability 1/5, and then right half the time.
        assert belief.right(relation, favourite) == pytest.approx(2 / 3 + 1 / 3 / 5 / 2)


def test_one_right_answer_by_hand() -> None:
    # A source that is not the favourite: true with 1/15, patchy with 14/15 · 1/5; then right in half the cases.
    source = others(FAVOURITE["mayor"])[0]
    belief = Belief()
    belief.learn(right(found("mayor", source)))
    true, patchy = 1 / 15, 14 / 15 / 5 / 2
    assert belief.true("mayor", source) == pytest.approx(true / (true + patchy))
    # The same document is no evidence again; another one is.
    belief.learn(right(found("mayor", source)))
    assert belief.true("mayor", source) == pytest.approx(true / (true + patchy))
    belief.learn(right(found("mayor", source, entity="Kavo")))
    assert belief.true("mayor", source) == pytest.approx(true / (true + patchy / 2))


def test_one_wrong_answer_by_hand() -> None:
    # One hop: the source that said it is the patchy one. Two: each may be to blame.
    favourite, coach = FAVOURITE["mayor"], FAVOURITE["coach"]
    alone, both = Belief(), Belief()
    alone.learn(wrong(found("mayor", favourite)))
    assert alone.true("mayor", favourite) == 0
    both.learn(wrong(found("mayor", favourite), found("coach", coach)))
    # After both were found: true with (2/3) / (2/3 + 1/15), and right then, or in half of the rest.
    true = (2 / 3) / (2 / 3 + 1 / 15)
    other = true + (1 - true) / 2
    blamed = true * (1 - other) / (true * (1 - other) + (1 - true) * (1 - other / 2))
    assert both.true("mayor", favourite) == pytest.approx(blamed)
    assert both.true("coach", coach) == pytest.approx(blamed)


def test_a_confirmed_hop_is_not_to_blame() -> None:
    favourite, coach = FAVOURITE["mayor"], FAVOURITE["coach"]
    belief = Belief()
    belief.learn(right(found("mayor", favourite)))
    before = belief.true("mayor", favourite)
    belief.learn(wrong(found("mayor", favourite), found("coach", coach)))
    assert belief.true("mayor", favourite) == before
    assert belief.true("coach", coach) == 0


def test_a_pointer_settles_the_true_source_and_who_answers_besides_is_patchy() -> None:
    true, patchy = others(FAVOURITE["mayor"])[:2]
    belief = Belief()
    belief.learn(unknown(tried("mayor", true, Outcome("kept", "waterway"))))
    belief.learn(right(found("mayor", patchy)))
    assert belief.kept_by == {"mayor": "waterway"}
    assert belief.true("mayor", true) == 1
    assert belief.right("mayor", patchy) == pytest.approx(0.5)


def test_what_a_belief_rules_out_is_never_so() -> None:
    for seed in range(20):
        world, belief = World.make(seed, shifted=seed % 2 == 0), Belief()
        chance = random.Random(seed)
        for chain in islice(chains(world), 60):
            belief.learn(play(world, chain, Prior([], chance), replans=2))
        for relation, kept in world.keeping.items():
            assert belief.true(relation, kept.source) > 0
            assert belief.kept_by.get(relation, kept.via) == kept.via


# ── one question ──────────────────────────────────────────────────────────────────────────────────────────────────


class Scripted:
    """Plans what it is told to, one route after the other."""

    def __init__(self, *routes: tuple[RouteStep, ...]) -> None:
        self.routes = list(routes)
        self.shown: list[list[Try]] = []

    def route(self, relation: str, here: object) -> tuple[RouteStep, ...]:
        self.shown.append(list(here))  # type: ignore[call-overload]
        return self.routes.pop(0)


@pytest.fixture(scope="module")
def world() -> World:
    return next(world for seed in range(50) if (world := World.make(seed)).keeping["mayor"].via)


def test_the_oracle_is_right_without_a_replan(world: World) -> None:
    for chain in islice(chains(world), 100):
        played = play(world, chain, Oracle(world), replans=0)
        assert (played.right, played.answer) == (True, world.answer(chain))
        assert tuple(one.query.step for one in played.tries) == world.oracle(chain)


def test_a_replan_goes_on_from_the_hop_that_failed(world: World) -> None:
    kept, city = world.keeping["mayor"], world.entities["city"][0]
    keeper = RouteStep(kept.via, world.keeping[kept.via].source)
    direct, last = RouteStep("mayor", kept.source), RouteStep("mayor", kept.source, kept.via)
    planner = Scripted((direct,), (keeper, last))
    played = play(world, Chain(city, ("mayor",)), planner, replans=1)
    assert played.right
    assert [one.query.entity for one in played.tries] == [city, city, world.facts[kept.via][city]]
    assert planner.shown == [[], [played.tries[0]]]
    failed = play(world, Chain(city, ("mayor",)), Scripted((direct,)), replans=0)
    assert (failed.answer, failed.right, len(failed.tries)) == (UNKNOWN, False, 1)


def test_a_patchy_source_is_believed_and_searches_are_bounded(world: World) -> None:
    patchy = RouteStep("mayor", world.keeping["mayor"].patchy)
    for city in world.entities["city"]:
        played = play(world, Chain(city, ("mayor",)), Scripted((patchy,)), replans=1)
        assert played.answer == world.rumours["mayor"][city]
        assert played.right == (played.answer == world.facts["mayor"][city])
    bounded = play(world, Chain(world.entities["city"][0], ("mayor",)), Scripted((patchy,)), replans=-1, searches=0)
    assert (bounded.tries, bounded.answer) == ((), UNKNOWN)


def test_recall_covers_the_question() -> None:
    mayor, coach = right(found("mayor", "census")), right(found("coach", "ledger"))
    newer, both = right(found("mayor", "gazette")), right(found("mayor", "census"), found("club", "ledger"))
    miss, other = unknown(tried("mayor", "archive", NOTHING)), right(found("studio", "ledger"))
    chain = Chain("Kavori", ("mayor", "club", "coach"))
    assert recall(chain, [mayor, coach, newer, other, miss]) == [newer, coach, miss]
    assert recall(chain, [both, mayor, coach, newer]) == [both, coach]
    assert recall(chain, [other]) == []


# ── the room ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_hold_together() -> None:
    seeds = range(500_000, 500_004)
    told: list[tuple[int, int]] = []
    rows = room([World.make(seed) for seed in seeds], 30, on_world=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    by_name = {row.rung.name: row for row in rows}
    assert [row.rung for row in rows] == list(RUNGS)
    for row in rows:
        assert [len(stream) for stream in row.played] == [30] * 4
        assert row.interval is not None
        assert row.interval.estimate == pytest.approx(row.accuracy)
        assert sum(row.halves) / 2 == pytest.approx(row.accuracy)
        assert tuple(row.steps) == row.rung.over
        for name, step in row.steps.items():
            assert step is not None
            assert step.estimate == pytest.approx(row.accuracy - by_name[name].accuracy)
    assert by_name["oracle"].accuracy == 1
    full, fair = by_name["plan + memory + replan"], by_name["no plan, equal searches"]
    for ours, theirs in zip(full.played, fair.played, strict=True):
        assert all(len(one.tries) >= len(other.tries) for one, other in zip(ours, theirs, strict=True))


def test_without_memory_the_order_of_the_stream_does_not_matter_and_with_it_later_is_better() -> None:
    rows = {row.rung.name: row for row in room([World.make(seed) for seed in range(500_000, 500_006)], 60)}
    first, second = rows["ideal TTL"].halves
    assert second > first + 0.05
    # 180 questions a half: two and a half standard deviations of their difference are 0.13.
    first, second = rows["ideal RL, no memory"].halves
    assert abs(second - first) < 0.13


def test_the_same_worlds_have_the_same_room() -> None:
    worlds = [World.make(seed, shifted=True) for seed in (500_000, 500_001)]
    assert [row.played for row in room(worlds, 12)] == [row.played for row in room(worlds, 12)]


def test_a_single_world_has_no_intervals() -> None:
    row = room([World.make(500_000)], 2)[-1]
    assert (row.interval, set(row.steps.values())) == (None, {None})


@pytest.mark.parametrize(("worlds", "questions"), [(0, 60), (1, 1)])
def test_too_little_to_measure_is_refused(worlds: int, questions: int) -> None:
    with pytest.raises(ValueError, match=f"{worlds} worlds and {questions} questions"):
        room([World.make(seed) for seed in range(worlds)], questions)
