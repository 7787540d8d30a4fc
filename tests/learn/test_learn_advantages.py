"""Advantages within groups: by sample, of any group sizes, and what tells nothing is dropped by name."""

from __future__ import annotations

import math
import statistics
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from parity import recorded

from mia.errors import LearnError
from mia.learn.advantages import ALONE, EQUAL, NO_SUCCESS, advantages, successes
from mia.learn.rollouts import Conversation, Rollout

EPSILON = 1e-6
REWARDS = st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.8, 1.0]), st.floats(-1e6, 1e6))
SAMPLES = st.lists(st.tuples(st.sampled_from("abcd"), REWARDS), max_size=24)


def rollout(group: str, reward: float, conversations: int = 1, **fields: str) -> Rollout:
    one = Conversation((1, 2), (False, True), (0.0, -1.0))
    return Rollout(group=group, reward=reward, conversations=(one,) * conversations, **fields)


def members(samples: list[tuple[str, float]]) -> dict[str, list[int]]:
    return {
        name: [at for at, (group, _) in enumerate(samples) if group == name] for name in {one for one, _ in samples}
    }


@pytest.mark.parametrize("number", range(len(recorded.advantages())))
def test_as_verl(number: int) -> None:
    golden = recorded.advantages()[number]
    found = advantages(
        [rollout(group, reward) for group, reward in zip(golden["groups"], golden["rewards"], strict=True)],
        divide=golden["divide"],
        epsilon=golden["epsilon"],
    )
    size = Counter(golden["groups"])
    for group, value, theirs in zip(golden["groups"], found.values, golden["values"], strict=True):
        if size[group] > 1:  # Of a group of one verl learns; ours does not.
            assert value == pytest.approx(theirs, abs=1e-9)


def test_the_recording_has_groups_of_all_kinds() -> None:
    kinds: Counter[str] = Counter()
    for golden in recorded.advantages():
        rewards: dict[str, list[float]] = {}
        for group, reward in zip(golden["groups"], golden["rewards"], strict=True):
            rewards.setdefault(group, []).append(reward)
        for group in rewards.values():
            kinds["alone" if len(group) == 1 else "equal" if len(set(group)) == 1 else f"of {len(group)}"] += 1
    assert set(kinds) >= {"alone", "equal", "of 2", "of 3", "of 4", "of 5", "of 6"}
    assert {(golden["divide"], golden["epsilon"]) for golden in recorded.advantages()} == {
        (divide, epsilon) for divide in (True, False) for epsilon in (1e-6, 0.1)
    }


def test_by_hand() -> None:
    rollouts = [rollout("a", 1.0), rollout("b", 0.5), rollout("a", 0.0), rollout("a", 0.5)]
    plain = advantages([*rollouts, rollout("b", 0.5)], divide=False, epsilon=EPSILON)
    assert plain.values == (0.5, 0.0, -0.5, 0.0, 0.0)
    assert plain.kept == (True, False, True, True, False)
    assert plain.dropped == {EQUAL: 2}
    divided = advantages(rollouts, divide=True, epsilon=0.5)
    assert divided.values == pytest.approx((0.5, 0.0, -0.5, 0.0))  # The deviation of 1, 0, 0.5 is 0.5.
    assert divided.dropped == {ALONE: 1}


@settings(deadline=None)
@given(samples=SAMPLES, divide=st.booleans(), epsilon=st.sampled_from([0.0, 1e-6, 0.1]))
def test_each_group_by_itself(samples: list[tuple[str, float]], divide: bool, epsilon: float) -> None:
    found = advantages([rollout(*one) for one in samples], divide=divide, epsilon=epsilon)
    assert len(found.values) == len(found.kept) == len(samples)
    assert sum(found.dropped.values()) == found.kept.count(False)
    for numbers in members(samples).values():
        rewards = [samples[number][1] for number in numbers]
        values = [found.values[number] for number in numbers]
        kept = {found.kept[number] for number in numbers}
        assert len(kept) == 1
        if kept == {False}:
            assert set(values) == {0.0}
            assert len(rewards) == 1 or math.isclose(min(rewards), max(rewards), rel_tol=1e-9, abs_tol=1e-12)
            continue
        assert math.fsum(values) == pytest.approx(0, abs=1e-9 * max(map(abs, values)) + 1e-7 * divide)
        # Better rewards have better advantages.
        assert [reward for _, reward in sorted(zip(values, rewards, strict=True))] == sorted(rewards)
        assert max(values) > 0 > min(values)
        if divide:
            deviation = statistics.stdev(rewards)
            assert statistics.stdev(values) == pytest.approx(deviation / (deviation + epsilon), rel=1e-5)
        else:
            assert max(values) - min(values) == pytest.approx(max(rewards) - min(rewards), rel=1e-5, abs=1e-9)


@settings(deadline=None)
@given(samples=SAMPLES, divide=st.booleans(), chance=st.randoms(use_true_random=False))
def test_order_does_not_matter(samples: list[tuple[str, float]], divide: bool, chance: object) -> None:
    numbers = list(range(len(samples)))
    chance.shuffle(numbers)  # type: ignore[attr-defined]
    straight = advantages([rollout(*one) for one in samples], divide=divide, epsilon=EPSILON)
    shuffled = advantages([rollout(*samples[number]) for number in numbers], divide=divide, epsilon=EPSILON)
    assert shuffled.values == pytest.approx([straight.values[number] for number in numbers], rel=1e-9, abs=1e-9)
    assert shuffled.kept == tuple(straight.kept[number] for number in numbers)
    assert shuffled.dropped == straight.dropped


@settings(deadline=None)
@given(samples=SAMPLES, divide=st.booleans(), shift=st.integers(-50, 50))
def test_a_reward_for_all_changes_nothing(samples: list[tuple[str, float]], divide: bool, shift: int) -> None:
    for numbers in members(samples).values():
        rewards = [samples[number][1] for number in numbers]
        assume(len(rewards) == 1 or max(rewards) == min(rewards) or max(rewards) - min(rewards) > 1e-3)
    found, shifted = (
        advantages([rollout(group, reward + more) for group, reward in samples], divide=divide, epsilon=EPSILON)
        for more in (0, shift)
    )
    assert shifted.values == pytest.approx(found.values, rel=1e-6, abs=1e-6)
    assert shifted.kept == found.kept


@settings(deadline=None)
@given(samples=SAMPLES, divide=st.booleans(), conversations=st.lists(st.integers(1, 5), min_size=24, max_size=24))
def test_a_sample_counts_once_whatever_its_conversations(
    samples: list[tuple[str, float]], divide: bool, conversations: list[int]
) -> None:
    found, split = (
        advantages(
            [rollout(group, reward, many) for (group, reward), many in zip(samples, counts, strict=False)],
            divide=divide,
            epsilon=EPSILON,
        )
        for counts in ([1] * 24, conversations)
    )
    assert found == split


def test_rewards_that_are_equal_but_for_rounding() -> None:
    """They would give advantages of about one, if the deviation alone divided them."""
    rewards = [0.7 + 0.2 + 0.1, 0.1 + 0.2 + 0.7]
    assert rewards[0] != rewards[1]
    found = advantages([rollout("a", reward) for reward in rewards], divide=True, epsilon=0.0)
    assert found.values == (0.0, 0.0)
    assert found.dropped == {EQUAL: 2}


def test_nothing() -> None:
    found = advantages([], divide=True, epsilon=EPSILON)
    assert (found.values, found.kept, found.dropped) == ((), (), {})


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_named(reward: float) -> None:
    rollouts = [rollout("a", 1.0), rollout("a", 0.0), rollout("question 7", reward, id="roll_x")]
    with pytest.raises(LearnError, match=r"'roll_x' of group 'question 7' has the reward (nan|-?inf)"):
        advantages(rollouts, divide=False, epsilon=EPSILON)


@pytest.mark.parametrize("epsilon", [-1e-6, math.nan])
def test_epsilon_is_not_negative(epsilon: float) -> None:
    with pytest.raises(LearnError, match="epsilon"):
        advantages([], divide=True, epsilon=epsilon)


@given(SAMPLES, st.floats(-1, 2))
def test_successes_are_worth_one_whatever_the_others_did(samples: list[tuple[str, float]], threshold: float) -> None:
    found = successes([rollout(group, reward) for group, reward in samples], threshold=threshold)
    assert found.kept == tuple(reward >= threshold for _, reward in samples)
    assert found.values == tuple(float(kept) for kept in found.kept)
    assert found.dropped.get(NO_SUCCESS, 0) == len(samples) - sum(found.kept)


def test_a_success_needs_a_finite_reward() -> None:
    with pytest.raises(LearnError, match="nan"):
        successes([rollout("a", 1.0), rollout("a", math.nan)], threshold=0.5)
