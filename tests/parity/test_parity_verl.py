"""Ours against the installed verl: values and gradients, over random cases that reach every branch."""

from __future__ import annotations

from collections import Counter

import pytest
from parity import recorded, references
from parity.cases import BRANCHES, draw, draw_groups, fired, ours_as_verl

from mia.learn.advantages import advantages
from mia.learn.rollouts import Conversation, Rollout

pytestmark = [pytest.mark.usefixtures("verl"), pytest.mark.filterwarnings("ignore")]

SEEDS = range(1000, 1200)


def test_every_branch_is_reached() -> None:
    reached = sum((fired(draw(seed)) for seed in SEEDS), Counter())
    assert {branch: reached[branch] for branch in BRANCHES if reached[branch] < 20} == {}


def test_objective() -> None:
    for seed in SEEDS:
        case = draw(seed)
        assert recorded.differences(ours_as_verl(case), references.verl(case), tolerance=1e-12) == [], seed


def test_the_recorded_objective_is_what_verl_gives() -> None:
    for case, outcome in recorded.objective("verl"):
        assert recorded.differences(outcome, references.verl(case)) == []


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_advantages(divide: bool, epsilon: float) -> None:
    sizes: Counter[int] = Counter()
    for seed in range(2000, 2050):
        rewards, groups = draw_groups(seed)
        ours = advantages([_rollout(*one) for one in zip(rewards, groups, strict=True)], divide=divide, epsilon=epsilon)
        theirs = references.verl_advantages(rewards, groups, divide=divide, epsilon=epsilon)
        size = Counter(groups)
        for value, kept, their, reward, group in zip(ours.values, ours.kept, theirs, rewards, groups, strict=True):
            if size[group] == 1:
                # verl learns from the bare reward here; ours drops the sample.
                assert not kept
                assert their == pytest.approx(reward / (1 + epsilon) if divide else reward, abs=1e-6)
            else:
                sizes[size[group]] += kept
                assert value == pytest.approx(their, abs=1e-9)
    assert set(sizes) == {2, 3, 4, 5, 6}
    assert min(sizes.values()) > 20


def test_the_recorded_advantages_are_what_verl_gives() -> None:
    for entry in recorded.advantages():
        theirs = references.verl_advantages(
            entry["rewards"], entry["groups"], divide=entry["divide"], epsilon=entry["epsilon"]
        )
        assert theirs == pytest.approx(entry["values"], abs=1e-12)


def _rollout(reward: float, group: str) -> Rollout:
    return Rollout(group, reward, (Conversation((1,), (True,), (-1.0,)),))
