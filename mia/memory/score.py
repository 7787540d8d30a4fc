"""Which memories matter for a question: pure arithmetic over columns, one element per memory, all columns aligned.

Two forms of the score. `Paper`, to the letter (the system's description, section 3), over everything and without a
floor::

    score = 0.7·min_max(similarity) + 0.3·wins / uses

and `Mia`, ours, for those that reach a floor of raw similarity::

    score = w_s·z(similarity) + w_v·z(value) + w_f·z(frequency) + w_r·z(recency)

Min-max makes a 1 of the best and a 0 of the worst of any lot: where all are about equally similar, it blows a hair's
difference up to the whole scale, and the value can no longer matter. So `z` divides by the standard deviation, but
never by less than a spread that means something (`LEAST_SPREAD`).

What always holds: candidates are made safe when they are gathered (`Candidates`), so that no score is NaN; the order in
which they are handed in changes nothing, to the last bit; equal scores are told apart by age (newer first), then by
sequence number (higher first), so the same bank always gives the same recall. A score is the sum of its parts times
`Form.weights`, by the same names; with a `Coverage`, its weight times what the candidate covered when it was called up
(`Ranked.coverage`) is added.

A score knows no store and no ids: candidates are told apart by their place and by the store's sequence number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy
from numpy.typing import NDArray

from mia.embeddings.base import Vectors
from mia.errors import ConfigError
from mia.memory.coverage import Coverage

QUESTION_SHARE = 0.8
"""Of the similarity, where there is a caption too."""
LISTED = 5
"""Memories per judgement that a recall names as passed over."""

BELOW_FLOOR = "below the similarity floor"
SKIPPED = "skipped"
TOO_LIKE = "too like"
"""Its question is nearly that of one already shown: `Ranked.like` says of which."""

# similarity: over 4,000 real questions under MiniLM, the 200 nearest of one deviate by 0.03 to 0.09 (median 0.05) where
#     they reach a floor of 0.3. With 0.1 a difference of similarity means about the same from one question to the next,
#     and only lots of really different similarity, as of repeated questions, are drawn together.
# value: one trial moves it from 0.50 to 0.67 or 0.33, so one deviation at least is one trial. With the default weights
#     one trial is worth 0.05 of similarity, and a memory that always won 0.14 more than one never tried.
# frequency: a memory at birth has 0.71, after one showing 0.58, after two 0.50: one deviation at least is about one
#     showing.
# recency: 0.1 is the first 15 % of a half-life (of 30 days: 4.6), so hours do not matter where all are of one day.
LEAST_SPREAD = {"similarity": 0.1, "value": 0.15, "frequency": 0.1, "recency": 0.1}
"""What one deviation is at least, by part."""

# Trials that are taken for granted, half of them won, until real ones say more.
_ASSUMED_TRIALS = 2
_ASSUMED_RATE = 0.5
_DAY = 86_400.0
# Beyond this the other parts drown in rounding, and sums may leave the range of floats.
_HEAVIEST = 1e6
# As many as a recall looks at, as a rule: those shown, those listed, some that are skipped.
_CHUNK = 32
_AT_A_TIME = 3 << 18
"""Bytes of rows that are compared with all vectors before the next ones are fetched: they stay in the cache of a
core."""

Numbers = NDArray[numpy.float64]
Counts = NDArray[numpy.int64]
Flags = NDArray[numpy.bool_]
Places = NDArray[numpy.intp]


@dataclass(frozen=True)
class Candidates:
    """The pool that is scored, column by column; it may hold the nearest and the best-valued of a bank only.

    Made safe here, once: a similarity that is NaN or infinite becomes 0 (similar to nothing), one that rounding carried
    beyond ±1 comes back, and a time of birth that is NaN becomes the oldest of all. Columns of other number types are
    converted. Raises ValueError if the columns are not of one length.
    """

    sequence: Counts
    """The store's number of each: unique, and growing with arrival."""
    correct: Flags
    created_at: Numbers
    """Seconds since the epoch."""
    uses: Counts
    """Times it was shown, plus one at birth."""
    wins: Counts
    """Times it was shown and the answer came out right, plus one at birth."""
    similarity: Numbers
    """Of the questions (and captions), in [-1, 1]."""

    def __post_init__(self) -> None:
        similarity = numpy.asarray(self.similarity, numpy.float64)
        if not numpy.isfinite(similarity).all():
            similarity = numpy.where(numpy.isfinite(similarity), similarity, 0.0)
        created_at = numpy.ascontiguousarray(self.created_at, numpy.float64)
        if numpy.isnan(created_at).any():
            created_at = numpy.where(numpy.isnan(created_at), -numpy.inf, created_at)
        columns: dict[str, NDArray[numpy.generic]] = {
            "sequence": numpy.ascontiguousarray(self.sequence, numpy.int64),
            "correct": numpy.ascontiguousarray(self.correct, numpy.bool_),
            "created_at": created_at,
            "uses": numpy.ascontiguousarray(self.uses, numpy.int64),
            "wins": numpy.ascontiguousarray(self.wins, numpy.int64),
            # Contiguous all: rounding may differ between the loops that numpy has for the two layouts.
            "similarity": numpy.ascontiguousarray(similarity.clip(-1.0, 1.0)),
        }
        if {column.shape for column in columns.values()} != {(similarity.size,)}:
            shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
            raise ValueError(f"the columns of the candidates are not of one length: {shapes}")
        for name, column in columns.items():
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True)
class Scores:
    """The score of every candidate, and what it is made of."""

    parts: dict[str, Numbers]
    """The raw parts, and those that are weighed, by the names in `Form.weights`."""
    total: Numbers


@dataclass(frozen=True)
class Ranked:
    """One candidate's place."""

    index: int
    """Into the candidates."""
    rank: int
    """From 1, within its judgement; those below the floor come after all others."""
    passed_over: str = ""
    """Why it is not shown; empty if it is."""
    like: int | None = None
    """With `TOO_LIKE`: the index of the shown candidate that it is too like."""
    coverage: float = 0.0
    """The share of the question's words that it added to those of its judgement shown before it, or would have."""


# ── vectors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def cosines(rows: Vectors, vectors: Vectors) -> Numbers:
    """The cosine of each row to a vector of shape (d,), or to each of several, of shape (n, d): then of shape
    (n, number of rows), and to the last bit as if each vector were alone. All as `unit_rows` gives them; a row that
    holds a NaN has cosine 0.
    """
    questions = numpy.atleast_2d(vectors)
    products = numpy.empty((len(questions), len(rows)), numpy.float32)
    size = max(1, _AT_A_TIME // (rows.shape[1] * rows.itemsize))
    with numpy.errstate(invalid="ignore", over="ignore"):
        # Not one product of two matrices: its rounding depends on how many vectors there are.
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            for question, own in zip(questions, products, strict=True):
                numpy.matmul(rows[part], question, out=own[part])
    exact = products.astype(numpy.float64)
    numpy.nan_to_num(exact, copy=False, posinf=0.0, neginf=0.0)
    numpy.clip(exact, -1.0, 1.0, out=exact)
    return exact if vectors.ndim == 2 else exact[0]


def joined(question: Vectors, caption: Vectors) -> Vectors:
    """The vector of a question with a caption: [√0.8·question, √0.2·caption], float32, of twice the length.

    The inner product of two of them is 0.8·cos(questions) + 0.2·cos(captions), so one product gives the similarity.
    Takes two vectors of shape (d,), or two matrices of shape (n, d), as `unit_rows` gives them.
    """
    shares = numpy.sqrt(QUESTION_SHARE) * question, numpy.sqrt(1 - QUESTION_SHARE) * caption
    return numpy.concatenate(shares, axis=-1).astype(numpy.float32, copy=False)


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def win_rate(uses: Counts, wins: Counts) -> Numbers:
    """The paper's value: wins / uses, in [0, 1]; 0 for what was never used. At birth it is 1."""
    rate: Numbers = numpy.where(uses > 0, wins, 0) / numpy.maximum(uses, 1)
    return rate


def value(uses: Counts, wins: Counts) -> Numbers:
    """Our value: the win rate, drawn to 0.5 while trials are few; in (0, 1).

    Birth, which counts as a use and a win, is no trial; with t trials of which s were won it is (s + 1) / (t + 2): 0.5
    at birth, and the win rate of the trials in the end.
    """
    trials = numpy.maximum(uses, 1) - 1
    won = numpy.minimum(numpy.maximum(wins, 1) - 1, trials)
    rate: Numbers = (won + _ASSUMED_RATE * _ASSUMED_TRIALS) / (trials + float(_ASSUMED_TRIALS))
    return rate


def frequency(uses: Counts) -> Numbers:
    """Favours what was rarely used, so that it gets its chance: 1 / √(1 + uses), in (0, 1]."""
    reward: Numbers = 1.0 / numpy.sqrt(1.0 + numpy.maximum(uses, 0))
    return reward


def recency(created_at: Numbers, now: float, half_life: float) -> Numbers:
    """Favours what is new: 1 at birth, halved every `half_life` days; in [0, 1].

    What was born after `now` is new: a clock may jump back.
    """
    with numpy.errstate(over="ignore"):
        half_lives = numpy.maximum(now - created_at, 0.0) / _DAY / half_life
    reward: Numbers = numpy.exp2(-half_lives)
    return reward


def min_max(values: Numbers) -> Numbers:
    """Stretched to [0, 1]; all 1 where all are equal."""
    if not values.size:
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else numpy.ones_like(values)


def z_score(values: Numbers, measured: Flags, least_spread: float) -> Numbers:
    """In deviations from the mean: (values - mean) / max(standard deviation, least_spread).

    Both are measured over the `measured` only (over all, if none is); all are mapped.
    """
    # Sorted, so that the rounding of the sums does not hang on the order of the candidates.
    sample = numpy.sort(values[measured] if measured.any() else values)
    if not sample.size:
        return values
    mean = sample.sum() / sample.size
    deviations = sample - mean
    spread = float(numpy.sqrt((deviations * deviations).sum() / sample.size))
    deviating: Numbers = (values - mean) / max(spread, least_spread)
    return deviating


def check_weight(part: str, weight: float, *, default: float) -> None:
    """Raises ConfigError for the setting of a weight that is negative, not finite or above a million."""
    # NaN is not within any bounds.
    if not 0 <= weight <= _HEAVIEST:
        raise ConfigError(
            f"memory.{part}_weight is {weight}.",
            wanted="a number from 0 to a million",
            hint=f"MIA_MEMORY__{part.upper()}_WEIGHT={default}",
        )


# ── forms ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Form(Protocol):
    """One way to make a score of the parts."""

    @property
    def name(self) -> str: ...

    @property
    def floor(self) -> float | None:
        """The similarity that a candidate must reach to be shown; None: any will do."""
        ...

    @property
    def weights(self) -> dict[str, float]:
        """How much each part counts, by its name in `Scores.parts`."""
        ...

    def scores(self, candidates: Candidates, *, now: float) -> Scores:
        """`now`: seconds since the epoch, finite."""
        ...


@dataclass(frozen=True)
class Paper:
    """The paper's form: 0.7·min_max(similarity) + 0.3·win rate, without a floor.

    Min-max looks at the least similar too, so it is true to the paper only if the candidates are all there are.
    """

    name: ClassVar[str] = "paper"
    floor: ClassVar[None] = None

    @property
    def weights(self) -> dict[str, float]:
        return {"similarity_min_max": 0.7, "win_rate": 0.3}

    def scores(self, candidates: Candidates, *, now: float) -> Scores:
        """The time does not matter."""
        parts = {
            "similarity": candidates.similarity,
            "similarity_min_max": min_max(candidates.similarity),
            "win_rate": win_rate(candidates.uses, candidates.wins),
        }
        return Scores(parts, _weighed(parts, self.weights))


@dataclass(frozen=True)
class Mia:
    """Our form: each part as deviations from its mean over the candidates that reach the floor, weighed.

    Of two candidates that differ in one part only, the one with more of it never has the lower score. Those below the
    floor are scored by the same map, so that a recall can say how far off they were; `select` never shows them.

    Raises ConfigError for a weight that is negative, not finite or above a million, and for a half-life that is not
    positive or not finite.
    """

    name: ClassVar[str] = "mia"

    similarity: float = 0.7
    value: float = 0.3
    frequency: float = 0.0
    recency: float = 0.0
    half_life: float = 30.0
    """Days until the recency of a memory is halved."""
    floor: float | None = 0.5

    def __post_init__(self) -> None:
        for part in LEAST_SPREAD:
            check_weight(part, getattr(self, part), default=getattr(Mia, part))
        if not 0 < self.half_life < numpy.inf:
            raise ConfigError(
                f"memory.recency_half_life is {self.half_life}.",
                wanted="a finite number of days above 0",
                hint=f"MIA_MEMORY__RECENCY_HALF_LIFE={Mia.half_life:g}",
            )

    @property
    def weights(self) -> dict[str, float]:
        return {f"{part}_z": getattr(self, part) for part in LEAST_SPREAD}

    def scores(self, candidates: Candidates, *, now: float) -> Scores:
        parts = {
            "similarity": candidates.similarity,
            "value": value(candidates.uses, candidates.wins),
            "frequency": frequency(candidates.uses),
            "recency": recency(candidates.created_at, now, self.half_life),
        }
        measured = _reaching(candidates, self.floor)
        parts |= {f"{part}_z": z_score(parts[part], measured, least) for part, least in LEAST_SPREAD.items()}
        return Scores(parts, _weighed(parts, self.weights))


@dataclass(frozen=True)
class Pairs:
    """The form for plan pairs, which have no win rate: the similarity alone."""

    name: ClassVar[str] = "similarity"

    floor: float | None = None

    @property
    def weights(self) -> dict[str, float]:
        return {"similarity": 1.0}

    def scores(self, candidates: Candidates, *, now: float) -> Scores:
        """The time does not matter."""
        return Scores({"similarity": candidates.similarity}, candidates.similarity)


def _weighed(parts: dict[str, Numbers], weights: dict[str, float]) -> Numbers:
    """The sum of the parts times their weights."""
    # Element by element, not as a product of matrices: there, rounding depends on the place of a candidate.
    total = numpy.zeros_like(parts["similarity"])
    for name, weight in weights.items():
        total += weight * parts[name]
    return total


def _reaching(candidates: Candidates, floor: float | None) -> Flags:
    if floor is None:
        return numpy.ones(len(candidates), numpy.bool_)
    reaching: Flags = candidates.similarity >= floor
    return reaching


# ── selection ─────────────────────────────────────────────────────────────────────────────────────────────────────


def select(
    candidates: Candidates,
    scores: Scores,
    *,
    k_positive: int,
    k_negative: int,
    balance: Literal["fixed", "fill"] = "fixed",
    floor: float | None = None,
    skip: Collection[int] = frozenset(),
    diversity: float | None = None,
    alike: Callable[[int, int], float] | None = None,
    coverage: Coverage | None = None,
) -> tuple[Ranked, ...]:
    """Of each judgement the best `k` that may be shown, and the best few that were passed over, each with its reason.

    Positives first, each judgement in the order of its ranks. `k` counts what is shown: whoever is passed over makes
    room for the next. With the balance "fill", places that one judgement cannot take go to the other, even if its own
    `k` is 0.

    A candidate is passed over that does not reach the `floor` (the form's), whose sequence number is in `skip`, or
    whose question is more similar than `diversity` (None or 1: no matter) to one of its judgement already shown.
    `alike` gives the similarity of two candidates' questions by their indexes; it is asked only for one that would be
    shown otherwise and those shown before it. Raises ValueError for a diversity without `alike`.

    With a `coverage`, the candidates of a judgement are called up one by one: next is the one of the highest score plus
    weight times the share of the question's words that it has and that none of its judgement shown so far has. Who is
    passed over covers nothing for others. By this sum ranks still descend, among those that reach the floor.
    """
    if diversity is not None and diversity >= 1:
        diversity = None
    if diversity is not None and alike is None:
        raise ValueError("diversity needs `alike`, the similarity of two candidates")
    skip = frozenset(skip)
    reaching = _reaching(candidates, floor)
    positive, negative = (
        _Lineup(candidates, scores, own, reaching, skip, diversity, alike, coverage)
        for own in (candidates.correct, ~candidates.correct)
    )
    positive.show(k_positive)
    negative.show(k_negative)
    if balance == "fill":
        # Whoever left places free has nobody left to show, so at most one of the two takes any.
        free_positive, free_negative = k_positive - len(positive.shown), k_negative - len(negative.shown)
        positive.show(k_positive + free_negative)
        negative.show(k_negative + free_positive)
    return (*positive.ranked(), *negative.ranked())


class _Lineup:
    """The candidates of one judgement, called up in the order of their ranks, as far as needed."""

    def __init__(
        self,
        candidates: Candidates,
        scores: Scores,
        own: Flags,
        reaching: Flags,
        skip: frozenset[int],
        diversity: float | None,
        alike: Callable[[int, int], float] | None,
        coverage: Coverage | None,
    ) -> None:
        self._candidates = candidates
        self._total = scores.total
        self._skip = skip
        self._diversity = diversity
        self._alike = alike
        self._coverage = coverage
        self._called: list[int] = []
        self.shown: list[Ranked] = []
        self._passed_over: list[Ranked] = []
        self._gains = numpy.zeros(0)
        self._reaching = numpy.flatnonzero(own & reaching)
        self._above = self._line_up()
        self._below = _in_order(self._keys(self._total), numpy.flatnonzero(own & ~reaching))

    def show(self, k: int) -> None:
        """Call up more until `k` are shown, or none is left that may be."""
        while len(self.shown) < k:
            index = next(self._above, None)
            if index is None:
                return
            if self._candidates.sequence[index] in self._skip:
                self._pass_over(index, SKIPPED)
            elif (like := self._too_like(index)) is not None:
                self._pass_over(index, TOO_LIKE, like)
            else:
                self.shown.append(self._call(index))
                if self._coverage is not None:
                    self._above = self._line_up()

    def ranked(self) -> list[Ranked]:
        """Those shown and the best `LISTED` passed over, in the order of their ranks. Ends the calling up."""
        while len(self._passed_over) < LISTED and (index := next(self._above, None)) is not None:
            late = f"rank {len(self._called) + 1} of {len(self.shown)} shown"
            self._pass_over(index, SKIPPED if self._candidates.sequence[index] in self._skip else late)
        while len(self._passed_over) < LISTED and (index := next(self._below, None)) is not None:
            self._pass_over(index, BELOW_FLOOR)
        return sorted(self.shown + self._passed_over[:LISTED], key=lambda ranked: ranked.rank)

    def _line_up(self) -> Iterator[int]:
        """Those that reach the floor and were not called up yet, best first, beside those that are shown now."""
        if self._coverage is None:
            return _in_order(self._keys(self._total), self._reaching)
        self._gains = self._coverage.gains([one.index for one in self.shown], len(self._candidates))
        waiting = self._reaching[~numpy.isin(self._reaching, self._called)]
        return _in_order(self._keys(self._total + self._coverage.weight * self._gains), waiting)

    def _keys(self, worth: Numbers) -> Keys:
        return worth, self._candidates.created_at, self._candidates.sequence

    def _call(self, index: int, reason: str = "", like: int | None = None) -> Ranked:
        self._called.append(index)
        gain = float(self._gains[index]) if self._coverage is not None else 0.0
        return Ranked(index, len(self._called), reason, like, gain)

    def _pass_over(self, index: int, reason: str, like: int | None = None) -> None:
        self._passed_over.append(self._call(index, reason, like))

    def _too_like(self, index: int) -> int | None:
        """The best-ranked of those shown whose question is nearly the same."""
        if self._diversity is None or self._alike is None:
            return None
        for shown in self.shown:
            if self._alike(index, shown.index) > self._diversity:
                return shown.index
        return None


def worth_reading(
    candidates: Candidates, scores: Scores, *, floor: float | None, skip: Collection[int], most: int
) -> Places:
    """Of each judgement the best-scored candidates that may be shown, at most so many; their places, ascending."""
    may = _reaching(candidates, floor) & ~numpy.isin(candidates.sequence, list(skip))
    keys = scores.total, candidates.created_at, candidates.sequence
    own = (numpy.flatnonzero(may & judgement) for judgement in (candidates.correct, ~candidates.correct))
    return numpy.sort(numpy.concatenate([_best(keys, places, most) for places in own]))


Keys = tuple[Numbers, Numbers, Counts]
"""Columns that rank, the first one first, high before low; the last one has no equals."""


def _in_order(keys: Keys, places: Places) -> Iterator[int]:
    """The places, best first. Works in chunks that grow, since hardly anybody asks for more than the first."""
    size = _CHUNK
    while places.size:
        best = _best(keys, places, size)
        best = best[numpy.lexsort([key[best] for key in reversed(keys)])[::-1]]
        yield from best.tolist()
        places = places[~numpy.isin(places, best)]
        size *= 4


def _best(keys: tuple[NDArray[numpy.generic], ...], places: Places, size: int) -> Places:
    """The best `size` of the places, in no order; equals at the cut are told apart by the further keys."""
    if size >= places.size or not keys:
        return places[:size]
    own = keys[0][places]
    cut = numpy.partition(own, own.size - size)[own.size - size]
    above = places[own > cut]
    equals = places[own == cut]
    return numpy.concatenate([above, _best(keys[1:], equals, size - above.size)])
