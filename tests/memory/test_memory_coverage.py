"""Which of a question's words the candidates have, as properties over any texts."""

from __future__ import annotations

import math
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.memory.coverage import Coverage, words

vocabulary = st.sampled_from(
    ["the", "The", "of", "mayor", "MAYOR", "birthplace", "Kavori", "Ärzte", "ärzte,", "x", "7", "?"]
)
sentences = st.lists(vocabulary, max_size=8).map(" ".join)
tellings = st.dictionaries(st.integers(0, 30), sentences, max_size=8)
SIZE = 31
"""More candidates than were read."""


def shares_in_plain_words(question: str, texts: dict[int, str]) -> dict[str, float]:
    """The formula, word by word."""
    told = [set(words(text)) for text in texts.values()]
    held = {word: sum(word in one for one in told) for word in words(question)}
    rarity = {word: math.log((len(told) + 1) / (count + 1)) for word, count in held.items() if count}
    whole = max(math.fsum(rarity.values()), math.log((len(told) + 1) / 2))
    return {word: rare / whole for word, rare in rarity.items() if rare > 0}


@given(sentences, tellings, st.sets(st.integers(0, 30), max_size=4))
def test_a_gain_is_the_share_of_the_words_that_nobody_chosen_has(
    question: str, texts: dict[int, str], chosen: set[int]
) -> None:
    shares = shares_in_plain_words(question, texts)
    covered = {word for place in chosen for word in words(texts.get(place, ""))}
    gains = Coverage.of(question, texts, weight=1).gains(chosen, SIZE)
    assert gains.shape == (SIZE,)
    for place, gain in enumerate(gains.tolist()):
        new = set(words(texts.get(place, ""))) - covered
        assert gain == pytest.approx(math.fsum(shares.get(word, 0.0) for word in new), abs=1e-12)
        assert 0 <= gain <= 1


@given(sentences, tellings, st.lists(st.integers(0, 30), max_size=5))
def test_a_gain_never_grows_and_nobody_gains_what_he_has_covered(
    question: str, texts: dict[int, str], chosen: list[int]
) -> None:
    coverage = Coverage.of(question, texts, weight=1)
    before = coverage.gains([], SIZE)
    for count in range(1, len(chosen) + 1):
        after = coverage.gains(chosen[:count], SIZE)
        assert (after <= before).all()
        assert not after[chosen[:count]].any()
        before = after


@given(sentences, tellings, st.randoms(use_true_random=False), st.sets(st.integers(0, 30), max_size=3))
def test_the_places_and_the_order_of_the_texts_change_nothing_to_the_last_bit(
    question: str, texts: dict[int, str], chance: random.Random, chosen: set[int]
) -> None:
    moved = list(range(SIZE))
    chance.shuffle(moved)
    items = [(moved[place], text) for place, text in texts.items()]
    chance.shuffle(items)
    gains = Coverage.of(question, texts, weight=1).gains(chosen, SIZE)
    others = Coverage.of(question, dict(items), weight=1).gains([moved[place] for place in chosen], SIZE)
    assert gains.tolist() == others[moved].tolist()


def test_shares_on_figures_worked_out_by_hand() -> None:
    texts = {
        0: "mayor of Melotu",
        2: "The birthplace of Toki. The BIRTHPLACE, again",
        5: "Who is the mayor of the city?",
    }
    coverage = Coverage.of("Who is the mayor of the birthplace of Kavori?", texts, weight=2)
    assert coverage.weight == 2
    assert coverage.places.tolist() == [0, 2, 5]
    # Three read. Two have "the" and "mayor", one has "who", "is" and "birthplace"; all have "of", nobody "kavori".
    twice, once = math.log(4 / 3), math.log(4 / 2)
    whole = 2 * twice + 3 * once
    # In the order of the question: who, is, the, mayor, birthplace.
    assert coverage.shares * whole == pytest.approx([once, once, twice, twice, once])
    expected = numpy.zeros(6)
    expected[[0, 2, 5]] = twice / whole, (once + twice) / whole, 2 * (once + twice) / whole
    assert coverage.gains([], 6) == pytest.approx(expected)
    expected[[0, 2, 5]] = 0, once / whole, 0
    assert coverage.gains([5], 6) == pytest.approx(expected)


def test_fillers_hardly_count_and_where_only_they_can_be_covered_nobody_is_preferred() -> None:
    texts = dict.fromkeys(range(99), "what is the answer") | {99: "mayor"}
    assert Coverage.of("what is the mayor", texts, weight=1).shares.tolist() == pytest.approx(
        [math.log(101 / 100) / (3 * math.log(101 / 100) + math.log(101 / 2))] * 3 + [0.992], abs=1e-3
    )
    # All shares together are worth less than one word that one memory alone has.
    gains = Coverage.of("what is the gist", texts, weight=1).gains([], 100)
    assert 0 < gains.max() < 0.01


@pytest.mark.parametrize(
    ("question", "texts"),
    [("", {0: "a"}), ("?!", {0: "a", 1: "b"}), ("a", {}), ("a", {0: "a"}), ("a", {0: "", 1: ""}), ("a b", {0: "a b"})],
)
def test_where_nothing_tells_candidates_apart_nobody_gains(question: str, texts: dict[int, str]) -> None:
    coverage = Coverage.of(question, texts, weight=1)
    assert coverage.has.shape == (len(texts), 0)
    assert coverage.gains([], 2).tolist() == [0, 0]
    assert coverage.gains([0], 2).tolist() == [0, 0]
