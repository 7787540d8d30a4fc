"""Random inputs for the objective, what ours makes of them, and which of its branches they reach.

Used by the tests against the real verl and TRL, by the script that records what those give, and by the ordinary tests
that compare with the recording. Numbers are rounded when drawn, so that a recording holds exactly what was computed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from mia.learn.objective import Aggregation, aggregate, importance, k3, policy_terms

Table = list[list[float]]
Outcome = dict[str, Any]
"""Scalars (float) and tables [rows][tokens] by name."""

BRANCHES = (
    "clipped low",
    "clipped high",
    "below the clip with a positive advantage",
    "above the clip with a negative advantage",
    "inside the clip",
    "dual clip",
    "no advantage",
    "ratio's exponent above its limit",
    "ratio's exponent below its limit",
    "divergence's exponent above its limit",
    "divergence's exponent below its limit",
    "divergence above its limit",
    "importance capped",
    "importance not capped",
    "importance's exponent below its limit",
    "masked token",
    "row without a learned token",
)


@dataclass(frozen=True)
class Case:
    """Tables are [rows][tokens]; `advantages` has one number for each row."""

    logprobs: Table
    old: Table
    reference: Table
    sampled: Table
    mask: list[list[int]]
    advantages: list[float]
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl: float
    """Weight of the divergence in the loss that is compared with TRL's."""
    cap: float
    how: Aggregation

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.mask))

    @property
    def sequences(self) -> int:
        return sum(any(row) for row in self.mask)

    def rows(self, start: int, stop: int) -> Case:
        """A micro-batch."""
        part = slice(start, stop)
        return replace(
            self,
            logprobs=self.logprobs[part],
            old=self.old[part],
            reference=self.reference[part],
            sampled=self.sampled[part],
            mask=self.mask[part],
            advantages=self.advantages[part],
        )


def draw(seed: int, *, far: bool = True) -> Case:
    """`far`: some logprobs are tens of nats apart, as they may be where a policy has run away. TRL has no bounds for
    these, verl and ours have."""
    chance = random.Random(seed)
    rows, tokens = chance.randint(2, 6), chance.randint(2, 9)
    spread = chance.choice([0.05, 0.3, 1.0])

    def near(table: Table, scale: float) -> Table:
        def step() -> float:
            return chance.uniform(-45, 45) if far and chance.random() < 0.1 else chance.gauss(0, scale)

        return [[round(value + step(), 4) for value in row] for row in table]

    logprobs = [[round(-chance.expovariate(0.7), 4) for _ in range(tokens)] for _ in range(rows)]
    old = near(logprobs, spread)
    mask = [[int(chance.random() < 0.7) for _ in range(tokens)] for _ in range(rows)]
    mask[0][0] = 1
    if chance.random() < 0.3:
        mask[-1] = [0] * tokens
    return Case(
        logprobs=logprobs,
        old=old,
        reference=near(logprobs, 0.5),
        sampled=near(old, spread),
        mask=mask,
        advantages=[0.0 if chance.random() < 0.1 else round(chance.gauss(0, 1.2), 4) for _ in range(rows)],
        clip_low=chance.choice([0.1, 0.2]),
        clip_high=chance.choice([0.2, 0.28]),
        dual_clip=chance.choice([None, 1.5, 3.0]),
        kl=chance.choice([0.0, 0.02, 0.5]),
        cap=chance.choice([1.2, 2.0]),
        how=chance.choice(["token-mean", "sequence-mean"]),
    )


def tensors(case: Case) -> tuple[torch.Tensor, ...]:
    """logprobs (which ask for gradients), old, reference, sampled, mask, advantages of each token; in float64."""
    logprobs = torch.tensor(case.logprobs, dtype=torch.float64, requires_grad=True)
    old, reference, sampled = (
        torch.tensor(table, dtype=torch.float64) for table in (case.old, case.reference, case.sampled)
    )
    advantages = torch.tensor(case.advantages, dtype=torch.float64)[:, None].expand_as(old).contiguous()
    return logprobs, old, reference, sampled, torch.tensor(case.mask), advantages


def with_gradient(value: torch.Tensor, logprobs: torch.Tensor) -> tuple[float, Table]:
    """A scalar, and its gradient by `logprobs`."""
    (gradient,) = torch.autograd.grad(value, logprobs, retain_graph=True)
    return value.item(), gradient.tolist()


def ours_as_verl(case: Case) -> Outcome:
    """What ours computes of all that verl does, under the names of `references.verl`."""
    logprobs, old, reference, sampled, mask, advantages = tensors(case)
    terms = policy_terms(
        logprobs, old, advantages, clip_low=case.clip_low, clip_high=case.clip_high, dual_clip=case.dual_clip
    )
    weights = importance(old, sampled, case.cap)
    divergence = k3(logprobs, reference)
    outcome: Outcome = {
        "k3": divergence.tolist(),
        "importance": weights.masked_fill(mask == 0, 0.0).tolist(),
        "clipped": share(terms.clipped_low | terms.clipped_high, mask),
        "dual clipped": share(terms.dual_clipped, mask),
        "divergence from old": -(terms.log_ratio * mask).sum().item() / case.tokens,
    }
    for name, values in {"": terms.loss, "weighted ": terms.loss * weights, "k3 ": divergence}.items():
        total = aggregate(values, mask, case.how, tokens=case.tokens, sequences=case.sequences)
        outcome[f"{name}loss"], outcome[f"{name}gradient"] = with_gradient(total, logprobs)
    return outcome


def ours_as_trl(case: Case, *, whole: Case | None = None) -> Outcome:
    """What ours computes of all that TRL's DAPO loss does. `whole`: the batch that the case is a micro-batch of."""
    logprobs, old, reference, _, mask, advantages = tensors(case)
    terms = policy_terms(
        logprobs, old, advantages, clip_low=case.clip_low, clip_high=case.clip_high, dual_clip=case.dual_clip
    )
    whole = whole or case
    loss = aggregate(
        terms.loss + case.kl * k3(logprobs, reference),
        mask,
        "token-mean",
        tokens=whole.tokens,
        sequences=whole.sequences,
    )
    value, gradient = with_gradient(loss, logprobs)
    return {
        "loss": value,
        "gradient": gradient,
        "clipped low": share(terms.clipped_low, mask),
        "clipped high": share(terms.clipped_high, mask),
    }


def share(where: torch.Tensor, mask: torch.Tensor) -> float:
    return (where & mask.bool()).sum().item() / max(1, int(mask.sum()))


def fired(case: Case) -> Counter[str]:
    """How often each branch is reached by a learned token: found from the inputs alone, in plain arithmetic."""
    found: Counter[str] = Counter()
    for row, marks in enumerate(case.mask):
        found["row without a learned token"] += not any(marks)
        for token, mark in enumerate(marks):
            if mark:
                found.update(_branches(case, row, token))
            else:
                found["masked token"] += 1
    return found


def _branches(case: Case, row: int, token: int) -> Iterator[str]:
    advantage = case.advantages[row]
    exponent = case.logprobs[row][token] - case.old[row][token]
    divergence = case.reference[row][token] - case.logprobs[row][token]
    weight = case.old[row][token] - case.sampled[row][token]
    ratio = math.exp(max(-20.0, min(20.0, exponent)))
    if advantage == 0:
        yield "no advantage"
    elif 1 - case.clip_low <= ratio <= 1 + case.clip_high:
        yield "inside the clip"
    elif ratio < 1:
        yield "clipped low" if advantage < 0 else "below the clip with a positive advantage"
    elif advantage > 0:
        yield "clipped high"
    elif case.dual_clip is not None and ratio > case.dual_clip:
        yield "dual clip"
    else:
        yield "above the clip with a negative advantage"
    if abs(exponent) > 20:
        yield f"ratio's exponent {'above' if exponent > 0 else 'below'} its limit"
    if abs(divergence) > 20:
        yield f"divergence's exponent {'above' if divergence > 0 else 'below'} its limit"
    if math.exp(min(20.0, divergence)) - divergence - 1 > 10:
        yield "divergence above its limit"
    yield "importance capped" if math.exp(min(20.0, weight)) > case.cap else "importance not capped"
    if weight < -20:
        yield "importance's exponent below its limit"


def draw_groups(seed: int) -> tuple[list[float], list[str]]:
    """Rewards with the groups that they are of: of one to six samples each, not in order, some all equal."""
    chance = random.Random(seed)
    grades = [0.0, 0.1, 0.2, 0.3, 0.8, 0.9, 1.0]
    samples = []
    for group in range(6):
        size, same = chance.randint(1, 6), chance.random() < 0.25
        first = chance.choice(grades)
        samples += [(first if same else chance.choice(grades), f"question {group}") for _ in range(size)]
    chance.shuffle(samples)
    return [reward for reward, _ in samples], [group for _, group in samples]
