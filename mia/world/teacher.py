"""A symbolic model that plays every role in the world: the oracle, and the deliberately mediocre teacher.

It is a `ChatModel` like any other: it sees the messages that the line sends and answers in the line's protocol. Its
replies are what the embedded model is warmed up on. What it does not know is as much the point as what it does: it
knows the favourite sources of few relations, follows what a memory of a correct answer says, and learns nothing from
memories of incorrect ones. What reinforcement can add is known by construction.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mia.models.base import ChatReply, ChatRequest, Price, estimate_usage
from mia.types import Message, Role
from mia.world import language, longtexts
from mia.world.facts import FAVOURITE, World
from mia.world.language import (
    SOURCES,
    UNKNOWN,
    Chain,
    Query,
    Route,
    RouteStep,
    Try,
)

KNOWN = tuple(sorted(FAVOURITE))[::3][:6]
"""The relations whose favourite the teacher knows: 6 of the 20."""
_METHODICAL = 0.85
"""How often the teacher goes on to the next source after one that had nothing."""
_SEARCHES = 12
"""After so many searches without a plan the teacher gives up."""


@dataclass
class Walk:
    """Where an Executor stands in its conversation."""

    at: str
    """The entity found last, or the one that the question names."""
    tries: list[Try] = field(default_factory=list)
    plan: Route | None = None
    """The plan in force; None without one."""
    taken: int = 0
    """Steps of that plan that were taken."""
    now: bool = False
    """Told to answer now."""


class Teacher:
    """Answers for every role. `world`: for the oracle, who plans the true route; without it the teacher is mediocre.

    Not a function of the request alone: where it must guess it draws from `chance`.
    """

    name = "teacher"
    context_window = 100_000
    max_tokens = 1_000
    price: Price | None = None

    def __init__(
        self,
        chance: random.Random,
        *,
        oracle: World | None = None,
        favourites: Mapping[str, str] | None = None,
    ) -> None:
        """`favourites`: the priors it knows; None: those of `KNOWN`."""
        self._chance = chance
        self._oracle = oracle
        self._favourites = {name: FAVOURITE[name] for name in KNOWN} if favourites is None else favourites

    async def complete(self, request: ChatRequest) -> ChatReply:
        text = self.reply(request)
        return ChatReply(text, usage=estimate_usage(request, text, None), model=self.name)

    async def close(self) -> None:
        """Nothing to let go of."""

    def reply(self, request: ChatRequest) -> str:
        """What this role says now."""
        if request.role is Role.EXECUTOR:
            return self._execute(request.messages)
        text = request.messages[-1].content
        if request.role is Role.READER:
            return _read(request.purpose, text)
        if request.role is Role.MANAGER:
            return language.write_workflow(language.read_trajectory(text))
        if request.role is Role.JUDGE:
            return review(request.purpose, text)
        if request.purpose == "reflect":
            return "no" if language.read_answer(text) not in ("", UNKNOWN) else "yes"
        if request.purpose == "replan":
            return language.write_plan(self._replan(request.messages))
        return language.write_plan(self._plan(request.messages[-1].content))

    # ── the Planner ───────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, text: str) -> Route:
        chain = asked(text)
        if self._oracle is not None:
            return self._oracle.oracle(chain)
        known = routes_in_memory(text)
        return tuple(step for relation in chain.relations for step in self._route(relation, known, frozenset()))

    def _route(self, relation: str, known: Mapping[str, Route], tried: frozenset[str]) -> Route:
        """From memory; else the favourite, where it is known; else a guess: in sources that were not tried."""
        if relation in known and known[relation][-1].source not in tried:
            return known[relation]
        if (favourite := self._favourites.get(relation)) and favourite not in tried:
            return (RouteStep(relation, favourite),)
        return (RouteStep(relation, self._guess(tried)),)

    def _guess(self, tried: Collection[str], last: str = "") -> str:
        """A source that was not tried. After a failure mostly the next in the order of `SOURCES`: that a source was
        tried then tells which one comes now, where an even choice among the others would tell a learner little."""
        left = [source for source in SOURCES if source not in tried] or list(SOURCES)
        if last and self._chance.random() < _METHODICAL:
            after = SOURCES.index(last) + 1
            return next(source for source in (*SOURCES[after:], *SOURCES) if source in left)
        return self._chance.choice(left)

    def _replan(self, messages: Sequence[Message]) -> Route:
        """The steps that are left, the one that failed in another way."""
        chain = asked(messages[1].content)
        if self._oracle is not None:
            known = {relation: self._oracle.route(relation) for relation in chain.relations}
        else:
            known = routes_in_memory(messages[1].content)
        tries = [one for message in messages[2:] for one in language.read_trajectory(message.content)]
        done, at_hop = _progress(chain, tries)
        left = chain.relations[done:]
        if not left:
            return ()
        relation, rest = left[0], left[1:]
        here = [one for one in tries if one.query.entity == at_hop]
        first = self._again(relation, here, known)
        return (*first, *(step for other in rest for step in self._route(other, known, frozenset())))

    def _again(self, relation: str, here: Sequence[Try], known: Mapping[str, Route]) -> Route:
        """Another way to one relation, after what was tried at its entity."""
        for one in here:
            step = one.query.step
            if step.relation == relation and one.outcome.kind == "kept":
                via = one.outcome.what
                failed = [other.query.step.source for other in here if other.query.step.relation == via]
                way = (
                    (RouteStep(via, self._guess(failed, failed[-1])),)
                    if failed
                    else self._route(via, known, frozenset())
                )
                return (*way, RouteStep(relation, step.source, via))
        if self._oracle is not None:
            return known[relation]
        failed = [
            one.query.step.source for one in here if one.query.step.relation == relation and not one.query.step.via
        ]
        if not failed:
            return self._route(relation, known, frozenset())
        return (RouteStep(relation, self._guess(failed, failed[-1])),)

    # ── the Executor ──────────────────────────────────────────────────────────────────────────────────────────────

    def _execute(self, messages: Sequence[Message]) -> str:
        chain = asked(messages[1].content)
        walk = read_walk(messages, chain)
        last = walk.tries[-1] if walk.tries else None
        resumed = walk.plan is not None and walk.taken == 0
        if last is None:
            thought = f"start {walk.at}"
        elif resumed:
            thought = f"at {walk.at}"
        else:
            thought = language.thought(last.query, last.outcome)
        done, _ = _progress(chain, walk.tries)
        complete = done == len(chain.relations)
        if walk.plan is not None:
            failed = last is not None and not resumed and last.outcome.kind != "found"
            query = None if failed or walk.taken >= len(walk.plan) else Query(walk.plan[walk.taken], walk.at)
        else:
            query = self._next(chain, walk, messages[1].content)
        if query is None or walk.now:
            return language.write_answer(thought, walk.at if complete else UNKNOWN)
        return language.write_call(thought, query)

    def _next(self, chain: Chain, walk: Walk, text: str) -> Query | None:
        """Without a plan: the next source for the next relation; None when the answer is found, or hope is lost."""
        done, at_hop = _progress(chain, walk.tries)
        if done == len(chain.relations) or len(walk.tries) >= _SEARCHES:
            return None
        relation = chain.relations[done]
        here = [one for one in walk.tries if one.query.entity == at_hop]
        kept = next((one for one in here if one.query.step.relation == relation and one.outcome.kind == "kept"), None)
        if kept is not None and walk.at != at_hop:
            return Query(RouteStep(relation, kept.query.step.source, kept.outcome.what), walk.at)
        wanted = relation if kept is None else kept.outcome.what
        failed = [one.query.step.source for one in here if one.query.step.relation == wanted]
        if len(set(failed)) == len(SOURCES):
            return None
        if failed:
            return Query(RouteStep(wanted, self._guess(failed, failed[-1])), walk.at)
        return Query(self._route(wanted, routes_in_memory(text), frozenset())[0], walk.at)


def asked(text: str) -> Chain:
    """The chain of the question in a prompt. Raises ValueError if there is none."""
    match = re.search(r"<question>\n(.*?)\n", text, re.DOTALL)
    chain = language.read_question(match[1]) if match else None
    if chain is None:
        raise ValueError("the prompt holds no question of the world")
    return chain


def routes_in_memory(text: str) -> dict[str, Route]:
    """Relation → the route that a memory of a correct answer found it by; where several did, the first."""
    return {relation: routes[0] for relation, routes in all_routes_in_memory(text).items()}


def all_routes_in_memory(text: str) -> dict[str, list[Route]]:
    """Relation → all routes that memories of correct answers found it by, in order."""
    known: dict[str, list[Route]] = {}
    for correct, tries in language.read_memories(text):
        if not correct:
            continue
        for number, one in enumerate(tries):
            step = one.query.step
            if one.outcome.kind != "found":
                continue
            if not step.via:
                known.setdefault(step.relation, []).append((step,))
            elif number and tries[number - 1].query.step.relation == step.via:
                known.setdefault(step.relation, []).append((tries[number - 1].query.step, step))
    return known


def read_walk(messages: Sequence[Message], chain: Chain) -> Walk:
    """Where the Executor stands after its messages (system, task, turn, results, turn, …)."""
    walk = Walk(at=chain.entity)
    pending: Query | None = None
    for message in messages[1:]:
        text = message.content
        if message.role == "assistant":
            pending = language.read_query(text) if "<tool_call>" in text else None
            continue
        if pending is not None and text.startswith("<tool_response>"):
            outcome = language.read_results(pending, text.partition("</tool_response>")[0])
            walk.tries.append(Try(pending, outcome))
            walk.taken += 1
            if outcome.kind == "found":
                walk.at = outcome.what
            pending = None
        if "<plan>" in text:
            walk.plan, walk.taken = language.read_plan(text.rpartition("<plan>")[2]), 0
        walk.now = text.endswith("answer now")
    return walk


def _progress(chain: Chain, tries: Sequence[Try]) -> tuple[int, str]:
    """How many relations of the chain are found, and the entity at which the next one is wanted."""
    done, at = 0, chain.entity
    entity_of_via = ""
    for one in tries:
        if done == len(chain.relations) or one.outcome.kind != "found":
            continue
        step = one.query.step
        direct = step.relation == chain.relations[done] and not step.via and one.query.entity == at
        indirect = step.relation == chain.relations[done] and bool(step.via) and one.query.entity == entity_of_via
        if direct or indirect:
            done, at, entity_of_via = done + 1, one.outcome.what, ""
        elif one.query.entity == at:
            entity_of_via = one.outcome.what
    return done, at


# ── the Judge ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Found:
    """What a trajectory shows of its answer."""

    reasoned: bool
    """The searches follow the question's relations, each from where the one before ended."""
    sourced: bool
    """The answer is what the last search found."""
    answered: bool


def decide(text: str) -> Found:
    """Look at a judge's request: question, trajectory, answer."""
    chain, answer = asked(text), language.read_answer(text)
    tries = language.read_trajectory(text)
    done, _ = _progress(chain, tries)
    found = _found(tries)
    return Found(done == len(chain.relations), bool(found) and answer == found[-1], answer not in ("", UNKNOWN))


def _found(tries: Sequence[Try]) -> list[str]:
    return [one.outcome.what for one in tries if one.outcome.kind == "found"]


def review(purpose: str, text: str) -> str:
    """What a judge says: three reviews, the chair's decision, the support, or the mark against a reference. Reviewers
    of a trajectory first put side by side what they compare."""
    if purpose == "review_validity":
        answer = _inside(text, "answer")
        return _scored(answer not in ("", UNKNOWN), "it names an answer", "it names no answer")
    if purpose == "judge":
        return _mark(_inside(text, "answer"), list(_references(text)))
    found = decide(text)
    if purpose == "review_reasoning":
        return f"{_steps_taken(text)}\n{_scored(found.reasoned, 'every step was taken', 'a step is missing')}"
    if purpose == "review_sourcing":
        return f"{_last_found(text)}\n{_scored(found.sourced, 'the answer was found', 'the answer was not found')}"
    right = found.reasoned and found.sourced and found.answered
    if not found.answered:
        why = "it names no answer"
    elif not found.reasoned:
        why = "a step is missing"
    else:
        why = "the answer was found" if right else "the answer was not found"
    return f"Verdict: {'CORRECT' if right else 'INCORRECT'}\nReason: {why}"


def _steps_taken(text: str) -> str:
    """Each relation that is asked for, and whether the trajectory came to it."""
    chain = asked(text)
    done, _ = _progress(chain, language.read_trajectory(text))
    steps = [f"{name} {'found' if number < done else 'missing'}" for number, name in enumerate(chain.relations)]
    return f"<think>{', '.join(steps)}</think>"


def _last_found(text: str) -> str:
    """What was found last, and what was answered."""
    found = _found(language.read_trajectory(text))
    return f"<think>found {found[-1] if found else 'nothing'}, answer {language.read_answer(text)}</think>"


def _scored(good: bool, praise: str, blame: str) -> str:
    return f"Score: {9 if good else 2}\nReason: {praise if good else blame}"


def _mark(answer: str, references: Sequence[str]) -> str:
    if answer in references:
        return "A"
    return "C" if answer == UNKNOWN else "B"


# ── the reader ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(purpose: str, text: str) -> str:
    """The memory behind a chunk of a long text, or the answer from the memory."""
    question, memory = _inside(text, "question"), _inside(text, "memory")
    if purpose == "answer":
        return longtexts.answer_from(question, memory)
    return longtexts.note_facts(question, memory, _inside(text, "tool_response"))


def _inside(text: str, tag: str) -> str:
    match = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    return match[1].strip() if match else ""


def _references(text: str) -> Iterator[str]:
    for line in _inside(text, "verdict").splitlines():
        yield line.removeprefix("- ").strip()
