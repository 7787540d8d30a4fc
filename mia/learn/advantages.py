"""Group-relative advantages: how much better a rollout did than the others of its question (mia.md, section 5).

    A_i = r_i - mean(r),   or   A_i = (r_i - mean(r)) / (std(r) + ε)

over the rewards r of one group; std is that of a sample (n - 1). The second is GRPO (Shao et al. 2024,
arXiv 2402.03300, section 4.1.2), the first leaves the deviation out (Liu et al. 2025, arXiv 2503.20783; MemAgent).

Groups are of *samples*: a rollout counts once, whatever the number of its conversations, and all of them get its one
advantage. Counting rows instead would weigh a long rollout more in the mean of its group, and shift the rest.

`successes` compares nothing: what went well is worth 1, and the rest is left alone (rejection sampling fine-tuning,
Yuan et al. 2023, arXiv 2308.01825).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mia.errors import LearnError
from mia.learn.rollouts import Rollout

ALONE = "group of one"
EQUAL = "all rewards equal"
NO_SUCCESS = "no success"
RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-12
"""Rewards this near to each other are equal: the parts of one were added in another order."""


@dataclass(frozen=True)
class Advantages:
    """One entry for each rollout, in the order in which they were given."""

    values: tuple[float, ...]
    """0 where nothing is kept."""
    kept: tuple[bool, ...]
    """Whether there is anything to learn from it."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rollouts that are not kept, by the reason (`ALONE`, `EQUAL`, `NO_SUCCESS`)."""


def advantages(rollouts: Sequence[Rollout], *, divide: bool, epsilon: float) -> Advantages:
    """Compare each rollout with the others of its `group`; groups may be of any size, in any order.

    `divide`: by the standard deviation of the group, plus `epsilon` (not negative). A rollout that is alone in its
    group, or whose group got one and the same reward, tells nothing: it is not kept. Raises LearnError for a reward
    that is no finite number.
    """
    if not epsilon >= 0:
        raise LearnError(f"epsilon is {epsilon}.", wanted="0 or more", hint="learn.epsilon = 1e-6")
    groups: dict[str, list[int]] = {}
    for number, rollout in enumerate(rollouts):
        _check_reward(rollout)
        groups.setdefault(rollout.group, []).append(number)
    values = [0.0] * len(rollouts)
    kept = [False] * len(rollouts)
    dropped: Counter[str] = Counter()
    for members in groups.values():
        rewards = [rollouts[number].reward for number in members]
        if len(members) == 1:
            dropped[ALONE] += 1
        elif math.isclose(min(rewards), max(rewards), rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE):
            dropped[EQUAL] += len(members)
        else:
            for number, value in zip(members, _relative(rewards, divide, epsilon), strict=True):
                values[number], kept[number] = value, True
    return Advantages(tuple(values), tuple(kept), dict(dropped))


def successes(rollouts: Sequence[Rollout], *, threshold: float) -> Advantages:
    """1 for each rollout whose reward is at least `threshold`; the others are not kept. Raises LearnError for a reward
    that is no finite number."""
    for rollout in rollouts:
        _check_reward(rollout)
    kept = tuple(rollout.reward >= threshold for rollout in rollouts)
    failed = len(kept) - sum(kept)
    return Advantages(tuple(map(float, kept)), kept, {NO_SUCCESS: failed} if failed else {})


def _check_reward(rollout: Rollout) -> None:
    if not math.isfinite(rollout.reward):
        raise LearnError(
            f"rollout '{rollout.id}' of group '{rollout.group}' has the reward {rollout.reward}.",
            wanted="a finite number",
            hint="a sample without a reward is Dropped(group, why) of the reward function",
        )


def _relative(rewards: Sequence[float], divide: bool, epsilon: float) -> list[float]:
    """The formula, for one group of two or more rewards that differ."""
    mean = math.fsum(rewards) / len(rewards)
    differences = [reward - mean for reward in rewards]
    if not divide:
        return differences
    deviation = math.hypot(*differences) / math.sqrt(len(rewards) - 1)
    return [difference / (deviation + epsilon) for difference in differences]
