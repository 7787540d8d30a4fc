"""Memories of every kind, and texts that are hard to carry, for tests of export and import."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence

from hypothesis import strategies

from mia.config import MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.memory.exchange import export_jsonl
from mia.memory.questions import Vectorizer
from mia.store.base import MemoryStore, storable
from mia.types import Memory, MemoryKind, MemoryState, Provenance, Review

EMBEDDER = HashingEmbedder()
AS_IT_IS = MemorySettings(redact="off", quarantine=False)
"""Nothing is blacked out and nothing put aside: for files of one's own."""

HARD_PIECES = (
    *("---", "\n---\n", "## Question", "## Workflow\n", "\\## Plan", "### reasoning: 7\n", "## incorrect  plan", "# x"),
    *(
        "```\n",
        "  ",
        "\t",
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "\x00",
        "\x1b[31m",
        "\x0b\x0c\x1c\x85",
        "\u2028\u2029",
        "\ufeff",
    ),
    *("&#13;", "&amp;#13;", "&amp;", "&#10;", "&#8217;", "\u202e", "\u200d", "\U000e0041", "\ud800", "\udfff"),
    *("é", "e\u0301", "\u0130", "\U0001f600", "\uffff", '"', "\\", "'", "{}", "words of prose", "1. step (a → b)"),
)
hard_texts = strategies.lists(strategies.one_of(strategies.sampled_from(HARD_PIECES), strategies.text(max_size=8))).map(
    "".join
)
questions = hard_texts.filter(lambda text: bool(text.strip()))
moments = strategies.floats(min_value=0, max_value=4e9) | strategies.sampled_from([0.0, 1e16, -1.5, time.time()])


def _counted(uses: int, wins: int) -> dict[str, int]:
    return {"uses": max(uses, wins), "wins": min(uses, wins)}


counts = strategies.builds(_counted, strategies.integers(0, 2**53), strategies.integers(0, 2**53))


@strategies.composite
def memories(draw: strategies.DrawFn) -> Memory:
    """Any memory that a store may hold, but for its id."""
    state = draw(strategies.sampled_from(MemoryState))
    return Memory(
        id="?",
        scope=draw(strategies.sampled_from(["default", "acme", "acme/web/ann", "ünï cödé"])),
        kind=draw(strategies.sampled_from(MemoryKind)),
        question=draw(questions),
        caption=draw(hard_texts),
        category=draw(strategies.sampled_from(["others", "time"]) | hard_texts),
        workflow=draw(hard_texts),
        plan=draw(hard_texts),
        incorrect_plan=draw(hard_texts),
        judgement=draw(strategies.sampled_from(["correct", "incorrect"])),
        reviews=tuple(
            Review(
                reviewer=draw(strategies.sampled_from(["reasoning", "sourcing", "validity"])), score=3, reason=reason
            )
            for reason in draw(strategies.lists(hard_texts, max_size=3))
        ),
        provenance=Provenance(
            episode_id=draw(strategies.sampled_from(["", "ep-1", "true", "a: b # c"])),
            leaned_on=tuple(draw(strategies.lists(strategies.sampled_from(["mem-1", "mem 2"]), max_size=2))),
            compressed_by=draw(strategies.sampled_from(["", "rules", "gpt-x @ http://h:1/v1"]) | hard_texts),
            origin=draw(strategies.sampled_from(["episode", "user", "import"])),
        ),
        state=state,
        replaced_by="mem-other" if state is MemoryState.REPLACED else "",
        expires_at=draw(strategies.none() | moments),
        created_at=draw(moments),
        updated_at=draw(moments),
        **draw(counts),
    )


def fill(store: MemoryStore, rows: Sequence[Memory]) -> None:
    """Put them in as they are, embedded."""
    vectorizer = Vectorizer(store, EMBEDDER)
    # A caption of nothing but marks is one, too.
    made = vectorizer.many([(storable(one.question), storable(one.caption)) for one in rows])

    def insert(writing: object) -> None:
        for memory, vectors in zip(rows, made, strict=True):
            writing.insert(memory, vectors)  # type: ignore[attr-defined]

    store.transaction(insert)


def exported(store: MemoryStore, *, episodes: bool = False) -> tuple[bytes, bytes]:
    """The header, and the rest."""
    stream = io.BytesIO()
    export_jsonl(store, stream, episodes=episodes)
    header, _, rest = stream.getvalue().partition(b"\n")
    return header, rest


def memory(number: int = 0, **changes: object) -> Memory:
    """A plain one."""
    plain = Memory(
        id=f"mem-{number}",
        question=f"Who found moon number {number}?",
        workflow=f'1. search ("moon {number}" → Huygens)',
        judgement="correct",
        created_at=1000.0 + number,
        updated_at=1000.0 + number,
    )
    return plain.evolve(**changes)
