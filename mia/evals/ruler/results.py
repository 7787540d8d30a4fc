"""What was measured: one line for each answered item, in a file that a second call goes on with.

`results.jsonl` begins with what all its results were made under; results under other settings are refused, not mixed
in. More tasks, lengths and samples are no other settings: what is in the file is not asked again. A result is on the
disk before its item counts as answered; a line that a crash tore off is cut away. One process writes a file at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from mia.config import differences
from mia.evals.lines import Lines, refuse_others
from mia.evals.ruler.items import Work
from mia.types import Record, Usage

RESULTS = "results.jsonl"


class Result(Record):
    """One answered item."""

    task: str
    length: int
    number: int
    tokens: int
    """Of the text, by the count that it was made with."""
    references: tuple[str, ...]
    answer: str
    """The last reply, thinking included."""
    score: float = Field(ge=0, le=1)
    depths: tuple[float, ...]
    """Where in the text that stands which the answer needs."""
    hits: tuple[float, ...]
    """What was reached at each of these depths."""
    usage: Usage
    seconds: float
    """Wall clock, beside other items."""
    failure: str = ""
    """The error that stands for an answer, e.g. ContextOverflow for a text that the window does not hold; scored 0."""

    @property
    def work(self) -> Work:
        return Work(self.task, self.length, self.number)


class ResultLog:
    """The results of a folder, open for more."""

    def __init__(self, lines: Lines, results: dict[Work, Result]) -> None:
        self.results = results
        self._lines = lines
        self._writing = asyncio.Lock()

    @classmethod
    def open(cls, folder: Path, made_under: Mapping[str, Any]) -> Self:
        """Open or begin the file of a folder.

        Raises ConfigError if it was begun under other settings, RecordError for a broken line, StoreError if it cannot
        be written or another process writes it.
        """
        path = folder / RESULTS
        results: dict[Work, Result] = {}

        def check(page: Mapping[str, Any], header: Mapping[str, Any]) -> None:
            refuse_others(differences(page, header), path, f"the results in '{folder}' were made")

        def take(page: Any) -> None:
            result = Result.model_validate(page)
            results[result.work] = result

        return cls(Lines.open(path, made_under, what="results", check=check, take=take), results)

    async def append(self, result: Result) -> None:
        """Add a result; it is on the disk when this returns. Raises StoreError, and the file is then as before."""
        async with self._writing:
            # Shielded: a cancelled item must not leave half a line behind for the next one.
            await asyncio.shield(asyncio.to_thread(self._lines.append, result.model_dump(mode="json")))
            self.results[result.work] = result

    def close(self) -> None:
        self._lines.close()
