"""What a memory is to the line: three verbs. Comparing strategies means passing another `MemoryStrategy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mia.models.ledger import Ledger
from mia.types import Episode, Memory, MemoryKind, Question, Recall, Verdict


class MemoryStrategy(Protocol):
    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version, for the episode."""
        ...

    async def recall(
        self,
        question: Question,
        *,
        kind: MemoryKind = MemoryKind.WORKFLOW,
        skip: frozenset[str] = frozenset(),
        ledger: Ledger | None = None,
    ) -> Recall:
        """The few past workflows that matter, or nothing. `skip`: ids to pass over. `ledger`: for a strategy that asks
        a model before it looks (ours, for the category, where that is on). Raises StoreError.
        """
        ...

    async def remember(self, group: Sequence[Episode], ledger: Ledger) -> tuple[Memory, ...]:
        """Compress and store the group of episodes of one question; idempotent by episode id. Raises StoreError.

        Returns what is in the store because of them. Unjudged episodes are kept and give no memory. A model or embedder
        that is down raises nothing: the episodes are kept, and a later call for them takes them up again.
        """
        ...

    async def credit(self, group: str, shown: frozenset[str], verdict: Verdict) -> int:
        """uses+1, and wins+1 if correct, for the memories shown to the question group; once per `group`, however often
        it is called, and a later verdict for the same group replaces the earlier one. Unjudged credits nothing.
        Returns how many memories were credited. Raises StoreError.
        """
        ...

    async def close(self) -> None: ...
