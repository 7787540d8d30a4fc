"""From rollouts to micro-batches: rows of tokens of like length, as many to a batch as its budget holds.

Pure arithmetic over numpy arrays. A row is one conversation, cut behind the last token that the learner wrote: what
comes after it teaches nothing. Rows are padded on the right, where a causal model never looks, so that no mask of
attention is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray

from mia.errors import LearnError
from mia.learn.rollouts import Rollout

EMPTY = "empty completion"
"""Why a row is left out: the learner wrote nothing in the conversation."""


@dataclass(frozen=True, eq=False)
class Row:
    """One conversation of a rollout."""

    ids: NDArray[numpy.int64]
    """[tokens]: up to the last one that the learner wrote."""
    places: NDArray[numpy.int64]
    """[learned]: where in `ids` those stand that the learner wrote; never 0, which nothing predicts."""
    logprobs: NDArray[numpy.float32]
    """[learned]: what the sampler gave them."""
    advantage: float
    rollout: int
    """The number of its rollout among those given."""
    count: int = 1
    """How many conversations it stands for (`merge`)."""

    @property
    def width(self) -> int:
        """Tokens that are read: the last one is only predicted."""
        return len(self.ids) - 1


@dataclass(frozen=True, eq=False)
class Lot:
    """Rows that go through the network together. `learned` is the most tokens that the learner wrote in one of them."""

    inputs: NDArray[numpy.int64]
    """[rows, width]: what is read, padded on the right."""
    seen: NDArray[numpy.int64]
    """[tokens]: for each learned token the place in the flattened inputs that predicts it, row by row."""
    targets: NDArray[numpy.int64]
    """[tokens]: the learned tokens themselves."""
    mask: NDArray[numpy.bool_]
    """[rows, learned]: which places hold a learned token; they stand on the left."""
    sampled: NDArray[numpy.float32]
    """[rows, learned]: the sampler's logprobs; 0 where there is no token."""
    advantages: NDArray[numpy.float32]
    """[rows]"""
    counts: NDArray[numpy.float32]
    """[rows]: how many conversations each stands for."""


def make_rows(
    rollouts: Sequence[Rollout], advantages: Sequence[float], *, limit: int | None, vocabulary: int
) -> tuple[list[Row], dict[str, int]]:
    """The rows of rollouts, each with its rollout's advantage, and how many conversations were left out, by reason.

    `limit`: the longest sequence that the model reads; `vocabulary`: how many tokens it knows. Raises LearnError for
    tokens that it does not know, and for another number of advantages than of rollouts.
    """
    if len(rollouts) != len(advantages):
        raise LearnError(f"{len(rollouts)} rollouts came with {len(advantages)} advantages.", wanted="one for each")
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    for number, (rollout, advantage) in enumerate(zip(rollouts, advantages, strict=True)):
        for conversation in rollout.conversations:
            ids = numpy.array(conversation.ids, dtype=numpy.int64)
            places = numpy.flatnonzero(numpy.array(conversation.mask, dtype=numpy.bool_))
            places = places[places > 0].astype(numpy.int64)
            if not len(places):
                dropped[EMPTY] += 1
                continue
            ids = ids[: places[-1] + 1]
            if limit is not None and len(ids) > limit:
                dropped[f"longer than the {limit} tokens that the model reads"] += 1
                continue
            if not 0 <= ids.min() <= ids.max() < vocabulary:
                raise LearnError(
                    f"the rollout '{rollout.id}' holds the token {ids.max() if ids.min() >= 0 else ids.min()}, which "
                    f"the model does not know.",
                    wanted=f"tokens from 0 to {vocabulary - 1}",
                    hint="learn with the model that the rollouts were sampled from",
                )
            logprobs = numpy.array(conversation.logprobs, dtype=numpy.float32)[places]
            rows.append(Row(ids, places, logprobs, float(advantage), number))
    return rows, dict(dropped)


def merge(rows: Sequence[Row], *, rounding: float) -> list[Row]:
    """The rows without their repetitions, in their order; each counts as often as it came.

    Tries of a question often say the same, word for word, and what they teach is then the same: it goes through the
    network once. Equal are rows of the same tokens and the same advantage whose logprobs, as the sampler gave them,
    differ by less than `rounding`.
    """
    places: dict[tuple[bytes, bytes, float], list[int]] = {}
    merged: list[Row] = []
    for row in rows:
        alike = places.setdefault((row.ids.tobytes(), row.places.tobytes(), row.advantage), [])
        for place in alike:
            if float(numpy.abs(merged[place].logprobs - row.logprobs).max()) < rounding:
                merged[place] = replace(merged[place], count=merged[place].count + row.count)
                break
        else:
            alike.append(len(merged))
            merged.append(row)
    return merged


def make_lots(rows: Sequence[Row], *, budget: int, overhead: int) -> list[list[Row]]:
    """Rows by length, the longest first, divided into lots of at most `budget` tokens, padding included; a row that is
    longer is a lot of its own.

    Of all divisions that keep this order, the one that costs least: a lot costs its tokens, padding included, and
    `overhead` tokens more.
    """
    ordered = sorted(rows, key=lambda row: -row.width)
    widths = numpy.array([row.width for row in ordered], dtype=numpy.int64)
    # least[end]: the cost of the first `end` rows; begins[end]: where their last lot begins.
    least = numpy.zeros(len(ordered) + 1, dtype=numpy.int64)
    begins = numpy.zeros(len(ordered) + 1, dtype=numpy.int64)
    for end in range(1, len(ordered) + 1):
        lots = widths[:end] * numpy.arange(end, 0, -1)  # The tokens of a lot from each row up to here.
        costs = least[:end] + lots + overhead
        costs[:-1][lots[:-1] > budget] = numpy.iinfo(numpy.int64).max
        begins[end] = int(costs.argmin())
        least[end] = costs[begins[end]]
    found: list[list[Row]] = []
    end = len(ordered)
    while end:
        found.append(ordered[begins[end] : end])
        end = int(begins[end])
    return found[::-1]


def share(rows: Sequence[Row], *, budget: int, overhead: int, rank: int, ranks: int) -> list[list[Row]]:
    """The lots that fall to one of several processes. Every row falls to exactly one, and each gets about as many
    tokens; which, is decided by the rows alone."""
    if ranks > 1:
        budget = min(budget, max(1, -(-sum(row.width for row in rows) // ranks)))
    lots = make_lots(rows, budget=budget, overhead=overhead)
    loads = [0] * ranks
    mine = []
    for lot in sorted(lots, key=lambda lot: -lot[0].width * len(lot)):
        least = loads.index(min(loads))
        loads[least] += lot[0].width * len(lot) + overhead
        if least == rank:
            mine.append(lot)
    return mine


def pad(rows: Sequence[Row]) -> Lot:
    """The arrays of a lot."""
    width = max(row.width for row in rows)
    learned = max(len(row.places) for row in rows)
    inputs = numpy.zeros((len(rows), width), dtype=numpy.int64)
    mask = numpy.zeros((len(rows), learned), dtype=numpy.bool_)
    sampled = numpy.zeros((len(rows), learned), dtype=numpy.float32)
    for number, row in enumerate(rows):
        inputs[number, : row.width] = row.ids[:-1]
        mask[number, : len(row.places)] = True
        sampled[number, : len(row.places)] = row.logprobs
    return Lot(
        inputs=inputs,
        seen=numpy.concatenate([row.places - 1 + number * width for number, row in enumerate(rows)]),
        targets=numpy.concatenate([row.ids[row.places] for row in rows]),
        mask=mask,
        sampled=sampled,
        advantages=numpy.array([row.advantage for row in rows], dtype=numpy.float32),
        counts=numpy.array([row.count for row in rows], dtype=numpy.float32),
    )
