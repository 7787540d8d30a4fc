"""From a question's vectors to the few memories that matter, each with the account of how it was chosen.

    banks of the scope and the levels above it → pool (the nearest and the best-valued) → score → selection → texts

Several questions can be recalled for at once: the vectors are then read once for all, and the store is asked once; each
gets what it would get alone.

With `memory.coverage_weight`, the texts of the best-scored 50 of each judgement are read before the selection too
(`coverage.py`). With 10,000 memories of 660 characters, a recall takes 6 ms instead of 1.4, and 13 instead of 2 where
others use the machine. Without the weight nothing is read but what is shown.

Everything that a recall can say of itself later is written into the `Recall` here: parts, ranks, weights, floor, and
who was passed over and why.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from mia.config import MemorySettings
from mia.embeddings.base import Vectors
from mia.errors import StoreError
from mia.memory import present, score
from mia.memory.bank import Banks, Pool, Shelf
from mia.memory.compress import OTHERS
from mia.memory.coverage import READ, Coverage
from mia.scope import lineage
from mia.store.base import EMBEDDED_CHARACTERS, MemoryStore, MemoryVectors
from mia.types import Memory, MemoryKind, MemoryState, Recall, RecalledMemory

COVERAGE = "coverage"
"""The part of a score that the words of a question give, beside those of the form."""
PLAN_PAIRS = 2
"""Plan pairs that a recall shows at most."""
NEAREST = 200
"""Of each judgement, so many of the most similar are scored,"""
VALUED = 50
"""and so many of those that won most."""

_TRIES = 5


@dataclass(frozen=True)
class Asked:
    """What to recall for, where there are several."""

    vectors: MemoryVectors
    question: str = ""
    """The text behind the vectors, whose words are to be covered; without it, none are."""
    kind: MemoryKind = MemoryKind.WORKFLOW
    skip: Collection[str] = frozenset()
    """Ids of memories to pass over."""
    category: str = OTHERS
    k: tuple[int, int] | None = None
    """So many workflows of correct and of incorrect answers, instead of what the settings say."""
    floor: float | None = None
    """Show nothing that is less similar, instead of what the settings say."""


@dataclass(frozen=True)
class Found:
    """A memory that a user searched for, and how similar its question is."""

    memory: Memory
    similarity: float


@dataclass(frozen=True)
class _Chosen:
    """A candidate after selection, still without its texts."""

    sequence: int
    created_at: float
    correct: bool
    ranked: score.Ranked
    total: float
    parts: dict[str, float]


@dataclass(frozen=True)
class _Choice:
    """What was chosen for one question."""

    considered: int
    """How many could have been."""
    chosen: Sequence[_Chosen]


class Recaller:
    """Searches the memories that one scope sees. Thread-safe."""

    def __init__(self, store: MemoryStore, settings: MemorySettings, banks: Banks | None = None) -> None:
        """`banks`: of the store, for recallers that are to share them."""
        self._store = store
        self._settings = settings
        # The paper knows no coverage.
        self._coverage_weight = settings.coverage_weight if settings.score == "mia" else 0.0
        score.check_weight("coverage", self._coverage_weight, default=0.0)
        self._shared = banks or Banks(store)
        # The lowest first, for all alike: who waits for a level above is waited for by nobody there.
        self._banks = [self._shared.hold(scope) for scope in lineage(settings.scope)]
        self._closed = False
        self._form: score.Form = (
            score.Paper()
            if settings.score == "paper"
            else score.Mia(
                similarity=settings.similarity_weight,
                value=settings.value_weight,
                frequency=settings.frequency_weight,
                recency=settings.recency_weight,
                half_life=settings.recency_half_life,
                floor=settings.floor,
            )
        )

    def wanted(self, kind: MemoryKind, k: tuple[int, int] | None = None) -> int:
        """How many memories a recall shows at most; `k` as in `recall`."""
        return PLAN_PAIRS if kind is MemoryKind.PLAN_PAIR else sum(self._shares(k))

    def recall(
        self,
        vectors: MemoryVectors,
        *,
        question: str = "",
        kind: MemoryKind = MemoryKind.WORKFLOW,
        skip: Collection[str] = frozenset(),
        category: str = OTHERS,
        k: tuple[int, int] | None = None,
        floor: float | None = None,
    ) -> Recall:
        """As `recall_many`, for one question; the arguments are those of `Asked`. Raises StoreError."""
        (recall,) = self.recall_many([Asked(vectors, question, kind, skip, category, k, floor)])
        return recall

    def recall_many(self, asked: Sequence[Asked]) -> Sequence[Recall]:
        """One for each question, as if it were asked alone at this moment. Raises StoreError, for all of them."""
        if not asked:
            return []
        ids = {id for one in asked for id in one.skip}
        numbers = self._store.numbers(ids) if ids else {}
        skipped = [frozenset(numbers[id] for id in one.skip if id in numbers) for one in asked]
        recalls: dict[int, Recall] = {}
        for _ in range(_TRIES):
            left = [place for place in range(len(asked)) if place not in recalls]
            found = self._choose([asked[place] for place in left], [skipped[place] for place in left])
            chosen = [one for choice in found for one in choice.chosen]
            texts = self._store.numbered({one.sequence for one in chosen if not one.ranked.passed_over})
            names = self._store.named({one.sequence for one in chosen})
            for place, choice in zip(left, found, strict=True):
                # Between choosing and reading, another process may have forgotten or purged one, and its number may
                # have gone to another memory: then choose again.
                if all(one.sequence in names and _is_there(one, texts) for one in choice.chosen):
                    recalls[place] = self._account(asked[place], choice, texts, names)
            if len(recalls) == len(asked):
                return [recalls[place] for place in range(len(asked))]
        raise StoreError(
            f"the memory '{self._store.location}' lacks the texts of memories that it lists.",
            hint="mia memory check",
        )

    def search(self, vectors: MemoryVectors, k: int) -> tuple[Found, ...]:
        """The k workflows whose questions are most similar, whatever their judgement, with no floor. Raises
        StoreError."""
        nearest: list[tuple[float, int]] = []
        for bank in self._banks:
            with bank.refreshed(self._store):
                self._check_space(vectors.space)
                for captioned in (False, True):
                    shelf = bank.shelf(pair=False, captioned=captioned)
                    places, similarities = shelf.most_similar(vectors.question, k, now=time.time())
                    nearest += zip((-similarities).tolist(), shelf.column("sequence")[places].tolist(), strict=True)
        best = sorted(nearest)[:k]
        memories = self._store.numbered([sequence for _, sequence in best])
        return tuple(Found(memories[sequence], -distance) for distance, sequence in best if sequence in memories)

    def count(self) -> int:
        """Memories of the scope itself that may be shown. Raises StoreError."""
        with self._banks[0].refreshed(self._store):
            return self._banks[0].eligible(time.time())

    def settled(self, timeout: float) -> bool:
        """Wait until indexes that are being built in the background are in use; whether they are."""
        return all(bank.settled(timeout) for bank in self._banks)

    def close(self) -> None:
        """Keep what was loaded for the next time, where that is worth it; calling it twice is harmless."""
        closed, self._closed = self._closed, True
        for bank in self._banks if not closed else ():
            self._shared.release(bank.scope)

    def _shares(self, k: tuple[int, int] | None) -> tuple[int, int]:
        """Workflows of correct and of incorrect answers to show."""
        return k if k is not None else (self._settings.k_positive, self._settings.k_negative)

    def _check_space(self, space: str) -> None:
        """While a question was embedded, another process may have changed the embedder. Raises StoreError."""
        stored = self._store.space()
        if stored != space:
            raise StoreError(
                f"the memory '{self._store.location}' went over to the embedder '{stored}' just now; the question was "
                f"embedded by '{space}'.",
                hint="ask again, with memory.embedder as the memory is now",
            )

    def _form_of(self, asked: Asked) -> score.Form:
        # The floor of workflows holds for pairs too; the paper knows none.
        floor = self._floor_of(asked)
        if asked.kind is MemoryKind.PLAN_PAIR:
            return score.Pairs(floor=floor)
        return replace(self._form, floor=floor) if isinstance(self._form, score.Mia) else self._form

    def _floor_of(self, asked: Asked) -> float | None:
        return self._form.floor if asked.floor is None else asked.floor

    def _covered(self, asked: Asked) -> str:
        """The question whose words are to be covered; empty: none are."""
        # Plan pairs hold no steps that could serve a part of the question.
        return asked.question if self._coverage_weight and asked.kind is not MemoryKind.PLAN_PAIR else ""

    def _choose(self, asked: Sequence[Asked], skipped: Sequence[frozenset[int]]) -> Sequence[_Choice]:
        """For each question those that are shown and passed over; `skipped`: by their numbers. All see the memory at
        one moment."""
        now = time.time()
        # Which matrix to read, and which of its rows.
        groups: dict[tuple[bool, bool, str], list[int]] = {}
        for place, one in enumerate(asked):
            key = one.kind is MemoryKind.PLAN_PAIR, one.vectors.caption is not None, one.category
            groups.setdefault(key, []).append(place)
        choices: dict[int, _Choice] = {}
        with ExitStack() as held:
            for bank in self._banks:
                held.enter_context(bank.refreshed(self._store))
                for space in {one.vectors.space for one in asked}:
                    self._check_space(space)
            for (pairs, captioned, category), places in groups.items():
                shelves = [bank.shelf(pair=pairs, captioned=captioned) for bank in self._banks]
                queries = numpy.stack([_query(asked[place].vectors) for place in places])
                pools = [
                    shelf.pools(
                        queries,
                        category=None if category == OTHERS else category,
                        now=now,
                        nearest=NEAREST,
                        valued=0 if pairs else VALUED,
                        # Min-max looks at the least similar too; plan pairs have a form of their own.
                        exact=not pairs and self._form.name == score.Paper.name,
                    )
                    for shelf in shelves
                ]
                for number, place in enumerate(places):
                    own = [each[number] for each in pools]
                    choices[place] = self._select(asked[place], skipped[place], shelves, own, now)
        return [choices[place] for place in range(len(asked))]

    def _select(
        self, asked: Asked, skipped: frozenset[int], shelves: Sequence[Shelf], pools: Sequence[Pool], now: float
    ) -> _Choice:
        """From the pools of one question, each of one of the shelves."""
        settings, form, vectors = self._settings, self._form_of(asked), asked.vectors
        pairs, covering = asked.kind is MemoryKind.PLAN_PAIR, self._covered(asked)
        k_positive, k_negative = (PLAN_PAIRS, 0) if pairs else self._shares(asked.k)
        candidates = _gather(shelves, pools)
        scores = form.scores(candidates, now=now)
        origin = numpy.repeat(numpy.arange(len(pools)), [len(pool.places) for pool in pools])
        places = numpy.concatenate([pool.places for pool in pools])

        def alike(one: int, other: int) -> float:
            """The cosine of two questions, captions left aside."""
            left, right = (
                shelves[origin[index]].vectors[places[index]][: len(vectors.question)] for index in (one, other)
            )
            return float(left @ right) / (1.0 if vectors.caption is None else score.QUESTION_SHARE)

        floor = self._floor_of(asked)
        coverage = self._coverage(covering, candidates, scores, floor, skipped) if covering else None
        ranked = score.select(
            candidates,
            scores,
            k_positive=k_positive,
            k_negative=k_negative,
            balance="fixed" if pairs else settings.balance,
            floor=floor,
            skip=skipped,
            diversity=settings.diversity if form.name == score.Mia.name else None,
            alike=alike,
            coverage=coverage,
        )
        chosen = [
            _Chosen(
                sequence=int(candidates.sequence[one.index]),
                created_at=float(candidates.created_at[one.index]),
                correct=bool(candidates.correct[one.index]),
                ranked=one,
                total=float(scores.total[one.index]) + (coverage.weight * one.coverage if coverage else 0.0),
                parts={name: float(values[one.index]) for name, values in scores.parts.items()}
                | ({COVERAGE: one.coverage} if coverage else {}),
            )
            for one in ranked
        ]
        return _Choice(sum(pool.considered for pool in pools), chosen)

    def _account(
        self, asked: Asked, choice: _Choice, texts: Mapping[int, Memory], names: Mapping[int, tuple[str, str]]
    ) -> Recall:
        """What the agents read, and how it was chosen. `texts` and `names` by numbers."""
        form, chosen = self._form_of(asked), choice.chosen
        weights = {name: weight for name, weight in form.weights.items() if weight}
        if self._covered(asked):
            weights[COVERAGE] = self._coverage_weight
        memories = [texts[one.sequence] for one in chosen if not one.ranked.passed_over]
        recalled = [_recalled(one, names, chosen) for one in chosen]
        return Recall(
            kind=asked.kind,
            for_planner=present.for_planner(memories),
            for_executor=present.for_executor(memories),
            shown=tuple(one for one in recalled if not one.passed_over),
            passed_over=tuple(one for one in recalled if one.passed_over),
            considered=choice.considered,
            form=form.name,
            weights=weights,
            floor=self._floor_of(asked),
            wanted=self.wanted(asked.kind, asked.k),
        )

    def _coverage(
        self,
        question: str,
        candidates: score.Candidates,
        scores: score.Scores,
        floor: float | None,
        skipped: frozenset[int],
    ) -> Coverage:
        """Which words of the question the best-scored have, in their questions and workflows."""
        places = score.worth_reading(candidates, scores, floor=floor, skip=skipped, most=READ)
        place_of = dict(zip(candidates.sequence[places].tolist(), places.tolist(), strict=True))
        # One that was purged meanwhile covers nothing; were it shown, the texts would be missed and all chosen again.
        found = self._store.numbered(place_of)
        texts = {place_of[sequence]: f"{one.question}\n{one.workflow}" for sequence, one in found.items()}
        # Of a long request, what its vector stands for.
        return Coverage.of(question[:EMBEDDED_CHARACTERS], texts, weight=self._coverage_weight)


def _query(vectors: MemoryVectors) -> Vectors:
    """What a shelf compares."""
    return vectors.question if vectors.caption is None else score.joined(vectors.question, vectors.caption)


def _is_there(one: _Chosen, texts: Mapping[int, Memory]) -> bool:
    """Whether the texts of one that is shown are still its own."""
    if one.ranked.passed_over:
        return True
    memory = texts.get(one.sequence)
    return memory is not None and memory.state is MemoryState.ACTIVE and memory.created_at == one.created_at


def _gather(shelves: Sequence[Shelf], pools: Sequence[Pool]) -> score.Candidates:
    """The candidates of all scopes as one table."""

    def column(name: str) -> NDArray[Any]:
        return numpy.concatenate([shelf.column(name)[pool.places] for shelf, pool in zip(shelves, pools, strict=True)])

    return score.Candidates(
        sequence=column("sequence"),
        correct=column("correct"),
        created_at=column("created_at"),
        uses=column("uses"),
        wins=column("wins"),
        similarity=numpy.concatenate([pool.similarity for pool in pools]),
    )


def _recalled(one: _Chosen, names: Mapping[int, tuple[str, str]], chosen: Sequence[_Chosen]) -> RecalledMemory:
    id, question = names[one.sequence]
    reason = one.ranked.passed_over
    if one.ranked.like is not None:
        like = next(other for other in chosen if other.ranked.index == one.ranked.like)
        reason = f"{reason} {names[like.sequence][0]}"
    return RecalledMemory(
        memory_id=id,
        judgement="correct" if one.correct else "incorrect",
        question=question,
        rank=one.ranked.rank,
        score=one.total,
        parts=one.parts,
        passed_over=reason,
    )
