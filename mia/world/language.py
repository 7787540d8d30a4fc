"""The world's small language: what is said in it, and how it is read back. Everything here is text and arithmetic.

A *chain* is an entity and the relations that lead away from it: (Kavori; birthplace, mayor) asks for the mayor of the
birthplace of Kavori. A *step* of a plan names a relation and the source to look it up in; where a source keeps a
relation under another entity, the step names the relation that leads there ("mayor via waterway").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

SOURCES = ("archive", "gazette", "registry", "almanac", "census", "ledger")
"""Where documents are kept; a query names the source that it asks."""
TYPES = ("person", "company", "city", "film", "river", "team")


@dataclass(frozen=True)
class Relation:
    """A relation leads from every entity of one type to exactly one of another (or the same) type."""

    name: str
    subject: str
    object: str


RELATIONS = tuple(
    Relation(*words.split())
    for words in (
        "birthplace person city",
        "residence person city",
        "employer person company",
        "spouse person person",
        "mentor person person",
        "club person team",
        "headquarters company city",
        "founder company person",
        "chairman company person",
        "rival company company",
        "mayor city person",
        "waterway city river",
        "twin city city",
        "director film person",
        "studio film company",
        "setting film city",
        "mouth river city",
        "spring river city",
        "coach team person",
        "sponsor team company",
    )
)
RELATION = {relation.name: relation for relation in RELATIONS}

SYLLABLES = tuple(
    onset + vowel for onset in (*"bdfgklmnprstvz", "br", "dr", "gl", "kr", "pl", "sk", "st", "tr") for vowel in "aeiou"
)
"""Names are made of these, so that they must be copied and cannot be known."""
UNKNOWN = "unknown"
"""The answer of an Executor that did not find what it was sent for."""
UNTOLD = "Untold"
"""Stands for an entity that a workflow leaves out."""

_ENTITY = r"[A-Z][a-z]+"
_RELATION = "|".join(RELATION)
_SOURCE = "|".join(SOURCES)


# ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Chain:
    """What a question asks: begin at an entity, follow the relations one after the other."""

    entity: str
    relations: tuple[str, ...]


PARAPHRASES = 4


def write_question(chain: Chain, paraphrase: int) -> str:
    """A chain as a question, in one of four ways: two name the last relation first, two the first one."""
    backwards = " of the ".join(reversed(chain.relations)) + f" of {chain.entity}"
    if paraphrase == 0:
        return f"What is the {backwards}?"
    if paraphrase == 1:
        return f"Name the {backwards}."
    if paraphrase == 2:
        return f"{chain.entity}'s {''.join(f'{name} and its ' for name in chain.relations[:-1])}{chain.relations[-1]}?"
    return f"Starting from {chain.entity}, find the {', then the '.join(chain.relations)}."


def read_question(text: str) -> Chain | None:
    """The chain of a question in any paraphrase; None if it is no question of this language."""
    entity = re.search(rf"\b({_ENTITY})(?='s |, find|[?.]$)", text)
    relations = re.findall(rf"\b({_RELATION})\b", text)
    if entity is None or not relations:
        return None
    forwards = text.startswith(("Starting", f"{entity[1]}'s"))
    return Chain(entity[1], tuple(relations if forwards else reversed(relations)))


# ── plans ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RouteStep:
    """Look a relation up in a source; `via`: the relation that led to the entity under which it is kept there."""

    relation: str
    source: str
    via: str = ""

    @property
    def wanted(self) -> str:
        """The relation as documents and queries name it."""
        return f"{self.relation} via {self.via}" if self.via else self.relation


Route = tuple[RouteStep, ...]
_STEP = re.compile(
    rf"find ({_RELATION})(?: via ({_RELATION})(?:: (?:{_RELATION}) in ({_SOURCE}), (?:{_RELATION}))?)? in ({_SOURCE})"
)


def write_step(route: Sequence[RouteStep]) -> str:
    """One line of a plan or a workflow: a step, or two of which the first leads to where the second is kept. Every
    source follows its relation at once, so that looking it up is looking at what comes next."""
    last = route[-1]
    if len(route) == 1:
        return f"find {last.wanted} in {last.source}"
    return f"find {last.wanted}: {last.via} in {route[0].source}, {last.relation} in {last.source}"


def write_plan(route: Sequence[RouteStep]) -> str:
    """Numbered lines; each begins where the one before ended."""
    return "\n".join(f"{number}. {write_step(steps)}" for number, steps in enumerate(_paired(route), start=1))


def read_plan(text: str) -> Route:
    """The steps in a plan, in order."""
    return tuple(step for found in _STEP.findall(text) for step in _read_step(*found))


def _paired(route: Sequence[RouteStep]) -> Iterator[tuple[RouteStep, ...]]:
    """The steps, those that belong together as pairs."""
    number = 0
    while number < len(route):
        size = 2 if number + 1 < len(route) and route[number + 1].via == route[number].wanted else 1
        yield tuple(route[number : number + size])
        number += size


def _read_step(relation: str, via: str, first: str, source: str) -> Route:
    """`first`: the source of the relation that leads there, where it is to be found too."""
    last = RouteStep(relation, source, via)
    return (RouteStep(via, first), last) if first else (last,)


# ── searching ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Query:
    """One search: a step, at an entity."""

    step: RouteStep
    entity: str

    def __str__(self) -> str:
        return f"{self.step.wanted} of {self.entity} in {self.step.source}"


_QUERY = re.compile(rf"({_RELATION})(?: via ({_RELATION}))? of ({_ENTITY}) in ({_SOURCE})")


def read_query(text: str) -> Query | None:
    match = _QUERY.search(text)
    return Query(RouteStep(match[1], match[4], match[2] or ""), match[3]) if match else None


@dataclass(frozen=True)
class Outcome:
    """What a search brought: the entity that was looked for, the relation under whose entity it is kept, or nothing."""

    kind: Literal["found", "kept", "nothing"]
    what: str = ""
    """The entity (found) or the relation (kept)."""


NOTHING = Outcome("nothing")


def sentences(subject: str, wanted: str, value: str) -> tuple[str, str]:
    """A fact in its two directions, as documents state it."""
    return f"{wanted} of {subject} is {value}", f"{subject} has {wanted} {value}"


def pointer(subject: str, relation: str, via: str) -> str:
    """What a source says that keeps a relation under another entity."""
    return f"{relation} of {subject} is kept by {via}"


def read_results(query: Query, text: str) -> Outcome:
    """What the results of a query say about it: only a sentence about this very entity and relation counts."""
    entity, wanted = re.escape(query.entity), re.escape(query.step.wanted)
    if kept := re.search(rf"^{wanted} of {entity} is kept by ({_RELATION})$", text, re.MULTILINE):
        return Outcome("kept", kept[1])
    said = re.search(rf"^(?:{wanted} of {entity} is|{entity} has {wanted}) ({_ENTITY})$", text, re.MULTILINE)
    return Outcome("found", said[1]) if said else NOTHING


# ── turns of the Executor ─────────────────────────────────────────────────────────────────────────────────────────


def write_call(thought: str, query: Query) -> str:
    """A turn that searches, in the protocol of the line."""
    call = json.dumps({"name": "search", "arguments": {"query_list": [str(query)]}})
    return f"<think>{thought}</think>\n<tool_call>{call}</tool_call>"


def write_answer(thought: str, answer: str) -> str:
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


def thought(query: Query, outcome: Outcome) -> str:
    """What the Executor notes of a search in its next turn."""
    if outcome.kind == "found":
        return f"found {outcome.what}"
    about = f"{query.step.wanted} of {query.entity}"
    return f"{about} kept by {outcome.what}" if outcome.kind == "kept" else f"nothing on {about}"


# ── trajectories ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Try:
    """One search of a trajectory and what the Executor noted of it."""

    query: Query
    outcome: Outcome


def read_trajectory(text: str) -> list[Try]:
    """The searches of a rendered trajectory (`mia.transcript`), each with what the round after it noted."""
    tries: list[Try] = []
    pending: Query | None = None
    for line in text.splitlines():
        if line.startswith("Reasoning: ") and pending is not None:
            tries.append(Try(pending, read_thought(line.removeprefix("Reasoning: "))))
            pending = None
        elif line.startswith("Call: "):
            pending = read_query(line)
    return tries


def read_thought(text: str) -> Outcome:
    """The outcome that a note of the Executor tells of."""
    if match := re.fullmatch(rf"found ({_ENTITY})", text):
        return Outcome("found", match[1])
    if match := re.search(rf"kept by ({_RELATION})$", text):
        return Outcome("kept", match[1])
    return NOTHING


def read_answer(text: str) -> str:
    """The answer at the end of a rendered trajectory; empty if there is none."""
    found = re.findall(r"^(?:It answered|Answer): (.*?)\.?$", text, re.MULTILINE)
    return str(found[-1]).strip() if found else ""


# ── workflows ─────────────────────────────────────────────────────────────────────────────────────────────────────


def write_workflow(tries: Sequence[Try]) -> str:
    """The memory of a trajectory: every try, in order, the failed ones too. What led on is told in the words of a plan,
    what did not in others, so that the one is not taken for the other."""
    lines: list[str] = []
    number = 0
    while number < len(tries):
        one = tries[number]
        after = tries[number + 1] if number + 1 < len(tries) else None
        step, entity = one.query.step, one.query.entity
        leads_on = after is not None and after.query.step.via == step.wanted and one.outcome.what == after.query.entity
        if after is not None and leads_on and {one.outcome.kind, after.outcome.kind} == {"found"}:
            lines.append(f"{write_step((step, after.query.step))} ({entity} → {after.outcome.what})")
            number += 1
        elif one.outcome.kind == "found":
            lines.append(f"{write_step((step,))} ({entity} → {one.outcome.what})")
        elif one.outcome.kind == "kept":
            lines.append(f"{step.wanted} kept by {one.outcome.what} in {step.source} ({entity})")
        else:
            lines.append(f"{step.wanted} not in {step.source} ({entity})")
        number += 1
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


_WORKFLOW_LINE = re.compile(
    rf"^(?:Steps: )?\d+\. (?:{_STEP.pattern} \(({_ENTITY}) → ({_ENTITY})\)"
    rf"|({_RELATION})(?: via ({_RELATION}))? (?:not|kept by ({_RELATION})) in ({_SOURCE}) \(({_ENTITY})\))$",
    re.MULTILINE,
)


def read_workflow(text: str) -> list[Try]:
    """The tries of a workflow; lines of any other form are passed over. Of a pair the entity between is not told."""
    tries: list[Try] = []
    for *told, entity, found, failed, failed_via, keeper, where, at in _WORKFLOW_LINE.findall(text):
        if failed:
            outcome = Outcome("kept", keeper) if keeper else NOTHING
            tries.append(Try(Query(RouteStep(failed, where, failed_via), at), outcome))
            continue
        steps = _read_step(*told)
        if len(steps) > 1:
            tries.append(Try(Query(steps[0], entity), Outcome("found", UNTOLD)))
            entity = UNTOLD
        tries.append(Try(Query(steps[-1], entity), Outcome("found", found)))
    return tries


def read_memories(text: str) -> Iterator[tuple[bool, list[Try]]]:
    """Whether each memory in a prompt was judged correct, and its tries."""
    for judgement, body in re.findall(r'<memory judgement="(\w+)">\n(.*?)\n</memory>', text, re.DOTALL):
        yield judgement == "correct", read_workflow(body)
