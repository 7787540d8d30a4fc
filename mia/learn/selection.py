"""Which of a question's answers is reported, and how the memories that it was shown are credited (mia.md, section 5).

A question of a stream is tried several times, each time with a plan of its own. One of the answers is reported. By rule
(random, shortest, longest, first) or by a model that chooses among the plans, the choice looks at plans alone and never
at a verdict, which with references would be peeking. By peer review the verdict is nobody's secret: a random one of the
accepted answers is reported, and of all where none was accepted.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from mia.agents.planner import Planner
from mia.models.ledger import Ledger
from mia.types import Episode, Outcome, Plan, Recall, Verdict

RULES = ("first", "random", "shortest", "longest")
"""What needs no model; always recorded beside the reported one."""


@dataclass(frozen=True)
class Choice:
    """Indices into a question's episodes."""

    reported: int
    by_rule: dict[str, int] = field(default_factory=dict)
    """What each way of choosing takes, by its name."""


def heard(episodes: Sequence[Episode]) -> list[int]:
    """Those whose model could be asked: the others say nothing about the question."""
    return [index for index, one in enumerate(episodes) if one.stop is None or not one.stop.reason.unheard]


def by_rule(episodes: Sequence[Episode], seed: str) -> dict[str, int]:
    """What each of `RULES` takes: of the episodes that have a plan, by the length of the first plan in characters (the
    first of equals); where none has a plan, of those that were heard. `seed`: of the random one."""
    candidates = _candidates(episodes)
    lengths = {index: len(plan.text) if (plan := first_plan(episodes[index])) else 0 for index in candidates}
    return {
        "first": candidates[0],
        "random": _draw(candidates, f"{seed} random"),
        "shortest": min(candidates, key=lengths.__getitem__),
        "longest": max(candidates, key=lengths.__getitem__),
    }


def accepted(episodes: Sequence[Episode], seed: str) -> int:
    """A random one of those that were judged correct; where there is none, of all that were heard."""
    among = heard(episodes) or list(range(len(episodes)))
    right = [index for index in among if (verdict := episodes[index].verdict) is not None and verdict.correct]
    return _draw(right or among, f"{seed} accepted")


async def best(planner: Planner, episodes: Sequence[Episode], pairs: Recall | None, ledger: Ledger) -> int:
    """The one whose plan the Planner's model chooses, shown plan pairs of similar questions; on any failure of the
    choice, the first. Equal plans are shown once, and a single one is not asked about."""
    candidates = _candidates(episodes)
    plans: dict[str, tuple[int, Plan]] = {}
    for index in candidates:
        plan = first_plan(episodes[index])
        if plan is not None:
            plans.setdefault(plan.text, (index, plan))
    if len(plans) < 2:
        return candidates[0]
    shown = list(plans.values())
    chosen = await planner.choose(episodes[0].question, [plan for _, plan in shown], pairs, ledger)
    return shown[chosen][0]


def majority(episodes: Sequence[Episode]) -> Verdict:
    """The verdict of a group of tries of one question: correct where more than half of the judged ones are, so that a
    tie is a failure; unjudged where nobody could judge any."""
    judged = [
        one.verdict for one in episodes if one.verdict is not None and one.verdict.outcome is not Outcome.UNJUDGED
    ]
    right = sum(verdict.correct for verdict in judged)
    outcome = Outcome.CORRECT if 2 * right > len(judged) else Outcome.INCORRECT
    if not judged:
        outcome = Outcome.UNJUDGED
    return Verdict(outcome=outcome, judge="majority", reason=f"{right} of {len(judged)} judged tries are correct")


def first_plan(episode: Episode) -> Plan | None:
    return episode.attempts[0].plan if episode.attempts else None


def _candidates(episodes: Sequence[Episode]) -> list[int]:
    among = heard(episodes) or list(range(len(episodes)))
    return [index for index in among if first_plan(episodes[index]) is not None] or among


def _draw(indices: Sequence[int], seed: str) -> int:
    """The same for the same seed, in every process."""
    return random.Random(hashlib.sha256(seed.encode()).digest()).choice(indices)
