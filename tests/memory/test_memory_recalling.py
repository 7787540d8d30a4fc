"""Recall that covers the question's words, over real stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy
import pytest
from filled import clustered, fill

from mia.config import MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ConfigError
from mia.memory import recalling
from mia.memory.bank import Banks
from mia.memory.coverage import READ
from mia.memory.manager import MemoryManager
from mia.memory.questions import Vectorizer
from mia.memory.recalling import Asked, Recaller
from mia.store import open_store
from mia.store.base import Changes, MemoryVectors
from mia.store.sqlite import SqliteStore
from mia.types import Memory, MemoryKind, MemoryState, Question, Recall

ASKED = Question.of("Who is the mayor of the birthplace of Kavori?")
Build = Callable[..., MemoryManager]


class Counting(SqliteStore):
    """A store that knows how many memories were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read: list[int] = []
        self.before: Callable[[], object] = lambda: None
        """Called once, before the next reading."""

    def numbered(self, sequences: Collection[int]) -> dict[int, Memory]:
        before, self.before = self.before, lambda: None
        before()
        self.read.append(len(sequences))
        return super().numbered(sequences)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counting]:
    store = Counting(tmp_path / "memory.db")
    yield store
    store.close()


@pytest.fixture
def build(store: Counting) -> Build:
    def build(**settings: object) -> MemoryManager:
        return MemoryManager(store, HashingEmbedder(), MemorySettings(floor=0.1, **settings))

    return build


def learn(manager: MemoryManager) -> dict[str, str]:
    """Three of birthplaces, one of a mayor, and failures of both; name → id."""
    known = {
        "Melotu": ("Who is the birthplace of Melotu?", "1. find birthplace in archive (Melotu → Sabi)", "correct"),
        "Toki": ("What is the birthplace of Toki?", "1. find birthplace in archive (Toki → Ruso)", "correct"),
        "Pado": ("Name the birthplace of Pado.", "1. find birthplace in archive (Pado → Kelo)", "correct"),
        "Vesi": ("Who is the leader of Vesi?", "1. find mayor in census (Vesi → Lami)", "correct"),
        "Nolu": ("Who is the mayor of Nolu?", "1. find mayor in ledger (Nolu → nothing)", "incorrect"),
    }
    return {name: manager.add(*texts).id for name, texts in known.items()}  # type: ignore[arg-type]


def ids(recall: Recall, judgement: str = "correct") -> list[str]:
    return [one.memory_id for one in recall.shown if one.judgement == judgement]


async def test_a_question_of_two_parts_is_shown_a_memory_for_each(build: Build) -> None:
    plain, covering = build(), build(coverage_weight=4)
    named = {id: name for name, id in learn(plain).items()}
    assert "Vesi" not in {named[id] for id in ids(await plain.recall(ASKED))}
    recall = await covering.recall(ASKED)
    # The mayor stands in the workflow only; the failure that has the word does not cover for it.
    assert {named[id] for id in ids(recall)} > {"Vesi"}
    assert "find birthplace in archive" in recall.for_planner
    assert "find mayor in census" in recall.for_planner
    assert [named[id] for id in ids(recall, "incorrect")] == ["Nolu"]


async def test_a_recall_that_covers_explains_itself(build: Build) -> None:
    manager = build(coverage_weight=2.5)
    learn(manager)
    recall = await manager.recall(ASKED)
    assert recall.form == "mia"
    assert recall.weights == {"similarity_z": 0.7, "value_z": 0.3, "coverage": 2.5}
    for one in (*recall.shown, *recall.passed_over):
        total = sum(weight * one.parts[name] for name, weight in recall.weights.items())
        assert one.score == pytest.approx(total, abs=1e-12)
        assert 0 <= one.parts["coverage"] <= 1
    first, second = (one for one in recall.shown if one.judgement == "correct")
    assert (first.rank, second.rank) == (1, 2)
    assert first.parts["coverage"] > 0 < second.parts["coverage"]
    assert first.score >= second.score
    # Who has only what was shown already adds nothing.
    late = [one for one in recall.passed_over if one.judgement == "correct"]
    assert len(late) == 2
    assert min(one.parts["coverage"] for one in late) < 0.2


async def test_without_the_weight_nothing_is_read_but_what_is_shown(build: Build, store: Counting) -> None:
    plain, covering = build(), build(coverage_weight=1)
    learn(plain)
    store.read.clear()
    recall = await plain.recall(ASKED)
    assert store.read == [3] == [len(recall.shown)]
    assert all("coverage" not in one.parts for one in (*recall.shown, *recall.passed_over))
    store.read.clear()
    await covering.recall(ASKED)
    assert store.read == [5, 3]


async def test_of_many_only_the_best_scored_of_each_judgement_are_read(build: Build, store: Counting) -> None:
    manager = build(coverage_weight=1, k_positive=3)
    for number in range(READ + 30):
        manager.add(f"Who is the mayor of Nolu{number}?", f"1. find mayor in census (Nolu{number} → ?)", "correct")
    for number in range(5):
        manager.add(f"Where was Vesi{number} born?", f"1. find birthplace (Vesi{number} → ?)", "incorrect")
    skipped = ids(await manager.recall(ASKED))
    store.read.clear()
    recall = await manager.recall(ASKED, skip=frozenset(skipped))
    assert store.read[0] <= READ + 5
    assert store.read[0] >= READ
    assert len(ids(recall)) == 3
    assert not set(skipped) & set(ids(recall))
    assert {one.parts["coverage"] for one in recall.passed_over if one.passed_over == "skipped"} == {0.0}


async def test_the_papers_form_and_plan_pairs_and_a_question_without_words_know_no_coverage(
    build: Build, store: Counting
) -> None:
    learn(build())
    paper = await build(coverage_weight=3, score="paper").recall(ASKED)
    assert paper.weights == {"similarity_min_max": 0.7, "win_rate": 0.3}
    pairs = await build(coverage_weight=3).recall(ASKED, kind=MemoryKind.PLAN_PAIR)
    assert pairs.weights == {"similarity": 1.0}
    # Whoever has only vectors can cover no words.
    vectors = Vectorizer(store, HashingEmbedder()).vectors(ASKED.text)
    recall = Recaller(store, MemorySettings(floor=0.1, coverage_weight=3)).recall(vectors)
    assert recall.shown
    assert "coverage" not in recall.weights


async def test_all_levels_of_the_scope_are_covered_together(build: Build) -> None:
    above, below = build(scope="acme"), build(scope="acme/maps", coverage_weight=4)
    mayor = above.add("Who is the leader of Vesi?", "1. find mayor in census (Vesi → Lami)", "correct")
    for name in ("Melotu", "Toki", "Pado"):
        below.add(f"What is the birthplace of {name}?", f"1. find birthplace in archive ({name} → ?)", "correct")
    assert mayor.id in ids(await below.recall(ASKED))


async def test_what_is_purged_while_texts_are_read_is_not_shown(build: Build, store: Counting) -> None:
    manager = build(coverage_weight=4)
    known = learn(manager)

    def purge() -> None:
        """As another process would."""
        with open_store(Path(store.location)) as other:
            other.purge(ids=other.transaction(lambda writing: forget(writing)))

    def forget(writing: object) -> tuple[str, ...]:
        return writing.set_state([known["Vesi"]], MemoryState.FORGOTTEN, action="forget", reason="")  # type: ignore

    store.before = purge
    recall = await manager.recall(ASKED)
    assert known["Vesi"] not in {one.memory_id for one in (*recall.shown, *recall.passed_over)}
    assert len(ids(recall)) == 2


def test_a_weight_that_cannot_be_is_refused_when_the_memory_is_opened(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"memory\.coverage_weight is inf"):
        build(coverage_weight=float("inf"))


# ── many at once ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("changed", [{}, {"score": "paper"}, {"coverage_weight": 2.0}, {"balance": "fill"}])
def test_many_questions_at_once_get_what_each_gets_alone_to_the_last_bit(
    store: Counting, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]
) -> None:
    monkeypatch.setattr(recalling, "NEAREST", 30)
    monkeypatch.setattr(recalling.time, "time", lambda: 2e5)
    seen = clustered(150, seed=1)
    known = fill(store, clustered(400), scope="a") + fill(store, clustered(200, seed=2), scope="a/b", category="time")
    fill(store, seen, captions=-seen, scope="a/b")
    fill(store, seen[:40], scope="a", kind=MemoryKind.PLAN_PAIR)
    recaller = Recaller(store, MemorySettings(scope="a/b", floor=0.1, recency_weight=0.2, **changed))
    generator = numpy.random.default_rng(0)
    asked = [
        Asked(
            MemoryVectors("test/24", query, -query if number % 4 == 0 else None),
            f"question {number} and {number + 1}",
            MemoryKind.PLAN_PAIR if number % 7 == 3 else MemoryKind.WORKFLOW,
            frozenset(generator.choice(known, 40).tolist()) if number % 3 == 0 else frozenset(),
            "time" if number % 5 == 0 else "others",
            (number % 4, 2) if number % 2 else None,
        )
        for number, query in enumerate(clustered(40, seed=3))
    ]
    alone = [recaller.recall_many([one])[0] for one in asked]
    assert recaller.recall_many(asked) == alone
    assert recaller.recall_many(asked[::-1]) == alone[::-1]
    assert recaller.recall_many([]) == []
    assert len({one.model_dump_json() for one in alone}) == len(asked)


def test_of_many_the_texts_are_read_once(build: Build, store: Counting) -> None:
    named = learn(build())
    vectorizer = Vectorizer(store, HashingEmbedder())
    asked = [Asked(vectorizer.vectors(f"Who is the birthplace of {name}?")) for name in named]
    store.read.clear()
    recalls = Recaller(store, MemorySettings(floor=0.1)).recall_many(asked)
    assert [bool(recall.shown) for recall in recalls] == [True] * len(asked)
    assert len(store.read) == 1


def test_where_one_of_many_is_purged_meanwhile_only_those_that_had_it_are_chosen_again(
    build: Build, store: Counting
) -> None:
    known = learn(build())
    vectorizer = Vectorizer(store, HashingEmbedder())
    asked = [Asked(vectorizer.vectors(text)) for text in ("Who is the leader of Vesi?", "birthplace of Toki")]
    recaller = Recaller(store, MemorySettings(floor=0.3))

    def purge() -> None:
        with open_store(Path(store.location)) as other:
            other.transaction(
                lambda writing: writing.set_state([known["Vesi"]], MemoryState.FORGOTTEN, action="forget", reason="")
            )
            other.purge(ids=[known["Vesi"]])

    before = recaller.recall_many(asked)
    assert known["Vesi"] in ids(before[0])
    store.before = purge
    after = recaller.recall_many(asked)
    assert known["Vesi"] not in {one.memory_id for one in (*after[0].shown, *after[0].passed_over)}
    assert ids(after[1]) == ids(before[1])


def test_scopes_share_the_vectors_of_the_levels_above_them(store: Counting) -> None:
    banks = Banks(store)
    settings = [MemorySettings(floor=0.1, scope=scope) for scope in ("acme/a", "acme/b", "acme")]
    managers = [MemoryManager(store, HashingEmbedder(), one, banks=banks) for one in settings]
    known = managers[2].add("Who is the mayor of Vesi?", "1. find mayor in census (Vesi → Lami)", "correct").id
    loaded: list[tuple[str, int]] = []
    changes = store.changes

    def tell(scope: str, since: int, *, known: int = 0) -> Changes:
        found = changes(scope, since, known=known)
        loaded.append((scope, int(found.rows.new.sum())))
        return found

    store.changes = tell  # type: ignore[method-assign]
    for manager in managers:
        assert ids(manager.recall_now("Who is the mayor of Vesi?")) == [known]
    assert sum(count for scope, count in loaded if scope == "acme") == 1
    # Who goes takes nothing from the others, also twice.
    for _ in range(2):
        managers[0].release()
    more = managers[2].add("Who is the mayor of Toki?", "1. find mayor in census (Toki → Ruso)", "correct").id
    assert set(ids(managers[1].recall_now("Who is the mayor of Toki?"))) == {known, more}
    assert sum(count for scope, count in loaded if scope == "acme") == 2
    # After the last one, the next begins anew.
    for manager in managers[1:]:
        manager.release()
    late = MemoryManager(store, HashingEmbedder(), settings[0], banks=banks)
    assert set(ids(late.recall_now("Who is the mayor of Toki?"))) == {known, more}
    assert sum(count for scope, count in loaded if scope == "acme") == 4
