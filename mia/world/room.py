"""The room there is in a world: how far symbolic planners get, each with one thing more than the one before.

No model, no prompt, no search engine: a planner here is a few lines over what it knows, and `World.look_up` says what a
search brings, so that nothing is lost on reading and writing. What it knows may be a prior (the favourites of all
worlds), what it recalls, and what it has tried for the question at hand. The figures bound what a trained model can
gain from memory, from replanning and from learning, by these means; the greedy `Ideal` is good, not provably best.

A question goes as in the line: a plan is followed until a search brings nothing new, then the answer is "unknown"; with
a replan left, the hop that failed is tried in another way and the plan goes on. What was looked up in a patchy source
may be wrong, and nothing shows it. Afterwards the question's tries are remembered, with the truth about the answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from statistics import fmean
from typing import Protocol

from mia.statistics import Interval, clustered, paired
from mia.world.facts import FAVOURITE, FAVOURITE_SHARE, PATCHY_ERRORS, World
from mia.world.language import RELATIONS, SOURCES, UNKNOWN, Chain, Query, Route, RouteStep, Try
from mia.world.questions import chains
from mia.world.teacher import KNOWN

POSITIVES, NEGATIVES = 3, 1
"""Memories that a recall shows, as the line does (`mia.world.preset`)."""


@dataclass(frozen=True)
class Remembered:
    """A question's tries, in order, and whether its answer was right; "unknown" never is."""

    tries: tuple[Try, ...]
    answer: str
    right: bool

    @cached_property
    def found(self) -> frozenset[str]:
        """The relations that it came to know something of."""
        return frozenset(one.query.step.relation for one in self.tries if one.outcome.kind == "found")

    @cached_property
    def tried(self) -> frozenset[str]:
        return frozenset(one.query.step.relation for one in self.tries)


# ── planners ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Planner(Protocol):
    """Made for one question, with what is recalled for it."""

    def route(self, relation: str, here: Sequence[Try]) -> Route:
        """The steps to a relation. `here`: what was tried for it at this very entity, in vain so far."""
        ...


class Prior:
    """Follows the routes of memories of right answers; else takes the favourite, where it knows it; else guesses.

    The mediocre teacher: it learns nothing from memories of wrong answers.
    """

    def __init__(self, recalled: Sequence[Remembered], chance: random.Random) -> None:
        """`recalled`: of two routes to one relation the first counts."""
        self._chance = chance
        self._known: dict[str, Route] = {}
        for memory in recalled:
            for before, one in zip((None, *memory.tries), memory.tries, strict=False):
                step = one.query.step
                if not memory.right or one.outcome.kind != "found" or step.relation in self._known:
                    continue
                if not step.via:
                    self._known[step.relation] = (step,)
                elif before is not None and before.query.step.relation == step.via:
                    self._known[step.relation] = (before.query.step, step)

    def route(self, relation: str, here: Sequence[Try]) -> Route:
        if pointer := _pointer(here):
            kept = RouteStep(relation, pointer.query.step.source, pointer.outcome.what)
            return (*self._direct(kept.via, _tried(here, kept.via)), kept)
        return self._direct(relation, _tried(here, relation))

    def _direct(self, relation: str, tried: frozenset[str]) -> Route:
        if relation in self._known and self._known[relation][-1].source not in tried:
            return self._known[relation]
        if relation in KNOWN and FAVOURITE[relation] not in tried:
            return (RouteStep(relation, FAVOURITE[relation]),)
        left = [source for source in SOURCES if source not in tried] or SOURCES
        return (RouteStep(relation, self._chance.choice(left)),)


class Ideal:
    """Weighs all that it recalls, failed tries and wrong answers too, against all favourites (`Belief`)."""

    def __init__(self, recalled: Sequence[Remembered], chance: random.Random) -> None:
        self._chance = chance
        self._belief = Belief()
        for memory in reversed(recalled):
            self._belief.learn(memory)

    def route(self, relation: str, here: Sequence[Try]) -> Route:
        for one in here:
            self._belief.see(one)
        if via := self._belief.kept_by.get(relation):
            keeper = RouteStep(via, self._source(via, _tried(here, via)))
            return (keeper, RouteStep(relation, self._source(relation, frozenset()), via))
        return (RouteStep(relation, self._source(relation, _tried(here, relation))),)

    def _source(self, relation: str, tried: frozenset[str]) -> str:
        """Most probably the true one; chance decides among equals.

        Not where the answer is most probably right: to ask a source that just might be patchy teaches nothing new. On
        the validation worlds 500024 to 500071 that would cost ideal TTL 7 points (shifted: 9), and change ideal Planner
        RL by 0 (shifted: gain 3).
        """
        left = [source for source in SOURCES if source not in tried] or list(SOURCES)
        self._chance.shuffle(left)
        return max(left, key=lambda source: round(self._belief.true(relation, source), 9))


class Oracle:
    """Knows the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def route(self, relation: str, here: Sequence[Try]) -> Route:
        return self._world.route(relation)


def _pointer(here: Sequence[Try]) -> Try | None:
    return next((one for one in here if one.outcome.kind == "kept"), None)


def _tried(here: Sequence[Try], relation: str) -> frozenset[str]:
    return frozenset(one.query.step.source for one in here if one.query.step.relation == relation)


# ── what can be known of a world's sources ────────────────────────────────────────────────────────────────────────


class Belief:
    """How probable each pair (true source, patchy source) of a relation is, after what was seen.

    Before anything is seen: the favourites of all worlds, as a shifted world has no sign on its door. A search that
    brings nothing rules its source out, one that brings something rules out all pairs without it, and a source that
    says that the relation is kept elsewhere is the true one. A right answer makes it likely that each of its hops was
    looked up where it is true: P(right | pair) is 1 for the true source and 1/2 for the patchy one. A wrong one says
    that some hop was not: P(wrong | pair of this hop) = 1 - P(this right | pair) · Π P(other hop right), with the other
    hops at what is believed of them, each relation by itself. A document that took part in a right answer is known to
    be right: it is no evidence a second time, and another hop is to blame for a wrong answer.
    """

    def __init__(self) -> None:
        self.kept_by: dict[str, str] = {}
        """Relation → the relation under whose entity its true source keeps it."""
        self._pairs = {relation.name: _prior(relation.name) for relation in RELATIONS}
        self._confirmed: set[Query] = set()

    def true(self, relation: str, source: str) -> float:
        """How probably it is the true source."""
        return sum(share for (true, _), share in self._pairs[relation].items() if true == source)

    def right(self, relation: str, source: str) -> float:
        """How probably a search there finds the truth, be it in the patchy source."""
        return sum(share * _right(pair, source) for pair, share in self._pairs[relation].items())

    def see(self, one: Try) -> None:
        """What a single search shows, whatever became of the answer."""
        step, kind = one.query.step, one.outcome.kind
        if step.via:
            # Only a source that points there is asked so: it is known already.
            return
        if kind == "kept":
            self.kept_by[step.relation] = one.outcome.what
            self._weigh(step.relation, lambda pair: float(pair[0] == step.source))
        elif kind == "nothing":
            self._weigh(step.relation, lambda pair: float(step.source not in pair))
        elif step.relation in self.kept_by:
            # The true source would have pointed on.
            self._weigh(step.relation, lambda pair: float(pair[1] == step.source))
        else:
            self._weigh(step.relation, lambda pair: float(step.source in pair))

    def learn(self, memory: Remembered) -> None:
        """All tries of a question, and what its answer says about them."""
        for one in memory.tries:
            self.see(one)
        if memory.answer == UNKNOWN:
            return
        hops = [one.query for one in memory.tries if one.outcome.kind == "found" and not one.query.step.via]
        open_to_doubt = [query for query in hops if query not in self._confirmed]
        chances = [self.right(query.step.relation, query.step.source) for query in open_to_doubt]
        for number, query in enumerate(open_to_doubt):
            self._judge(query.step, memory.right, math.prod(chances[:number] + chances[number + 1 :]))
        if memory.right:
            self._confirmed.update(hops)

    def _judge(self, step: RouteStep, right: bool, others: float) -> None:
        """What an answer says about one of its hops. `others`: the probability that all other hops are right."""

        def likelihood(pair: tuple[str, str]) -> float:
            here = _right(pair, step.source)
            return here if right else 1 - others * here

        self._weigh(step.relation, likelihood)

    def _weigh(self, relation: str, likelihood: Callable[[tuple[str, str]], float]) -> None:
        pairs = self._pairs[relation]
        weighed = {pair: share * likelihood(pair) for pair, share in pairs.items()}
        total = sum(weighed.values())
        # Chance can make two wrongs right; what that would rule out altogether stays as it was.
        if total > 0:
            self._pairs[relation] = {pair: share / total for pair, share in weighed.items() if share}


def _prior(relation: str) -> dict[tuple[str, str], float]:
    even = (1 - FAVOURITE_SHARE) / len(SOURCES)
    return {
        (true, patchy): (even + FAVOURITE_SHARE * (true == FAVOURITE[relation])) / (len(SOURCES) - 1)
        for true in SOURCES
        for patchy in SOURCES
        if patchy != true
    }


def _right(pair: tuple[str, str], source: str) -> float:
    """P(a search of the source finds the truth | pair)."""
    true, patchy = pair
    return 1.0 if source == true else 1 - PATCHY_ERRORS if source == patchy else 0.0


# ── one question ──────────────────────────────────────────────────────────────────────────────────────────────────


def play(world: World, chain: Chain, planner: Planner, *, replans: int, searches: float = math.inf) -> Remembered:
    """Ask one question. `replans`: how often a hop that failed is tried in another way, without a bound where it is
    negative; `searches`: the most that there may be."""
    tries: list[Try] = []
    at = chain.entity
    for relation in chain.relations:
        entity, start = at, len(tries)
        route = list(planner.route(relation, ()))
        while route:
            if len(tries) >= searches:
                return Remembered(tuple(tries), UNKNOWN, right=False)
            query = Query(route.pop(0), at)
            tries.append(Try(query, world.look_up(query)))
            if tries[-1].outcome.kind == "found":
                at = tries[-1].outcome.what
                continue
            here = tries[start:]
            if replans == 0:
                return Remembered(tuple(tries), UNKNOWN, right=False)
            replans -= 1
            at = entity
            route = list(planner.route(relation, here))
    return Remembered(tuple(tries), at, right=at == world.answer(chain))


def recall(chain: Chain, memories: Sequence[Remembered]) -> list[Remembered]:
    """Up to 3 memories of right answers and 1 of a wrong one that share relations with a question.

    One after the other, the one that adds most: relations that it found (of the wrong one: tried) and those before it
    did not. Of equals the newest.
    """
    chosen: list[Remembered] = []
    for right, most in ((True, POSITIVES), (False, NEGATIVES)):
        open_relations = set(chain.relations)
        pool = [memory for memory in reversed(memories) if memory.right is right]
        for _ in range(most):
            told = [memory.found if right else memory.tried for memory in pool]
            best = max(range(len(pool)), key=lambda number: len(told[number] & open_relations), default=None)
            if best is None or not told[best] & open_relations:
                break
            open_relations -= told[best]
            chosen.append(pool.pop(best))
    return chosen


def everything(chain: Chain, memories: Sequence[Remembered]) -> list[Remembered]:
    """All memories, newest first."""
    return list(reversed(memories))


# ── rungs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rung:
    """A planner, what it recalls, and what it may do."""

    name: str
    what: str
    planner: Callable[[World, Sequence[Remembered], random.Random], Planner]
    recall: Callable[[Chain, Sequence[Remembered]], list[Remembered]] | None = None
    replans: int = 0
    """How often a question's plan may be mended."""
    unplanned: bool = False
    """Mended as often as need be, as long as there are searches left."""
    searches: int | str | None = None
    """The most for a question: so many for each hop, or as many as another rung (its name) made for it."""
    control: bool = False
    """It stands beside the rungs, not above one."""
    over: tuple[str, ...] = ()
    """The rungs that it is compared with, the one below first."""


def _prior_planner(world: World, recalled: Sequence[Remembered], chance: random.Random) -> Planner:
    return Prior(recalled, chance)


def _ideal_planner(world: World, recalled: Sequence[Remembered], chance: random.Random) -> Planner:
    return Ideal(recalled, chance)


def _oracle_planner(world: World, recalled: Sequence[Remembered], chance: random.Random) -> Planner:
    return Oracle(world)


_FULL = "plan + memory + replan"

RUNGS = (
    Rung("no plan", "a search for each hop, source after source", _prior_planner, unplanned=True, searches=1),
    Rung("plan", "follows its prior, once", _prior_planner, over=("no plan",)),
    Rung("plan + memory", "and the routes of recalled right answers", _prior_planner, recall, over=("plan",)),
    Rung(
        _FULL,
        "and one failed hop is tried in another way",
        _prior_planner,
        recall,
        replans=1,
        over=("plan + memory", "plan + replan", "no plan, equal searches"),
    ),
    Rung(
        "ideal Planner RL",
        "weighs what it recalls, failed tries too, against all favourites",
        _ideal_planner,
        recall,
        replans=1,
        over=(_FULL, "ideal RL, no memory"),
    ),
    Rung(
        "ideal TTL",
        "weighs everything that it ever tried in this world",
        _ideal_planner,
        everything,
        replans=1,
        over=("ideal Planner RL",),
    ),
    Rung("oracle", "knows the world", _oracle_planner, over=("ideal TTL",)),
    Rung(
        "no plan, equal searches",
        f"as many searches as {_FULL} on each question",
        _prior_planner,
        unplanned=True,
        searches=_FULL,
        control=True,
        over=("no plan",),
    ),
    Rung(
        "no plan, 6 per hop",
        "until every source was asked",
        _prior_planner,
        unplanned=True,
        searches=len(SOURCES),
        control=True,
        over=("no plan",),
    ),
    Rung("plan + replan", "nothing is recalled", _prior_planner, replans=1, control=True, over=("plan",)),
    Rung(
        "all memories + replan",
        f"{_FULL} with everything recalled",
        _prior_planner,
        everything,
        replans=1,
        control=True,
        over=(_FULL,),
    ),
    Rung(
        "ideal RL, no memory",
        "all favourites, nothing is recalled",
        _ideal_planner,
        replans=1,
        control=True,
        over=("plan + replan",),
    ),
)
"""What is measured: the rungs, then the controls."""


@dataclass(frozen=True)
class Row:
    """How a rung fared in worlds, question by question."""

    rung: Rung
    played: tuple[tuple[Remembered, ...], ...]
    """By world, in the order of the stream."""
    steps: dict[str, Interval | None]
    """Over each of `rung.over`, paired by world; None in a single world."""

    @property
    def accuracy(self) -> float:
        return fmean(self.by_world)

    @cached_property
    def by_world(self) -> tuple[float, ...]:
        return tuple(fmean(one.right for one in stream) for stream in self.played)

    @property
    def interval(self) -> Interval | None:
        """Of the accuracy, over worlds; None for a single one."""
        return clustered([[share] for share in self.by_world])

    @property
    def searches(self) -> float:
        """For a question, on average."""
        return fmean(len(one.tries) for stream in self.played for one in stream)

    @property
    def halves(self) -> tuple[float, float]:
        """The accuracy in the first and in the second half of the streams."""
        middle = len(self.played[0]) // 2
        return (
            fmean(one.right for stream in self.played for one in stream[:middle]),
            fmean(one.right for stream in self.played for one in stream[middle:]),
        )


def room(
    worlds: Sequence[World], questions: int, *, on_world: Callable[[int, int], None] = lambda done, total: None
) -> list[Row]:
    """A row for each of `RUNGS`, over the first questions of each world's stream.

    `on_world`: told how many of how many are done. Raises ValueError for no world or fewer than two questions.
    """
    if not worlds or questions < 2:
        raise ValueError(f"got {len(worlds)} worlds and {questions} questions")
    played: dict[str, list[tuple[Remembered, ...]]] = {rung.name: [] for rung in RUNGS}
    for done, world in enumerate(worlds, start=1):
        for rung in RUNGS:
            bounding = played[rung.searches][-1] if isinstance(rung.searches, str) else None
            played[rung.name].append(_stream(world, rung, questions, bounding))
        on_world(done, len(worlds))
    shares = {name: [fmean(one.right for one in stream) for stream in streams] for name, streams in played.items()}
    return [
        Row(rung, tuple(played[rung.name]), {name: paired(shares[name], shares[rung.name]) for name in rung.over})
        for rung in RUNGS
    ]


def _stream(world: World, rung: Rung, questions: int, bounding: Sequence[Remembered] | None) -> tuple[Remembered, ...]:
    """`bounding`: the stream of the rung whose searches bound this one's, where one does."""
    memories: list[Remembered] = []
    for number, chain in enumerate(islice(chains(world), questions)):
        # The same luck for every rung: what differs between them is what they know.
        chance = random.Random(f"room {world.seed} {world.shifted} {number}")
        recalled = rung.recall(chain, memories) if rung.recall else []
        planner = rung.planner(world, recalled, chance)
        most = math.inf
        if bounding is not None:
            most = len(bounding[number].tries)
        elif isinstance(rung.searches, int):
            most = rung.searches * len(chain.relations)
        memories.append(play(world, chain, planner, replans=-1 if rung.unplanned else rung.replans, searches=most))
    return tuple(memories)
