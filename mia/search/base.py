"""Search over a corpus, local or remote: queries in, ranked passages out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mia.types import Passage


class SearchEngine(Protocol):
    """Answers a batch of queries. Safe to call concurrently."""

    @property
    def name(self) -> str: ...

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """For each query, in order, up to k passages, best first. Raises ToolError or CorpusError.

        A failure is never cached.
        """
        ...

    async def close(self) -> None: ...
