"""Which memories matter for a question: pure arithmetic over arrays, one element per memory.

    similarity = 0.8·cos(question) + 0.2·cos(caption)           (text only: cos(question))
    value      = wins / uses
    frequency  = 1 / √(1 + uses)
    score      = w_s·min_max(similarity) + w_v·value + w_f·frequency

The floor comes first and looks at the raw similarity: min-max makes a 1 of the best of any bad lot. Vectors are made
safe once (`unit_rows`), so that nothing here ever sees a NaN. Equal scores are told apart by age (newer first) and then
by id, so the same bank always gives the same recall.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from mia.embeddings.base import Vectors

QUESTION_SHARE = 0.8
"""Of the similarity, where there is a caption too."""
LISTED = 5
"""Memories per judgement that a recall names as passed over."""

BELOW_FLOOR = "below the similarity floor"
SKIPPED = "skipped"

Numbers = NDArray[numpy.float64]


@dataclass(frozen=True)
class Weights:
    """How much each part counts; the settings of the same names."""

    similarity: float = 0.7
    value: float = 0.3
    frequency: float = 0.0


@dataclass(frozen=True)
class Candidates:
    """What is scored, column by column."""

    ids: Sequence[str]
    correct: NDArray[numpy.bool_]
    created_at: Numbers
    similarity: Numbers

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Scores:
    """The parts of every candidate's score, and the score."""

    parts: dict[str, Numbers]
    total: Numbers


@dataclass(frozen=True)
class Ranked:
    """One candidate's place."""

    index: int
    """Into the candidates."""
    rank: int
    """From 1, within its judgement; those below the floor come after all others."""
    passed_over: str
    """Why it is not shown; empty if it is."""


def unit_rows(vectors: Vectors) -> Vectors:
    """The rows at length 1; a row that has no direction (zero, NaN, infinite) becomes zero: similar to nothing."""
    rows: Numbers = numpy.atleast_2d(vectors).astype(numpy.float64)
    rows = numpy.where(numpy.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    # By the largest element first: squares of very large and very small numbers leave the range of floats.
    largest = numpy.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows = numpy.divide(rows, largest, out=numpy.zeros_like(rows), where=largest > 0)
    length = numpy.sqrt((rows * rows).sum(axis=1, keepdims=True))
    rows = numpy.divide(rows, length, out=numpy.zeros_like(rows), where=length > 0)
    return rows.astype(numpy.float32)


def cosines(rows: Vectors, vector: Vectors) -> Numbers:
    """The cosine of each row to the vector, both as `unit_rows` gives them; a row that holds a NaN has cosine 0."""
    with numpy.errstate(invalid="ignore", over="ignore"):
        products: Numbers = (rows @ vector).astype(numpy.float64)
    return numpy.clip(numpy.nan_to_num(products, posinf=0.0, neginf=0.0), -1.0, 1.0)


def similarity(question: Numbers, caption: Numbers | None) -> Numbers:
    """The similarity from the cosines; `caption` is None for questions of text alone."""
    return question if caption is None else QUESTION_SHARE * question + (1 - QUESTION_SHARE) * caption


def min_max(values: Numbers) -> Numbers:
    """Stretched to [0, 1]; all 1 where all are equal."""
    if not values.size:
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else numpy.ones_like(values)


def value(uses: NDArray[numpy.int64], wins: NDArray[numpy.int64]) -> Numbers:
    """The win rate; 0 for what was never used."""
    rate: Numbers = wins / numpy.maximum(uses, 1)
    return rate


def frequency(uses: NDArray[numpy.int64]) -> Numbers:
    """Favours what was rarely used, so that it gets its chance."""
    reward: Numbers = 1.0 / numpy.sqrt(1.0 + uses)
    return reward


def score(candidates: Candidates, uses: NDArray[numpy.int64], wins: NDArray[numpy.int64], weights: Weights) -> Scores:
    """The score of workflows, with its parts."""
    parts = {
        "similarity": candidates.similarity,
        "similarity_normalised": min_max(candidates.similarity),
        "value": value(uses, wins),
        "frequency": frequency(uses),
    }
    total = (
        weights.similarity * parts["similarity_normalised"]
        + weights.value * parts["value"]
        + weights.frequency * parts["frequency"]
    )
    return Scores(parts, total)


def score_by_similarity(candidates: Candidates) -> Scores:
    """The score of plan pairs, which have no win rate."""
    return Scores({"similarity": candidates.similarity}, candidates.similarity)


def select(
    candidates: Candidates, scores: Scores, *, correct: bool, k: int, floor: float, skip: Collection[str] = frozenset()
) -> tuple[Ranked, ...]:
    """Of one judgement: the best `k` that reach the floor and are not skipped, and the best few that were passed over.

    In the order of their ranks. `k` counts what is shown: skipping makes room for the next.
    """
    own = numpy.flatnonzero(candidates.correct == correct)
    ranked: list[Ranked] = []
    shown = listed = 0
    for rank, index in enumerate(_best(candidates, scores, own, floor, k + len(skip) + LISTED), start=1):
        if candidates.similarity[index] < floor:
            reason = BELOW_FLOOR
        elif candidates.ids[index] in skip:
            reason = SKIPPED
        elif shown < k:
            reason = ""
            shown += 1
        else:
            reason = f"rank {rank} of {k} shown"
        if reason:
            listed += 1
        if not reason or listed <= LISTED:
            ranked.append(Ranked(index, rank, reason))
    return tuple(ranked)


def _best(candidates: Candidates, scores: Scores, own: NDArray[numpy.intp], floor: float, count: int) -> list[int]:
    """The best `count` of these candidates, best first; whoever is below the floor comes after all who are not."""
    above = candidates.similarity[own] >= floor
    best = _top(candidates, scores.total, own[above], count)
    return best + _top(candidates, scores.total, own[~above], count - len(best))


def _top(candidates: Candidates, total: Numbers, own: NDArray[numpy.intp], count: int) -> list[int]:
    """The best `count` of these candidates by score, then age, then id."""
    if 0 < count < own.size:
        # Every tie with the last place stays in, so that age and id decide it, not the partition.
        last = numpy.partition(total[own], own.size - count)[own.size - count]
        own = own[total[own] >= last]
    places = [(-total[index], -candidates.created_at[index], candidates.ids[index], index) for index in own.tolist()]
    return [index for *_, index in sorted(places)[:count]]
