"""The vector cache holds what the store holds, after any history."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mia.memory.bank import Bank
from mia.store import open_store
from mia.store.base import MemoryVectors
from mia.store.sqlite import SqliteStore
from mia.types import Memory, MemoryKind, Outcome, Verdict, new_id

operations = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "credit", "look"]), st.booleans(), st.booleans(), st.integers(0, 99)
    ),
    max_size=25,
)


@settings(max_examples=15)
@given(operations)
def test_a_bank_that_follows_agrees_with_one_that_starts_anew(history: list[tuple[str, bool, bool, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "memory.db") as store:
        follower = Bank("default")
        in_sight: dict[str, bool] = {}
        for number, (operation, captioned, correct, pick) in enumerate(history):
            same = [id for id, with_caption in in_sight.items() if with_caption == captioned]
            old = same[pick % len(same)] if same and operation == "replace" else ""
            if operation == "look":
                with follower.shelf(store, MemoryKind.WORKFLOW, captioned=captioned):
                    pass
            elif operation == "credit":
                credit(store, f"g{pick % 3}", same, correct=correct)
            else:
                memory = Memory(
                    id=new_id("mem"),
                    question=f"question {number}",
                    caption="seen" if captioned else "",
                    judgement="correct" if correct else "incorrect",
                    created_at=number,
                    updated_at=number,
                )
                insert(store, memory, number, replaces=old)
                in_sight.pop(old, None)
                in_sight[memory.id] = captioned
        for captioned in (False, True):
            pages = [page(bank, store, captioned=captioned) for bank in (follower, Bank("default"))]
            assert pages[0] == pages[1]
            assert pages[0].keys() == {id for id, with_caption in in_sight.items() if with_caption == captioned}


def insert(store: SqliteStore, memory: Memory, number: int, *, replaces: str) -> None:
    direction = numpy.array([numpy.cos(number), numpy.sin(number)], dtype=numpy.float32)
    vectors = MemoryVectors("test/2", direction, -direction if memory.caption else None)
    store.transaction(lambda writing: writing.insert(memory, vectors, replaces=replaces))


def credit(store: SqliteStore, group: str, ids: list[str], *, correct: bool) -> None:
    verdict = Verdict(outcome=Outcome.CORRECT if correct else Outcome.INCORRECT, judge="test")
    store.transaction(lambda writing: writing.credit("default", group, ids, verdict))


def page(bank: Bank, store: SqliteStore, *, captioned: bool) -> dict[str, tuple[object, ...]]:
    """Everything that a bank says of a shelf, by id."""
    ahead = numpy.array([1, 0], dtype=numpy.float32)
    with bank.shelf(store, MemoryKind.WORKFLOW, captioned=captioned) as shelf:
        similarities = shelf.similarities(ahead, ahead if captioned else None)
        rows = zip(shelf.ids, shelf.columns.tolist(), similarities.tolist(), strict=True)
        return {id: (columns, similarity) for id, columns, similarity in rows}
