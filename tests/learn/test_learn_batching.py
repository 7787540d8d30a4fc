"""Rows and lots: nothing is lost, nothing is there twice, budgets are kept, and what is left out is counted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as some

from mia.errors import LearnError
from mia.learn.batching import EMPTY, Row, make_lots, make_rows, merge, pad, share
from mia.learn.rollouts import Conversation, Rollout


def conversation(ids: list[int], learned: set[int]) -> Conversation:
    marks = tuple(place in learned for place in range(len(ids)))
    return Conversation(tuple(ids), marks, tuple(-float(place) if mark else 0.0 for place, mark in enumerate(marks)))


def rollout(*conversations: Conversation) -> Rollout:
    return Rollout(group="g", reward=1.0, conversations=conversations)


def row(width: int, learned: int = 1, number: int = 0) -> Row:
    places = numpy.arange(width + 1 - learned, width + 1)
    return Row(numpy.arange(width + 1), places, -places.astype(numpy.float32), float(number), number)


def test_a_row_ends_behind_the_last_token_that_was_learned() -> None:
    one = rollout(conversation([5, 6, 7, 8, 9], {2, 3}), conversation([4, 3, 2], {1}))
    rows, dropped = make_rows([one], [0.5], limit=9, vocabulary=10)
    assert [made.ids.tolist() for made in rows] == [[5, 6, 7, 8], [4, 3]]
    assert [made.places.tolist() for made in rows] == [[2, 3], [1]]
    assert [made.logprobs.tolist() for made in rows] == [[-2.0, -3.0], [-1.0]]
    assert [(made.advantage, made.rollout) for made in rows] == [(0.5, 0), (0.5, 0)]
    assert dropped == {}


def test_what_teaches_nothing_is_left_out_and_counted() -> None:
    long, empty, first = conversation([1] * 8, {7}), conversation([1, 2], set()), conversation([1, 2], {0})
    fine = conversation([1] * 8, {4})
    rows, dropped = make_rows([rollout(long, fine), rollout(empty), rollout(first)], [1, 2, 3], limit=5, vocabulary=9)
    assert [(made.rollout, len(made.ids)) for made in rows] == [(0, 5)], "cut to five tokens, it fits"
    assert dropped == {"longer than the 5 tokens that the model reads": 1, EMPTY: 2}
    unlimited, _ = make_rows([rollout(long)], [1], limit=None, vocabulary=9)
    assert len(unlimited) == 1


@pytest.mark.parametrize(("token", "told"), [(9, "9"), (-1, "-1")])
def test_tokens_of_another_model_are_refused(token: int, told: str) -> None:
    one = rollout(conversation([1, token, 3], {2}))
    with pytest.raises(LearnError, match=rf"'{one.id}' holds the token {told}, which the model does not") as raised:
        make_rows([one], [1.0], limit=None, vocabulary=9)
    assert raised.value.wanted == "tokens from 0 to 8"
    with pytest.raises(LearnError, match="1 rollouts came with 0 advantages"):
        make_rows([one], [], limit=None, vocabulary=9)


def test_rows_that_repeat_one_another_become_one_that_counts() -> None:
    first, other = row(5), row(7)
    close = replace(first, logprobs=first.logprobs + numpy.float32(4e-4), rollout=1)
    far = replace(first, logprobs=first.logprobs + numpy.float32(4e-3), rollout=2)
    better = replace(first, advantage=2.0, rollout=3)
    places = replace(first, places=first.places - 1, rollout=4)
    merged = merge([first, other, close, far, better, places, first], rounding=1e-3)
    assert [(one.rollout, one.width, one.count) for one in merged] == [
        (0, 5, 3), (0, 7, 1), (2, 5, 1), (3, 5, 1), (4, 5, 1)
    ]  # fmt: skip
    assert merge(merged, rounding=1e-3) == merged
    assert pad(merged).counts.tolist() == [3, 1, 1, 1, 1]


@given(some.lists(some.tuples(some.integers(1, 3), some.integers(0, 2)), max_size=30))
def test_no_row_is_lost_where_some_are_merged(shapes: list[tuple[int, int]]) -> None:
    rows = [replace(row(width), advantage=float(advantage)) for width, advantage in shapes]
    merged = merge(rows, rounding=1e-3)
    assert sorted((one.width, one.advantage) for one in merged for _ in range(one.count)) == sorted(
        (one.width, one.advantage) for one in rows
    )
    assert len(merged) == len({(one.width, one.advantage) for one in rows})


@given(some.lists(some.integers(1, 60), max_size=40), some.integers(1, 200), some.integers(0, 100))
def test_every_row_is_in_one_lot_and_lots_keep_the_budget(widths: list[int], budget: int, overhead: int) -> None:
    rows = [row(width, number=number) for number, width in enumerate(widths)]
    lots = make_lots(rows, budget=budget, overhead=overhead)
    assert sorted(one.rollout for lot in lots for one in lot) == list(range(len(rows)))
    assert all(len(lot) == 1 or len(lot) * max(one.width for one in lot) <= budget for lot in lots)


@given(some.lists(some.integers(1, 30), min_size=1, max_size=7), some.integers(1, 90), some.integers(0, 40))
def test_no_other_division_costs_less(widths: list[int], budget: int, overhead: int) -> None:
    ordered = sorted(widths, reverse=True)

    def cost(parts: list[list[int]]) -> float:
        if any(len(part) > 1 and len(part) * part[0] > budget for part in parts):
            return float("inf")
        return sum(len(part) * part[0] + overhead for part in parts)

    best = float("inf")
    for cuts in itertools.product((False, True), repeat=len(ordered) - 1):
        parts = [[ordered[0]]]
        for cut, width in zip(cuts, ordered[1:], strict=True):
            if cut:
                parts.append([])
            parts[-1].append(width)
        best = min(best, cost(parts))
    lots = make_lots([row(width) for width in widths], budget=budget, overhead=overhead)
    assert cost([[one.width for one in lot] for lot in lots]) == best


@given(some.lists(some.integers(1, 60), max_size=30), some.integers(1, 4))
def test_processes_share_all_rows(widths: list[int], ranks: int) -> None:
    rows = [row(width, number=number) for number, width in enumerate(widths)]
    parts = [share(rows, budget=200, overhead=10, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert sorted(one.rollout for part in parts for lot in part for one in lot) == list(range(len(rows)))
    if len(rows) >= 2 * ranks:
        assert all(parts), "nobody is idle"


@given(some.lists(some.tuples(some.integers(1, 12), some.integers(1, 12)), min_size=1, max_size=6))
def test_padding_keeps_what_predicts_and_what_is_predicted(shapes: list[tuple[int, int]]) -> None:
    rows = [row(width, min(width, learned), number) for number, (width, learned) in enumerate(shapes)]
    lot = pad(rows)
    assert lot.inputs.shape == (len(rows), max(one.width for one in rows))
    assert lot.mask.sum() == len(lot.targets) == len(lot.seen) == sum(len(one.places) for one in rows)
    assert (lot.inputs.flatten()[lot.seen] + 1 == lot.targets).all(), "ids count up, so that each predicts the next"
    assert lot.sampled[lot.mask].tolist() == [-float(place) for one in rows for place in one.places]
    assert not lot.sampled[~lot.mask].any()
    assert lot.advantages.tolist() == [one.advantage for one in rows]
