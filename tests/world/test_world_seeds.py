"""Seeds of worlds: no world is for two things, and what training has seen cannot be tested on."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.config import WORLD_SEED
from mia.errors import ConfigError
from mia.world.seeds import DEMONSTRATION, SPLITS, TEST, check_unseen, split_of


def test_splits_share_no_world() -> None:
    for one, other in combinations(SPLITS.values(), 2):
        assert one.stop <= other.start or other.stop <= one.start


@given(st.integers(0, DEMONSTRATION.stop - 1))
def test_every_seed_is_of_one_split(seed: int) -> None:
    assert [name for name, seeds in SPLITS.items() if seed in seeds] == [split_of(seed)]


def test_the_world_that_is_asked_by_default_is_a_demonstration() -> None:
    assert split_of(WORLD_SEED) == "demonstration"


@pytest.mark.parametrize("seed", [-1, DEMONSTRATION.stop])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"there is no world {seed}\b"):
        split_of(seed)


@given(st.integers(-1_000, 1_100_000), st.integers(1, 400_000))
def test_only_test_worlds_are_unseen(first: int, count: int) -> None:
    if first >= TEST.start and first + count <= TEST.stop:
        check_unseen(first, count)
        return
    with pytest.raises(ConfigError, match="not all test worlds") as caught:
        check_unseen(first, count)
    assert str(TEST.start) in str(caught.value)
